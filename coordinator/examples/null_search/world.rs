//! Models that are all equally good, and a search over them.
//!
//! Every item is right with probability 0.65 whatever the model, and an offspring has its first parent's outcome on each item but for a share that is
//! drawn anew. The gain is the reported objective of the best less that of the best start model: on reserved items where the rule keeps some,
//! else on dev.

#![allow(clippy::unwrap_used, reason = "an experiment that ends by panicking")]

use std::{collections::HashMap, rc::Rc};

use evolver_common::{
    digest::Digest,
    recipe::Recipe,
    score::{Objective, Scores, TaskScore, Weighted},
};
use evolver_coordinator::search::{Individual, Mode, Named, Outcome, Plugin, Search, Setup, Spec, Stop, Task};
use serde_json::Value;

const TASKS: usize = 4;
const ITEMS: usize = 100;
const RIGHT: f64 = 0.65;
const MODELS: usize = 8;
const OFFSPRING: u64 = 64;

/// Outcomes of every model that was asked for.
struct World {
    seed: u64,
    /// Share of the items whose outcome an offspring does not inherit.
    redrawn: f64,
    known: HashMap<Digest, Rc<Vec<f32>>>,
}

impl World {
    fn outcomes(&mut self, recipe: &Recipe) -> Rc<Vec<f32>> {
        if let Some(known) = self.known.get(&recipe.id()) {
            return Rc::clone(known);
        }
        let parent = recipe.op().operands().next().map(|parent| self.outcomes(parent));
        let seed = self.seed.to_le_bytes();
        let own = Digest::of_parts("null", [recipe.id().as_bytes().as_slice(), &seed]);
        let key = u64::from_le_bytes(own.as_bytes()[..8].try_into().unwrap());
        let stream = evolver_common::rng::Stream::new(key, "items");
        let uniform = |n: usize| f64::from(stream.element(n as u64)) / 4_294_967_296.0;
        let outcome = |item: usize| match &parent {
            Some(parent) if uniform(2 * item) >= self.redrawn => parent[item],
            _ => f32::from(u8::from(uniform(2 * item + 1) < RIGHT)),
        };
        let outcomes = Rc::new((0..TASKS * ITEMS).map(outcome).collect::<Vec<f32>>());
        self.known.insert(recipe.id(), Rc::clone(&outcomes));
        outcomes
    }

    fn score(&mut self, spec: &Spec) -> Outcome {
        let all = self.outcomes(&spec.recipe);
        let task = |(index, credits): (usize, &[f32])| {
            let name = format!("t{index}");
            let chosen = spec.portion.items(&name, ITEMS).into_iter().map(|item| credits[item]).collect();
            TaskScore::of_credits(&name, chosen)
        };
        Outcome::Scored(Scores { tasks: all.chunks(ITEMS).enumerate().map(task).collect() })
    }
}

/// How a search ended.
pub(crate) struct Found {
    /// In points.
    pub(crate) gain: f64,
    /// Dev items spent.
    pub(crate) items: f64,
}

/// Searches under this seed.
pub(crate) fn run(seed: u64, redrawn: f64, strategy: &Plugin, acceptance: &Plugin) -> Found {
    let named = |index: usize| Named {
        name: format!("m{index}"),
        kind: "expert",
        recipe: Recipe::checkpoint(Digest::of(format!("{seed} {index}").as_bytes())),
    };
    let task = |index: usize| Task { name: format!("t{index}"), dev_items: ITEMS, test_items: 0 };
    let mut search = Search::new(Setup {
        seed,
        in_flight: 1,
        mode: Mode::Ordered,
        base: Recipe::checkpoint(Digest::of(b"base")),
        tasks: (0..TASKS).map(task).collect(),
        objective: Objective { tasks: vec![Weighted { metric: "accuracy".into(), weight: 1.0 }; TASKS], ..Objective::default() },
        individuals: (0..MODELS).map(named).collect(),
        references: Vec::new(),
        statistics: evolver_coordinator::search::Statistics::default(),
        strategy: strategy.clone(),
        acceptance: acceptance.clone(),
        stop: Stop { offspring: Some(OFFSPRING), ..Stop::default() },
    })
    .unwrap();
    let mut world = World { seed, redrawn, known: HashMap::new() };
    loop {
        let spec = search.ask();
        let specs = if let Some(spec) = spec { vec![spec] } else { search.tests() };
        if specs.is_empty() {
            break;
        }
        for spec in specs {
            let outcome = world.score(&spec);
            search.tell(spec.number, outcome).unwrap();
        }
    }
    let best = search.best().unwrap().clone();
    let table = search.table();
    let start = table.iter().filter(|row| row.kind == "expert").max_by(|a, b| a.dev.total_cmp(&b.dev)).unwrap();
    let reported = |one: &Individual| search.fresh_scores(one).map_or(one.dev, |scores| search.interval(scores).mean);
    #[expect(clippy::cast_precision_loss, reason = "a count of items")]
    let items = (search.items() + search.reserved_items()) as f64;
    Found { gain: 100.0 * (reported(&best) - reported(start)), items }
}

/// A strategy or rule with its keys.
pub(crate) fn plugin(name: &str, keys: &Value) -> Plugin {
    Plugin { name: name.into(), parameters: keys.as_object().unwrap().clone() }
}
