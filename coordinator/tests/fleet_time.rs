//! How busy a simulated fleet is when models take unequally long to score.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "the simulated world is used by other tests")]
mod simulation;

use std::collections::BTreeMap;

use evolver_coordinator::search::{Mode, Search, Stop, strategies};

use self::simulation::{Variant, outcome, setup, variants};

const WORKERS: usize = 16;

/// Share of the workers' time in which they score, from the first offspring to the last one drawn; scoring takes 1 to 10.
fn utilisation(variant: &Variant, in_flight: usize, seed: u64) -> f64 {
    let stop = Stop { offspring: Some(400), ..Stop::default() };
    let mut search = Search::new(setup(variant, seed, in_flight, 5, stop)).unwrap();
    let start = 7;
    // When each worker is done, in thousandths, with what it has.
    let mut working = BTreeMap::new();
    let mut queue: Vec<_> = std::iter::from_fn(|| search.ask()).collect();
    queue.reverse();
    let (mut now, mut idle, mut began, mut last) = (0u64, 0u64, None, 0);
    loop {
        while working.len() < WORKERS {
            let Some(spec) = queue.pop() else { break };
            if spec.number >= start {
                began.get_or_insert(now);
            }
            let time = 1000 + u64::from(spec.recipe.id().as_bytes()[7]) * 9000 / 255;
            working.insert((now + time, spec.number), spec);
        }
        let Some(((then, number), spec)) = working.pop_first() else { break };
        if began.is_some() && !search.is_ending() {
            idle += (then - now) * (WORKERS - working.len() - 1) as u64;
            last = then;
        }
        now = then;
        search.tell(number, outcome(&spec)).unwrap();
        // What is drawn later is worked on later.
        while let Some(spec) = search.ask() {
            queue.insert(0, spec);
        }
    }
    1.0 - idle as f64 / ((last - began.unwrap()) * WORKERS as u64) as f64
}

#[test]
fn a_fleet_of_unequal_speed_stays_busy_where_results_are_absorbed_as_they_arrive() {
    let every = |name: &str| variants().into_iter().find(|variant| variant.strategy == name && variant.rule == "race").unwrap();
    for strategy in strategies() {
        let ordered = every(strategy.name);
        let arrival = Variant { mode: Mode::Arrival, ..ordered.clone() };
        // As many in flight as there are workers: in order, all wait for the slowest again and again.
        let (waiting, busy) = (utilisation(&ordered, WORKERS, 3), utilisation(&arrival, WORKERS, 3));
        println!("{:<16} ordered {:.3}, as they arrive {:.3}", strategy.name, waiting, busy);
        assert!(busy >= 0.95, "{}: {busy}", strategy.name);
        assert!(waiting < busy, "{}: {waiting}", strategy.name);
    }
}
