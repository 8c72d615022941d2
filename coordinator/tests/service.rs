//! The service's contract, over real sockets.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod world;

use std::{
    path::Path,
    time::{Duration, Instant},
};

use evolver_common::checkpoint::{
    Dtype,
    write::{Announced, WeightsWriter},
};
use evolver_coordinator::{
    access::Security,
    journal::{self, Record},
    service::{Coordinator, Options, Replay, StartError, replay, serve},
};
use evolver_proto::{
    PROTOCOL, PROTOCOL_OLDEST,
    v1::{self, lease_reply::Outcome, report_reply::Verdict},
};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tonic::Code;

use self::world::{DEV, START, Served, Worker, resolved, right};

#[tokio::test]
async fn a_lease_does_not_wait_for_a_delayed_acknowledgement() {
    let folder = tempfile::tempdir().unwrap();
    let served = Served::start(folder.path(), &resolved(|definition| definition["stop"]["offspring"] = 60.into())).await;
    let mut worker = Worker::join(&served.address, "w").await;
    let mut times = Vec::new();
    for _ in 0..41 {
        let began = Instant::now();
        let assignment = worker.lease().await;
        times.push(began.elapsed());
        // As long as scoring takes: the connection falls silent, and the kernel begins to delay its acknowledgements.
        tokio::time::sleep(Duration::from_millis(60)).await;
        worker.finish(&assignment).await;
    }
    times.sort_unstable();
    println!("a lease takes {:?} (median), {:?} to {:?}", times[20], times[0], times[40]);
    assert!(times[20] < Duration::from_millis(20), "{times:?}");
    served.end().await.unwrap();
}

fn verdict(reply: &v1::ReportReply) -> Verdict {
    reply.verdict()
}

fn short(wait: u64) -> Duration {
    Duration::from_millis(wait)
}

/// What a folder's journal folds to.
fn folded(folder: &Path) -> Replay {
    replay(&journal::read(folder).unwrap(), None).unwrap()
}

fn token(assignment: &v1::Assignment) -> v1::Token {
    assignment.token.unwrap()
}

#[tokio::test]
async fn a_worker_with_another_protocol_or_an_impossible_name_is_refused_by_a_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let served = Served::start(folder.path(), &resolved(|_| ())).await;
    let mut worker = Worker::join(&served.address, "w").await;
    for served in PROTOCOL_OLDEST..=PROTOCOL {
        worker.register(served).await.unwrap();
    }
    let status = worker.register(PROTOCOL + 1).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("use the same version of evolver on both sides"), "{status}");
    worker.name = "w".repeat(201);
    let status = worker.register(PROTOCOL).await.unwrap_err();
    assert!(status.message().contains("201 bytes"), "{status}");
    served.end().await.unwrap();
}

#[tokio::test]
async fn a_report_is_committed_once() {
    let folder = tempfile::tempdir().unwrap();
    let served = Served::start(folder.path(), &resolved(|_| ())).await;
    let mut worker = Worker::join(&served.address, "w").await;
    let assignment = worker.lease().await;
    assert_eq!(verdict(&worker.finish(&assignment).await), Verdict::Committed);
    let again = worker.finish(&assignment).await;
    assert_eq!(verdict(&again), Verdict::Superseded);
    assert!(again.reason.contains("has a result"), "{again:?}");
    served.end().await.unwrap();
    assert_eq!(folded(folder.path()).told.len(), 1);
}

#[tokio::test]
async fn a_lease_that_ran_out_is_taken_over_and_the_late_report_is_superseded() {
    let folder = tempfile::tempdir().unwrap();
    let served = Served::start(folder.path(), &resolved(quick)).await;
    let (mut lost, mut other) = (Worker::join(&served.address, "lost").await, Worker::join(&served.address, "other").await);
    let first = lost.lease().await;
    let mut taken = other.lease().await;
    while token(&taken).spec != token(&first).spec {
        other.finish(&taken).await;
        taken = other.lease().await;
    }
    assert_eq!(token(&taken).attempt, 2);
    assert_eq!(verdict(&lost.finish(&first).await), Verdict::Superseded);
    assert_eq!(verdict(&other.finish(&taken).await), Verdict::Committed);
    served.end().await.unwrap();
}

