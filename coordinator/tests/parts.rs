//! Items that a leaving worker hands in: who goes on from them, and on whose word the result stands.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod world;

use std::time::Duration;

use evolver_coordinator::{
    journal::{self, Record},
    service::replay,
};
use evolver_proto::{
    PROTOCOL_OF_HANDING,
    v1::{self, lease_reply::Outcome, report_reply::Verdict, report_request},
};
use serde_json::Value;
use tonic::Code;

use self::world::{Served, Worker, resolved, right};

fn parts(outcomes: &[(u32, u8)]) -> Vec<v1::Part> {
    let (items, outcomes) = outcomes.iter().map(|(item, outcome)| (*item, vec![*outcome])).unzip();
    vec![v1::Part { task: "t".into(), items, outcomes }]
}

/// Leases and hands in; what was held.
async fn leave(worker: &mut Worker, parts: Vec<v1::Part>) -> v1::Assignment {
    let held = worker.lease().await;
    worker.report(held.token, report_request::Result::Released(v1::Released { parts })).await;
    held
}

fn spec(assignment: &v1::Assignment) -> u64 {
    assignment.token.unwrap().spec
}

fn author(folder: &std::path::Path, spec: u64) -> String {
    let of_spec = |record: Record| match record {
        Record::Result { number, worker, .. } if number == spec => Some(worker),
        _ => None,
    };
    journal::read(folder).unwrap().into_iter().find_map(of_spec).unwrap()
}

#[tokio::test]
async fn what_a_leaving_worker_has_scored_is_given_to_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let served = Served::start(folder.path(), &resolved(|_| ())).await;
    let (mut a, mut b) = (Worker::join(&served.address, "a").await, Worker::join(&served.address, "b").await);
    let held = leave(&mut a, parts(&[(0, 7), (5, 8)])).await;
    assert_eq!(held.parts, []);
    // One that speaks an older protocol would not know what to do with them.
    let mut old = Worker::connect(&served.address, "old").await;
    old.epoch = old.register(PROTOCOL_OF_HANDING - 1).await.unwrap().epoch;
    let given = old.lease().await;
    assert_eq!((spec(&given), given.parts.len()), (spec(&held), 0));
    old.report(given.token, report_request::Result::Released(v1::Released { parts: parts(&[(1, 1)]) })).await;
    // The one that has more goes on, and the last one from both.
    let given = b.lease().await;
    assert_eq!((spec(&given), given.parts.clone()), (spec(&held), parts(&[(0, 7), (5, 8)])));
    b.report(given.token, report_request::Result::Released(v1::Released { parts: parts(&[(0, 7), (2, 9), (5, 8)]) })).await;
    let mut c = Worker::join(&served.address, "c").await;
    let given = c.lease().await;
    assert_eq!(given.parts, parts(&[(0, 7), (2, 9), (5, 8)]));
    assert_eq!(c.finish(&given).await.verdict(), Verdict::Committed);
    // What is finished alone is one's own.
    let alone = c.lease().await;
    c.finish(&alone).await;
    served.end().await.unwrap();
    assert_eq!(author(folder.path(), spec(&held)), "c with a with b");
    assert_eq!(author(folder.path(), spec(&alone)), "c");
}

#[tokio::test]
async fn an_attempt_that_fails_on_anothers_items_says_nothing_and_they_are_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let served = Served::start(folder.path(), &resolved(|definition| definition["fleet"]["attempts"] = 1.into())).await;
    let (mut a, mut b) = (Worker::join(&served.address, "a").await, Worker::join(&served.address, "b").await);
    let held = leave(&mut a, parts(&[(0, 7)])).await;
    let given = b.lease().await;
    assert_eq!(given.parts.len(), 1);
    let failure = v1::Failure { class: v1::FailureClass::Crash.into(), message: "boom".into() };
    b.report(given.token, report_request::Result::Failure(failure)).await;
    // A failure that counted would give the spec up: one is enough here, and the worker has done other things well.
    let again = b.lease().await;
    assert_eq!((spec(&again), again.parts.len()), (spec(&held), 0));
    b.finish(&again).await;
    let reply = b.report(held.token, report_request::Result::Released(v1::Released { parts: parts(&[(0, 7)]) })).await;
    assert_eq!(reply.verdict(), Verdict::Superseded);
    served.end().await.unwrap();
    assert_eq!(author(folder.path(), spec(&held)), "b");
}

#[tokio::test]
async fn nobody_is_called_like_two() {
    let folder = tempfile::tempdir().unwrap();
    let served = Served::start(folder.path(), &resolved(|_| ())).await;
    let mut worker = Worker::connect(&served.address, "a with b").await;
    let refusal = worker.register(PROTOCOL_OF_HANDING).await.unwrap_err();
    assert_eq!(refusal.code(), Code::FailedPrecondition);
    assert!(refusal.message().contains("with"), "{}", refusal.message());
    served.end().await.unwrap();
}

