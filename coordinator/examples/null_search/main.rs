//! The null search: every offspring is in truth as good as its parents, and whatever a search reports as gained is luck.
//!
//! ```sh
//! cargo run --release -p evolver-coordinator --example null_search          # 1,000 seeds, the table of docs/search.md
//! cargo run --release -p evolver-coordinator --example null_search -- 100   # fewer
//! ```
//!
//! Every item is right with probability 0.65 whatever the model, and an offspring has its first parent's outcome on each item but for a share that is
//! drawn anew. The gain is the reported objective of the best less that of the best start model: on reserved items where the rule keeps some,
//! else on dev.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "an experiment that prints its table and ends by panicking")]

use std::{collections::HashMap, rc::Rc};

use evolver_common::{
    digest::Digest,
    recipe::Recipe,
    score::{Objective, Scores, TaskScore, Weighted},
};
use evolver_coordinator::search::{Individual, Mode, Named, Outcome, Plugin, Search, Setup, Spec, Stop, Task};
use serde_json::{Value, json};

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

struct Found {
    gain: f64,
    items: f64,
}

fn run(seed: u64, redrawn: f64, strategy: &Plugin, acceptance: &Plugin) -> Found {
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

fn plugin(name: &str, keys: &Value) -> Plugin {
    Plugin { name: name.into(), parameters: keys.as_object().unwrap().clone() }
}

fn main() {
    let seeds: u64 = std::env::args().nth(1).map_or(1000, |seeds| seeds.parse().unwrap());
    let rules = [
        ("greedy", json!({})),
        ("paired", json!({})),
        ("paired", json!({ "threshold": 2.0 })),
        ("race", json!({})),
        ("duel", json!({})),
        ("halving", json!({})),
        ("greedy", json!({ "reserve": 0.25 })),
        ("race", json!({ "reserve": 0.25 })),
        ("duel", json!({ "reserve": 0.25 })),
    ];
    println!("| strategy | rule | redrawn | mean reported gain, points (95 %) | gain above 1 point | dev items |");
    println!("|---|---|---|---|---|---|");
    for (strategy, keys) in [("evolver", json!({})), ("cma_es", json!({ "method": "linear" }))] {
        for (rule, rule_keys) in &rules {
            for redrawn in [0.1, 0.3, 1.0] {
                let found: Vec<_> =
                    (0..seeds).map(|seed| run(seed, redrawn, &plugin(strategy, &keys), &plugin(rule, rule_keys))).collect();
                #[expect(clippy::cast_precision_loss, reason = "a count of seeds")]
                let count = seeds as f64;
                let mean = |of: &dyn Fn(&Found) -> f64| found.iter().map(of).sum::<f64>() / count;
                let gain = mean(&|one| one.gain);
                let error = (mean(&|one| (one.gain - gain) * (one.gain - gain)) / count).sqrt();
                let above = 100.0 * mean(&|one| f64::from(u8::from(one.gain > 1.0)));
                let keys = if rule_keys.as_object().is_some_and(serde_json::Map::is_empty) {
                    String::new()
                } else {
                    format!(" `{rule_keys}`")
                };
                println!(
                    "| {strategy} | {rule}{keys} | {redrawn} | {gain:+.2} ± {:.2} | {above:.0} % | {:.0} |",
                    1.96 * error,
                    mean(&|one| one.items)
                );
            }
        }
    }
}