/// Short leases.
fn quick(definition: &mut Value) {
    definition["fleet"] = json!({ "lease_seconds": 1.0, "heartbeat_seconds": 0.2 });
}

#[tokio::test]
async fn a_heartbeat_prolongs_the_lease() {
    let folder = tempfile::tempdir().unwrap();
    let resolved = resolved(|definition| {
        quick(definition);
        definition["search"]["in_flight"] = 1.into();
    });
    let served = Served::start(folder.path(), &resolved).await;
    let mut worker = Worker::join(&served.address, "w").await;
    for _ in 0..START {
        let assignment = worker.lease().await;
        worker.finish(&assignment).await;
    }
    let only = worker.lease().await;
    let mut other = Worker::join(&served.address, "other").await;
    let waiting = tokio::spawn(async move { (other.ask(short(10_000)).await.unwrap(), Instant::now()) });
    for _ in 0..20 {
        tokio::time::sleep(short(100)).await;
        assert!(worker.heartbeat(only.token).await.valid);
    }
    let last = Instant::now();
    assert!(!waiting.is_finished());
    assert_eq!(served.status().workers.iter().find(|worker| worker.worker == "w").unwrap().items_done, 3);
    let (taken, when) = waiting.await.unwrap();
    assert!(matches!(taken, Outcome::Assignment(taken) if token(&taken).spec == token(&only).spec));
    assert!(when - last < short(3000), "taken over after {:?}", when - last);
    assert!(!worker.heartbeat(only.token).await.valid);
    served.end().await.unwrap();
}

#[tokio::test]
async fn after_a_restart_old_tokens_and_registrations_are_void() {
    let folder = tempfile::tempdir().unwrap();
    let served = Served::start(folder.path(), &resolved(|_| ())).await;
    let mut worker = Worker::join(&served.address, "w").await;
    let (done, open) = (worker.lease().await, Worker::join(&served.address, "v").await.lease().await);
    worker.finish(&done).await;
    served.end().await.unwrap();

    let served = Served::start(folder.path(), &resolved(|_| ())).await;
    let mut again = Worker::join(&served.address, "v").await;
    assert_eq!(again.epoch, 2);
    assert_eq!(verdict(&again.finish(&open).await), Verdict::Superseded);
    // The same spec and attempt under the new epoch is another lease.
    let fresh = again.lease().await;
    assert_eq!((token(&fresh).spec, token(&fresh).attempt), (token(&open).spec, token(&open).attempt));
    assert_eq!(verdict(&again.finish(&open).await), Verdict::Superseded);
    assert!(!again.heartbeat(open.token).await.valid);
    assert_eq!(verdict(&again.finish(&fresh).await), Verdict::Committed);
    again.epoch = 1;
    assert_eq!(again.ask(short(10)).await.unwrap_err().code(), Code::Unauthenticated);
    again.epoch = again.register(PROTOCOL).await.unwrap().epoch;
    again.lease().await;
    served.end().await.unwrap();
}

