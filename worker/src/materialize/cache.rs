//! Built weights of survivors, on disk, by recipe id.
//!
//! A cache and never the truth: every file is checked against its digest before its first use, and one that does not fit is deleted and built
//! again. Files are F32, as the engine computes, so that a cached node gives the same bits as a rebuilt one. Several processes share a folder.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use evolver_common::{
    checkpoint::{
        Checkpoint, Dtype, Space,
        write::{Announced, WeightsWriter},
    },
    digest::Digest,
    merge::{CheckpointLeaf, Leaf, Sink},
};
use serde_json::Map;

pub(super) struct Cache {
    folder: PathBuf,
    limit: u64,
    space: Arc<Space>,
    /// Open entries, with the turn of their last use.
    open: HashMap<Digest, (Arc<dyn Leaf>, u64)>,
    turn: u64,
}

/// An entry that is being written.
pub(super) struct Writer {
    id: Digest,
    path: PathBuf,
    file: WeightsWriter,
    /// The disk has refused: the entry is worth nothing, and what is built beside it goes on.
    refused: AtomicBool,
}

impl Writer {
    pub(super) fn sink(&self) -> &dyn Sink {
        self
    }
}

impl Sink for Writer {
    fn write(&self, tensor: usize, offset: usize, values: &[f32]) -> io::Result<()> {
        if !self.refused.load(Ordering::Relaxed)
            && let Err(error) = self.file.values(tensor, offset, values)
        {
            tracing::warn!("{} is not cached: {error}", self.path.display());
            self.refused.store(true, Ordering::Relaxed);
        }
        Ok(())
    }
}

impl Cache {
    pub(super) fn open(folder: &Path, limit: u64, space: Arc<Space>) -> Self {
        Self { folder: folder.join("weights"), limit, space, open: HashMap::new(), turn: 0 }
    }

    fn path(&self, id: Digest) -> PathBuf {
        self.folder.join(format!("{id}.safetensors"))
    }

    pub(super) fn contains(&self, id: Digest) -> bool {
        self.open.contains_key(&id)
    }

    /// The entry of a recipe, if it is there and sound.
    pub(super) fn get(&mut self, id: Digest) -> Option<Arc<dyn Leaf>> {
        self.turn += 1;
        let turn = self.turn;
        if let Some((leaf, used)) = self.open.get_mut(&id) {
            *used = turn;
            return Some(Arc::clone(leaf));
        }
        let path = self.path(id);
        let digest = fs::read_to_string(path.with_extension("blake3")).ok()?;
        let sound = || {
            let checkpoint = Checkpoint::open(&path).ok()?;
            let fits = self.space.tensors.iter().all(|tensor| {
                let found = checkpoint.tensors().get(&tensor.name);
                found.is_some_and(|info| info.shape == tensor.shape && info.dtype == Dtype::F32)
            });
            let found = checkpoint.digest(&evolver_common::checkpoint::DigestCache::in_memory()).ok()?;
            (fits && found.to_string() == digest).then_some(checkpoint)
        };
        let Some(checkpoint) = sound() else {
            tracing::warn!("{} is damaged and will be built again", path.display());
            self.delete(id);
            return None;
        };
        let leaf: Arc<dyn Leaf> = Arc::new(CheckpointLeaf::new(Arc::new(checkpoint), Arc::clone(&self.space)));
        self.open.insert(id, (Arc::clone(&leaf), turn));
        Some(leaf)
    }

    /// Begins an entry; `None` if the disk refuses.
    pub(super) fn begin(&self, id: Digest) -> Option<Writer> {
        fs::create_dir_all(&self.folder).ok()?;
        // The final file name stands in the digest, so the temporary one is a folder.
        let folder = self.folder.join(format!(".{}-{}", id.short(), std::process::id()));
        fs::remove_dir_all(&folder).ok();
        fs::create_dir(&folder).ok()?;
        let path = folder.join(format!("{id}.safetensors"));
        let announced: Vec<_> = self
            .space
            .tensors
            .iter()
            .map(|tensor| Announced { name: tensor.name.clone(), dtype: Dtype::F32, shape: tensor.shape.clone() })
            .collect();
        let file = WeightsWriter::create(&path, &announced, &Map::new()).ok()?;
        Some(Writer { id, path, file, refused: AtomicBool::new(false) })
    }

    /// Completes an entry: first its digest, then, by a rename, itself. Where the disk refuses, the cache shrinks instead.
    pub(super) fn finish(&mut self, writer: Writer) {
        let target = self.path(writer.id);
        let folder = writer.path.parent().map(Path::to_owned);
        let finish = || {
            if writer.refused.load(Ordering::Relaxed) {
                return Err(io::Error::other("the disk refused a part of it"));
            }
            writer.file.finish(false).map_err(io::Error::other)?;
            let checkpoint = Checkpoint::open(&writer.path).map_err(io::Error::other)?;
            let digest = checkpoint.digest(&evolver_common::checkpoint::DigestCache::in_memory()).map_err(io::Error::other)?;
            fs::write(target.with_extension("blake3"), digest.to_string())?;
            fs::rename(&writer.path, &target)?;
            writer.path.parent().map_or(Ok(()), fs::remove_dir)
        };
        if let Err(error) = finish() {
            tracing::warn!("{} was not cached, and half of what is gives way: {error}", target.display());
            folder.map(fs::remove_dir_all);
            fs::remove_file(target.with_extension("blake3")).ok();
            self.limit = self.size() * (self.open.len() / 2) as u64;
            return;
        }
        self.get(writer.id);
    }

    /// Size of an entry, in bytes.
    fn size(&self) -> u64 {
        (4 * self.space.elements() as u64).max(1)
    }

    fn delete(&mut self, id: Digest) {
        self.open.remove(&id);
        let path = self.path(id);
        fs::remove_file(path.with_extension("blake3")).ok();
        fs::remove_file(path).ok();
    }

    /// Deletes the entries longest unused until the rest fits the limit; members of the population stay.
    pub(super) fn evict(&mut self, keep: &[Digest]) {
        let mut idle: Vec<_> =
            self.open.iter().filter(|(id, _)| !keep.contains(id)).map(|(id, (_, used))| (*used, *id)).collect();
        idle.sort_unstable();
        let allowed = usize::try_from(self.limit / self.size()).unwrap_or(usize::MAX);
        let excess = self.open.len().saturating_sub(allowed);
        for (_, id) in idle.into_iter().take(excess) {
            self.delete(id);
        }
    }
}
