//! A simulated world around the real search and fleet: scores are a pure function of the recipe, everything else is chance.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use evolver_common::{
    digest::Digest,
    recipe::Recipe,
    score::{Objective, Scores, Split, TaskScore, Weighted},
};
use evolver_coordinator::{
    fleet::{Fleet, Purpose, Settings, Token},
    search::{Individual, Mode, Named, Outcome, Phase, Plugin, Search, Setup, Spec, Stop, Task, rules, strategies},
};
use serde_json::{Value, json};

/// Dev items of the two tasks.
pub(crate) const ITEMS: [usize; 2] = [12, 8];
const ATTEMPTS: u32 = 3;
/// Leases of a spec that a world may lose; the fleet gives a spec up at 10.
const LOSSES: u32 = 8;
/// No comparisons here.
const SETTINGS: Settings = Settings { lease: LEASE, attempts: ATTEMPTS, check_every: 0, tolerance: 0.0, seed: 0 };
const LEASE: Duration = Duration::from_secs(60);

/// One way to search.
#[derive(Clone, Debug)]
pub(crate) struct Variant {
    pub(crate) strategy: &'static str,
    pub(crate) keys: Value,
    pub(crate) rule: &'static str,
    pub(crate) rule_keys: Value,
    pub(crate) mode: Mode,
}

impl Variant {
    fn new(strategy: &'static str, keys: Value, rule: &'static str) -> Self {
        let rule_keys = if rule == "greedy" { json!({}) } else { json!({ "threshold": 0.6, "reserve": 0.2 }) };
        Self { strategy, keys, rule, rule_keys, mode: Mode::Ordered }
    }
}

/// Keys under which a strategy fits a search as small as these.
fn keys(strategy: &str) -> Value {
    match strategy {
        "evolver" => json!({ "scale": 0.4, "crossover_rate": 0.6, "planned_generations": 6 }),
        "evolver_merger" => json!({ "method": "linear" }),
        "cma_es" => json!({ "method": "task_arithmetic", "coefficients": ["weight", "lambda"], "patterns": ["attention"] }),
        "one_plus_one" => json!({ "method": "ties", "coefficients": ["weight", "density"], "layer_groups": 3 }),
        "auto_es" => json!({ "budget": 40 }),
        "recipes" => json!({ "size": 4, "segments": 3 }),
        "niches" => json!({ "archive": 6 }),
        "nsga2" => json!({ "fewer_checkpoints": true }),
        "portfolio" => json!({ "strategies": ["evolver", "perturbation", "one_plus_one"], "warmup": 2 }),
        _ => json!({}),
    }
}

/// Every strategy under every rule, and every variant of Evolver.
pub(crate) fn variants() -> Vec<Variant> {
    let every = strategies()
        .into_iter()
        .flat_map(|strategy| rules().into_iter().map(move |rule| Variant::new(strategy.name, keys(strategy.name), rule.name)));
    let mut variants: Vec<_> = every.collect();
    for mutation in ["interpolation", "difference"] {
        for reference in ["scheduled", "random"] {
            for per in ["parameter", "tensor"] {
                for update in ["steady", "generational"] {
                    let keys = json!({
                        "scale": 0.4, "crossover_rate": 0.6, "per": per, "mutation": mutation, "reference": reference,
                        "update": update, "order": if per == "tensor" { "permuted" } else { "fixed" }, "planned_generations": 6,
                    });
                    variants.push(Variant::new("evolver", keys, if update == "steady" { "greedy" } else { "paired" }));
                }
            }
        }
    }
    for mutation in ["best", "current_to_best"] {
        variants.push(Variant::new("de", json!({ "mutation": mutation }), "paired"));
    }
    for shape in ["sparse", "full"] {
        variants.push(Variant::new("perturbation", json!({ "shape": shape }), "greedy"));
    }
    variants.push(Variant::new("evolver_merger", json!({ "method": "pcb", "mutation": "difference", "order": "fixed" }), "race"));
    for test in ["bootstrap", "mcnemar"] {
        let rule_keys = json!({ "test": test, "floors": { "x": 0.3 } });
        variants.push(Variant { rule_keys, ..Variant::new("evolver", keys("evolver"), "paired") });
    }
    variants
}

