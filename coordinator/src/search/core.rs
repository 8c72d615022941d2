//! Ask and tell.

use std::collections::{BTreeMap, VecDeque};

use evolver_common::{
    digest::Digest,
    recipe::encode,
    score::{Interval, Scores, Split},
};
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;
use thiserror::Error;

use super::{
    acceptance::{self, Rule},
    model::{Counters, Individual, Kind, Outcome, Phase, Setup, SetupError, Spec},
    strategy::{self, Strategy},
};

/// Test specs are numbered from here, by the number that the same model had on dev.
pub const TEST_BASE: u64 = 1 << 48;
/// Part of the state hash: rises whenever the same setup and results lead to other draws or decisions.
const VERSION: &[u8] = b"evolver search v1";

/// A result that does not belong to this search.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TellError {
    /// No spec has this number yet.
    #[error("no spec {0} has been drawn")]
    Unknown(u64),
    /// The spec has a result already.
    #[error("spec {0} has a result already")]
    Repeated(u64),
}

/// A search under way.
pub struct Search {
    setup: Setup,
    strategy: Option<Box<dyn Strategy>>,
    rule: Box<dyn Rule>,
    /// Specs drawn and not absorbed.
    pending: BTreeMap<u64, Pending>,
    /// Results that wait for earlier ones.
    waiting: BTreeMap<u64, Outcome>,
    drawn: u64,
    absorbed: u64,
    population: Vec<Individual>,
    references: Vec<Individual>,
    best: Option<Individual>,
    counters: Counters,
    items: u64,
    idle: u64,
    stop_at: Option<u64>,
    stopped_by: String,
    tests: BTreeMap<u64, Outcome>,
    hash: Digest,
    /// Specs drawn and not yet asked for.
    ready: VecDeque<Spec>,
}

struct Pending {
    kind: Kind,
    individual: Individual,
    slot: usize,
}

impl Search {
    /// Begins a search.
    ///
    /// # Errors
    /// A sentence on what in the setup cannot be.
    pub fn new(setup: Setup) -> Result<Self, SetupError> {
        if setup.in_flight == 0 {
            return Err(SetupError("search.in_flight is 0: at least 1 is needed".into()));
        }
        // Opened once more when the start population is known; here for its refusals.
        strategy::open(&setup.strategy, setup.individuals.len())?;
        let mut search = Self {
            rule: acceptance::open(&setup.acceptance)?,
            strategy: None,
            pending: BTreeMap::new(),
            waiting: BTreeMap::new(),
            drawn: 0,
            absorbed: 0,
            population: Vec::new(),
            references: Vec::new(),
            best: None,
            counters: Counters::default(),
            items: 0,
            idle: 0,
            stop_at: None,
            stopped_by: String::new(),
            tests: BTreeMap::new(),
            hash: Digest::of(VERSION),
            ready: VecDeque::new(),
            setup,
        };
        search.draw_all();
        Ok(search)
    }

    fn start_specs(&self) -> u64 {
        (self.setup.individuals.len() + self.setup.references.len()) as u64
    }

    /// The next spec, if what has been absorbed allows one. The same results give the same specs in the same order.
    pub fn ask(&mut self) -> Option<Spec> {
        self.ready.pop_front()
    }

    /// Draws every spec that the results absorbed so far allow. Called after each single one, so that what an offspring is drawn from does not
    /// depend on how many results were absorbed at once.
    fn draw_all(&mut self) {
        while let Some(spec) = self.draw() {
            self.ready.push_back(spec);
        }
    }

    fn draw(&mut self) -> Option<Spec> {
        if self.drawn < self.start_specs() {
            return Some(self.next_start());
        }
        if self.absorbed < self.start_specs() || self.stop_at.is_some_and(|stop| self.drawn >= stop) {
            return None;
        }
        // Offspring k needs the results 0 ..= k - in_flight.
        if self.drawn >= self.absorbed + self.setup.in_flight as u64 {
            return None;
        }
        let strategy = self.strategy.as_ref()?;
        let offspring = self.drawn - self.start_specs();
        let mut random = ChaCha8Rng::seed_from_u64(self.setup.seed);
        random.set_stream(offspring);
        let draw = strategy.draw(offspring, &self.population, &mut random);
        let individual = Individual {
            id: draw.recipe.id(),
            name: String::new(),
            kind: "evolved",
            parents: draw.parents.iter().map(evolver_common::recipe::Recipe::id).collect(),
            recipe: draw.recipe,
            number: self.drawn,
            scores: Scores::default(),
            dev: f64::NAN,
        };
        self.counters.issued += 1;
        Some(self.issue(Kind::Offspring, individual, draw.slot))
    }

