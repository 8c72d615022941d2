//! What operators decide is journaled and folded: higher limits, models from outside. And what a race asks for is what reports are held against.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod world;

use std::collections::BTreeMap;

use evolver_common::{
    definition::{Resolved, Stop},
    recipe::{Op, Recipe, encode},
    score::Split,
};
use evolver_coordinator::{
    journal::{Record, Timings},
    search::{Phase, Spec},
    service::{Replay, extend, replay},
};
use evolver_proto::{portion_from_wire, v1};

use self::world::{Served, Worker, resolved, right, scores};

fn opening(resolved: &Resolved) -> Vec<Record> {
    vec![
        Record::Definition { resolved: serde_json::to_value(resolved).unwrap(), hash: resolved.hash() },
        Record::Start { epoch: 1, version: "test".into() },
    ]
}

fn result(spec: &Spec) -> Record {
    Record::Result {
        number: spec.number,
        recipe: spec.recipe.id(),
        scores: scores(&encode(&spec.recipe), spec.portion),
        worker: "w".into(),
        attempt: 1,
        timings: Timings::default(),
        elapsed: 1.0,
    }
}

/// Goes on from the records to the search's end, folding them anew for every result.
fn finish(records: &mut Vec<Record>) -> Replay {
    loop {
        let replay = replay(records, None).unwrap();
        let Some(spec) = replay.undone().next().cloned() else {
            assert_eq!(replay.search.phase(), Phase::Finished);
            return replay;
        };
        records.push(result(&spec));
    }
}

#[test]
fn a_finished_search_goes_on_with_what_was_enqueued_when_its_limit_is_raised() {
    for rule in ["greedy", "race", "duel"] {
        let resolved = resolved(|definition| definition["acceptance"]["rule"] = rule.into());
        let mut records = opening(&resolved);
        let first = finish(&mut records);
        assert_eq!(first.search.counters().issued, 12);
        let base = Recipe::checkpoint(resolved.base.digest);
        let expert = Recipe::checkpoint(resolved.experts[0].digest);
        let handed_in = Recipe::new(Op::Splice { first: base, second: expert, at: 0.5 });
        records.push(Record::Enqueue { offspring: 0, name: "mine".into(), recipe: handed_in.to_string() });
        assert_eq!(replay(&records, None).unwrap().search.phase(), Phase::Finished, "limits hold for what is enqueued too");
        records.push(Record::Extend { limits: BTreeMap::from([("offspring".into(), Some(20.0))]) });
        let next = replay(&records, None).unwrap();
        assert_eq!((next.search.phase(), next.resolved.definition.stop.offspring), (Phase::Search, Some(20)));
        let ended = finish(&mut records);
        assert_eq!(ended.search.counters().issued, 20);
        let first_stage = |record: &&Record| matches!(record, Record::Result { recipe, .. } if *recipe == handed_in.id());
        assert!(records.iter().any(|record| first_stage(&record)), "{rule}: what was handed in has been scored");
        let guests: Vec<_> = ended.search.guests().iter().map(|guest| (guest.individual.id, guest.scored)).collect();
        assert_eq!(guests, [(handed_in.id(), true)], "{rule}: and what became of it is told");
        // The definition's file still has the old limit: what was raised stays raised.
        assert_eq!(replay(&records, Some(&resolved)).unwrap().search.state_hash(), ended.search.state_hash());
    }
}

#[test]
fn limits_are_only_raised() {
    let was = Stop { offspring: Some(10), seconds: Some(5.0), ..Stop::default() };
    let mut stop = was.clone();
    let limits = |limits: &[(&str, Option<f64>)]| limits.iter().map(|(name, limit)| ((*name).to_owned(), *limit)).collect();
    extend(&mut stop, &limits(&[("offspring", Some(4.0)), ("patience", Some(3.0)), ("seconds", Some(4.0))])).unwrap();
    assert_eq!(stop, was, "lower ones, and a limit where there was none, change nothing");
    extend(&mut stop, &limits(&[("offspring", Some(11.0)), ("seconds", None)])).unwrap();
    assert_eq!((stop.offspring, stop.seconds), (Some(11), None));
    assert!(extend(&mut stop, &limits(&[("offsprung", None)])).unwrap_err().contains("did you mean \"offspring\""));
}

#[tokio::test]
async fn a_race_over_sockets_asks_for_parts_and_refuses_other_counts() {
    let resolved = resolved(|definition| {
        definition["acceptance"] = serde_json::json!({ "rule": "race", "reserve": 0.25, "threshold": 0.0 });
        definition["tasks"][0]["metric"] = "accuracy".into();
        definition["search"]["in_flight"] = 1.into();
        definition["search"]["seed"] = 8.into();
    });
    let folder = tempfile::tempdir().unwrap();
    let served = Served::start(folder.path(), &resolved).await;
    let mut worker = Worker::join(&served.address, "w").await;
    let mut counts = BTreeMap::<(bool, usize), u32>::new();
    let mut refused = 0;
    loop {
        let outcome = worker.ask(std::time::Duration::from_secs(10)).await.unwrap();
        let v1::lease_reply::Outcome::Assignment(assignment) = outcome else { break };
        let portion = portion_from_wire(&assignment).unwrap();
        let count = portion.count(if portion.split == Split::Test { world::TEST } else { world::DEV });
        if counts.is_empty() {
            // All items, where a part was asked for.
            let whole = v1::Assignment { subset: None, ..assignment.clone() };
            let reply = worker.report(assignment.token, right(&whole)).await;
            assert_eq!(reply.verdict(), v1::report_reply::Verdict::Refused);
            assert!(reply.reason.contains("has 18 items to be scored, and 24 of task t"), "{}", reply.reason);
            refused += 1;
            *counts.entry((false, 0)).or_default() += 1;
            continue;
        }
        *counts.entry((portion.split == Split::Test, count)).or_default() += 1;
        assert_eq!(worker.finish(&assignment).await.verdict(), v1::report_reply::Verdict::Committed);
    }
    assert_eq!(refused, 1);
    // Start models on all items that decisions read; offspring by stages of 5, 4 more and 9 more; the final candidates on 6 reserved items and the test.
    assert!(
        counts[&(false, 18)] >= 4 && counts[&(false, 5)] == 12 && counts[&(false, 6)] >= 4 && counts[&(true, 8)] >= 4,
        "{counts:?}"
    );
    served.end().await.unwrap();
    let replay = replay(&evolver_coordinator::journal::read(folder.path()).unwrap(), None).unwrap();
    assert_eq!(replay.search.counters().committed, 12);
    assert!(replay.search.table().iter().all(|row| replay.search.fresh_scores(row).is_some()));
    // Of what was put together from stages only the mean is known: the best was scored once more, on all items at once.
    let best = replay.search.best().unwrap();
    let [staged, whole] = [&best.scores, replay.search.dev_scores(best)].map(|scores| &scores.tasks[0].metrics);
    assert_eq!((best.kind, staged.contains_key("macro_f1"), whole.contains_key("macro_f1")), ("evolved", false, true));
    assert_eq!(staged["accuracy"].to_bits(), whole["accuracy"].to_bits());
    assert!(replay.search.items() < 12 * 18 + 4 * 18, "the race gave some up early: {}", replay.search.items());
}

#[test]
fn a_decision_that_cannot_be_folded_is_named() {
    let resolved = resolved(|_| {});
    let mut records = opening(&resolved);
    records.push(Record::Enqueue { offspring: 0, name: "mine".into(), recipe: "n0 = nothing()".into() });
    let error = replay(&records, None).err().unwrap().to_string();
    assert!(error.starts_with("record 3: line 1"), "{error}");
}
