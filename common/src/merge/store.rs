//! Statistics of merges' inputs, taken once and used by all merges over the same inputs.
//!
//! A table is named by a digest of what it depends on: the inputs' ids, what it holds, and the parameters that matter to it. So merges that differ in coefficients
//! alone share it, and so do the processes that share a folder. Only tables over checkpoints go to the folder: those over other inputs are
//! seldom met again.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use crate::{checkpoint::write, digest::Digest};

/// Tables that are kept in memory.
const TABLES_MAX: usize = 256;
const DIGEST: usize = size_of::<Digest>();

/// Statistics: rows of numbers whose meaning their method knows.
pub(super) type Table = Vec<Vec<f64>>;

/// The statistics of one engine.
#[derive(Debug, Default)]
pub(super) struct Store {
    folder: Option<PathBuf>,
    known: Mutex<HashMap<Digest, Arc<Table>>>,
}

impl Store {
    /// A store that shares tables with other processes through `folder`.
    pub(super) fn shared(folder: &Path) -> Self {
        Self { folder: Some(folder.to_owned()), known: Mutex::default() }
    }

    /// Forgets what is in memory.
    pub(super) fn forget(&self) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// The table of this name; `durable` looks in the folder too.
    pub(super) fn get(&self, name: Digest, durable: bool) -> Option<Arc<Table>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&name).cloned();
        known.or_else(|| {
            let bytes = fs::read(self.path(name).filter(|_| durable)?).ok()?;
            Some(self.keep(name, decode(&bytes)?))
        })
    }

    /// Keeps a table. That it cannot be written costs time and nothing else.
    pub(super) fn put(&self, name: Digest, table: Table, durable: bool) -> Arc<Table> {
        if let (Some(folder), Some(path)) = (&self.folder, self.path(name))
            && durable
            && let Err(error) = fs::create_dir_all(folder).and_then(|()| write::file(&path, &encode(&table)))
        {
            tracing::warn!("statistics were not kept in {}: {error}", path.display());
        }
        self.keep(name, table)
    }

    fn keep(&self, name: Digest, table: Table) -> Arc<Table> {
        let table = Arc::new(table);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= TABLES_MAX {
            known.clear();
        }
        known.insert(name, Arc::clone(&table));
        table
    }

    fn path(&self, name: Digest) -> Option<PathBuf> {
        self.folder.as_ref().map(|folder| folder.join(format!("{name}.statistics")))
    }
}

/// Each row's count and numbers, little-endian, and the digest of all that.
fn encode(table: &Table) -> Vec<u8> {
    let mut bytes = Vec::new();
    for row in table {
        bytes.extend_from_slice(&(row.len() as u64).to_le_bytes());
        bytes.extend(row.iter().flat_map(|number| number.to_le_bytes()));
    }
    let digest = Digest::of(&bytes);
    bytes.extend_from_slice(digest.as_bytes());
    bytes
}

/// `None` if the bytes are not what [`encode`] wrote.
fn decode(bytes: &[u8]) -> Option<Table> {
    let (content, digest) = bytes.split_at_checked(bytes.len().checked_sub(DIGEST)?)?;
    if Digest::of(content).as_bytes() != digest {
        return None;
    }
    let mut words = content.as_chunks::<8>().0.iter();
    let mut table = Table::new();
    while let Some(count) = words.next() {
        let count = usize::try_from(u64::from_le_bytes(*count)).ok()?;
        let row: Vec<_> = words.by_ref().take(count).map(|word| f64::from_le_bytes(*word)).collect();
        table.push(Some(row).filter(|row| row.len() == count)?);
    }
    Some(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_come_back_and_damaged_ones_do_not() {
        let table = vec![vec![1.5, f64::INFINITY, -0.0], vec![], vec![f64::MIN_POSITIVE]];
        let bytes = encode(&table);
        assert_eq!(decode(&bytes), Some(table.clone()));
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert_eq!(decode(&damaged), None, "byte {at}");
            assert_eq!(decode(&bytes[..at]), None, "{at} bytes");
        }
        let folder = tempfile::tempdir().unwrap();
        let (ours, theirs) = (Store::shared(folder.path()), Store::shared(folder.path()));
        let [durable, passing] = [b"a", b"b"].map(|name| Digest::of(name));
        ours.put(durable, table.clone(), true);
        ours.put(passing, table.clone(), false);
        assert_eq!(theirs.get(durable, true).as_deref(), Some(&table));
        assert_eq!(theirs.get(passing, true), None);
        ours.forget();
        assert_eq!(ours.get(passing, false), None);
    }
}