    fn next_start(&mut self) -> Spec {
        let index = usize::try_from(self.drawn).unwrap_or(usize::MAX);
        let individuals = self.setup.individuals.len();
        let (kind, named) = match self.setup.individuals.get(index) {
            Some(named) => (Kind::Initial, named),
            None => (Kind::Reference, &self.setup.references[index - individuals]),
        };
        let individual = Individual {
            id: named.recipe.id(),
            name: named.name.clone(),
            kind: named.kind,
            parents: Vec::new(),
            recipe: named.recipe.clone(),
            number: self.drawn,
            scores: Scores::default(),
            dev: f64::NAN,
        };
        self.issue(kind, individual, index)
    }

    fn issue(&mut self, kind: Kind, individual: Individual, slot: usize) -> Spec {
        let spec = Spec { number: self.drawn, kind, recipe: individual.recipe.clone(), split: Split::Dev };
        self.pending.insert(self.drawn, Pending { kind, individual, slot });
        self.drawn += 1;
        spec
    }

    /// The recipe's id of a spec that was drawn and has not been absorbed.
    #[must_use]
    pub fn recipe(&self, number: u64) -> Option<Digest> {
        self.pending.get(&number).map(|pending| pending.individual.id)
    }

    /// The specs on the sealed split that have no result yet; none before the search has ended.
    #[must_use]
    pub fn tests(&self) -> Vec<Spec> {
        if !self.searched() {
            return Vec::new();
        }
        self.candidates()
            .into_iter()
            .map(|individual| Spec {
                number: TEST_BASE + individual.number,
                kind: Kind::Test,
                recipe: individual.recipe,
                split: Split::Test,
            })
            .filter(|spec| !self.tests.contains_key(&spec.number))
            .collect()
    }

    /// What is scored on the sealed split: the start models, the references, and the best.
    #[must_use]
    pub fn candidates(&self) -> Vec<Individual> {
        if self.setup.tasks.iter().all(|task| task.test_items == 0) {
            return Vec::new();
        }
        self.table()
    }

    /// The rows of the final table: references, start models, and the best if it is an offspring.
    #[must_use]
    pub fn table(&self) -> Vec<Individual> {
        let best = self.best.iter().filter(|best| best.kind == "evolved").cloned();
        self.references.iter().cloned().chain(best).collect()
    }

    /// Hands in how a spec ended, in any order; results are absorbed in the order of their numbers.
    ///
    /// # Errors
    /// If the spec was not drawn, or has a result.
    pub fn tell(&mut self, number: u64, outcome: Outcome) -> Result<(), TellError> {
        if number >= TEST_BASE {
            if self.tests.contains_key(&number) {
                return Err(TellError::Repeated(number));
            }
            self.tests.insert(number, outcome);
            return Ok(());
        }
        if number < self.absorbed || self.waiting.contains_key(&number) {
            return Err(TellError::Repeated(number));
        }
        if !self.pending.contains_key(&number) {
            return Err(TellError::Unknown(number));
        }
        self.waiting.insert(number, outcome);
        while let Some(outcome) = self.waiting.remove(&self.absorbed) {
            self.absorb(outcome);
            self.draw_all();
        }
        Ok(())
    }

    fn absorb(&mut self, outcome: Outcome) {
        let Some(pending) = self.pending.remove(&self.absorbed) else {
            return;
        };
        self.absorbed += 1;
        let mut individual = pending.individual;
        let scored = match outcome {
            Outcome::Scored(scores) => {
                self.items += scores.tasks.iter().map(|task| task.credits.len() as u64).sum::<u64>();
                individual.dev = self.setup.objective.value(&scores);
                individual.scores = scores;
                true
            }
            Outcome::Failed(_) => false,
        };
        let accepted = match pending.kind {
            Kind::Initial | Kind::Reference => self.absorb_start(pending.kind, &individual, scored),
            Kind::Offspring | Kind::Test => self.absorb_offspring(&individual, pending.slot, scored),
        };
        self.mix(&individual, scored, accepted);
        self.check_limits();
    }

    fn absorb_start(&mut self, kind: Kind, individual: &Individual, scored: bool) -> bool {
        if scored {
            self.references.push(individual.clone());
            if kind == Kind::Initial {
                self.population.push(individual.clone());
                self.crown(individual);
            }
        }
        if self.absorbed == self.start_specs() {
            match strategy::open(&self.setup.strategy, self.population.len()) {
                Ok(strategy) => self.strategy = Some(strategy),
                Err(error) => self.end(&format!("too few start models could be scored: {error}")),
            }
        }
        scored
    }

    fn absorb_offspring(&mut self, individual: &Individual, slot: usize, scored: bool) -> bool {
        self.counters.committed += 1;
        let accepted = scored && self.rule.better(&self.setup.objective, &individual.scores, &self.population[slot].scores);
        if accepted {
            self.counters.accepted += 1;
            self.idle = 0;
            self.crown(individual);
            self.population[slot] = individual.clone();
        } else {
            self.counters.failed += u64::from(!scored);
            self.idle += 1;
        }
        accepted
    }

