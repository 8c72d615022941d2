//! Append and read: SQLite in WAL mode with full synchronisation, one transaction for each group of records.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use evolver_common::digest::Digest;
use rusqlite::{Connection, OpenFlags, params};
use thiserror::Error;

use super::{
    head::{self, Head},
    lock::{self, LockError},
    record::Record,
};

const FILE: &str = "journal.sqlite";
/// Format of the records; an older program refuses a newer one.
///
/// - 1: the first.
/// - 2: `compare`, `check`, `distrust` and `readmit` records.
/// - 3: `extend` and `enqueue` records.
const FORMAT: i64 = 3;
/// Oldest format that is read. Everything in it means the same in the newest, so that opening for writing only raises the number.
const FORMAT_OLDEST: i64 = 1;
/// Below this, in bytes, the disk counts as full: what is under way must still fit.
const RESERVE: u64 = 4 << 20;
const DOMAIN: &str = "evolver journal v1";

/// A journal that cannot be used.
#[derive(Debug, Error)]
pub enum JournalError {
    /// The folder is in use.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The folder holds no search.
    #[error("{path} holds no search: there is no {FILE} in it", path = .0.display())]
    Missing(PathBuf),
    /// The database refuses.
    #[error("{path}: {source}", path = path.display())]
    Database {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
    /// Written by a newer program.
    #[error("{path} has format {found}, and this program knows {FORMAT_OLDEST} to {FORMAT}: use a newer evolver", path = path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: i64,
    },
    /// The records are not what was written.
    #[error("{path}, record {record}: {what}", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The first record that does not verify.
        record: i64,
        /// What is wrong with it.
        what: String,
    },
    /// The folder cannot be made or used.
    #[error("{path}: {source}", path = path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl JournalError {
    /// Whether there is no room on the disk: nothing is wrong with the journal, and it may go on later.
    #[must_use]
    pub fn is_full(&self) -> bool {
        match self {
            Self::Database { source, .. } => source.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull),
            Self::Folder { source, .. } => source.kind() == std::io::ErrorKind::StorageFull,
            _ => false,
        }
    }
}

/// Where a coordinator's records go: a [`Journal`], or what a test puts in its place.
pub trait Log {
    /// Appends records, all or none, on disk when this returns.
    ///
    /// # Errors
    /// If the disk or the database refuses; then none of them may be taken to be in.
    fn append(&mut self, records: &[Record]) -> Result<(), JournalError>;

    /// Every record once more, as on opening.
    ///
    /// # Errors
    /// As [`Journal::open`].
    fn records(&self) -> Result<Vec<Record>, JournalError>;

    /// Whether the disk has room for what may be reported next. Where the system does not say, it has.
    fn has_room(&self) -> bool;
}

/// An open journal; the folder is locked as long as it lives.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    connection: Connection,
    last: i64,
    chain: Digest,
    head: File,
    _lock: File,
}

impl Journal {
    /// Opens the folder's journal, making both if they are not there, and reads what it holds.
    ///
    /// # Errors
    /// If another coordinator has it, or a record does not verify.
    pub fn open(folder: &Path) -> Result<(Self, Vec<Record>), JournalError> {
        let io = |source| JournalError::Folder { path: folder.to_owned(), source };
        fs::create_dir_all(folder).map_err(io)?;
        let lock = lock::lock(folder)?;
        let path = folder.join(FILE);
        let database = at(&path);
        let told = head::read(folder).map_err(io)?;
        not_gone(&path, told)?;
        let mut connection = Connection::open(&path).map_err(&database)?;
        set_up(&mut connection).map_err(&database)?;
        let (records, last, chain) = load(&path, &connection, told)?;
        connection.execute("UPDATE meta SET format = ?1 WHERE format < ?1", [FORMAT]).map_err(&database)?;
        // The folder's own name must outlast a power loss too.
        for folder in [Some(folder), folder.parent()].into_iter().flatten().filter(|folder| !folder.as_os_str().is_empty()) {
            File::open(folder).and_then(|folder| folder.sync_all()).map_err(io)?;
        }
        let head = head::open(folder).map_err(io)?;
        let journal = Self { path, connection, last, chain, head, _lock: lock };
        Ok((journal, records))
    }
}