/// A search over `experts` start models and two references.
pub(crate) fn setup(variant: &Variant, seed: u64, in_flight: usize, experts: usize, stop: Stop) -> Setup {
    let parameters = |value: &Value| value.as_object().unwrap().clone();
    let named = |name: String, kind| Named { recipe: Recipe::checkpoint(Digest::of(name.as_bytes())), name, kind };
    let task = |name: &str, dev_items| Task { name: name.into(), dev_items, test_items: 6 };
    let weighted = |weight| Weighted { metric: "accuracy".into(), weight };
    Setup {
        seed,
        in_flight,
        mode: variant.mode,
        base: named("base".into(), "base").recipe,
        tasks: vec![task("x", ITEMS[0]), task("y", ITEMS[1])],
        objective: Objective { tasks: vec![weighted(1.0), weighted(2.0)], ..Objective::default() },
        individuals: (0..experts).map(|index| named(format!("expert {index} {seed}"), "expert")).collect(),
        references: vec![named("base".into(), "base"), named("average".into(), "merge")],
        statistics: evolver_coordinator::search::Statistics::default(),
        strategy: Plugin { name: variant.strategy.into(), parameters: parameters(&variant.keys) },
        acceptance: Plugin { name: variant.rule.into(), parameters: parameters(&variant.rule_keys) },
        stop,
    }
}

/// How a model ends, whoever works on it: one in sixteen fails every time. An item has the same outcome in whatever portion it is scored.
pub(crate) fn outcome(spec: &Spec) -> Outcome {
    let split = [u8::from(spec.portion.split == Split::Test)];
    let drawn = Digest::of_parts("scores", [spec.recipe.id().as_bytes().as_slice(), &split]);
    let bytes = drawn.as_bytes();
    if bytes[31] < 16 {
        return Outcome::Failed("doomed".into());
    }
    let items = if spec.portion.split == Split::Test { [6, 6] } else { ITEMS };
    let score = |task: &str, bytes: &[u8]| {
        let credit = |item: usize| if bytes[item] < 60 + drawn.as_bytes()[30] / 2 { 1.0 } else { 0.0 };
        TaskScore::of_credits(task, spec.portion.items(task, bytes.len()).into_iter().map(credit).collect())
    };
    let (first, rest) = bytes.split_at(items[0]);
    Outcome::Scored(Scores { tasks: vec![score("x", first), score("y", &rest[..items[1]])] })
}

/// How a search ended.
#[derive(Debug, PartialEq)]
pub(crate) struct Run {
    pub(crate) hash: Digest,
    population: Vec<(Digest, u64, u64)>,
    best: Option<(Digest, u64)>,
    pub(crate) committed: u64,
    pub(crate) accepted: u64,
    pub(crate) failed: u64,
    pub(crate) items: u64,
    pub(crate) stopped_by: String,
    finals: Vec<(u64, Option<Scores>, Option<Scores>)>,
}

impl Run {
    pub(crate) fn of(search: &Search) -> Self {
        assert_eq!(search.phase(), Phase::Finished);
        let member = |member: &Individual| (member.id, member.number, member.dev.to_bits());
        let counters = search.counters();
        // Offspring on their way when the search closes stay undecided, where there is more than one stage.
        let undecided = counters.issued - counters.committed;
        assert!(undecided < search.setup().in_flight as u64, "{undecided}");
        assert!(undecided == 0 || !["greedy", "paired"].contains(&search.setup().acceptance.name.as_str()));
        Self {
            hash: search.state_hash(),
            population: search.population().iter().map(member).collect(),
            best: search.best().map(|best| (best.id, best.number)),
            committed: counters.committed,
            accepted: counters.accepted,
            failed: counters.failed,
            items: search.items(),
            stopped_by: search.stopped_by().into(),
            finals: {
                let finals = |row: &Individual| (row.number, search.fresh_scores(row).cloned(), search.test_scores(row).cloned());
                search.table().iter().map(finals).collect()
            },
        }
    }

    /// One result after the other, in order, with nothing lost.
    pub(crate) fn undisturbed(setup: &Setup) -> Self {
        let mut search = Search::new(setup.clone()).unwrap();
        finish(&mut search);
        Self::of(&search)
    }
}