#[tokio::test]
async fn wrong_scores_are_failed_attempts_and_never_results() {
    let folder = tempfile::tempdir().unwrap();
    let served = Served::start(folder.path(), &resolved(|definition| definition["fleet"]["attempts"] = 100.into())).await;
    let mut worker = Worker::join(&served.address, "w").await;
    type Spoil = fn(&mut v1::Scores);
    let spoils: [(Spoil, &str); 9] = [
        (|scores| scores.tasks.clear(), "0 tasks were scored"),
        (|scores| scores.tasks[0].task = "u".into(), "of task u were reported"),
        (|scores| scores.tasks[0].credits.truncate(DEV - 1), "has 24 items to be scored, and 23"),
        (|scores| scores.tasks[0].credits[3] = f32::NAN, "the credit of item 3 is NaN"),
        (|scores| scores.tasks[0].credits[4] = 1.5, "the credit of item 4 is 1.5"),
        (|scores| scores.tasks[0].metrics.extend([("macro_f1".into(), f64::NAN)]), "macro_f1 is NaN"),
        (|scores| scores.tasks[0].metrics.extend([("macro_f1".into(), -0.1)]), "macro_f1 is -0.1"),
        (|scores| scores.tasks[0].metrics.retain(|metric, _| metric != "macro_f1"), "macro_f1 is missing"),
        (|scores| *scores.tasks[0].metrics.get_mut("accuracy").unwrap() -= 1e-3, "not the mean of its items"),
    ];
    let mut done = 0;
    for (spoil, sentence) in &spoils {
        let assignment = worker.lease().await;
        let mut result = right(&assignment);
        let v1::report_request::Result::Scores(scores) = &mut result else { panic!() };
        spoil(scores);
        let reply = worker.report(assignment.token, result).await;
        assert_eq!(verdict(&reply), Verdict::Refused);
        assert!(reply.reason.contains(sentence), "{sentence}: {}", reply.reason);
        // A worker that does nothing well gets no more: this one does something between.
        let assignment = worker.lease().await;
        assert_eq!(verdict(&worker.finish(&assignment).await), Verdict::Committed);
        done += 1;
    }
    served.end().await.unwrap();
    let replay = folded(folder.path());
    assert_eq!(replay.failed_attempts.len(), spoils.len());
    assert!((1..=done).contains(&replay.told.len()), "{}", replay.told.len());
}

#[tokio::test]
async fn a_spec_that_fails_too_often_is_given_up_and_the_search_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let served = Served::start(folder.path(), &resolved(|_| ())).await;
    let names = ["u", "v", "w"];
    let mut workers = Vec::new();
    for name in names {
        workers.push(Worker::join(&served.address, name).await);
    }
    let poison = START + 3;
    let mut attempts = Vec::new();
    'search: loop {
        for worker in &mut workers {
            match worker.ask(short(100)).await.unwrap() {
                Outcome::Assignment(assignment) if token(&assignment).spec == poison => {
                    attempts.push(worker.name.clone());
                    let class = v1::FailureClass::Crash.into();
                    let failure = v1::Failure { class, message: format!("boom {}", "é".repeat(10_000)) };
                    let reply = worker.report(assignment.token, v1::report_request::Result::Failure(failure)).await;
                    assert_eq!(verdict(&reply), Verdict::Committed);
                }
                Outcome::Assignment(assignment) => drop(worker.finish(&assignment).await),
                Outcome::Leave(_) => break 'search,
                Outcome::Idle(_) => {}
            }
        }
    }
    attempts.sort_unstable();
    assert_eq!(attempts, names, "three workers have failed on it, each once");
    assert!(served.status().finished);
    assert_eq!((served.status().failed, served.status().committed), (1, 12));
    served.end().await.unwrap();
    let records = journal::read(folder.path()).unwrap();
    let reasons: Vec<_> = records
        .iter()
        .filter_map(|record| match record {
            Record::Failure { number, reason } => Some((*number, reason.as_str())),
            _ => None,
        })
        .collect();
    assert_eq!(reasons.len(), 1);
    assert_eq!(reasons[0].0, poison);
    assert!(reasons[0].1.starts_with("3 attempts failed, the last one: crash: boom") && reasons[0].1.len() < 5000);
}

