//! Setups that cannot be searched are refused by a sentence that says what would be right.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "the simulated world is used by other tests")]
mod simulation;

use evolver_coordinator::search::{Mode, Search, Setup, Stop, rules, strategies};
use serde_json::{Value, json};

use self::simulation::{Variant, setup};

fn refused(strategy: &'static str, keys: Value, rule: &'static str, rule_keys: Value, change: impl FnOnce(&mut Setup)) -> String {
    let variant = Variant { strategy, keys, rule, rule_keys, mode: Mode::Ordered };
    let mut setup = setup(&variant, 1, 1, 4, Stop { offspring: Some(100), ..Stop::default() });
    change(&mut setup);
    Search::new(setup).err().map_or_else(|| "it was taken".into(), |error| error.to_string())
}

#[test]
fn strategies_say_what_they_lack() {
    for (strategy, keys, expected) in [
        ("evolvr", json!({}), "search.strategy: unknown strategy \"evolvr\" (did you mean \"evolver\"?)"),
        ("evolver", json!({ "scal": 1 }), "unknown key \"scal\" (did you mean \"scale\"?) in search"),
        ("evolver", json!({ "scale": 3 }), "search.scale is 3: it must lie between 0 and 2"),
        ("evolver", json!({ "scale": "x" }), "search.scale is \"x\""),
        ("evolver", json!({ "planned_generations": 1.5 }), "whole number"),
        ("evolver", json!({ "variant": "papr" }), "one of official, paper is expected"),
        ("evolver_merger", json!({ "method": "pbc" }), "search.method: unknown merge method \"pbc\" (did you mean \"pcb\"?)"),
        ("evolver_merger", json!({ "models": ["expert 0"] }), "unknown start model"),
        ("evolver_merger", json!({ "method": "slerp" }), "slerp"),
        ("cma_es", json!({ "method": "model_stock" }), "search.coefficients"),
        ("cma_es", json!({ "coefficients": ["weigth"] }), "has no number \"weigth\" (did you mean \"weight\"?)"),
        ("cma_es", json!({ "ranges": { "weight": [2, 1] } }), "search.ranges.weight: lowest, highest and first value"),
        ("cma_es", json!({ "ranges": { "density": [0, 1] } }), "which is not searched"),
        ("cma_es", json!({ "layer_groups": 300 }), "1200 coefficients are to be searched, and at most 1000"),
        ("cma_es", json!({ "parameters": { "ratio": 3.0 } }), "ratio is 3"),
        ("recipes", json!({ "methods": ["pcb", "tyes"] }), "search.methods: unknown merge method"),
        ("portfolio", json!({ "strategies": ["portfolio"] }), "cannot hold a portfolio"),
        ("portfolio", json!({ "strategies": ["jad"] }), "did you mean \"jade\"?"),
        ("portfolio", json!({ "settings": { "de": {} } }), "not among search.strategies"),
        ("portfolio", json!({ "settings": { "cma_es": { "stp": 1 } } }), "did you mean \"step\"?"),
    ] {
        let error = refused(strategy, keys.clone(), "greedy", json!({}), |_| {});
        assert!(error.contains(expected), "{strategy} {keys}: {error}");
    }
}

#[test]
fn rules_say_what_is_wrong_with_them() {
    for (rule, keys, expected) in [
        ("gredy", json!({}), "acceptance.rule: unknown rule \"gredy\" (did you mean \"greedy\"?)"),
        ("race", json!({ "threshold": -1 }), "acceptance.threshold is -1: it must lie between 0 and 10"),
        ("race", json!({ "floors": { "z": 0.5 } }), "acceptance.floors: unknown task \"z\""),
        ("race", json!({ "floors": { "x": 50 } }), "acceptance.floors.x is 50: it must lie between 0 and 1"),
        (
            "race",
            json!({ "first": 0.01, "growth": 1.1 }),
            "too few for the stages of the acceptance rule and its reserve: at least",
        ),
        ("greedy", json!({ "reserve": 0.95 }), "between 0 and 0.9"),
    ] {
        let error = refused("evolver", json!({}), rule, keys.clone(), |_| {});
        assert!(error.contains(expected), "{rule} {keys}: {error}");
    }
}

#[test]
fn a_budget_below_the_least_says_the_least() {
    let offspring = |limit| move |setup: &mut Setup| setup.stop.offspring = Some(limit);
    let error = refused("cma_es", json!({}), "greedy", json!({}), offspring(8));
    assert_eq!(error, "stop.offspring is 8, and strategy cma_es needs at least 9");
    assert_eq!(refused("cma_es", json!({}), "greedy", json!({}), offspring(9)), "it was taken");
    let items = |limit| move |setup: &mut Setup| setup.stop.evaluations = Some(limit);
    let error = refused("cma_es", json!({}), "greedy", json!({}), items(299));
    assert_eq!(
        error,
        "stop.evaluations is 299 dev items, and 300 are the least: 6 start models of 20 items each, and 9 offspring for strategy cma_es"
    );
    assert_eq!(refused("cma_es", json!({}), "greedy", json!({}), items(300)), "it was taken");
}

#[test]
fn too_few_start_models_are_refused_by_every_strategy_that_needs_more() {
    let mut refusals = 0;
    for strategy in strategies() {
        let error = refused(strategy.name, json!({}), "greedy", json!({}), |setup| setup.individuals.truncate(1));
        refusals += u32::from(error != "it was taken");
        assert!(error == "it was taken" || error.contains("needed") || error.contains("at least"), "{}: {error}", strategy.name);
    }
    assert!(refusals >= 9, "{refusals}");
}

#[test]
fn every_strategy_and_rule_is_documented() {
    for about in strategies().into_iter().chain(rules()) {
        assert!(about.version > 0 && !about.summary.is_empty() && !about.source.is_empty(), "{}", about.name);
        let mut names: Vec<_> = about.parameters.iter().map(|parameter| parameter.name).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count, "{} declares a parameter twice", about.name);
        for parameter in &about.parameters {
            assert!(parameter.doc.ends_with('.'), "{}.{}", about.name, parameter.name);
        }
    }
}