impl Log for Journal {
    fn append(&mut self, records: &[Record]) -> Result<(), JournalError> {
        if records.is_empty() {
            return Ok(());
        }
        let (mut last, mut chain) = (self.last, self.chain);
        let mut write = || {
            let transaction = self.connection.transaction()?;
            {
                let mut insert = transaction.prepare_cached("INSERT INTO records VALUES (?1, ?2, ?3, ?4, ?5)")?;
                for record in records {
                    let (body, outcomes) = record.split();
                    let body =
                        serde_json::to_string(&body).map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
                    last += 1;
                    chain = link(chain, last, record.kind(), &body, &outcomes);
                    insert.execute(params![last, record.kind(), body, outcomes, chain.as_bytes()])?;
                }
            }
            transaction.execute("UPDATE meta SET last = ?1, chain = ?2", params![last, chain.as_bytes()])?;
            transaction.commit()
        };
        write().map_err(at(&self.path))?;
        (self.last, self.chain) = (last, chain);
        match head::write(&mut self.head, (last, chain)) {
            // The records are on disk, and an older head is no harm.
            Err(error) if error.kind() == std::io::ErrorKind::StorageFull => Ok(()),
            result => result.map_err(|source| JournalError::Folder { path: self.path.clone(), source }),
        }
    }

    fn records(&self) -> Result<Vec<Record>, JournalError> {
        Ok(load(&self.path, &self.connection, None)?.0)
    }

    fn has_room(&self) -> bool {
        #[cfg(unix)]
        if let Ok(disk) = rustix::fs::statvfs(&self.path) {
            return disk.f_bavail.saturating_mul(disk.f_frsize) >= RESERVE;
        }
        true
    }
}

/// Makes the tables in a database that has none; in one transaction, so that there are all or none.
fn set_up(connection: &mut Connection) -> Result<(), rusqlite::Error> {
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    let transaction = connection.transaction()?;
    let new: bool = transaction.query_row("SELECT NOT EXISTS (SELECT 1 FROM sqlite_schema)", [], |row| row.get(0))?;
    if new {
        transaction.execute_batch(
            "CREATE TABLE meta (format INTEGER NOT NULL, last INTEGER NOT NULL, chain BLOB NOT NULL);
             CREATE TABLE records (
                 seq INTEGER PRIMARY KEY, kind TEXT NOT NULL, body TEXT NOT NULL, outcomes BLOB NOT NULL, chain BLOB NOT NULL);",
        )?;
        transaction.execute("INSERT INTO meta VALUES (?1, 0, ?2)", params![FORMAT, start().as_bytes()])?;
    }
    transaction.commit()
}

/// Reads a folder's records without its lock, for showing what is there.
///
/// # Errors
/// As [`Journal::open`].
pub fn read(folder: &Path) -> Result<Vec<Record>, JournalError> {
    let (path, connection, told) = open_to_read(folder)?;
    Ok(load(&path, &connection, told)?.0)
}

/// Checks every record and the database itself; gives the number of records.
///
/// # Errors
/// Names the first record that is not what was written.
pub fn verify(folder: &Path) -> Result<usize, JournalError> {
    let (path, connection, told) = open_to_read(folder)?;
    // The records first: they are named, where the database's own check only knows pages.
    let records = load(&path, &connection, told)?.0.len();
    let sound: String = connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).map_err(at(&path))?;
    if sound != "ok" {
        return Err(damaged(&path, 0, format!("the database's own check says: {sound}")));
    }
    Ok(records)
}