#[tokio::test]
async fn a_drained_worker_gives_back_what_it_holds_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let served = Served::start(folder.path(), &resolved(|_| ())).await;
    let (mut leaving, mut other) = (Worker::join(&served.address, "leaving").await, Worker::join(&served.address, "o").await);
    let held = leaving.lease().await;
    let began = Instant::now();
    leaving.client.drain(v1::DrainRequest { worker: leaving.name.clone(), epoch: leaving.epoch }).await.unwrap();
    let taken = other.lease().await;
    assert!(began.elapsed() < Duration::from_secs(1));
    assert_eq!((token(&taken).spec, token(&taken).attempt), (token(&held).spec, 2));
    assert_eq!(verdict(&leaving.finish(&held).await), Verdict::Superseded);
    let Outcome::Leave(leave) = leaving.ask(short(10)).await.unwrap() else { panic!("a drained worker is told to leave") };
    assert!(leave.reason.contains("told to leave"));
    served.end().await.unwrap();
}

#[tokio::test]
async fn a_worker_whose_lease_answer_was_lost_blocks_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let served = Served::start(folder.path(), &resolved(|_| ())).await;
    let mut worker = Worker::join(&served.address, "w").await;
    let lost = worker.lease().await;
    let again = worker.lease().await;
    assert_eq!((token(&again).spec, token(&again).attempt), (token(&lost).spec, 2));
    assert_eq!(verdict(&worker.finish(&lost).await), Verdict::Superseded);
    assert_eq!(verdict(&worker.finish(&again).await), Verdict::Committed);
    served.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_acknowledged_is_already_on_disk() {
    let folder = tempfile::tempdir().unwrap();
    let resolved = resolved(|definition| {
        definition["search"]["in_flight"] = 16.into();
        definition["stop"]["offspring"] = 60.into();
    });
    let served = Served::start(folder.path(), &resolved).await;
    let workers = (0..8).map(|index| {
        let (address, path) = (served.address.clone(), folder.path().join("journal.sqlite"));
        tokio::spawn(async move {
            let mut worker = Worker::join(&address, &format!("w{index}")).await;
            let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
            let journal = rusqlite::Connection::open_with_flags(path, flags).unwrap();
            let find = "SELECT count(*) FROM records WHERE kind = 'result' AND json_extract(body, '$.number') = ?1";
            loop {
                match worker.ask(Duration::from_secs(10)).await.unwrap() {
                    Outcome::Assignment(assignment) => {
                        worker.finish(&assignment).await;
                        let spec = i64::try_from(token(&assignment).spec).unwrap();
                        let found: i64 = journal.query_row(find, [spec], |row| row.get(0)).unwrap();
                        assert_eq!(found, 1, "spec {spec} was acknowledged and is not there");
                    }
                    Outcome::Leave(_) => return,
                    Outcome::Idle(_) => {}
                }
            }
        })
    });
    for worker in workers.collect::<Vec<_>>() {
        worker.await.unwrap();
    }
    served.end().await.unwrap();
}

/// The folder as a killed process leaves it: what was written is there, nothing is closed.
fn photograph(folder: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        // The shared memory beside the write-ahead log is rebuilt by whoever opens it first.
        if !entry.file_name().to_string_lossy().ends_with("-shm") {
            std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
        }
    }
    copy
}

