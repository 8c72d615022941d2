//! Versions: a journal that an older program wrote is opened and gone on with, one of a newer program is refused, and workers of the previous protocol
//! are served.
//!
//! `journals/format-1` was left by a coordinator of the first format that was killed after 19 of 20 results, with its write-ahead log.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod world;

use std::{fs, path::Path};

use evolver_coordinator::journal::{Journal, Record, read, verify};
use evolver_proto::{PROTOCOL_OLDEST, v1, v1::lease_reply::Outcome};

use self::world::{Served, Worker, resolved};

fn older() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/journals/format-1")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    folder
}

fn format(folder: &Path) -> i64 {
    let database = rusqlite::Connection::open(folder.join("journal.sqlite")).unwrap();
    database.query_row("SELECT format FROM meta", [], |row| row.get(0)).unwrap()
}

#[test]
fn an_older_journal_is_read_and_raised_when_it_is_written() {
    let folder = older();
    assert_eq!(verify(folder.path()).unwrap(), 25);
    assert_eq!(format(folder.path()), 1, "reading changes nothing");
    let records = read(folder.path()).unwrap();
    assert_eq!(records.iter().filter(|record| matches!(record, Record::Result { .. })).count(), 19);
    let (journal, opened) = Journal::open(folder.path()).unwrap();
    assert_eq!(opened, records);
    drop(journal);
    assert_eq!(format(folder.path()), 3);
}

#[tokio::test]
async fn a_search_that_an_older_program_began_is_gone_on_with() {
    let folder = older();
    let served = Served::start(folder.path(), &resolved(|_| ())).await;
    assert_eq!(served.status().committed, 12);
    Worker::join(&served.address, "w").await.work().await;
    assert!(served.status().finished);
    served.end().await.unwrap();
}

#[test]
fn a_newer_journal_is_refused_by_a_sentence_and_left_alone() {
    let folder = older();
    let database = rusqlite::Connection::open(folder.path().join("journal.sqlite")).unwrap();
    database.execute("UPDATE meta SET format = 99", []).unwrap();
    drop(database);
    let before = fs::read(folder.path().join("journal.sqlite")).unwrap();
    for error in [Journal::open(folder.path()).unwrap_err(), verify(folder.path()).unwrap_err()] {
        let error = error.to_string();
        assert!(error.contains("has format 99") && error.contains("use a newer evolver"), "{error}");
    }
    assert_eq!(fs::read(folder.path().join("journal.sqlite")).unwrap(), before);
}

#[tokio::test]
async fn workers_of_the_previous_protocol_are_served_to_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let served = Served::start(folder.path(), &resolved(|_| ())).await;
    let mut worker = Worker::join(&served.address, "old").await;
    worker.epoch = worker.register(PROTOCOL_OLDEST).await.unwrap().epoch;
    // As such a worker asks: without what has come since.
    loop {
        let request = v1::LeaseRequest { worker: "old".into(), epoch: worker.epoch, wait_ms: 5000, held: None };
        match worker.client.lease(request).await.unwrap().into_inner().outcome.unwrap() {
            Outcome::Assignment(assignment) => drop(worker.finish(&assignment).await),
            Outcome::Leave(_) => break,
            Outcome::Idle(_) => {}
        }
    }
    assert!(served.status().finished);
    served.end().await.unwrap();
}