fn open_to_read(folder: &Path) -> Result<(PathBuf, Connection, Option<Head>), JournalError> {
    let path = folder.join(FILE);
    if !path.is_file() {
        return Err(JournalError::Missing(folder.to_owned()));
    }
    // Before the records: a coordinator may be appending.
    let told = head::read(folder).map_err(|source| JournalError::Folder { path: folder.to_owned(), source })?;
    not_gone(&path, told)?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(&path, flags).map_err(at(&path))?;
    Ok((path, connection, told))
}

/// Refuses an empty database whose records were acknowledged before SQLite takes it for a new one and removes the log of the old one.
fn not_gone(path: &Path, told: Option<Head>) -> Result<(), JournalError> {
    let size = fs::metadata(path).map_or(0, |metadata| metadata.len());
    match told {
        Some((last, _)) if size == 0 => {
            Err(damaged(path, 1, format!("{last} records were acknowledged, and the file is gone or empty")))
        }
        _ => Ok(()),
    }
}

fn load(path: &Path, connection: &Connection, told: Option<Head>) -> Result<(Vec<Record>, i64, Digest), JournalError> {
    let database = at(path);
    let meta = connection.query_row("SELECT format, last, chain FROM meta", [], |row| {
        Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, Vec<u8>>(2)?))
    });
    let (format, last, head) = meta.map_err(&database)?;
    if !(FORMAT_OLDEST..=FORMAT).contains(&format) {
        return Err(JournalError::Format { path: path.to_owned(), found: format });
    }
    let mut statement =
        connection.prepare("SELECT seq, kind, body, outcomes, chain FROM records ORDER BY seq").map_err(&database)?;
    let mut rows = statement.query([]).map_err(&database)?;
    let (mut records, mut chain, mut expected) = (Vec::new(), start(), 1);
    loop {
        let row = rows.next().map_err(|error| damaged(path, expected, error.to_string()))?;
        let Some(row) = row else { break };
        let fields = (|| {
            Ok::<_, rusqlite::Error>((
                row.get::<_, i64>(0)?,
                row.get::<_, String>(1)?,
                row.get::<_, String>(2)?,
                row.get::<_, Vec<u8>>(3)?,
                row.get::<_, Vec<u8>>(4)?,
            ))
        })();
        let (seq, kind, body, outcomes, stored) = fields.map_err(|error| damaged(path, expected, error.to_string()))?;
        if seq != expected {
            return Err(damaged(path, expected, format!("it is missing; the next one is {seq}")));
        }
        chain = link(chain, seq, &kind, &body, &outcomes);
        if stored != chain.as_bytes() {
            return Err(damaged(path, seq, "it is not what was written: its digest does not fit its content".into()));
        }
        let record: Record = serde_json::from_str(&body).map_err(|error| damaged(path, seq, error.to_string()))?;
        if told.is_some_and(|(last, told)| last == seq && told != chain) {
            return Err(damaged(path, seq, "it is not the one that was acknowledged".into()));
        }
        records.push(record.join(&outcomes).ok_or_else(|| damaged(path, seq, "its item outcomes have another length".into()))?);
        expected += 1;
    }
    if expected - 1 != last || head != chain.as_bytes() {
        return Err(damaged(path, expected.min(last), format!("{last} records were written, and {} are here", expected - 1)));
    }
    match told {
        Some((told, _)) if told > last => {
            Err(damaged(path, last + 1, format!("{told} records were acknowledged, and {last} are here: the end was lost")))
        }
        _ => Ok((records, last, chain)),
    }
}

fn start() -> Digest {
    Digest::of(DOMAIN.as_bytes())
}

fn link(chain: Digest, seq: i64, kind: &str, body: &str, outcomes: &[u8]) -> Digest {
    let parts: [&[u8]; 5] = [chain.as_bytes(), &seq.to_le_bytes(), kind.as_bytes(), body.as_bytes(), outcomes];
    Digest::of_parts(DOMAIN, parts)
}

fn at(path: &Path) -> impl Fn(rusqlite::Error) -> JournalError + use<> {
    let path = path.to_owned();
    move |source| JournalError::Database { path: path.clone(), source }
}