#[tokio::test]
async fn a_kill_after_any_acknowledgement_loses_nothing_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let served = Served::start(folder.path(), &resolved(|_| ())).await;
    let mut worker = Worker::join(&served.address, "w").await;
    let mut photographs = Vec::new();
    while let Outcome::Assignment(assignment) = worker.ask(short(2000)).await.unwrap() {
        worker.finish(&assignment).await;
        photographs.push(photograph(folder.path()));
    }
    served.end().await.unwrap();
    let whole = folded(folder.path());
    assert!(photographs.len() > 18);
    for (acknowledged, copy) in (1..).zip(photographs) {
        let served = Served::start(copy.path(), &resolved(|_| ())).await;
        assert_eq!(folded(copy.path()).told.len(), acknowledged);
        if acknowledged % 4 == 0 {
            Worker::join(&served.address, "w").await.work().await;
            served.end().await.unwrap();
            let ended = folded(copy.path());
            assert_eq!(ended.search.state_hash(), whole.search.state_hash());
            assert_eq!(ended.search.best().unwrap().id, whole.search.best().unwrap().id);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_at_once_lose_nothing_and_end_in_the_same_state() {
    let resolved = resolved(|definition| {
        definition["search"]["in_flight"] = 32.into();
        definition["stop"]["offspring"] = 400.into();
    });
    let mut states = Vec::new();
    for count in [1, 48] {
        let folder = tempfile::tempdir().unwrap();
        let served = Served::start(folder.path(), &resolved).await;
        let workers = (0..count).map(|index| {
            let address = served.address.clone();
            tokio::spawn(async move { Worker::join(&address, &format!("w{index}")).await.work().await })
        });
        for worker in workers.collect::<Vec<_>>() {
            worker.await.unwrap();
        }
        assert_eq!(served.status().committed, 400);
        served.end().await.unwrap();
        // Opening folds the journal and must meet every state hash in it again.
        let served = Served::start(folder.path(), &resolved).await;
        assert!(served.status().finished);
        served.end().await.unwrap();
        states.push(folded(folder.path()).search.state_hash());
        let records = journal::read(folder.path()).unwrap();
        assert!(records.iter().filter(|record| matches!(record, Record::State { .. })).count() > 10);
    }
    assert_eq!(states[0], states[1]);
}

#[tokio::test]
async fn watch_streams_the_status() {
    let folder = tempfile::tempdir().unwrap();
    let served = Served::start(folder.path(), &resolved(|_| ())).await;
    let mut worker = Worker::join(&served.address, "w").await;
    let mut stream = worker.client.watch(v1::WatchRequest {}).await.unwrap().into_inner();
    assert_eq!(stream.message().await.unwrap().unwrap().phase, "start");
    let working = tokio::spawn(async move { worker.work().await });
    let mut seen = Vec::new();
    loop {
        let status = stream.message().await.unwrap().unwrap();
        seen.push(status.committed);
        if status.finished {
            assert_eq!((status.phase.as_str(), status.stopped_by.as_str()), ("finished", "stop.offspring"));
            assert!(status.best.is_some_and(|best| best.dev_low <= best.dev && best.dev <= best.dev_high));
            break;
        }
    }
    assert!(seen.is_sorted() && seen.len() > 4 && seen.last() == Some(&12), "{seen:?}");
    working.await.unwrap();
    drop(stream);
    served.end().await.unwrap();
}

#[tokio::test]
async fn a_coordinator_ends_although_somebody_still_watches() {
    let folder = tempfile::tempdir().unwrap();
    let coordinator =
        Coordinator::start(&Options { dir: folder.path().into(), resolved: resolved(|_| ()), compare: false }).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let mut stream = {
        let serving = serve(&coordinator, listener, &Security::Loopback, std::future::pending());
        let watching = async { Worker::join(&address, "w").await.client.watch(v1::WatchRequest {}).await.unwrap().into_inner() };
        tokio::select! {
            stream = watching => stream,
            _ = serving => panic!("it serves on"),
        }
    };
    // A thread of its own: the runtime would wait for one of its own for ever.
    let (tell, ended) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || tell.send(coordinator.join().is_ok()));
    assert!(tokio::time::timeout(Duration::from_secs(5), ended).await.expect("it ends").unwrap());
    while let Ok(Some(_)) = stream.message().await {}
    Coordinator::start(&Options { dir: folder.path().into(), resolved: resolved(|_| ()), compare: false }).unwrap();
}

#[tokio::test]
async fn a_message_that_is_too_large_is_refused_and_the_service_lives_on() {
    let folder = tempfile::tempdir().unwrap();
    let served = Served::start(folder.path(), &resolved(|_| ())).await;
    let mut worker = Worker::join(&served.address, "w").await;
    let assignment = worker.lease().await;
    let mut large = worker.clone();
    large.name = "w".repeat(2 << 20);
    let status = large.register(PROTOCOL).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status}");
    assert_eq!(verdict(&worker.finish(&assignment).await), Verdict::Committed);
    served.end().await.unwrap();
}

