//! Finished reports on disk until the coordinator has answered: a score that was paid for is not paid for twice.
//!
//! `<cache>/spool/<search>/<process>/` belongs to one agent, by a lock that a dead process loses at once. An agent that starts takes over what the
//! dead ones of its machine left behind. A spool that cannot be used costs a warning and nothing else: the report is also in memory.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use evolver_common::digest::Digest;
use evolver_proto::v1;
use prost::Message as _;

const LOCK: &str = "lock";
const ENDING: &str = "report";
const DIGEST: usize = 32;
/// Reports that an agent keeps at most; older ones were offered when it started.
const KEPT_MAX: usize = 256;

/// A report with what it is a report of.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Stored {
    /// See [`evolver_proto::work_of`].
    pub(super) work: Digest,
    pub(super) report: v1::ReportRequest,
}

impl Stored {
    /// The spec that was worked on.
    pub(super) fn spec(&self) -> u64 {
        self.report.token.map_or(0, |token| token.spec)
    }

    fn encode(&self) -> Vec<u8> {
        let body = [self.work.as_bytes().as_slice(), &self.report.encode_to_vec()].concat();
        [Digest::of(&body).as_bytes().as_slice(), &body].concat()
    }

    /// `None` if the bytes are not what was written.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let (check, body) = bytes.split_at_checked(DIGEST)?;
        if Digest::of(body).as_bytes() != check {
            return None;
        }
        let (work, report) = body.split_at_checked(DIGEST)?;
        Some(Self { work: Digest::try_from(work).ok()?, report: v1::ReportRequest::decode(report).ok()? })
    }
}

/// One agent's reports.
pub(super) struct Spool {
    /// `None` if the disk refuses.
    folder: Option<(PathBuf, File)>,
    entries: Vec<Stored>,
}

impl Spool {
    /// Opens a spool for the search of this hash, with what dead agents left.
    pub(super) fn open(cache: &Path, search: &[u8]) -> Self {
        let folder = cache.join("spool").join(&Digest::of(search).to_string()[..16]);
        match claim(&folder) {
            Ok((own, lock)) => {
                let entries = adopt(&folder, &own);
                Self { folder: Some((own, lock)), entries }
            }
            Err(error) => {
                tracing::warn!("finished reports are not kept on disk: {}: {error}", folder.display());
                Self { folder: None, entries: Vec::new() }
            }
        }
    }

    /// Reports that have not been answered.
    pub(super) fn entries(&self) -> &[Stored] {
        &self.entries
    }

    /// The report of this work, if it has been done.
    pub(super) fn find(&self, work: Digest) -> Option<&Stored> {
        self.entries.iter().find(|stored| stored.work == work)
    }

    /// Keeps a report, on disk when this returns.
    pub(super) fn store(&mut self, stored: Stored) {
        self.remove(stored.work);
        if let Some((folder, _)) = &self.folder
            && let Err(error) = write(&file(folder, stored.work), &stored.encode())
        {
            tracing::warn!("the report of spec {} is not kept on disk: {error}", stored.spec());
        }
        self.entries.push(stored);
        if self.entries.len() > KEPT_MAX {
            self.remove(self.entries[0].work);
        }
    }

    /// Forgets a report that was answered.
    pub(super) fn remove(&mut self, work: Digest) {
        if let Some(at) = self.entries.iter().position(|stored| stored.work == work) {
            self.entries.remove(at);
            if let Some((folder, _)) = &self.folder {
                fs::remove_file(file(folder, work)).ok();
            }
        }
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        // An empty folder is removed; one that holds reports stays for the next agent.
        if let Some((folder, lock)) = self.folder.take()
            && self.entries.is_empty()
        {
            fs::remove_file(folder.join(LOCK)).ok();
            fs::remove_dir(&folder).ok();
            drop(lock);
        }
    }
}

fn file(folder: &Path, work: Digest) -> PathBuf {
    folder.join(format!("{work}.{ENDING}"))
}