/// Goes on with a search to its end, in order, and checks each decision's traces.
pub(crate) fn finish(search: &mut Search) {
    let starts = search.setup().individuals.len() + search.setup().references.len();
    // Where a member is replaced by the offspring that beat it, and by nothing else.
    let plain = search.setup().strategy.name == "evolver"
        && search.setup().strategy.parameters.get("update").is_none_or(|update| update == "steady")
        && ["greedy", "paired"].contains(&search.setup().acceptance.name.as_str());
    while let Some(spec) = search.ask() {
        let before: Vec<_> = search.population().to_vec();
        let (accepted, best) = (search.counters().accepted, search.best().cloned());
        let outcome = outcome(&spec);
        search.tell(spec.number, outcome.clone()).unwrap();
        if spec.number < starts as u64 {
            continue;
        }
        let (old, new) = (best.unwrap(), search.best().unwrap());
        assert!(
            new.number == old.number || search.setup().strategy.name == "evolver_merger" || new.dev > old.dev || floors(search)
        );
        assert!(new.scores.tasks.iter().map(|task| task.credits.len()).sum::<usize>() > 0, "the best is scored");
        if !plain {
            continue;
        }
        let changed: Vec<_> = before.iter().zip(search.population()).filter(|(old, new)| old.number != new.number).collect();
        assert_eq!(search.population().len(), before.len());
        assert_eq!(search.counters().accepted - accepted, changed.len() as u64, "a member changes when an offspring is accepted");
        for (old, new) in changed {
            assert_eq!((new.number, new.id), (spec.number, spec.recipe.id()));
            assert_eq!(Outcome::Scored(new.scores.clone()), outcome);
            assert!(new.parents.contains(&old.id) || search.setup().in_flight > 1, "it takes the place of its target");
            assert!(search.setup().acceptance.name != "greedy" || new.dev > old.dev);
        }
    }
    for spec in search.tests() {
        search.tell(spec.number, outcome(&spec)).unwrap();
    }
}

/// Whether the best may give way to one that is worse but keeps to a floor.
fn floors(search: &Search) -> bool {
    search.setup().acceptance.parameters.contains_key("floors")
}

struct Member {
    name: String,
    holds: Option<(Token, Spec)>,
}

/// A coordinator's insides with workers that come, go, fail and answer late.
pub(crate) struct World {
    setup: Setup,
    search: Search,
    fleet: Fleet,
    epoch: u64,
    now: Duration,
    journal: Vec<(u64, Outcome)>,
    committed: HashSet<u64>,
    workers: Vec<Member>,
    joined: usize,
    /// Reports on their way, some of them of workers that are thought dead.
    post: Vec<(Token, Spec)>,
    /// The tokens that must be live, until when, and whose; a slow attempt may be doubled.
    live: HashMap<(u64, u32), (Token, Duration, String)>,
    failures: HashMap<u64, u32>,
    losses: HashMap<u64, u32>,
    /// The latest results, for workers to prove themselves by after a restart.
    known: Vec<(Spec, Scores)>,
    pub(crate) superseded: u64,
}

impl World {
    pub(crate) fn new(setup: Setup) -> Self {
        let mut this = Self {
            search: Search::new(setup.clone()).unwrap(),
            setup,
            fleet: Fleet::new(1, SETTINGS),
            epoch: 1,
            now: Duration::ZERO,
            journal: Vec::new(),
            committed: HashSet::new(),
            workers: Vec::new(),
            joined: 0,
            post: Vec::new(),
            live: HashMap::new(),
            failures: HashMap::new(),
            losses: HashMap::new(),
            known: Vec::new(),
            superseded: 0,
        };
        this.pump();
        this.join();
        this.join();
        this
    }

    pub(crate) fn restarts(&self) -> u64 {
        self.epoch - 1
    }

    pub(crate) fn run(&self) -> Run {
        Run::of(&self.search)
    }

    /// One thing happens.
    pub(crate) fn act(&mut self, (action, choice): (u8, u16)) {
        let choice = usize::from(choice);
        let who = if self.workers.is_empty() { None } else { Some(choice % self.workers.len()) };
        match (action % 32, who) {
            (0..=9, Some(who)) => self.lease(who),
            (10..=16, Some(who)) => self.report(who),
            (17, Some(who)) => {
                // The answer is lost, and the report sent again later.
                self.post.extend(self.workers[who].holds.clone());
                self.report(who);
            }
            (18, Some(who)) => self.post.extend(self.workers[who].holds.take()),
            (19 | 20, _) if !self.post.is_empty() => {
                let (token, spec) = self.post.swap_remove(choice % self.post.len());
                self.deliver(token, &spec);
            }
            (21, Some(who)) => self.fail(who),
            (22, Some(who)) => self.kill(who),
            (23, Some(who)) => {
                let worker = self.workers.swap_remove(who);
                self.post.extend(worker.holds);
            }
            (24 | 25, Some(who)) => self.heartbeat(who),
            (26 | 27, _) => self.wait(LEASE.mul_f64(0.01 * (choice % 150) as f64)),
            (28, Some(who)) => {
                let worker = self.workers.swap_remove(who);
                self.fleet.drain(&worker.name);
                self.drop_leases(&worker.name);
                self.post.extend(worker.holds);
            }
            (29, _) => self.join(),
            (30, Some(who)) => {
                self.post.extend(self.workers[who].holds.take());
                self.register(who);
            }
            (31, _) if choice % 4 == 0 => self.restart(),
            _ => {}
        }
        self.check();
    }

