//! What the fleet decides, one decision at a time.

use std::collections::BTreeMap;

use evolver_common::{digest::Digest, recipe::Recipe, score::Split, score::TaskScore};

use super::*;
use crate::search::Kind as SpecKind;

const LEASE: Duration = Duration::from_secs(60);

fn fleet(check_every: u32) -> Fleet {
    Fleet::new(1, Settings { lease: LEASE, attempts: 3, check_every, tolerance: 0.0, seed: 7 })
}

fn spec(number: u64) -> Spec {
    let recipe = Recipe::checkpoint(Digest::of(&number.to_le_bytes()));
    Spec { number, kind: SpecKind::Offspring, recipe, portion: Split::Dev.into() }
}

fn scores(right: usize) -> Scores {
    let credits = (0..10).map(|item| if item < right { 1.0 } else { 0.0 }).collect();
    Scores { tasks: vec![TaskScore { task: "t".into(), metrics: BTreeMap::new(), credits }] }
}

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn lease(fleet: &mut Fleet, worker: &str, now: u64) -> Token {
    fleet.lease(worker, at(now)).expect("there is work").0
}

#[test]
fn a_slow_attempt_is_doubled_once_and_the_first_result_counts() {
    let mut fleet = fleet(0);
    (0..8).for_each(|number| fleet.add(spec(number)));
    ["slow", "quick", "idle"].iter().for_each(|name| fleet.register(name, "h", at(0)));
    let slow = lease(&mut fleet, "slow", 0);
    for turn in 0..7 {
        let token = lease(&mut fleet, "quick", turn);
        fleet.commit(token, "quick", &scores(3), false, at(turn + 1));
    }
    assert!(fleet.lease("idle", at(10)).is_none(), "it is not slow yet");
    fleet.heartbeat("slow", Some(slow), (1, 2), at(10));
    let doubled = lease(&mut fleet, "idle", 20);
    assert_eq!((doubled.spec, doubled.attempt), (slow.spec, 2));
    assert!(fleet.lease("quick", at(30)).is_none(), "twice is enough");
    assert!(fleet.is_live(slow) && fleet.is_live(doubled));
    fleet.commit(doubled, "idle", &scores(3), false, at(31));
    assert!(!fleet.is_live(slow));
}

#[test]
fn what_a_worker_has_done_is_taken_although_a_dead_one_still_holds_it() {
    let mut fleet = fleet(0);
    fleet.add(spec(0));
    fleet.register("dead", "h", at(0));
    let dead = lease(&mut fleet, "dead", 0);
    fleet.register("next", "h", at(1));
    assert!(fleet.lease_held("next", 0, |_| false, at(1)).is_none(), "it has done other work");
    let (token, _) = fleet.lease_held("next", 0, |_| true, at(1)).unwrap();
    assert_eq!((token.spec, token.attempt), (0, 2));
    assert!(fleet.lease_held("next", 0, |_| true, at(1)).is_none(), "it holds it already");
    fleet.commit(token, "next", &scores(3), false, at(2));
    assert!(!fleet.is_live(dead));
    assert!(fleet.lease_held("next", 0, |_| true, at(3)).is_none(), "nobody wants it any more");
}

#[test]
fn a_worker_that_can_do_nothing_rests_and_its_specs_are_not_blamed() {
    let mut fleet = fleet(0);
    (0..4).for_each(|number| fleet.add(spec(number)));
    ["sick", "well"].iter().for_each(|name| fleet.register(name, "h", at(0)));
    for _ in 0..4 {
        let token = lease(&mut fleet, "sick", 1);
        fleet.fail(token, "boom", at(2));
    }
    assert!(fleet.lease("sick", at(3)).is_none());
    assert!(fleet.record("sick", at(3)).withheld.contains("failed on everything"), "{:?}", fleet.record("sick", at(3)));
    for _ in 0..4 {
        let token = lease(&mut fleet, "well", 4);
        let after = fleet.commit(token, "well", &scores(5), false, at(5));
        assert_eq!(after.given_up, []);
    }
    // Rested, it has to do first what is known to be possible.
    fleet.add(spec(9));
    let probe = lease(&mut fleet, "sick", 40);
    assert_eq!(probe.spec, 9, "nothing is held against it any more");
}

#[test]
fn as_many_sick_workers_as_would_give_a_spec_up_give_none_up() {
    let mut fleet = fleet(0);
    (0..4).for_each(|number| fleet.add(spec(number)));
    fleet.register("well", "h", at(0));
    for name in ["s", "t", "u"] {
        fleet.register(name, "h", at(0));
        for _ in 0..4 {
            let token = lease(&mut fleet, name, 1);
            fleet.fail(token, "boom", at(1));
        }
        assert!(fleet.lease(name, at(2)).is_none(), "{name} rests");
        assert_eq!(fleet.expire(at(2)), []);
    }
    for _ in 0..4 {
        let token = lease(&mut fleet, "well", 3);
        assert_eq!(fleet.commit(token, "well", &scores(5), false, at(3)).given_up, []);
    }
}

