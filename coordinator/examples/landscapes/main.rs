//! Every strategy on simulated landscapes at an equal budget of items, beside two Python programs.
//!
//! ```sh
//! cargo run --release -p evolver-coordinator --example landscapes -- 10 /tmp/landscapes     # 10 seeds; writes the instances and rust.json
//! python3 coordinator/examples/landscapes/peers.py /tmp/landscapes                           # the official Evolver and CMA-ES by `cmaes`
//! python3 coordinator/examples/landscapes/table.py /tmp/landscapes                           # the table of docs/search.md
//! ```

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "an experiment that prints its results and ends by panicking")]
#![allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small counts")]

mod world;

use std::{
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
};

use evolver_common::score::{Objective, Weighted};
use evolver_coordinator::search::{Mode, Named, Outcome, Plugin, Search, Setup, Stop, Task};
use serde_json::{Value, json};

use self::world::{Builder, FUNCTIONS, ITEMS, Landscape, TASKS, leaf};

/// Dev items of one search: what the official algorithm spends on its start models and 15 generations of 4 offspring.
const BUDGET: u64 = 4 * 400 + 15 * 4 * 400;

/// What a search is run with.
struct Way {
    strategy: &'static str,
    keys: Value,
    rule: &'static str,
    rule_keys: Value,
}

fn ways() -> Vec<Way> {
    let way = |strategy, keys, rule, rule_keys| Way { strategy, keys, rule, rule_keys };
    let race = || json!({});
    let mut ways = vec![way("evolver", json!({}), "greedy", json!({}))];
    // Every strategy under the same rule.
    let merge = json!({ "method": "task_arithmetic", "ranges": { "weight": [0.0, 1.5, 0.35] } });
    let mut layered = merge.clone();
    layered["layer_groups"] = json!(3);
    let mut pcb = merge.clone();
    pcb["method"] = json!("pcb");
    pcb["ranges"] = json!({ "weight": [0.0, 2.0, 1.0] });
    for (strategy, keys) in [
        ("evolver", json!({})),
        ("evolver", json!({ "variant": "paper" })),
        ("evolver", json!({ "per": "tensor" })),
        ("de", json!({})),
        ("de", json!({ "mutation": "best" })),
        ("de", json!({ "mutation": "current_to_best" })),
        ("jade", json!({})),
        ("shade", json!({})),
        ("evolver_merger", json!({})),
        ("evolver_merger", json!({ "method": "task_arithmetic" })),
        ("evolver_merger", json!({ "method": "ties" })),
        ("evolver_merger", json!({ "method": "linear", "mutation": "difference" })),
        ("cma_es", merge.clone()),
        ("cma_es", layered.clone()),
        ("cma_es", pcb),
        ("one_plus_one", merge.clone()),
        ("auto_es", merge.clone()),
        ("recipes", json!({})),
        ("niches", json!({})),
        ("map_elites", json!({})),
        ("nsga2", json!({})),
        ("perturbation", json!({ "deviation": 0.05 })),
        ("portfolio", json!({ "strategies": ["evolver", "cma_es"], "settings": { "cma_es": merge } })),
        ("portfolio", json!({ "strategies": ["evolver_merger", "cma_es"], "settings": { "cma_es": merge } })),
        ("portfolio", json!({})),
    ] {
        ways.push(way(strategy, keys, "race", race()));
    }
    // The rules, under the strategies that are worth it.
    for (strategy, keys) in [("evolver", json!({})), ("cma_es", merge), ("evolver_merger", json!({})), ("recipes", json!({}))] {
        for (rule, rule_keys) in [
            ("greedy", json!({})),
            ("paired", json!({})),
            ("race", json!({ "hopeless": -0.5 })),
            ("race", json!({ "threshold": 0.0 })),
            ("race", json!({ "reserve": 0.0 })),
            ("duel", json!({})),
            ("halving", json!({})),
        ] {
            if strategy != "evolver" || rule != "greedy" {
                ways.push(way(strategy, keys.clone(), rule, rule_keys));
            }
        }
    }
    ways
}