#[tokio::test]
async fn leases_of_any_length_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let endless = |definition: &mut Value| definition["fleet"] = json!({ "lease_seconds": 1e300, "heartbeat_seconds": 1e290 });
    let served = Served::start(folder.path(), &resolved(endless)).await;
    Worker::join(&served.address, "w").await.work().await;
    served.end().await.unwrap();
}

#[tokio::test]
async fn times_that_are_none_do_not_reach_the_journal() {
    let folder = tempfile::tempdir().unwrap();
    let served = Served::start(folder.path(), &resolved(|_| ())).await;
    let mut worker = Worker::join(&served.address, "w").await;
    let assignment = worker.lease().await;
    let timings = Some(v1::Timings { lease: f64::NAN, build: f64::INFINITY, score: -1.0, report: 0.25 });
    let request = v1::ReportRequest { worker: "w".into(), token: assignment.token, result: Some(right(&assignment)), timings };
    worker.client.report(request).await.unwrap();
    served.end().await.unwrap();
    let spent = folded(folder.path()).spent.timings;
    assert_eq!((spent.lease, spent.build, spent.score, spent.report), (0.0, 0.0, 0.0, 0.25));
}

#[tokio::test]
async fn a_raised_limit_of_seconds_lets_the_search_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let limited = |seconds: f64| resolved(move |definition| definition["stop"]["seconds"] = seconds.into());
    let served = Served::start(folder.path(), &limited(0.3)).await;
    let mut worker = Worker::join(&served.address, "w").await;
    for _ in 0..START {
        let assignment = worker.lease().await;
        worker.finish(&assignment).await;
    }
    tokio::time::sleep(short(800)).await;
    worker.work().await;
    assert_eq!((served.status().stopped_by.as_str(), served.status().committed), ("stop.seconds", 4));
    served.end().await.unwrap();
    // Nothing but the limit changes, twice: it holds where it is the same, and does not where it was raised.
    let served = Served::start(folder.path(), &limited(0.3)).await;
    assert!(served.status().finished);
    served.end().await.unwrap();
    let served = Served::start(folder.path(), &limited(60.0)).await;
    Worker::join(&served.address, "w").await.work().await;
    assert_eq!((served.status().stopped_by.as_str(), served.status().committed), ("stop.offspring", 12));
    served.end().await.unwrap();
    let whole = tempfile::tempdir().unwrap();
    let served = Served::start(whole.path(), &resolved(|_| ())).await;
    Worker::join(&served.address, "w").await.work().await;
    served.end().await.unwrap();
    assert_eq!(folded(folder.path()).search.state_hash(), folded(whole.path()).search.state_hash());
}

#[tokio::test]
async fn a_journal_that_refuses_ends_the_coordinator_by_a_sentence_and_acknowledges_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let served = Served::start(folder.path(), &resolved(|_| ())).await;
    let mut worker = Worker::join(&served.address, "w").await;
    let assignment = worker.lease().await;
    worker.finish(&assignment).await;
    let assignment = worker.lease().await;
    let other = rusqlite::Connection::open(folder.path().join("journal.sqlite")).unwrap();
    other
        .execute_batch("CREATE TRIGGER full BEFORE INSERT ON records BEGIN SELECT RAISE(FAIL, 'database or disk is full'); END")
        .unwrap();
    let request =
        v1::ReportRequest { worker: "w".into(), token: assignment.token, result: Some(right(&assignment)), timings: None };
    let status = worker.client.report(request).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    let error = served.end().await.unwrap_err();
    assert!(error.contains("journal.sqlite") && error.contains("disk is full"), "{error}");
    other.execute_batch("DROP TRIGGER full").unwrap();
    drop(other);
    assert_eq!(folded(folder.path()).told.len(), 1);
}

