//! Ask and tell.

use std::collections::{BTreeMap, VecDeque};

use evolver_common::{
    digest::Digest,
    recipe::{Recipe, encode},
    score::{Interval, Portion, Scores, Split},
};
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;
use thiserror::Error;

use super::{
    acceptance::{self, Acceptance, Bout, Verdict},
    course::Course,
    front::Front,
    model::{Counters, Individual, Kind, Mode, Named, Outcome, Phase, Setup, SetupError, Spec},
    strategy::{self, Start, Strategy, Told},
};

/// Specs of final candidates on the sealed split are numbered from here, by the number that the same model had on dev.
pub const TEST_BASE: u64 = 1 << 48;
/// Specs of final candidates on reserved dev items, likewise.
pub const FRESH_BASE: u64 = 1 << 47;
/// The spec of a best model that was scored in stages, on all its dev items at once, likewise.
pub const DEV_BASE: u64 = 1 << 46;
/// Part of the state hash: rises whenever the same setup and results lead to other draws or decisions, for every strategy and rule. Each of those
/// has a version of its own, which is part of it once it has risen.
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
    acceptance: Acceptance,
    course: Course,
    /// There from the moment at which the start models are scored.
    strategy: Option<Box<dyn Strategy>>,
    /// Specs drawn and not absorbed.
    pending: BTreeMap<u64, Pending>,
    /// Results that wait for earlier ones.
    waiting: BTreeMap<u64, Outcome>,
    /// Offspring that are not decided, by their number among offspring.
    trials: BTreeMap<u64, Trial>,
    /// Offspring that go on to their next stage, first come first served.
    passed: VecDeque<u64>,
    /// Models from outside that wait to be drawn, and the offspring that are drawn before them at least.
    enqueued: VecDeque<(u64, Named)>,
    /// What became of those that were drawn.
    guests: Vec<Guest>,
    drawn: u64,
    absorbed: u64,
    /// The start models that could be scored; the population until there is a strategy.
    start: Vec<Individual>,
    references: Vec<Individual>,
    best: Option<Individual>,
    front: Front,
    counters: Counters,
    items: u64,
    idle: u64,
    /// Offspring that limits allow.
    limit: Option<u64>,
    /// No offspring is drawn as a spec of this number or above.
    closed_at: Option<u64>,
    /// Whether an offspring would have been drawn and a limit forbade it: nothing is drawn any more.
    closed: bool,
    stopped_by: String,
    finals: BTreeMap<u64, Outcome>,
    hash: Digest,
    /// Specs drawn and not yet asked for.
    ready: VecDeque<Spec>,
}

struct Pending {
    recipe: Digest,
    role: PendingRole,
}

enum PendingRole {
    Start(Kind, Box<Individual>),
    /// A stage of the trial with this number.
    Stage(u64),
}

/// A model that was enqueued, and what became of it.
#[derive(Debug, Clone)]
pub struct Guest {
    /// The model, with its scores as far as it was scored.
    pub individual: Individual,
    /// Whether it could be scored.
    pub scored: bool,
    /// Whether it took its rival's place.
    pub accepted: bool,
}

