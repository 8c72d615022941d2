//! The journal's files, damaged on purpose: what was acknowledged is read back as it was, or the damage is named.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, ops::Range, path::Path};

use evolver_common::{
    digest::Digest,
    score::{Scores, classification},
};
use evolver_coordinator::journal::{Journal, JournalError, Log as _, Record, Timings, read, verify};
use rand::{RngExt as _, SeedableRng as _};

const DATABASE: &str = "journal.sqlite";
const LOG: &str = "journal.sqlite-wal";
const HEAD: &str = "journal.head";

fn records() -> Vec<Record> {
    let result = |number: u64| Record::Result {
        number,
        recipe: Digest::of(&number.to_le_bytes()),
        scores: Scores { tasks: vec![classification("t", &[0, 1, 1, 0], &[0, 1, 0, usize::from(number.is_multiple_of(2))], 2)] },
        worker: format!("worker {number}"),
        attempt: 1,
        timings: Timings { build: 0.1 + number as f64, ..Timings::default() },
        elapsed: 0.7 * number as f64,
    };
    let start = Record::Start { epoch: 1, version: "x".into() };
    std::iter::once(start).chain((0..11).map(result)).collect()
}

/// Appends the records in groups of one to three.
fn fill(journal: &mut Journal) {
    let records = records();
    let mut rest = &records[..];
    for size in [1, 3, 2, 1, 1, 3, 1] {
        let (group, after) = rest.split_at(size);
        journal.append(group).unwrap();
        rest = after;
    }
    assert!(rest.is_empty());
}

/// A closed journal: everything is in the database.
fn closed(folder: &Path) -> Vec<u8> {
    fill(&mut Journal::open(folder).unwrap().0);
    assert!(!folder.join(LOG).exists());
    fs::read(folder.join(DATABASE)).unwrap()
}

/// A killed coordinator's journal: most of it is in the log.
struct Killed {
    database: Vec<u8>,
    log: Vec<u8>,
    head: Vec<u8>,
}

impl Killed {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (mut journal, _) = Journal::open(folder.path()).unwrap();
        fill(&mut journal);
        let file = |name| fs::read(folder.path().join(name)).unwrap();
        Self { database: file(DATABASE), log: file(LOG), head: file(HEAD) }
    }

    /// What opening gives on other files than these.
    fn opened(&self, change: impl FnOnce(&Path)) -> Result<Vec<Record>, JournalError> {
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in [(DATABASE, &self.database), (LOG, &self.log), (HEAD, &self.head)] {
            fs::write(folder.path().join(name), bytes).unwrap();
        }
        change(folder.path());
        Journal::open(folder.path()).map(|(_, records)| records)
    }
}

fn cut(path: &Path, length: usize) {
    fs::File::options().write(true).open(path).unwrap().set_len(length as u64).unwrap();
}

/// Where each record's content stands in the database file, by its number. A page that was split still holds a copy of what moved away.
fn contents(folder: &Path, file: &[u8]) -> Vec<(i64, Range<usize>)> {
    let connection = rusqlite::Connection::open(folder.join(DATABASE)).unwrap();
    let mut statement = connection.prepare("SELECT seq, CAST(kind || body || outcomes || chain AS BLOB) FROM records").unwrap();
    let rows = statement.query_map([], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, Vec<u8>>(1)?))).unwrap();
    let places = rows.flat_map(|row| {
        let (seq, content) = row.unwrap();
        let found = file.windows(content.len()).enumerate().filter(move |(_, window)| *window == content);
        found.map(move |(at, window)| (seq, at..at + window.len())).collect::<Vec<_>>()
    });
    places.collect()
}

#[test]
fn every_flipped_byte_of_the_file_is_found_or_harmless() {
    let folder = tempfile::tempdir().unwrap();
    let file = closed(folder.path());
    let contents = contents(folder.path(), &file);
    let whole = records();
    let mut noticed = vec![0; contents.len()];
    let (mut named, mut found, mut harmless) = (0, 0, 0);
    for at in 0..file.len() {
        let mut flipped = file.clone();
        flipped[at] ^= 1 << ((at * 5 + 3) % 8);
        for log in [LOG, "journal.sqlite-shm"] {
            fs::remove_file(folder.path().join(log)).ok();
        }
        fs::write(folder.path().join(DATABASE), &flipped).unwrap();
        let verified = verify(folder.path());
        let place = contents.iter().position(|(_, place)| place.contains(&at));
        match verified {
            Err(error) => {
                let error = error.to_string();
                assert!(error.contains(DATABASE), "{error}");
                match place {
                    Some(place) => {
                        let record = contents[place].0;
                        assert!(error.contains(&format!("record {record}:")), "byte {at} of record {record}: {error}");
                        noticed[place] += 1;
                        named += 1;
                    }
                    None => found += 1,
                }
            }
            Ok(_) => {
                assert_eq!(read(folder.path()).unwrap(), whole, "byte {at}");
                harmless += 1;
            }
        }
    }
    // Of every record one copy counts, and each flip in that was noticed.
    for record in 1..=12 {
        let copies = contents.iter().zip(&noticed).filter(|((number, _), _)| *number == record);
        let live: Vec<_> =
            copies.filter(|(_, noticed)| **noticed > 0).map(|((_, place), noticed)| (place.len(), *noticed)).collect();
        assert!(matches!(live[..], [(bytes, noticed)] if bytes == noticed), "record {record}: {live:?}");
    }
    println!("{} bytes: {named} in records, named; {found} elsewhere, found; {harmless} elsewhere, harmless", file.len());
    assert!(named > 3000 && found > 100 && harmless > 1000);
}