    /// From here on nothing goes wrong any more: the search must come to its end.
    pub(crate) fn settle(&mut self) {
        if self.workers.is_empty() {
            self.join();
        }
        for round in 0.. {
            for who in 0..self.workers.len() {
                if self.workers[who].holds.is_none() {
                    self.lease(who);
                }
                self.report(who);
            }
            self.check();
            if self.search.phase() == Phase::Finished {
                break;
            }
            for who in 0..self.workers.len() {
                self.heartbeat(who);
            }
            self.pass(LEASE / 2);
            assert!(round < 1000, "the search stands still with {} healthy workers", self.workers.len());
        }
        // Whatever is still on its way comes too late.
        for (token, spec) in std::mem::take(&mut self.post) {
            // Only what a worker proves itself by may still be under way.
            if self.fleet.purpose(token) == Some(Purpose::Check) {
                continue;
            }
            let before = self.superseded;
            self.deliver(token, &spec);
            assert_eq!(self.superseded, before + 1);
        }
        self.restart();
    }

    fn join(&mut self) {
        self.joined += 1;
        self.workers.push(Member { name: format!("w{}", self.joined), holds: None });
        self.register(self.workers.len() - 1);
    }

    fn register(&mut self, who: usize) {
        let name = self.workers[who].name.clone();
        self.fleet.register(&name, "host", self.now);
        self.drop_leases(&name);
    }

    fn drop_leases(&mut self, name: &str) {
        self.live.retain(|_, (.., holder)| holder != name);
    }

    fn lease(&mut self, who: usize) {
        let name = self.workers[who].name.clone();
        if !self.fleet.knows(&name) {
            self.register(who);
        }
        // Who asks for work has none: what it held before is free.
        self.post.extend(self.workers[who].holds.take());
        self.fleet.free(&name);
        for (token, ..) in self.live.values().filter(|(.., holder)| *holder == name) {
            assert!(!self.fleet.is_live(*token));
        }
        self.drop_leases(&name);
        let Some((token, spec)) = self.fleet.lease(&name, self.now) else {
            return;
        };
        assert_eq!((token.epoch, token.spec), (self.epoch, spec.number));
        let known = self.fleet.purpose(token) == Some(Purpose::Check);
        assert_eq!(self.committed.contains(&spec.number), known, "spec {} is given out for what it is not", spec.number);
        let until = self.now + LEASE;
        assert!(
            self.live.insert((spec.number, token.attempt), (token, until, name)).is_none(),
            "an attempt has its number twice"
        );
        let leases: Vec<_> = self.live.values().filter(|(live, ..)| live.spec == spec.number).collect();
        assert!(leases.len() <= 2, "spec {} has {} live leases", spec.number, leases.len());
        for attempt in 1..token.attempt {
            let token = Token { attempt, ..token };
            assert!(!self.fleet.is_live(token) || leases.iter().any(|(live, ..)| *live == token));
        }
        for epoch in 1..self.epoch {
            assert!(!self.fleet.is_live(Token { epoch, ..token }));
        }
        self.workers[who].holds = Some((token, spec));
    }

    fn report(&mut self, who: usize) {
        if let Some((token, spec)) = self.workers[who].holds.take() {
            self.deliver(token, &spec);
        }
    }

    /// What the service does with a report.
    fn deliver(&mut self, token: Token, spec: &Spec) {
        if !self.fleet.is_live(token) {
            self.superseded += 1;
            return;
        }
        let check = self.fleet.purpose(token) == Some(Purpose::Check);
        match outcome(spec) {
            Outcome::Failed(reason) => self.attempt_failed(token, &reason),
            Outcome::Scored(scores) if check => {
                self.live.remove(&(token.spec, token.attempt));
                let after = self.fleet.answer(token, scores, self.now);
                self.give_up(after.given_up);
            }
            Outcome::Scored(scores) => {
                // A slower attempt at the same spec is superseded by this one.
                let worker = self.fleet.holder(token).unwrap().to_owned();
                let after = self.fleet.commit(token, &worker, &scores, false, self.now);
                self.known.push((spec.clone(), scores.clone()));
                self.commit(spec.number, Outcome::Scored(scores));
                assert_eq!(after.opinions, [], "nothing is compared but what a worker proves itself by");
                self.give_up(after.given_up);
            }
        }
    }

