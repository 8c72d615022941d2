//! The head: the last record that was acknowledged, in a small file beside the database.
//!
//! A write-ahead log that is cut or removed looks to SQLite like one that was never longer: acknowledged records would be gone without a word.
//! The head is written after each commit and never synced, so it is never newer on disk than the records that it tells of, and costs no sync;
//! records that it tells of and that are not there have been lost.

use std::{
    fs::{self, File},
    io::{self, Seek as _, Write as _},
    path::Path,
};

use evolver_common::digest::Digest;

const FILE: &str = "journal.head";
/// Hexadecimal digits of a head's own check.
const CHECK: usize = 16;
/// Readings of a head that a coordinator may be overwriting.
const READINGS: usize = 5;

/// The last acknowledged record and the chain up to it.
pub(super) type Head = (i64, Digest);

/// Opens the folder's head for writing.
pub(super) fn open(folder: &Path) -> io::Result<File> {
    File::options().write(true).create(true).truncate(false).open(folder.join(FILE))
}

/// Tells of a record that has been committed. Overwritten in place, within one disk sector.
pub(super) fn write(file: &mut File, head: Head) -> io::Result<()> {
    file.rewind()?;
    file.write_all(text(head).as_bytes())
}

fn text((record, chain): Head) -> String {
    let said = format!("{record:020} {chain}");
    let check = Digest::of(said.as_bytes()).to_string();
    format!("{said} {}\n", &check[..CHECK])
}

/// What the folder's head tells of: nothing where there is none, or where a power loss left it empty.
///
/// # Errors
/// If the file cannot be read, or does not say what a head says.
pub(super) fn read(folder: &Path) -> io::Result<Option<Head>> {
    for _ in 0..READINGS {
        let bytes = match fs::read(folder.join(FILE)) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        if let Some(head) = parse(&bytes) {
            return Ok(Some(head));
        }
    }
    Err(io::Error::other(format!(
        "{FILE} is damaged; it only serves to notice lost records: if the search is complete without it, remove it and go on"
    )))
}

fn parse(bytes: &[u8]) -> Option<Head> {
    let mut words = std::str::from_utf8(bytes).ok()?.split(' ');
    let head = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    (text(head).as_bytes() == bytes).then_some(head)
}