#[test]
fn a_cut_database_is_refused() {
    let whole = records();
    let folder = tempfile::tempdir().unwrap();
    let file = closed(folder.path());
    for length in (0..file.len()).step_by(128) {
        let copy = tempfile::tempdir().unwrap();
        fs::write(copy.path().join(DATABASE), &file[..length]).unwrap();
        fs::copy(folder.path().join(HEAD), copy.path().join(HEAD)).unwrap();
        let verified = verify(copy.path());
        let opened = Journal::open(copy.path()).map(|(_, records)| records);
        for result in [verified.map(|_| whole.clone()), opened] {
            let error = result.unwrap_err().to_string();
            assert!(error.contains(DATABASE), "{length}: {error}");
        }
    }
}

#[test]
fn a_log_that_is_cut_flipped_or_gone_loses_nothing_in_silence() {
    let killed = Killed::new();
    let whole = records();
    assert_eq!(killed.opened(|_| ()).unwrap(), whole);
    let lost = |result: Result<Vec<Record>, JournalError>, what: &str| match result {
        Ok(records) => {
            assert_eq!(records, whole, "{what}");
            0
        }
        Err(error) => {
            assert!(error.to_string().contains("journal"), "{what}: {error}");
            1
        }
    };
    assert_eq!(lost(killed.opened(|folder| fs::remove_file(folder.join(LOG)).unwrap()), "gone"), 1);
    let error = killed.opened(|folder| cut(&folder.join(LOG), killed.log.len() - 1)).unwrap_err().to_string();
    assert!(error.contains("record 12: 12 records were acknowledged, and 11 are here: the end was lost"), "{error}");
    for length in (0..killed.log.len()).step_by(509) {
        assert_eq!(lost(killed.opened(|folder| cut(&folder.join(LOG), length)), &format!("cut at {length}")), 1);
    }
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(1);
    let mut found = 0;
    for _ in 0..3000 {
        let at = random.random_range(0..killed.log.len());
        let mut log = killed.log.clone();
        log[at] ^= 1 << random.random_range(0..8u8);
        found += lost(killed.opened(|folder| fs::write(folder.join(LOG), log).unwrap()), &format!("flipped at {at}"));
    }
    println!("{found} of 3000 flips in the log refused, the others harmless");
    assert!(found > 1000);
}

#[test]
fn a_database_that_is_gone_or_empty_is_refused_and_its_log_left_alone() {
    let killed = Killed::new();
    for empty in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(LOG), &killed.log).unwrap();
        fs::write(folder.path().join(HEAD), &killed.head).unwrap();
        if empty {
            fs::write(folder.path().join(DATABASE), []).unwrap();
            assert!(verify(folder.path()).unwrap_err().to_string().contains("gone or empty"));
        }
        let error = Journal::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("12 records were acknowledged, and the file is gone or empty"), "{error}");
        assert_eq!(fs::read(folder.path().join(LOG)).unwrap(), killed.log);
    }
}

#[test]
fn what_a_power_loss_may_leave_opens_with_all_that_was_acknowledged() {
    let killed = Killed::new();
    let whole = records();
    // A commit that was never synced, in part or as noise, behind those that were.
    for extra in [vec![0; 5000], killed.log[32..4000].to_vec(), vec![0xa5; 24], killed.log[killed.log.len() - 4120..].to_vec()] {
        let log = [&killed.log[..], &extra].concat();
        assert_eq!(killed.opened(|folder| fs::write(folder.join(LOG), log).unwrap()).unwrap(), whole);
    }
    // The head is never synced: it may be missing, empty, or older than the records.
    let early = {
        let folder = tempfile::tempdir().unwrap();
        Journal::open(folder.path()).unwrap().0.append(&records()[..2]).unwrap();
        fs::read(folder.path().join(HEAD)).unwrap()
    };
    assert_eq!(killed.opened(|folder| fs::remove_file(folder.join(HEAD)).unwrap()).unwrap(), whole);
    for head in [vec![], vec![0; 103], early] {
        assert_eq!(killed.opened(|folder| fs::write(folder.join(HEAD), head).unwrap()).unwrap(), whole);
    }
}

#[test]
fn a_head_of_another_journal_or_a_damaged_one_is_noticed() {
    let killed = Killed::new();
    let other = {
        let folder = tempfile::tempdir().unwrap();
        Journal::open(folder.path()).unwrap().0.append(&records()[1..4]).unwrap();
        fs::read(folder.path().join(HEAD)).unwrap()
    };
    let error = killed.opened(|folder| fs::write(folder.join(HEAD), other).unwrap()).unwrap_err().to_string();
    assert!(error.contains("record 3: it is not the one that was acknowledged"), "{error}");
    for at in 0..killed.head.len() {
        let mut head = killed.head.clone();
        head[at] ^= 1 << (at % 8);
        let error = killed.opened(|folder| fs::write(folder.join(HEAD), head).unwrap()).unwrap_err().to_string();
        assert!(error.contains("journal.head is damaged"), "byte {at}: {error}");
    }
}
