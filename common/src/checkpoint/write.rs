//! Durable writing: a reader sees a whole file or folder, or none.
//!
//! Everything is written under a temporary name beside its target, synced, and renamed; then the parent folder is synced. On any error the
//! temporary is removed.

use std::{
    cell::RefCell,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use serde_json::{Map, Value, json};
use thiserror::Error;

use super::{Checkpoint, Dtype, map};

/// Files that make up a tokenizer.
pub const TOKENIZER_FILES: [&str; 11] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "chat_template.jinja",
    "chat_template.json",
];
/// Further files that are copied with a model as they are.
const OTHER_FILES: [&str; 3] = ["generation_config.json", "preprocessor_config.json", "processor_config.json"];

/// Elements that are rounded and written at a time: what a thread's buffer holds.
const WRITE_ELEMENTS: usize = 1 << 18;

/// A folder that cannot be written.
#[derive(Debug, Error)]
pub enum WriteError {
    /// There is something there already.
    #[error("{path} exists and is not an empty folder: choose another --out", path = .0.display())]
    Occupied(PathBuf),
    /// The system refused.
    #[error("cannot write {path}: {source}; nothing was left behind", path = path.display())]
    Io {
        /// What was being written.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A tensor that was to be copied cannot be read.
    #[error("{0}")]
    Unreadable(String),
}

/// Writes a whole file durably.
///
/// # Errors
/// If the system refuses; the file is then as it was.
pub fn file(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = temporary_beside(path);
    let result = (|| {
        let mut file = File::create(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        sync_folder(path.parent())
    })();
    if result.is_err() {
        fs::remove_file(&temporary).ok();
    }
    result
}

fn temporary_beside(path: &Path) -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    path.with_file_name(format!(".{name}.{}-{number}.tmp", std::process::id()))
}

fn sync_folder(folder: Option<&Path>) -> io::Result<()> {
    let folder = folder.filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

/// Folders under construction, for [`abandon`].
static UNFINISHED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Removes every folder under construction; for a process that is about to end before its writers do.
pub fn abandon() {
    for folder in UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
        // A thread may still begin a file in it while the others are removed.
        for _ in 0..3 {
            if fs::remove_dir_all(&folder).is_ok() {
                break;
            }
        }
    }
}

/// A folder that appears whole or not at all.
#[derive(Debug)]
pub struct FolderWriter {
    target: PathBuf,
    temporary: PathBuf,
}

impl FolderWriter {
    /// Begins a folder at `target`, which must not exist or be empty.
    ///
    /// # Errors
    /// If something is there, or the system refuses.
    pub fn new(target: &Path) -> Result<Self, WriteError> {
        if target.is_file() || fs::read_dir(target).is_ok_and(|mut entries| entries.next().is_some()) {
            return Err(WriteError::Occupied(target.to_owned()));
        }
        let target = std::path::absolute(target).unwrap_or_else(|_| target.to_owned());
        let temporary = temporary_beside(&target);
        UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner).push(temporary.clone());
        let writer = Self { target, temporary };
        fs::create_dir_all(&writer.temporary).map_err(at(&writer.temporary))?;
        Ok(writer)
    }

    /// Where the folder's files are written until it is complete.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.temporary
    }

    /// Writes one small file.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn write(&self, name: &str, content: &[u8]) -> Result<(), WriteError> {
        let path = self.temporary.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(at(parent))?;
        }
        let write = || {
            let mut file = File::create(&path)?;
            file.write_all(content)?;
            file.sync_all()
        };
        write().map_err(at(&path))
    }

    /// Copies tokenizer, config and the like from `model`'s folder, as far as they are there.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn copy_side_files(&self, model: &Path) -> Result<(), WriteError> {
        for name in TOKENIZER_FILES.into_iter().chain(OTHER_FILES) {
            if let Ok(content) = fs::read(model.join(name)) {
                self.write(name, &content)?;
            }
        }
        Ok(())
    }

    /// Begins one weight file of the folder; `tensors` are written in this order.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn weights(&self, name: &str, tensors: &[Announced]) -> Result<WeightsWriter, WriteError> {
        WeightsWriter::create(&self.temporary.join(name), tensors, &Map::new())
    }

    /// Makes the folder appear.
    ///
    /// # Errors
    /// If the system refuses; nothing then appears.
    pub fn finish(self) -> Result<(), WriteError> {
        let finish = || {
            sync_folder(Some(&self.temporary))?;
            // An empty folder may stand in the way; a full one makes this fail.
            fs::remove_dir(&self.target).or_else(|error| match error.kind() {
                io::ErrorKind::NotFound => Ok(()),
                _ => Err(error),
            })?;
            fs::rename(&self.temporary, &self.target)?;
            sync_folder(self.target.parent())
        };
        finish().map_err(at(&self.target))
    }
}