#[test]
fn a_spec_is_given_up_once_three_workers_that_are_well_have_failed_on_it() {
    let mut fleet = fleet(0);
    (0..9).for_each(|number| fleet.add(spec(number)));
    ["a", "b", "c"].iter().for_each(|name| fleet.register(name, "h", at(0)));
    let mut given_up = Vec::new();
    for name in ["a", "b", "c"] {
        let token = lease(&mut fleet, name, 1);
        assert_eq!(token.spec, 0);
        fleet.fail(token, "boom", at(1));
        assert_eq!(given_up, []);
        let token = lease(&mut fleet, name, 2);
        given_up = fleet.commit(token, name, &scores(5), false, at(2)).given_up;
    }
    assert_eq!(given_up, [(0, "3 attempts failed, the last one: boom".to_owned())]);
}

#[test]
fn losses_count_once_a_worker_and_damaged_files_never() {
    let mut fleet = self::fleet(0);
    fleet.add(spec(0));
    for index in 0..10 {
        let name = format!("w{index}");
        fleet.register(&name, "h", at(index));
        // Somebody else could still do it.
        fleet.register("other", "h", at(index));
        let token = lease(&mut fleet, &name, index);
        let given_up = fleet.expire(at(index) + LEASE);
        assert!(!fleet.is_live(token));
        assert_eq!(given_up.len(), usize::from(index == 9), "worker {index}: {given_up:?}");
    }
    let mut fleet = self::fleet(0);
    (0..30).for_each(|number| fleet.add(spec(number)));
    for index in 0..6 {
        let name = format!("w{index}");
        fleet.register(&name, "h", at(0));
        let token = lease(&mut fleet, &name, 0);
        assert_eq!(token.spec, 0, "it is never given up");
        fleet.spoil(token, "a file was cut", at(0));
        let token = lease(&mut fleet, &name, 0);
        assert_eq!(fleet.commit(token, &name, &scores(5), false, at(1)).given_up, []);
    }
}

#[test]
fn two_that_disagree_need_a_third_and_the_majority_stands() {
    let mut fleet = fleet(1);
    fleet.add(spec(0));
    ["liar", "one", "two"].iter().for_each(|name| fleet.register(name, "h", at(0)));
    let token = lease(&mut fleet, "liar", 0);
    assert!(fleet.compares("liar"));
    fleet.commit(token, "liar", &scores(9), true, at(1));
    assert!(fleet.lease("liar", at(2)).is_none(), "nobody is asked twice");
    let token = lease(&mut fleet, "one", 2);
    assert_eq!((token.spec, fleet.purpose(token)), (0, Some(Purpose::Check)));
    assert_eq!(fleet.answer(token, scores(7), at(3)).opinions, [(0, Opinion::Open)]);
    assert!(fleet.checks_owed(at(3)) && fleet.stuck(at(3)).is_none());
    let token = lease(&mut fleet, "two", 3);
    let opinions = fleet.answer(token, scores(7), at(4)).opinions;
    let (honest, liars) = (vec!["one".into(), "two".into()], vec!["liar".into()]);
    assert_eq!(opinions, [(0, Opinion::Lied { honest, liars })]);
    fleet.distrust("liar", "it lied");
    assert!(!fleet.checks_owed(at(5)));
    assert_eq!(fleet.record("liar", at(5)).withheld, "it lied");
    assert_eq!((fleet.record("one", at(5)).checked, fleet.record("one", at(5)).agreed), (1, 1));
    assert_eq!((fleet.record("liar", at(5)).checked, fleet.record("liar", at(5)).agreed), (1, 0));
}

#[test]
fn two_workers_of_one_certificate_are_one_voice() {
    let mut fleet = fleet(1);
    fleet.add(spec(0));
    ["a/1", "a/2", "b/1"].iter().for_each(|name| fleet.register(name, "h", at(0)));
    let token = lease(&mut fleet, "a/1", 0);
    fleet.commit(token, "a/1", &scores(9), true, at(1));
    assert!(fleet.lease("a/2", at(2)).is_none());
    let token = lease(&mut fleet, "b/1", 2);
    assert_eq!(fleet.answer(token, scores(7), at(3)).opinions, [(0, Opinion::Open)]);
    // Nobody is here to decide: that is said, and the search does not end on it.
    assert!(fleet.stuck(at(4)).is_some_and(|reason| reason.contains("disagree")));
    assert!(fleet.checks_owed(at(4)));
}