/// Scores whose first item is as the first outcome that was handed in says.
fn finished(assignment: &v1::Assignment) -> report_request::Result {
    let report_request::Result::Scores(mut scores) = right(assignment) else { panic!() };
    let task = &mut scores.tasks[0];
    if let Some(part) = assignment.parts.first() {
        task.credits[0] = f32::from(part.outcomes[0][0]);
        let mean = task.credits.iter().map(|credit| f64::from(*credit)).sum::<f64>() / task.credits.len() as f64;
        task.metrics.insert("accuracy".into(), mean);
        task.metrics.insert("macro_f1".into(), mean);
    }
    report_request::Result::Scores(scores)
}

#[tokio::test]
async fn a_result_that_handed_in_items_make_false_is_taken_back_and_costs_nobody_his_trust() {
    let folder = tempfile::tempdir().unwrap();
    let all = |definition: &mut Value| {
        definition["fleet"]["check_every"] = 1.into();
        definition["search"]["in_flight"] = 1.into();
    };
    let served = Served::comparing(folder.path(), &resolved(all)).await;
    let (mut liar, mut honest) = (Worker::join(&served.address, "liar").await, Worker::join(&served.address, "honest").await);
    let held = liar.lease().await;
    let report_request::Result::Scores(scores) = right(&held) else { panic!() };
    let wrong = 1 - scores.tasks[0].credits[0] as u8;
    liar.report(held.token, report_request::Result::Released(v1::Released { parts: parts(&[(0, wrong)]) })).await;
    let given = honest.lease().await;
    assert_eq!((spec(&given), given.parts.len()), (spec(&held), 1));
    let reply = honest.report(given.token, finished(&given)).await;
    assert_eq!(reply.verdict(), Verdict::Committed);
    // Neither of the two is asked about it; two others are, who agree with each other.
    let mut others = Vec::new();
    for name in ["x", "y"] {
        let mut worker = Worker::join(&served.address, name).await;
        let check = worker.lease().await;
        assert_eq!(spec(&check), spec(&held), "{name}");
        assert_eq!(check.parts, []);
        worker.finish(&check).await;
        others.push(worker);
    }
    // The epoch has risen with what was taken back.
    assert!(others[0].ask(Duration::from_millis(500)).await.is_err());
    let status = served.status();
    assert_eq!(status.retracted, 1);
    assert!(status.workers.iter().all(|worker| worker.withheld.is_empty()), "{status:?}");
    // What this one hands in is not passed on any more.
    liar.again().await;
    let held = leave(&mut liar, parts(&[(0, wrong)])).await;
    honest.again().await;
    let given = honest.lease().await;
    assert_eq!((spec(&given), given.parts.len()), (spec(&held), 0));
    honest.finish(&given).await;
    let tasks: Vec<_> =
        others.into_iter().chain([honest, liar]).map(|mut worker| tokio::spawn(async move { worker.work_on().await })).collect();
    for task in tasks {
        task.await.unwrap();
    }
    served.end().await.unwrap();
    let calm = tempfile::tempdir().unwrap();
    let served = Served::start(calm.path(), &resolved(all)).await;
    Worker::join(&served.address, "w").await.work().await;
    served.end().await.unwrap();
    let [stormy, calm] = [folder.path(), calm.path()].map(|folder| replay(&journal::read(folder).unwrap(), None).unwrap());
    assert_eq!(stormy.search.state_hash(), calm.search.state_hash());
}

#[tokio::test]
async fn who_is_not_trusted_hands_in_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let served = Served::comparing(folder.path(), &resolved(|_| ())).await;
    let (mut bad, mut good) = (Worker::join(&served.address, "bad").await, Worker::join(&served.address, "good").await);
    leave(&mut bad, parts(&[(0, 1)])).await;
    let given = good.lease().await;
    assert_eq!(given.parts.len(), 1);
    good.finish(&given).await;
    leave(&mut bad, parts(&[(0, 1)])).await;
    let action = Some(v1::operate_request::Action::Distrust(v1::Distrust { worker: "bad".into() }));
    good.client.operate(v1::OperateRequest { action }).await.unwrap();
    // Its share of a result is taken back too, and with it the epoch.
    assert!(good.ask(Duration::from_millis(200)).await.is_err());
    good.again().await;
    for _ in 0..2 {
        let Outcome::Assignment(next) = good.ask(Duration::from_secs(5)).await.unwrap() else { panic!() };
        assert_eq!(next.parts, []);
        good.finish(&next).await;
    }
    assert_eq!(served.status().retracted, 1);
    served.end().await.unwrap();
}