fn plugin(name: &str, keys: &Value) -> Plugin {
    Plugin { name: name.into(), parameters: keys.as_object().unwrap().clone() }
}

/// The true objective of the final model, and the items after which the best's true objective stood where.
fn run(landscape: &Landscape, seed: u64, way: &Way) -> Value {
    let named = |index: usize| Named { name: format!("expert{index}"), kind: "expert", recipe: leaf(&format!("expert{index}")) };
    let task = |index: usize| Task { name: format!("t{index}"), dev_items: ITEMS, test_items: 0 };
    let mut search = Search::new(Setup {
        seed,
        in_flight: 1,
        mode: Mode::Ordered,
        base: leaf("base"),
        tasks: (0..TASKS).map(task).collect(),
        objective: Objective { tasks: vec![Weighted { metric: "accuracy".into(), weight: 1.0 }; TASKS], ..Objective::default() },
        individuals: (0..TASKS).map(named).collect(),
        references: Vec::new(),
        statistics: evolver_coordinator::search::Statistics::default(),
        strategy: plugin(way.strategy, &way.keys),
        acceptance: plugin(way.rule, &way.rule_keys),
        stop: Stop { evaluations: Some(BUDGET), ..Stop::default() },
    })
    .unwrap();
    let mut builder = Builder::new(landscape);
    let mut course = Vec::new();
    let mut best = None;
    while let Some(spec) = search.ask() {
        let weights = builder.weights(&spec.recipe);
        search.tell(spec.number, Outcome::Scored(landscape.scores(&weights, spec.portion))).unwrap();
        let now = search.best().map(|best| (best.id, best.recipe.clone(), best.dev));
        if let Some((id, recipe, dev)) = now
            && best != Some(id)
        {
            best = Some(id);
            course.push(json!([search.items(), landscape.truth(&builder.weights(&recipe)), dev]));
        }
    }
    let weights = builder.weights(&search.best().unwrap().recipe);
    json!({ "truth": landscape.truth(&weights), "dev": search.best().unwrap().dev, "items": search.items(), "course": course })
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let seeds: u64 = arguments.next().map_or(10, |seeds| seeds.parse().unwrap());
    let folder = arguments.next().unwrap_or_else(|| "landscapes".into());
    let folder = Path::new(&folder);
    std::fs::create_dir_all(folder).unwrap();
    let instances: Vec<_> = FUNCTIONS.iter().flat_map(|function| (0..seeds).map(move |seed| (*function, seed))).collect();
    for (function, seed) in &instances {
        let landscape = serde_json::to_string(&Landscape::new(function, *seed)).unwrap();
        std::fs::write(folder.join(format!("{function}-{seed}.json")), landscape).unwrap();
    }
    let ways = ways();
    let jobs: Vec<_> = ways.iter().flat_map(|way| instances.iter().map(move |instance| (way, instance))).collect();
    let next = AtomicUsize::new(0);
    let results = std::sync::Mutex::new(vec![Value::Null; jobs.len()]);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, Into::into) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some((way, (function, seed))) = jobs.get(index) else { break };
                    let mut result = run(&Landscape::new(function, *seed), *seed, way);
                    let name =
                        |name: &str, keys: &Value| if *keys == json!({}) { name.to_owned() } else { format!("{name} {keys}") };
                    result["way"] = json!([name(way.strategy, &way.keys), name(way.rule, &way.rule_keys)]);
                    result["instance"] = json!([function, seed]);
                    results.lock().unwrap()[index] = result;
                }
            });
        }
    });
    std::fs::write(folder.join("rust.json"), serde_json::to_string(&*results.lock().unwrap()).unwrap()).unwrap();
    println!("{} runs are in {}", jobs.len(), folder.join("rust.json").display());
}
