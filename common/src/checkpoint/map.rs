//! The memory map of a file, and hints for reading it: the only `unsafe` of the project.
#![expect(unsafe_code, reason = "mapping a file is unsafe by nature; the contract stands at Mapping::open")]

use std::{
    fs::{File, Metadata},
    io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use memmap2::Mmap;

/// What tells that a file is still the one that was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) size: u64,
    pub(super) modified: Option<SystemTime>,
    pub(super) inode: u64,
}

impl Stamp {
    pub(super) fn of(metadata: &Metadata) -> Self {
        #[cfg(unix)]
        let inode = std::os::unix::fs::MetadataExt::ino(metadata);
        #[cfg(not(unix))]
        let inode = 0;
        Self { size: metadata.len(), modified: metadata.modified().ok(), inode }
    }
}

/// A file mapped for reading, with the stamp that it had when it was opened.
#[derive(Debug)]
pub(super) struct Mapping {
    path: PathBuf,
    stamp: Stamp,
    map: Mmap,
}

impl Mapping {
    /// Maps the whole file.
    ///
    /// The file must not be changed in place while it is mapped. What writes checkpoints here never does: it writes under another name
    /// and renames. Someone else's truncation ends the process with SIGBUS, which is why weights are read in a supervised child
    /// process, and a change is noticed by [`Mapping::stamp`] before a result counts.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let stamp = Stamp::of(&file.metadata()?);
        // SAFETY: the map is read-only and private; the caller's side of the contract is stated above.
        let map = unsafe { Mmap::map(&file)? };
        Ok(Self { path: path.to_owned(), stamp, map })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn stamp(&self) -> &Stamp {
        &self.stamp
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.map
    }
}

/// The bytes as F32 elements, without a copy, where alignment and byte order allow it.
pub(super) fn as_f32(bytes: &[u8]) -> Option<&[f32]> {
    if cfg!(target_endian = "big") {
        return None;
    }
    // SAFETY: every bit pattern is a valid f32, and align_to itself keeps to alignment.
    let (before, values, after) = unsafe { bytes.align_to::<f32>() };
    (before.is_empty() && after.is_empty()).then_some(values)
}

/// The bytes of F32 elements, without a copy, on little-endian machines.
pub(super) fn as_bytes(values: &[f32]) -> Option<&[u8]> {
    if cfg!(target_endian = "big") {
        return None;
    }
    // SAFETY: a byte has no alignment, and every byte of an f32 is initialised.
    let (before, bytes, after) = unsafe { values.align_to::<u8>() };
    (before.is_empty() && after.is_empty()).then_some(bytes)
}

/// Asks the processor for the line of memory that a value lies in, without waiting for it: a hint, which changes nothing.
#[inline(always)]
pub(super) fn prefetch<T>(value: &T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch cannot fault and gives the program nothing to see.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(value).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = value;
}