fn damaged(path: &Path, record: i64, what: String) -> JournalError {
    JournalError::Damaged { path: path.to_owned(), record, what }
}

#[cfg(test)]
mod tests {
    use evolver_common::score::{Scores, classification};

    use super::*;

    fn filled(folder: &Path) {
        let (mut journal, records) = Journal::open(folder).unwrap();
        assert!(records.is_empty());
        let result = |number| Record::Result {
            number,
            recipe: Digest::of(b"r"),
            scores: Scores { tasks: vec![classification("t", &[0, 1, 1], &[0, 1, 0], 2)] },
            worker: "w".into(),
            attempt: 1,
            timings: super::super::Timings::default(),
            elapsed: 0.5,
        };
        journal.append(&[Record::Start { epoch: 1, version: "x".into() }, result(0)]).unwrap();
        journal.append(&[result(1)]).unwrap();
    }

    #[test]
    fn what_was_appended_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        filled(folder.path());
        let records = read(folder.path()).unwrap();
        assert_eq!(records.len(), 3);
        let Record::Result { number: 1, scores, .. } = &records[2] else { panic!("{records:?}") };
        assert_eq!(scores.tasks[0].credits, [1.0, 1.0, 0.0]);
        assert_eq!(verify(folder.path()).unwrap(), 3);
    }

    #[test]
    fn a_full_disk_takes_no_record_and_loses_none() {
        let folder = tempfile::tempdir().unwrap();
        filled(folder.path());
        let (mut journal, before) = Journal::open(folder.path()).unwrap();
        let pages: i64 = journal.connection.query_row("PRAGMA page_count", [], |row| row.get(0)).unwrap();
        journal.connection.pragma_update(None, "max_page_count", pages + 1).unwrap();
        let large = |index| Record::Stop { number: index, reason: "x".repeat(3000) };
        let group: Vec<_> = (0..4).map(large).collect();
        let error = journal.append(&group).unwrap_err().to_string();
        assert!(error.contains("journal.sqlite") && error.contains("full"), "{error}");
        // Room again: the same journal goes on.
        journal.connection.pragma_update(None, "max_page_count", 1000).unwrap();
        journal.append(&group).unwrap();
        drop(journal);
        let after = read(folder.path()).unwrap();
        assert_eq!((&after[..3], &after[3..]), (&before[..], &group[..]));
    }

    #[test]
    fn a_second_coordinator_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let first = Journal::open(folder.path()).unwrap();
        let error = Journal::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        drop(first);
        Journal::open(folder.path()).unwrap();
    }

    #[test]
    fn any_flipped_byte_of_a_record_is_found_and_named() {
        let folder = tempfile::tempdir().unwrap();
        filled(folder.path());
        let connection = Connection::open(folder.path().join(FILE)).unwrap();
        for seq in 1..=3i64 {
            for column in ["kind", "body", "outcomes", "chain"] {
                let select = format!("SELECT CAST({column} AS BLOB) FROM records WHERE seq = ?1");
                let original: Vec<u8> = connection.query_row(&select, [seq], |row| row.get(0)).unwrap();
                let cast = if matches!(column, "kind" | "body") { "CAST(?1 AS TEXT)" } else { "?1" };
                let update = format!("UPDATE records SET {column} = {cast} WHERE seq = ?2");
                for at in 0..original.len() {
                    let mut flipped = original.clone();
                    flipped[at] ^= 1 << (at % 7);
                    connection.execute(&update, params![flipped, seq]).unwrap();
                    let error = verify(folder.path()).unwrap_err().to_string();
                    assert!(error.contains(&format!("record {seq}:")), "{column} byte {at}: {error}");
                }
                connection.execute(&update, params![original, seq]).unwrap();
            }
        }
        assert_eq!(verify(folder.path()).unwrap(), 3);
        connection.execute("DELETE FROM records WHERE seq = 3", []).unwrap();
        assert!(verify(folder.path()).unwrap_err().to_string().contains("3 records were written"));
    }
}