    /// The best ever accepted is kept, the first of equal ones.
    fn crown(&mut self, individual: &Individual) {
        if self.best.as_ref().is_none_or(|best| individual.dev > best.dev) {
            self.best = Some(individual.clone());
        }
    }

    /// Chains one absorbed result and its decision into the state hash.
    fn mix(&mut self, individual: &Individual, scored: bool, accepted: bool) {
        let mut bytes = vec![u8::from(scored), u8::from(accepted)];
        for task in &individual.scores.tasks {
            bytes.extend(task.credits.iter().flat_map(|credit| credit.to_bits().to_le_bytes()));
        }
        let parts: [&[u8]; 5] = [
            self.hash.as_bytes(),
            &individual.number.to_le_bytes(),
            &encode(&individual.recipe),
            &individual.dev.to_bits().to_le_bytes(),
            &bytes,
        ];
        self.hash = Digest::of_parts("evolver state", parts);
    }

    fn check_limits(&mut self) {
        if self.absorbed < self.start_specs() {
            return;
        }
        let stop = self.setup.stop.clone();
        let size = self.population.len() as u64;
        let start = self.start_specs();
        let total = [
            stop.offspring.map(|limit| (limit, "stop.offspring")),
            stop.generations.map(|limit| (limit.saturating_mul(size), "stop.generations")),
        ];
        // Limits on how many are drawn are known at once; the others hold from the moment they are reached.
        if let Some((limit, by)) = total.into_iter().flatten().min() {
            self.end_at(start.saturating_add(limit), by);
        }
        if stop.evaluations.is_some_and(|limit| self.items >= limit) {
            self.end("stop.evaluations");
        }
        if stop.patience.is_some_and(|limit| self.idle >= limit) {
            self.end("stop.patience");
        }
    }

    fn end(&mut self, by: &str) {
        self.end_at(self.drawn, by);
    }

    fn end_at(&mut self, number: u64, by: &str) {
        // What has been drawn is absorbed in any case.
        let number = number.max(self.drawn);
        if self.stop_at.is_none_or(|stop| number < stop) {
            self.stop_at = Some(number);
            by.clone_into(&mut self.stopped_by);
        }
    }

    /// Ends the search from outside: no spec with this number or above is drawn. A journaled decision, repeated on replay at the same place.
    pub fn stop(&mut self, number: u64, reason: &str) {
        self.end_at(number, reason);
    }

    /// Specs drawn on dev.
    #[must_use]
    pub fn drawn(&self) -> u64 {
        self.drawn
    }

    /// Whether the number of its last spec is known and drawn.
    #[must_use]
    pub fn is_ending(&self) -> bool {
        self.stop_at.is_some_and(|stop| self.drawn >= stop)
    }

    fn searched(&self) -> bool {
        self.stop_at.is_some_and(|stop| self.absorbed >= stop)
    }

    /// Where the search is.
    #[must_use]
    pub fn phase(&self) -> Phase {
        if self.absorbed < self.start_specs() {
            Phase::Start
        } else if !self.searched() {
            Phase::Search
        } else if self.tests().is_empty() {
            Phase::Finished
        } else {
            Phase::Test
        }
    }

    /// Which limit ended it, empty while it runs.
    #[must_use]
    pub fn stopped_by(&self) -> &str {
        if self.searched() { &self.stopped_by } else { "" }
    }

    /// Offspring that the limits allow, if a limit says so.
    #[must_use]
    pub fn planned(&self) -> Option<u64> {
        self.stop_at.map(|stop| stop.saturating_sub(self.start_specs()))
    }

    /// Generations completed.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.counters.committed.checked_div(self.population.len() as u64).unwrap_or(0)
    }

    /// The current population.
    #[must_use]
    pub fn population(&self) -> &[Individual] {
        &self.population
    }

    /// The best by dev, if anything was scored.
    #[must_use]
    pub fn best(&self) -> Option<&Individual> {
        self.best.as_ref()
    }

    /// The best's dev objective with its interval.
    #[must_use]
    pub fn interval(&self, scores: &Scores) -> Interval {
        self.setup.objective.interval(scores)
    }

    /// A candidate's scores on the sealed split.
    #[must_use]
    pub fn test_scores(&self, individual: &Individual) -> Option<&Scores> {
        match self.tests.get(&(TEST_BASE + individual.number)) {
            Some(Outcome::Scored(scores)) => Some(scores),
            _ => None,
        }
    }

    /// How much has happened.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Dev items scored so far.
    #[must_use]
    pub fn items(&self) -> u64 {
        self.items
    }

    /// Results absorbed so far.
    #[must_use]
    pub fn absorbed(&self) -> u64 {
        self.absorbed
    }

    /// The setup.
    #[must_use]
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    /// A digest of every absorbed result and decision, in order. Equal hashes are equal searches.
    #[must_use]
    pub fn state_hash(&self) -> Digest {
        self.hash
    }
}
