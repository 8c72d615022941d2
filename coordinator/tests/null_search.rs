//! Where all offspring are in truth equal, the default strategy and rule report no gain, and a greedy rule does.

#[path = "../examples/null_search/world.rs"]
mod world;

use serde_json::json;

use self::world::{plugin, run};

/// The large form is `cargo run --release -p evolver-coordinator --example null_search`.
#[test]
fn the_defaults_report_no_gain_where_there_is_none() {
    let mean = |rule: &str| {
        let found = (0..150).map(|seed| run(seed, 0.3, &plugin("portfolio", &json!({})), &plugin(rule, &json!({}))));
        let (gain, items) = found.fold((0.0, 0.0), |(gain, items), one| (gain + one.gain, items + one.items));
        (gain / 150.0, items / 150.0)
    };
    let (default, greedy) = (mean("race"), mean("greedy"));
    println!("mean reported gain in points and items: race {default:?}, greedy {greedy:?}");
    assert!(default.0 <= 0.5, "{default:?}");
    assert!(greedy.0 >= 1.0, "{greedy:?}");
    assert!(default.1 < greedy.1);
}