#[tokio::test]
async fn a_result_of_another_recipe_is_named_on_opening() {
    let folder = tempfile::tempdir().unwrap();
    let served = Served::start(folder.path(), &resolved(|_| ())).await;
    let mut worker = Worker::join(&served.address, "w").await;
    for _ in 0..START + 2 {
        let assignment = worker.lease().await;
        worker.finish(&assignment).await;
    }
    served.end().await.unwrap();
    let mut records = journal::read(folder.path()).unwrap();
    let Some(Record::Result { recipe, .. }) = records.last_mut() else { panic!() };
    *recipe = evolver_common::digest::Digest::of(b"another");
    let last = records.len();
    let error = replay(&records, None).err().unwrap().to_string();
    assert!(error.starts_with(&format!("record {last}: spec 5 was scored as recipe")), "{error}");
}

#[tokio::test]
async fn a_changed_definition_is_refused_and_a_raised_limit_is_not() {
    let folder = tempfile::tempdir().unwrap();
    Served::start(folder.path(), &resolved(|_| ())).await.end().await.unwrap();
    let start = |key: &'static str, value: u64| {
        let change = move |definition: &mut Value| *definition.pointer_mut(key).unwrap() = value.into();
        Coordinator::start(&Options { dir: folder.path().into(), resolved: resolved(change), compare: false })
    };
    let sentence = |error: Option<StartError>| error.unwrap().to_string();
    assert!(sentence(start("/search/seed", 8).err()).contains("search.seed: was 7, now 8"));
    assert!(sentence(start("/stop/offspring", 11).err()).contains("stop.offspring: was 12, now 11 (a limit may only be raised)"));
    start("/stop/offspring", 13).unwrap().join().unwrap();
    // What was raised is the definition now.
    assert!(sentence(start("/stop/offspring", 12).err()).contains("was 13, now 12"));
    start("/stop/offspring", 13).unwrap().join().unwrap();
    let records = journal::read(folder.path()).unwrap();
    assert_eq!(records.iter().filter(|record| matches!(record, Record::Definition { .. })).count(), 2);
}

#[tokio::test]
async fn a_worker_that_can_run_nothing_is_told_so() {
    let folder = tempfile::tempdir().unwrap();
    // Three models of 4 MiB, of which one MiB is frozen.
    let tensor = |name: &str, rows: usize| Announced { name: name.into(), dtype: Dtype::F32, shape: vec![rows, 1024] };
    let path = folder.path().join("model.safetensors");
    let writer = WeightsWriter::create(&path, &[tensor("a", 768), tensor("frozen", 256)], &serde_json::Map::new()).unwrap();
    writer.finish(false).unwrap();
    let mut resolved = resolved(|definition| definition["models"]["frozen"] = json!(["frozen"]));
    resolved.base.path = path;
    let served = Served::start(&folder.path().join("search"), &resolved).await;
    let mut worker = Worker::connect(&served.address, "w").await;
    let offer = |memory_bytes: u64, evaluators: &[&str]| v1::RegisterRequest {
        protocol: PROTOCOL,
        worker: "w".into(),
        host: "here".into(),
        threads: 1,
        version: "test".into(),
        memory_bytes,
        evaluators: evaluators.iter().map(ToString::to_string).collect(),
        ..v1::RegisterRequest::default()
    };
    for (memory, evaluators, words) in [
        ((3 << 20) - 1, vec!["classification"], "an offspring takes 3 MiB, and this worker can have 2 MiB"),
        (
            1 << 40,
            vec!["perplexity", "command"],
            "scored by the evaluator classification, and this worker has perplexity, command",
        ),
    ] {
        let status = worker.client.register(offer(memory, &evaluators)).await.unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert!(status.message().contains(words), "{status}");
    }
    // As much as is needed, or nothing that is known of it.
    for memory in [3 << 20, 0] {
        worker.client.register(offer(memory, &["classification"])).await.unwrap();
    }
    served.end().await.unwrap();
}