/// An offspring on its way.
struct Trial {
    individual: Individual,
    /// The stage that is being scored.
    stage: usize,
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
        let acceptance = acceptance::open(&setup.acceptance, &setup.tasks)?;
        let shares = acceptance.rule.stages();
        let course = Course::new(setup.seed, &shares, acceptance.reserve, &setup.objective, &setup.tasks)?;
        // Opened once more when the start models are scored; here for its refusals.
        let unscored: Vec<_> = (0..).zip(&setup.individuals).map(|(number, named)| unscored(named, number)).collect();
        let strategy = strategy::open(&setup.strategy, &Start { setup: &setup, members: &unscored })?;
        enough(&setup, strategy.least(), &course)?;
        let identities = [strategy::identity(&setup.strategy)?, acceptance.identity];
        let hash =
            identities.into_iter().filter(|(_, version)| *version > 1).fold(Digest::of(VERSION), |hash, (name, version)| {
                Digest::of_parts("evolver search", [hash.as_bytes().as_slice(), name.as_bytes(), &version.to_le_bytes()])
            });
        let mut search = Self {
            hash,
            acceptance,
            course,
            strategy: None,
            pending: BTreeMap::new(),
            waiting: BTreeMap::new(),
            trials: BTreeMap::new(),
            passed: VecDeque::new(),
            enqueued: VecDeque::new(),
            guests: Vec::new(),
            drawn: 0,
            absorbed: 0,
            start: Vec::new(),
            references: Vec::new(),
            best: None,
            front: Front::default(),
            counters: Counters::default(),
            items: 0,
            idle: 0,
            limit: None,
            closed_at: None,
            closed: false,
            stopped_by: String::new(),
            finals: BTreeMap::new(),
            ready: VecDeque::new(),
            setup,
        };
        search.draw_all();
        Ok(search)
    }

    fn start_specs(&self) -> u64 {
        (self.setup.individuals.len() + self.setup.references.len()) as u64
    }

    fn started(&self) -> bool {
        self.absorbed >= self.start_specs()
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
        // Spec k needs the results 0 ..= k - in_flight, or as many that arrived.
        if !self.started() || self.closed || self.drawn >= self.absorbed + self.setup.in_flight as u64 {
            return None;
        }
        if let Some(number) = self.passed.pop_front() {
            return self.next_stage(number);
        }
        if !self.may_draw() {
            // What has been drawn so far is the beginning of what a search with a higher limit draws; what is not decided stays undecided.
            self.closed = true;
            return None;
        }
        let strategy = self.strategy.as_mut()?;
        let offspring = self.counters.issued;
        let (recipe, parents, name) = match self.enqueued.pop_front_if(|(before, _)| *before <= offspring) {
            Some((_, named)) => {
                strategy.adopt(offspring);
                (named.recipe, Vec::new(), named.name)
            }
            None => {
                let mut random = ChaCha8Rng::seed_from_u64(self.setup.seed);
                random.set_stream(offspring);
                let proposal = strategy.ask(offspring, &mut random);
                (proposal.recipe, proposal.parents, String::new())
            }
        };
        let individual = Individual {
            id: recipe.id(),
            name,
            kind: "evolved",
            parents,
            recipe,
            number: self.drawn,
            scores: Scores::default(),
            dev: f64::NAN,
        };
        self.counters.issued += 1;
        self.trials.insert(offspring, Trial { individual, stage: 0 });
        self.next_stage(offspring)
    }

    fn next_stage(&mut self, offspring: u64) -> Option<Spec> {
        let trial = self.trials.get(&offspring)?;
        let (recipe, portion) = (trial.individual.recipe.clone(), self.course.scored_at(trial.stage));
        Some(self.issue(Kind::Offspring, &recipe, portion, PendingRole::Stage(offspring)))
    }

    fn next_start(&mut self) -> Spec {
        let index = usize::try_from(self.drawn).unwrap_or(usize::MAX);
        let individuals = self.setup.individuals.len();
        let (kind, named) = match self.setup.individuals.get(index) {
            Some(named) => (Kind::Initial, named),
            None => (Kind::Reference, &self.setup.references[index - individuals]),
        };
        let individual = unscored(named, self.drawn);
        let recipe = individual.recipe.clone();
        self.issue(kind, &recipe, self.course.whole(), PendingRole::Start(kind, Box::new(individual)))
    }

    fn issue(&mut self, kind: Kind, recipe: &Recipe, portion: Portion, role: PendingRole) -> Spec {
        let spec = Spec { number: self.drawn, kind, recipe: recipe.clone(), portion };
        self.pending.insert(self.drawn, Pending { recipe: recipe.id(), role });
        self.drawn += 1;
        spec
    }

    /// The recipe's id of a spec that was drawn and has not been absorbed.
    #[must_use]
    pub fn recipe(&self, number: u64) -> Option<Digest> {
        self.pending.get(&number).map(|pending| pending.recipe)
    }

    /// The specs of final candidates that have no result yet, on reserved dev items, on the sealed split, and on dev where metrics are missing; none
    /// before the search has ended.
    #[must_use]
    pub fn tests(&self) -> Vec<Spec> {
        if !self.searched() {
            return Vec::new();
        }
        let reserve =
            self.course.reserve().map(|subset| (FRESH_BASE, Kind::Fresh, Portion { split: Split::Dev, subset: Some(subset) }));
        let sealed = self.setup.tasks.iter().any(|task| task.test_items > 0);
        let sealed = sealed.then_some((TEST_BASE, Kind::Test, Split::Test.into()));
        let table = self.table();
        let spec =
            |row: &Individual, base, kind, portion| Spec { number: base + row.number, kind, recipe: row.recipe.clone(), portion };
        let of_all = reserve
            .into_iter()
            .chain(sealed)
            .flat_map(|(base, kind, portion)| table.iter().map(move |row| spec(row, base, kind, portion)));
        let staged = self.best().filter(|best| self.lacks_metrics(best));
        let specs = of_all.chain(staged.map(|best| spec(best, DEV_BASE, Kind::Dev, self.course.whole())));
        specs.filter(|spec| !self.finals.contains_key(&spec.number)).collect()
    }

    /// Whether others have metrics that this one lacks: of what is put together from stages only means are known.
    fn lacks_metrics(&self, individual: &Individual) -> bool {
        let lacks = |row: &Individual| {
            let pairs = row.scores.tasks.iter().zip(&individual.scores.tasks);
            pairs.into_iter().any(|(theirs, own)| theirs.metrics.keys().any(|metric| !own.metrics.contains_key(metric)))
        };
        self.references.iter().any(lacks)
    }

    /// The final candidates, the rows of the final table: references, start models, and the best if it is an offspring.
    #[must_use]
    pub fn table(&self) -> Vec<Individual> {
        let best = self.best().filter(|best| best.kind == "evolved").cloned();
        self.references.iter().cloned().chain(best).collect()
    }

    /// Hands in how a spec ended, in any order; results are absorbed in the order of their numbers, or as they arrive.
    ///
    /// # Errors
    /// If the spec was not drawn, or has a result.
    pub fn tell(&mut self, number: u64, outcome: Outcome) -> Result<(), TellError> {
        if number >= DEV_BASE {
            if self.finals.contains_key(&number) {
                return Err(TellError::Repeated(number));
            }
            self.finals.insert(number, outcome);
            return Ok(());
        }
        if self.waiting.contains_key(&number) || (number < self.drawn && !self.pending.contains_key(&number)) {
            return Err(TellError::Repeated(number));
        }
        if !self.pending.contains_key(&number) {
            return Err(TellError::Unknown(number));
        }
        self.waiting.insert(number, outcome);
        while let Some((number, outcome)) = self.next_result() {
            self.absorb(number, outcome);
            self.draw_all();
        }
        Ok(())
    }

    fn next_result(&mut self) -> Option<(u64, Outcome)> {
        match self.setup.mode {
            // What has been absorbed are the numbers below.
            Mode::Ordered => self.waiting.remove_entry(&self.absorbed),
            Mode::Arrival => self.waiting.pop_first(),
        }
    }

    fn absorb(&mut self, number: u64, outcome: Outcome) {
        let Some(pending) = self.pending.remove(&number) else {
            return;
        };
        self.absorbed += 1;
        self.items += items(&outcome);
        match pending.role {
            PendingRole::Start(kind, individual) => self.absorb_start(number, kind, *individual, outcome),
            PendingRole::Stage(offspring) => self.absorb_stage(number, offspring, outcome),
        }
        self.check_limits();
    }

    fn absorb_start(&mut self, number: u64, kind: Kind, mut individual: Individual, outcome: Outcome) {
        let scored = matches!(outcome, Outcome::Scored(_));
        if let Outcome::Scored(scores) = outcome {
            individual.dev = self.setup.objective.value(&scores);
            individual.scores = scores;
            self.references.push(individual.clone());
            if kind == Kind::Initial {
                self.start.push(individual.clone());
            }
        }
        self.mix(number, &individual, [scored, scored]);
        if self.started() {
            self.open();
        }
    }

    /// The start models are scored: in the order of their numbers, in which they may not have come.
    fn open(&mut self) {
        self.references.sort_by_key(|individual| individual.number);
        self.start.sort_by_key(|individual| individual.number);
        for individual in self.start.clone() {
            self.front.add(&individual, self.setup.objective.values(&individual.scores));
            self.crown(&individual);
        }
        match strategy::open(&self.setup.strategy, &Start { setup: &self.setup, members: &self.start }) {
            Ok(strategy) => {
                self.limit = self.planned_offspring(strategy.generation());
                self.strategy = Some(strategy);
            }
            Err(error) => {
                self.limit = Some(0);
                self.stopped_by = format!("too few start models could be scored: {error}");
            }
        }
    }

    /// The limits that are known beforehand.
    fn planned_offspring(&mut self, generation: u64) -> Option<u64> {
        let stop = &self.setup.stop;
        let total = [
            stop.offspring.map(|limit| (limit, "stop.offspring")),
            stop.generations.map(|limit| (limit.saturating_mul(generation), "stop.generations")),
        ];
        let (limit, by) = total.into_iter().flatten().min()?;
        by.clone_into(&mut self.stopped_by);
        Some(limit)
    }

    fn absorb_stage(&mut self, number: u64, offspring: u64, outcome: Outcome) {
        let Some(mut trial) = self.trials.remove(&offspring) else {
            return;
        };
        let (scored, verdict) = match outcome {
            Outcome::Scored(scores) => {
                trial.individual.scores = self.course.join(&trial.individual.scores, scores, trial.stage);
                (true, self.judge(offspring, &mut trial))
            }
            Outcome::Failed(_) => {
                trial.individual.dev = f64::NAN;
                (false, Verdict::Reject)
            }
        };
        self.mix(number, &trial.individual, [scored, verdict == Verdict::Pass]);
        if verdict == Verdict::Pass && !self.course.is_last(trial.stage) {
            trial.stage += 1;
            self.trials.insert(offspring, trial);
            self.passed.push_back(offspring);
        } else {
            self.settle(offspring, &trial, scored, verdict == Verdict::Pass);
        }
    }

    /// Sets the offspring's objective, or its estimate, and asks the rule.
    fn judge(&mut self, offspring: u64, trial: &mut Trial) -> Verdict {
        let objective = &self.setup.objective;
        let last = self.course.is_last(trial.stage);
        let individual = &mut trial.individual;
        if last {
            individual.dev = objective.value(&individual.scores);
        }
        let rival = self.strategy.as_ref().and_then(|strategy| strategy.rival(offspring));
        let Some(rival) = rival else {
            if !last {
                individual.dev = objective.credit_value(&individual.scores);
            }
            return Verdict::Pass;
        };
        let theirs = self.course.so_far(&rival.scores, trial.stage);
        if !last {
            let difference = objective.credit_value(&individual.scores) - objective.credit_value(&theirs);
            individual.dev = rival.dev + difference;
        }
        let violations = [individual as &Individual, rival].map(|one| self.violation(&one.scores));
        if last && violations != [0.0, 0.0] {
            // Of two that fall below a floor the one that falls less wins (Deb 2000).
            return if violations[0] < violations[1] { Verdict::Pass } else { Verdict::Reject };
        }
        let fresh = [&individual.scores, &theirs].map(|scores| self.course.fresh(scores, trial.stage));
        let bout =
            Bout { objective, stage: trial.stage, last, so_far: [&individual.scores, &theirs], fresh: [&fresh[0], &fresh[1]] };
        self.acceptance.rule.judge(&bout)
    }

    /// How far tasks fall below their floors, summed.
    fn violation(&self, scores: &Scores) -> f64 {
        let values = self.setup.objective.values(scores);
        values.iter().zip(&self.acceptance.floors).map(|(value, floor)| floor.map_or(0.0, |floor| (floor - value).max(0.0))).sum()
    }

    fn settle(&mut self, offspring: u64, trial: &Trial, scored: bool, accepted: bool) {
        let individual = &trial.individual;
        let complete = scored && self.course.is_last(trial.stage);
        self.counters.committed += 1;
        self.counters.failed += u64::from(!scored);
        if !individual.name.is_empty() {
            self.guests.push(Guest { individual: individual.clone(), scored, accepted });
        }
        if let Some(strategy) = &mut self.strategy {
            strategy.tell(offspring, &Told { individual, scored, complete, accepted });
        }
        if complete {
            self.front.add(individual, self.setup.objective.values(&individual.scores));
        }
        if accepted {
            self.counters.accepted += 1;
            self.idle = 0;
            self.crown(individual);
        } else {
            self.idle += 1;
        }
    }

    /// The best ever accepted is kept, the first of equal ones; who keeps to the floors goes before who does not.
    fn crown(&mut self, individual: &Individual) {
        let rank = |one: &Individual| (-self.violation(&one.scores), one.dev);
        if self.best.as_ref().is_none_or(|best| rank(individual) > rank(best)) {
            self.best = Some(individual.clone());
        }
    }

    /// Chains one absorbed result and its decision into the state hash.
    fn mix(&mut self, number: u64, individual: &Individual, [scored, passed]: [bool; 2]) {
        let mut bytes = vec![u8::from(scored), u8::from(passed)];
        for task in &individual.scores.tasks {
            bytes.extend(task.credits.iter().flat_map(|credit| credit.to_bits().to_le_bytes()));
        }
        let parts: [&[u8]; 5] = [
            self.hash.as_bytes(),
            &number.to_le_bytes(),
            &encode(&individual.recipe),
            &individual.dev.to_bits().to_le_bytes(),
            &bytes,
        ];
        self.hash = Digest::of_parts("evolver state", parts);
    }

    /// Limits that hold from the moment at which they are reached.
    fn check_limits(&mut self) {
        if !self.started() {
            return;
        }
        let stop = &self.setup.stop;
        let spent = stop.evaluations.is_some_and(|limit| self.items >= limit);
        let stuck = stop.patience.is_some_and(|limit| self.idle >= limit);
        if spent || stuck {
            self.stop(self.drawn, if spent { "stop.evaluations" } else { "stop.patience" });
        }
    }

    /// Ends the search from outside: no offspring is drawn as a spec of this number or above. A journaled decision, repeated on replay at the same
    /// place.
    pub fn stop(&mut self, number: u64, reason: &str) {
        if self.may_draw() && self.closed_at.is_none_or(|closed| number < closed) {
            self.closed_at = Some(number);
            reason.clone_into(&mut self.stopped_by);
        }
    }

    /// Adds a model from outside: it is the next offspring that is drawn after so many. A journaled decision, repeated on replay at the same place.
    pub fn enqueue(&mut self, offspring: u64, named: Named) {
        self.enqueued.push_back((offspring, named));
        self.draw_all();
    }

    /// Whether limits allow another offspring.
    fn may_draw(&self) -> bool {
        self.limit.is_none_or(|limit| self.counters.issued < limit) && self.closed_at.is_none_or(|closed| self.drawn < closed)
    }

    /// Specs drawn on dev.
    #[must_use]
    pub fn drawn(&self) -> u64 {
        self.drawn
    }

    /// Whether its last offspring is drawn.
    #[must_use]
    pub fn is_ending(&self) -> bool {
        self.started() && !self.may_draw()
    }

    fn searched(&self) -> bool {
        self.closed && self.pending.is_empty()
    }

    /// Where the search is.
    #[must_use]
    pub fn phase(&self) -> Phase {
        if !self.started() {
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
        if self.is_ending() { Some(self.counters.issued) } else { self.limit }
    }

    /// Generations completed.
    #[must_use]
    pub fn generation(&self) -> u64 {
        let size = self.strategy.as_ref().map_or(0, |strategy| strategy.generation());
        self.counters.committed.checked_div(size).unwrap_or(0)
    }

    /// The current population.
    #[must_use]
    pub fn population(&self) -> &[Individual] {
        self.strategy.as_ref().map_or(&self.start, |strategy| strategy.population())
    }

    /// Whether every spec scores a whole split, and offspring are made by the operations that recipes had from the beginning.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        const FIRST: [&str; 4] = ["evolver", "de", "jade", "shade"];
        let whole = self.course.is_last(0) && self.course.whole().subset.is_none();
        whole && FIRST.contains(&self.setup.strategy.name.as_str())
    }

    /// What the one spec of an individual's number scored it on; nothing where it was scored stage by stage.
    #[must_use]
    pub fn portion_of(&self, individual: &Individual) -> Option<Portion> {
        let at_once = individual.number < self.start_specs() || self.course.is_last(0);
        at_once.then(|| self.course.whole())
    }

    /// The Pareto front over tasks of everything that was scored in full.
    #[must_use]
    pub fn front(&self) -> &[Individual] {
        self.front.members()
    }

    /// The models that were enqueued and have been decided, in their order.
    #[must_use]
    pub fn guests(&self) -> &[Guest] {
        &self.guests
    }

    /// The best by dev, if anything was scored; where the strategy says what its final model is, that.
    #[must_use]
    pub fn best(&self) -> Option<&Individual> {
        self.strategy.as_ref().and_then(|strategy| strategy.best()).or(self.best.as_ref())
    }

    /// The objective of scores with its interval.
    #[must_use]
    pub fn interval(&self, scores: &Scores) -> Interval {
        self.setup.objective.interval(scores)
    }

    /// The objective of a final candidate with an interval that is corrected for how many of them were looked at.
    #[must_use]
    pub fn interval_of_final(&self, scores: &Scores) -> Interval {
        self.setup.objective.interval_among(scores, self.table().len())
    }

    /// A candidate's scores on the sealed split.
    #[must_use]
    pub fn test_scores(&self, individual: &Individual) -> Option<&Scores> {
        self.final_scores(TEST_BASE + individual.number)
    }

    /// An individual's dev scores with all metrics, once they are there.
    #[must_use]
    pub fn dev_scores<'a>(&'a self, individual: &'a Individual) -> &'a Scores {
        self.final_scores(DEV_BASE + individual.number).unwrap_or(&individual.scores)
    }

    /// A candidate's scores on the dev items that no decision has read.
    #[must_use]
    pub fn fresh_scores(&self, individual: &Individual) -> Option<&Scores> {
        self.final_scores(FRESH_BASE + individual.number)
    }

    fn final_scores(&self, number: u64) -> Option<&Scores> {
        match self.finals.get(&number) {
            Some(Outcome::Scored(scores)) => Some(scores),
            _ => None,
        }
    }

    /// How much has happened.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Dev items scored so far that decisions read.
    #[must_use]
    pub fn items(&self) -> u64 {
        self.items
    }

    /// Reserved dev items scored for the final candidates.
    #[must_use]
    pub fn reserved_items(&self) -> u64 {
        let scored = self.table().into_iter().filter_map(|row| self.finals.get(&(FRESH_BASE + row.number)));
        scored.map(items).sum()
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

fn unscored(named: &Named, number: u64) -> Individual {
    Individual {
        id: named.recipe.id(),
        name: named.name.clone(),
        kind: named.kind,
        parents: Vec::new(),
        recipe: named.recipe.clone(),
        number,
        scores: Scores::default(),
        dev: f64::NAN,
    }
}

fn items(outcome: &Outcome) -> u64 {
    match outcome {
        Outcome::Scored(scores) => scores.tasks.iter().map(|task| task.credits.len() as u64).sum(),
        Outcome::Failed(_) => 0,
    }
}

/// Refuses limits under which the strategy cannot do the least that it needs.
fn enough(setup: &Setup, least: u64, course: &Course) -> Result<(), SetupError> {
    let name = &setup.strategy.name;
    if let Some(limit) = setup.stop.offspring.filter(|limit| *limit < least) {
        return Err(SetupError(format!("stop.offspring is {limit}, and strategy {name} needs at least {least}")));
    }
    let start: u64 = setup.tasks.iter().map(|task| course.whole().count(task.dev_items) as u64).sum();
    let models = (setup.individuals.len() + setup.references.len()) as u64;
    let needed = start * models + least * course.least_items();
    match setup.stop.evaluations.filter(|limit| least > 0 && *limit < needed) {
        Some(limit) => Err(SetupError(format!(
            "stop.evaluations is {limit} dev items, and {needed} are the least: {models} start models of {start} items each, and {least} offspring for strategy {name}"
        ))),
        None => Ok(()),
    }
}
