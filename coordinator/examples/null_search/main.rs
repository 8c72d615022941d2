//! The null search: every offspring is in truth as good as its parents, and whatever a search reports as gained is luck.
//!
//! ```sh
//! cargo run --release -p evolver-coordinator --example null_search          # 1,000 seeds, the table of docs/search.md
//! cargo run --release -p evolver-coordinator --example null_search -- 100   # fewer
//! ```

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "an experiment that prints its table and ends by panicking")]

mod world;

use serde_json::json;

use self::world::{Found, plugin, run};

/// What every seed gives, on all processors.
fn every<T: Send>(seeds: u64, of: impl Fn(u64) -> T + Sync) -> Vec<T> {
    let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get() as u64);
    std::thread::scope(|scope| {
        let of = &of;
        let share =
            |thread| scope.spawn(move || (thread..seeds).step_by(usize::try_from(threads).unwrap()).map(of).collect::<Vec<_>>());
        let shares: Vec<_> = (0..threads).map(share).collect();
        shares.into_iter().flat_map(|share| share.join().unwrap()).collect()
    })
}

fn main() {
    let seeds: u64 = std::env::args().nth(1).map_or(1000, |seeds| seeds.parse().unwrap());
    let rules = [
        ("greedy", json!({})),
        ("paired", json!({})),
        ("paired", json!({ "threshold": 2.0 })),
        ("race", json!({ "reserve": 0.0 })),
        ("duel", json!({ "reserve": 0.0 })),
        ("halving", json!({ "reserve": 0.0 })),
        ("greedy", json!({ "reserve": 0.25 })),
        ("race", json!({})),
        ("duel", json!({})),
        ("halving", json!({})),
    ];
    println!("| strategy | rule | redrawn | mean reported gain, points (95 %) | gain above 1 point | dev items |");
    println!("|---|---|---|---|---|---|");
    for (strategy, keys) in [("portfolio", json!({})), ("evolver", json!({})), ("cma_es", json!({ "method": "linear" }))] {
        for (rule, rule_keys) in &rules {
            for redrawn in [0.1, 0.3, 1.0] {
                let found = every(seeds, |seed| run(seed, redrawn, &plugin(strategy, &keys), &plugin(rule, rule_keys)));
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
