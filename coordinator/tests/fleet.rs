//! The whole coordinator under random faults, in simulated worlds: whatever happens to coordinator, workers, network and disk, the search ends where
//! the undisturbed one ends.
//!
//! `EVOLVER_SEEDS=20000` runs more worlds, `EVOLVER_SEED=17` one of them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod faults;
mod world;

use std::sync::{
    Mutex,
    atomic::{AtomicU64, Ordering},
};

use self::faults::{Plan, Seen, World};

/// Worlds of an ordinary test run.
const SEEDS: u64 = 3000;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn whatever_happens_the_search_ends_where_the_undisturbed_one_does() {
    let (first, count) = number("EVOLVER_SEED").map_or((0, number("EVOLVER_SEEDS").unwrap_or(SEEDS)), |seed| (seed, 1));
    let (next, seen, wrong) = (AtomicU64::new(first), Mutex::new(Seen::default()), Mutex::new(None::<(u64, String)>));
    let work = || {
        let mut own = Seen::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + count || wrong.lock().unwrap().is_some() {
                break;
            }
            match World::new(&Plan::of(seed)).run() {
                Ok(one) => own.merge(&one),
                Err(error) => {
                    let mut wrong = wrong.lock().unwrap();
                    if wrong.as_ref().is_none_or(|(other, _)| seed < *other) {
                        *wrong = Some((seed, error));
                    }
                }
            }
        }
        seen.lock().unwrap().merge(&own);
    };
    std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(8);
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    if let Some((seed, error)) = wrong.into_inner().unwrap() {
        let shortest = Plan::of(seed).minimised(|plan| World::new(plan).run().is_err());
        let last = World::new(&shortest).run();
        panic!("EVOLVER_SEED={seed}: {error}\nthe least that goes wrong: {shortest:#?}\nas: {last:?}");
    }
    let seen = seen.into_inner().unwrap();
    println!("{count} worlds: {seen:#?}");
    if count < SEEDS {
        return;
    }
    for what in FIRED {
        let fired = seen.0.get(what).copied().unwrap_or(0);
        assert!(fired > count / 100, "{what} was seen {fired} times in {count} worlds: they were too quiet");
    }
}

/// What must have been seen, so that nothing here passes by not happening.
const FIRED: [&str; 22] = [
    "results",
    "compared",
    "killed",
    "killed while writing",
    "vanished",
    "agents killed",
    "paused",
    "preempted",
    "same name",
    "requests lost",
    "requests doubled",
    "answers lost",
    "answers unheard",
    "superseded",
    "turned away",
    "handed in under a new token",
    "went on under a new token",
    "failed attempts",
    "failed by a sick machine",
    "given up",
    "liars caught",
    "retracted",
];