impl Drop for FolderWriter {
    fn drop(&mut self) {
        // After a rename there is nothing left under this name.
        fs::remove_dir_all(&self.temporary).ok();
        UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner).retain(|folder| *folder != self.temporary);
    }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> WriteError {
    let path = path.to_owned();
    move |source| WriteError::Io { path, source }
}

/// A tensor that will be written.
#[derive(Clone, Debug)]
pub struct Announced {
    /// Its name.
    pub name: String,
    /// Type that its values are rounded to.
    pub dtype: Dtype,
    /// Its sides.
    pub shape: Vec<usize>,
}

/// Writes one safetensors file, its tensors in any order and from several threads.
#[derive(Debug)]
pub struct WeightsWriter {
    path: PathBuf,
    file: File,
    /// Type, first byte and elements of each tensor.
    places: Vec<(Dtype, u64, usize)>,
}

impl WeightsWriter {
    /// Begins a file; `metadata` joins the header's own.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn create(path: &Path, tensors: &[Announced], metadata: &Map<String, Value>) -> Result<Self, WriteError> {
        let mut meta = metadata.clone();
        meta.insert("format".into(), "pt".into());
        let mut table = Map::new();
        table.insert("__metadata__".into(), Value::Object(meta));
        let mut places = Vec::with_capacity(tensors.len());
        let mut start = 0;
        for tensor in tensors {
            let elements = tensor.shape.iter().product::<usize>();
            let end = start + elements * tensor.dtype.size();
            table.insert(
                tensor.name.clone(),
                json!({ "dtype": tensor.dtype.name(), "shape": tensor.shape, "data_offsets": [start, end] }),
            );
            places.push((tensor.dtype, start as u64, elements));
            start = end;
        }
        let mut header = Value::Object(table).to_string();
        // Data starts at a multiple of 8, as the format's own writer has it.
        while !header.len().is_multiple_of(8) {
            header.push(' ');
        }
        let begin = || {
            let file = File::options().read(true).write(true).create_new(true).open(path)?;
            write_at(&file, &(header.len() as u64).to_le_bytes(), 0)?;
            write_at(&file, header.as_bytes(), 8)?;
            file.set_len(8 + header.len() as u64 + start as u64)?;
            Ok(file)
        };
        let data = 8 + header.len() as u64;
        places.iter_mut().for_each(|(_, start, _)| *start += data);
        Ok(Self { path: path.to_owned(), file: begin().map_err(at(path))?, places })
    }

    /// Writes F32 values, rounded to the tensor's type, from element `offset` of the tensor with this index on.
    ///
    /// # Errors
    /// If the system refuses, or there are no such elements.
    pub fn values(&self, tensor: usize, offset: usize, values: &[f32]) -> Result<(), WriteError> {
        let (dtype, start, elements) = self.places[tensor];
        if offset + values.len() > elements {
            return Err(at(&self.path)(io::Error::from(io::ErrorKind::InvalidInput)));
        }
        let start = start + (offset * dtype.size()) as u64;
        if let (Dtype::F32, Some(bytes)) = (dtype, map::as_bytes(values)) {
            return write_at(&self.file, bytes, start).map_err(at(&self.path));
        }
        thread_local! {
            static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        }
        BUFFER.with_borrow_mut(|buffer| {
            values.chunks(WRITE_ELEMENTS).zip((start..).step_by(WRITE_ELEMENTS * dtype.size())).try_for_each(|(values, start)| {
                dtype.fill_from_f32(values, buffer);
                write_at(&self.file, buffer, start).map_err(at(&self.path))
            })
        })
    }

    /// Writes a tensor as it stands in `checkpoint`; it was announced with the type that it has there.
    ///
    /// # Errors
    /// If it cannot be read, or the system refuses.
    pub fn copy(&self, tensor: usize, checkpoint: &Checkpoint, name: &str) -> Result<(), WriteError> {
        let unreadable = |error: super::ReadError| WriteError::Unreadable(error.to_string());
        let view = checkpoint.view(name).map_err(unreadable)?;
        if let Some(bytes) = view.bytes() {
            return write_at(&self.file, bytes, self.places[tensor].1).map_err(at(&self.path));
        }
        let mut values = vec![0.0; view.elements()];
        view.read(0..values.len(), &mut values).map_err(unreadable)?;
        self.values(tensor, 0, &values)
    }

    /// Completes the file; `durable` syncs it to the disk.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn finish(self, durable: bool) -> Result<(), WriteError> {
        if durable {
            self.file.sync_all().map_err(at(&self.path))?;
        }
        Ok(())
    }
}

#[cfg(unix)]
fn write_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
}

#[cfg(windows)]
fn write_at(file: &File, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = std::os::windows::fs::FileExt::seek_write(file, bytes, offset)?;
        bytes = &bytes[written..];
        offset += written as u64;
    }
    Ok(())
}
