//! Workers that report what is not so, over sockets: how soon they are caught, and that nothing of theirs stays.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod world;

use std::time::Duration;

use evolver_coordinator::{
    journal::{self, Record},
    service::{Replay, replay},
};
use evolver_proto::v1::{self, lease_reply::Outcome, report_request};

use self::world::{Served, Worker, resolved, right};

/// What a worker reports that claims so many items too many.
fn claimed(assignment: &v1::Assignment, items: usize) -> report_request::Result {
    let report_request::Result::Scores(mut scores) = right(assignment) else { panic!() };
    let task = &mut scores.tasks[0];
    task.credits.iter_mut().filter(|credit| **credit < 1.0).take(items).for_each(|credit| *credit = 1.0);
    let mean = task.credits.iter().map(|credit| f64::from(*credit)).sum::<f64>() / task.credits.len() as f64;
    task.metrics.insert("accuracy".into(), mean);
    task.metrics.insert("macro_f1".into(), mean);
    report_request::Result::Scores(scores)
}

/// Works, claiming so many items too many, until it is told to leave; the reports that it made.
async fn claiming(mut worker: Worker, items: usize) -> u64 {
    let mut reports = 0;
    loop {
        match worker.ask(Duration::from_millis(300)).await {
            Ok(Outcome::Assignment(assignment)) => {
                worker.report(assignment.token, claimed(&assignment, items)).await;
                reports += 1;
            }
            Ok(Outcome::Idle(_)) => {}
            Ok(Outcome::Leave(_)) => return reports,
            Err(_) => worker.again().await,
        }
    }
}

fn folded(folder: &std::path::Path) -> Replay {
    replay(&journal::read(folder).unwrap(), None).unwrap()
}

