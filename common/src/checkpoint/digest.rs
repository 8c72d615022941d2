//! Content digests of checkpoints, computed once and cached.
//!
//! A digest is cached under a file's path, size, modification time and inode; if any differs, it is computed again.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::UNIX_EPOCH,
};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{
    map::Stamp,
    open::{ChangedError, Checkpoint},
    write,
};
use crate::digest::Digest;

const FILE: &str = "digests.json";

/// A checkpoint whose digest cannot be told.
#[derive(Debug, Error)]
pub enum DigestError {
    /// It changed under our hands.
    #[error(transparent)]
    Changed(#[from] ChangedError),
}

/// Digests of files seen before.
#[derive(Debug, Default)]
pub struct DigestCache {
    folder: Option<PathBuf>,
    known: Mutex<HashMap<PathBuf, Known>>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Known {
    size: u64,
    /// Nanoseconds since 1970.
    modified: u64,
    inode: u64,
    digest: Digest,
}

impl Known {
    fn new(stamp: &Stamp, digest: Digest) -> Option<Self> {
        let since = stamp.modified?.duration_since(UNIX_EPOCH).ok()?;
        Some(Self { size: stamp.size, modified: u64::try_from(since.as_nanos()).ok()?, inode: stamp.inode, digest })
    }
}

impl DigestCache {
    /// A cache that lives as long as the process.
    #[must_use]
    pub fn in_memory() -> Self {
        Self::default()
    }

    /// A cache in a file of `folder`. A file that cannot be read is as good as none: digests are then computed again.
    #[must_use]
    pub fn open(folder: &Path) -> Self {
        let known = fs::read(folder.join(FILE)).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        Self { folder: Some(folder.to_owned()), known: Mutex::new(known) }
    }

    fn file_digest(&self, path: &Path, stamp: &Stamp, content: &[u8]) -> Digest {
        let lookup = |known: &HashMap<PathBuf, Known>| known.get(path).cloned();
        let cached = lookup(&self.known.lock().unwrap_or_else(PoisonError::into_inner));
        if let Some(cached) = cached
            && Known::new(stamp, cached.digest).as_ref() == Some(&cached)
        {
            return cached.digest;
        }
        let digest = Digest::from_bytes(*blake3::Hasher::new().update_rayon(content).finalize().as_bytes());
        if let Some(entry) = Known::new(stamp, digest) {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            known.insert(path.to_owned(), entry);
            if let Err(error) = self.save(&known) {
                tracing::warn!("the cache of digests was not saved: {error}");
            }
        }
        digest
    }

    fn save(&self, known: &HashMap<PathBuf, Known>) -> io::Result<()> {
        let Some(folder) = &self.folder else {
            return Ok(());
        };
        fs::create_dir_all(folder)?;
        write::file(&folder.join(FILE), &serde_json::to_vec(known)?)
    }
}

impl Checkpoint {
    /// The digest of its weights' content: of each weight file's name and bytes, and, for an adapter, of its base and its config.
    ///
    /// # Errors
    /// If a file changed since it was opened.
    pub fn digest(&self, cache: &DigestCache) -> Result<Digest, DigestError> {
        self.unchanged()?;
        let mut parts = Vec::new();
        for (path, stamp, content) in self.files() {
            // A checkpoint given as a single file has the digest of the folder that holds just that file.
            let name = path.file_name().unwrap_or_default().as_encoded_bytes();
            parts.push(name.to_vec());
            parts.push(cache.file_digest(path, stamp, content).as_bytes().to_vec());
        }
        if let Some(base) = self.base() {
            parts.push(base.digest(cache)?.as_bytes().to_vec());
            let config = fs::read(self.path().join("adapter_config.json")).unwrap_or_default();
            parts.push(config);
        }
        Ok(Digest::of_parts("evolver checkpoint v1", parts.iter().map(Vec::as_slice)))
    }
}