/// A folder of one's own, locked.
fn claim(folder: &Path) -> io::Result<(PathBuf, File)> {
    for turn in 0..1000 {
        let own = folder.join(format!("{}-{turn}", std::process::id()));
        fs::create_dir_all(&own)?;
        match try_lock(&own) {
            Ok(Some(lock)) => return Ok((own, lock)),
            Ok(None) => {}
            // Another agent took the new folder for a dead one's.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other("no folder can be locked"))
}

fn try_lock(folder: &Path) -> io::Result<Option<File>> {
    let lock = File::options().write(true).create(true).truncate(false).open(folder.join(LOCK))?;
    match lock.try_lock() {
        Ok(()) => Ok(Some(lock)),
        Err(fs::TryLockError::WouldBlock) => Ok(None),
        Err(fs::TryLockError::Error(error)) => Err(error),
    }
}

/// Reads what is in one's own folder and moves in what dead agents left.
fn adopt(folder: &Path, own: &Path) -> Vec<Stored> {
    let list = |folder: &Path| fs::read_dir(folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    for other in list(folder).filter(|other| other != own) {
        let Ok(Some(_lock)) = try_lock(&other) else { continue };
        for path in list(&other).filter(|path| path.extension().is_some_and(|ending| ending == ENDING)) {
            if let Some(name) = path.file_name() {
                fs::rename(&path, own.join(name)).ok();
            }
        }
        fs::remove_dir_all(&other).ok();
    }
    let mut found = Vec::new();
    for path in list(own).filter(|path| path.extension().is_some_and(|ending| ending == ENDING)) {
        match fs::read(&path).ok().as_deref().and_then(Stored::decode) {
            Some(stored) => found.push(stored),
            None => {
                tracing::warn!("{} is damaged; its work will be done again", path.display());
                fs::remove_file(&path).ok();
            }
        }
    }
    found.sort_by_key(Stored::spec);
    found
}

/// Under another name first, and on disk before it has its own.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let partial = path.with_extension("partial");
    let mut file = File::create(&partial)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&partial, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(spec: u64) -> Stored {
        let report = v1::ReportRequest {
            worker: "w".into(),
            token: Some(v1::Token { epoch: 1, spec, attempt: 1 }),
            result: Some(v1::report_request::Result::Released(v1::Released { parts: Vec::new() })),
            timings: None,
        };
        Stored { work: Digest::of(&spec.to_le_bytes()), report }
    }

    #[test]
    fn a_dead_agents_reports_are_taken_over_and_a_living_ones_are_not() {
        let cache = tempfile::tempdir().unwrap();
        let mut dead = Spool::open(cache.path(), b"search");
        dead.store(stored(2));
        dead.store(stored(1));
        let mut living = Spool::open(cache.path(), b"search");
        living.store(stored(3));
        drop(dead);
        let next = Spool::open(cache.path(), b"search");
        assert_eq!(next.entries(), [stored(1), stored(2)]);
        assert_eq!(next.find(stored(2).work), Some(&stored(2)));
        assert_eq!(Spool::open(cache.path(), b"search").entries(), []);
        assert_eq!(Spool::open(cache.path(), b"another search").entries(), []);
        drop(next);
        assert_eq!(Spool::open(cache.path(), b"search").entries().len(), 2);
        assert_eq!(living.entries(), [stored(3)]);
    }

    #[test]
    fn an_answered_report_is_gone_and_leaves_no_folder() {
        let cache = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(cache.path(), b"search");
        spool.store(stored(1));
        spool.store(stored(1));
        assert_eq!(spool.entries().len(), 1);
        spool.remove(stored(1).work);
        drop(spool);
        let search = fs::read_dir(cache.path().join("spool")).unwrap().next().unwrap().unwrap().path();
        assert_eq!(fs::read_dir(search).unwrap().count(), 0);
    }

    #[test]
    fn a_damaged_report_is_never_handed_in() {
        let whole = stored(7).encode();
        assert_eq!(Stored::decode(&whole), Some(stored(7)));
        for at in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[at] ^= 1 << (at % 8);
            assert_eq!(Stored::decode(&flipped), None, "byte {at}");
            assert_eq!(Stored::decode(&whole[..at]), None, "cut at {at}");
        }
    }

    #[test]
    fn a_folder_that_cannot_be_made_costs_only_the_disk_copy() {
        let cache = tempfile::tempdir().unwrap();
        fs::write(cache.path().join("spool"), b"a file").unwrap();
        let mut spool = Spool::open(cache.path(), b"search");
        spool.store(stored(1));
        assert_eq!(spool.entries(), [stored(1)]);
    }
}