/// A search with one liar among `honest` workers; the liar's reports until it was caught.
async fn searched(check_every: u32, honest: usize) -> (u64, Replay, Replay) {
    let folder = tempfile::tempdir().unwrap();
    let resolved = resolved(|definition| {
        definition["search"]["in_flight"] = 6.into();
        definition["stop"]["offspring"] = 120.into();
        definition["fleet"]["check_every"] = check_every.into();
    });
    let served = Served::comparing(folder.path(), &resolved).await;
    let mut workers = Vec::new();
    for index in 0..honest {
        let address = served.address.clone();
        workers.push(tokio::spawn(async move { Worker::join(&address, &format!("honest{index}")).await.work_on().await }));
    }
    let address = served.address.clone();
    let liar = tokio::spawn(async move { claiming(Worker::join(&address, "liar").await, 2).await });
    for worker in workers {
        worker.await.unwrap();
    }
    let reports = liar.await.unwrap();
    let status = served.status();
    assert!(status.finished, "{status:?}");
    let liar = status.workers.iter().find(|worker| worker.worker == "liar").unwrap();
    assert!(liar.withheld.contains("false scores"), "{liar:?}");
    served.end().await.unwrap();
    let records = journal::read(folder.path()).unwrap();
    assert!(records.iter().any(|record| matches!(record, Record::Distrust { worker, .. } if worker == "liar")));
    let calm = tempfile::tempdir().unwrap();
    let served = Served::start(calm.path(), &resolved).await;
    Worker::join(&served.address, "w").await.work().await;
    served.end().await.unwrap();
    (reports, folded(folder.path()), folded(calm.path()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_liar_is_caught_within_thirty_reports_and_what_it_said_is_taken_back() {
    let mut taken_back = 0;
    for _ in 0..3 {
        let (reports, stormy, calm) = searched(50, 3).await;
        println!("caught after {reports} reports, {} results taken back", stormy.retracted);
        assert!(reports <= 30, "caught after {reports} reports");
        // Nothing of a false score is left: the search ends in the bits of the one that nobody lied to.
        assert_eq!(stormy.search.state_hash(), calm.search.state_hash());
        assert_eq!(stormy.search.best().unwrap().id, calm.search.best().unwrap().id);
        assert!(stormy.authors.values().all(|author| author != "liar"));
        taken_back += stormy.retracted;
    }
    // It may be caught before anything stood on its word alone, but hardly ever three times.
    assert!(taken_back > 0);
}

/// A worker whose processor rounds otherwise: one item of each task is not the others', which is 1 in 8 of the sealed ones. Whether it was distrusted.
async fn odd_one_out(tolerance: f64) -> bool {
    let folder = tempfile::tempdir().unwrap();
    let resolved = resolved(|definition| {
        definition["stop"]["offspring"] = 60.into();
        definition["fleet"]["check_every"] = 1.into();
        definition["fleet"]["tolerance"] = tolerance.into();
    });
    let served = Served::comparing(folder.path(), &resolved).await;
    let odd = Worker::join(&served.address, "odd").await;
    let honest = ["a", "b", "c"].map(|name| {
        let address = served.address.clone();
        tokio::spawn(async move { Worker::join(&address, name).await.work_on().await })
    });
    let reports = claiming(odd, 1).await;
    for worker in honest {
        worker.await.unwrap();
    }
    assert!(served.status().finished && reports > 0);
    served.end().await.unwrap();
    folded(folder.path()).distrusted.contains_key("odd")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_processors_roundings_are_no_lie_within_the_tolerance() {
    assert!(odd_one_out(0.0).await);
    assert!(!odd_one_out(0.15).await);
}

#[tokio::test]
async fn what_a_distrusted_worker_reported_stays_away_after_a_restart_until_it_is_readmitted() {
    let folder = tempfile::tempdir().unwrap();
    let alone = |definition: &mut serde_json::Value| {
        definition["fleet"]["check_every"] = 0.into();
        definition["fleet"]["check_best"] = false.into();
    };
    let served = Served::comparing(folder.path(), &resolved(alone)).await;
    let (mut bad, mut good) = (Worker::join(&served.address, "bad").await, Worker::join(&served.address, "good").await);
    for _ in 0..2 {
        let assignment = bad.lease().await;
        bad.finish(&assignment).await;
    }
    let assignment = good.lease().await;
    good.finish(&assignment).await;
    let operate = |action| v1::OperateRequest { action: Some(action) };
    let distrust = operate(v1::operate_request::Action::Distrust(v1::Distrust { worker: "bad".into() }));
    good.client.operate(distrust).await.unwrap();
    // Its word is gone, and everyone registers with the new epoch.
    assert!(matches!(good.ask(Duration::from_millis(200)).await, Err(status) if status.code() == tonic::Code::Unauthenticated));
    served.end().await.unwrap();
    let replay = folded(folder.path());
    assert_eq!((replay.told.len(), replay.retracted, replay.epoch), (1, 2, 2));

    let served = Served::comparing(folder.path(), &resolved(alone)).await;
    let mut bad = Worker::join(&served.address, "bad").await;
    assert!(matches!(bad.ask(Duration::from_millis(300)).await.unwrap(), Outcome::Idle(_)), "it gets no work");
    let mut good = Worker::join(&served.address, "good").await;
    let readmit = operate(v1::operate_request::Action::Readmit(v1::Readmit { worker: "bad".into() }));
    good.client.operate(readmit).await.unwrap();
    bad.lease().await;
    let nobody = operate(v1::operate_request::Action::Readmit(v1::Readmit { worker: "nobody".into() }));
    assert_eq!(good.client.operate(nobody).await.unwrap_err().code(), tonic::Code::NotFound);
    served.end().await.unwrap();
    assert!(folded(folder.path()).distrusted.is_empty());
}

#[tokio::test]
async fn an_operators_pause_lets_workers_wait_and_a_resume_lets_them_work() {
    let folder = tempfile::tempdir().unwrap();
    let served = Served::start(folder.path(), &resolved(|_| ())).await;
    let mut worker = Worker::join(&served.address, "w").await;
    let mut operator = worker.client.clone();
    let mut operate =
        async |action| operator.operate(v1::OperateRequest { action: Some(action) }).await.unwrap().into_inner().done;
    assert!(operate(v1::operate_request::Action::Pause(v1::Pause {})).await.contains("no more work"));
    assert!(matches!(worker.ask(Duration::from_millis(500)).await.unwrap(), Outcome::Idle(_)), "it is not sent away");
    assert_eq!(served.status().stuck, "an operator has paused it");
    operate(v1::operate_request::Action::Resume(v1::Resume {})).await;
    worker.work().await;
    assert!(served.status().finished);
    served.end().await.unwrap();
}