    fn attempt_failed(&mut self, token: Token, reason: &str) {
        self.live.remove(&(token.spec, token.attempt));
        self.fleet.fail(token, reason, self.now);
    }

    /// Only what fails on everyone is given up.
    fn give_up(&mut self, specs: Vec<(u64, String)>) {
        for (number, reason) in specs {
            let spec = self.fleet.spec(number).unwrap().clone();
            assert!(matches!(outcome(&spec), Outcome::Failed(_)), "spec {number} was given up: {reason}");
            self.commit(number, Outcome::Failed(reason));
        }
    }

    fn commit(&mut self, number: u64, outcome: Outcome) {
        assert!(self.committed.insert(number), "spec {number} is committed twice");
        self.journal.push((number, outcome.clone()));
        self.fleet.finish(number);
        self.live.retain(|(spec, _), _| *spec != number);
        self.search.tell(number, outcome).unwrap();
        self.pump();
    }

    fn pump(&mut self) {
        while let Some(spec) = self.search.ask() {
            if !self.committed.contains(&spec.number) {
                self.fleet.add(spec);
            }
        }
        self.search.tests().into_iter().for_each(|spec| self.fleet.add(spec));
    }

    /// Something passing goes wrong, less often than gives the spec up; what is doomed fails by itself.
    fn fail(&mut self, who: usize) {
        let Some((token, spec)) = self.workers[who].holds.clone() else { return };
        let often = self.failures.entry(token.spec).or_default();
        if self.fleet.is_live(token) && *often + 1 < ATTEMPTS && matches!(outcome(&spec), Outcome::Scored(_)) {
            *often += 1;
            self.attempt_failed(token, "passing");
            self.workers[who].holds = None;
        }
    }

    fn kill(&mut self, who: usize) {
        let Some((token, _)) = self.workers[who].holds.clone() else { return };
        let losses = self.losses.entry(token.spec).or_default();
        if self.fleet.is_live(token) && *losses < LOSSES {
            *losses += 1;
            self.fleet.lose(token, "killed", self.now);
            self.live.remove(&(token.spec, token.attempt));
            self.workers[who].holds = None;
        }
    }

    fn heartbeat(&mut self, who: usize) {
        let worker = &self.workers[who];
        let token = worker.holds.as_ref().map(|(token, _)| *token);
        assert!(!self.fleet.heartbeat(&worker.name, token, (1, 2), self.now), "nobody told it to leave");
        if let Some(token) = token
            && let Some((live, until, _)) = self.live.get_mut(&(token.spec, token.attempt))
            && *live == token
        {
            *until = self.now + LEASE;
        }
    }

    fn wait(&mut self, time: Duration) {
        let then = self.now + time;
        let lost = |until: Duration| until <= then;
        let worn = |spec: &u64| self.losses.get(spec).is_some_and(|losses| *losses >= LOSSES);
        if self.live.iter().any(|((spec, _), (_, until, _))| lost(*until) && worn(spec)) {
            return;
        }
        self.pass(time);
    }

    /// Time goes by, whatever it costs.
    fn pass(&mut self, time: Duration) {
        let then = self.now + time;
        let lost = |until: Duration| until <= then;
        self.now = then;
        let given_up = self.fleet.expire(self.now);
        self.give_up(given_up);
        let losses = &mut self.losses;
        self.live.retain(|(spec, _), (_, until, _)| {
            let lost = lost(*until);
            *losses.entry(*spec).or_default() += u32::from(lost);
            !lost
        });
    }

    /// The coordinator starts again from what is journaled, with none of what it had in memory.
    fn restart(&mut self) {
        let mut search = Search::new(self.setup.clone()).unwrap();
        for (number, outcome) in &self.journal {
            search.tell(*number, outcome.clone()).unwrap();
        }
        assert_eq!(search.state_hash(), self.search.state_hash());
        assert_eq!(search.phase(), self.search.phase());
        self.search = search;
        self.epoch += 1;
        self.now = Duration::ZERO;
        self.fleet = Fleet::new(self.epoch, SETTINGS);
        self.live.clear();
        self.failures.clear();
        self.losses.clear();
        for (spec, scores) in self.known.iter().rev().take(4) {
            self.fleet.remember(spec.clone(), "", scores.clone(), false);
        }
        self.pump();
    }

    /// What must be live is live.
    fn check(&self) {
        for (token, ..) in self.live.values() {
            assert!(self.fleet.is_live(*token), "{token:?} is live no more");
        }
    }
}
