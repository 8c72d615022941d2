//! A checkpoint: its files behind one list of tensors, each readable block by block as F32.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use rayon::prelude::*;
use serde::Deserialize;
use serde_json::Value;
use thiserror::Error;

use super::{
    adapter::{self, Change},
    dtype::Dtype,
    header::{self, HeaderError},
    map::{self, Mapping, Stamp},
    quantized,
    row::Row,
};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const INDEX_BYTES_MAX: u64 = 64 << 20;
/// Elements that one step of a whole-checkpoint scan reads.
const SCAN_ELEMENTS: usize = 1 << 18;

/// Type and shape of a tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    /// Type of its elements.
    pub dtype: Dtype,
    /// Its sides, outermost first; empty for a scalar.
    pub shape: Vec<usize>,
}

impl TensorInfo {
    /// Number of elements. Cannot overflow: the header check has multiplied it out.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// A checkpoint that cannot be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The path leads nowhere.
    #[error("{path}: no such file or folder", path = .0.display())]
    Missing(PathBuf),
    /// A folder without weights.
    #[error("{path} is not a checkpoint: it holds neither {SINGLE} nor {INDEX}{hint}", path = path.display())]
    NoWeights {
        /// The folder.
        path: PathBuf,
        /// What it may be instead.
        hint: &'static str,
    },
    /// An adapter where a full checkpoint is needed.
    #[error("{path} is an adapter: a full checkpoint is expected here", path = .0.display())]
    AdapterWithoutBase(PathBuf),
    /// A file cannot be read.
    #[error("cannot read {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The header does not pass the check.
    #[error("{path}: {source}", path = path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: HeaderError,
    },
    /// A JSON file beside the weights is wrong.
    #[error("{path}: {what}", path = path.display())]
    Side {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
}

/// A tensor that cannot be read.
#[derive(Debug, Error)]
pub enum ReadError {
    /// There is no such tensor.
    #[error("{path} has no tensor {name:?}", path = path.display())]
    Unknown {
        /// The checkpoint.
        path: PathBuf,
        /// The name asked for.
        name: String,
    },
    /// More was asked for than there is.
    #[error("elements {start} to {end} of a tensor of {elements} were asked for")]
    Range {
        /// First element.
        start: usize,
        /// One past the last.
        end: usize,
        /// How many there are.
        elements: usize,
    },
}

/// A file that is no longer what was opened.
#[derive(Debug, Error)]
#[error("{path} changed while it was in use: its size, time or inode differs; what was read from it does not count", path = .0.display())]
pub struct ChangedError(pub PathBuf);

/// Weights that are NaN or infinite.
#[derive(Debug, Error)]
#[error("{path}: tensor {tensor:?} holds {count} values that are NaN or infinite, the first at element {first}", path = path.display())]
pub struct NonFiniteError {
    /// The checkpoint.
    pub path: PathBuf,
    /// The first such tensor by name.
    pub tensor: String,
    /// How many such values it holds.
    pub count: usize,
    /// Flat index of the first.
    pub first: usize,
}

/// A model's weights on disk, mapped and never copied.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    files: Vec<Mapping>,
    tensors: BTreeMap<String, TensorInfo>,
    places: BTreeMap<String, Place>,
    base: Option<Arc<Checkpoint>>,
}

/// Where a tensor's values come from.
#[derive(Debug)]
enum Place {
    File {
        file: usize,
        start: usize,
    },
    Base,
    /// A change of the base's tensor, or of what replaces it in a file.
    Changed(Change, Option<(usize, usize)>),
}

/// A tensor, found once and read many times.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    dtype: Dtype,
    elements: usize,
    values: Values<'a>,
}

/// The place of a tensor that is stored as it is, so that reading it block by block needs no name.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    file: usize,
    start: usize,
    dtype: Dtype,
    elements: usize,
}

#[derive(Clone, Copy, Debug)]
enum Values<'a> {
    Bytes(&'a [u8]),
    Changed(&'a Change, &'a [u8]),
}

impl Checkpoint {
    /// Opens a full checkpoint: a folder with one file or with shards, or a single `.safetensors` file.
    ///
    /// # Errors
    /// If there is no checkpoint, or any of its headers does not pass the check.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        if !path.exists() {
            return Err(OpenError::Missing(path.to_owned()));
        }
        if path.is_file() {
            return Self::from_files(path, &[path.to_owned()], None);
        }
        quantized::refuse(path)?;
        if path.join(SINGLE).is_file() {
            return Self::from_files(path, &[path.join(SINGLE)], None);
        }
        if path.join(INDEX).is_file() {
            let index = read_index(&path.join(INDEX))?;
            let shards: BTreeSet<_> = index.values().map(|shard| path.join(shard)).collect();
            let shards: Vec<_> = shards.into_iter().collect();
            return Self::from_files(path, &shards, Some(&index));
        }
        if adapter::is_adapter(path) {
            return Err(OpenError::AdapterWithoutBase(path.to_owned()));
        }
        let pickled = path.join("pytorch_model.bin").exists();
        Err(OpenError::NoWeights {
            path: path.to_owned(),
            hint: if pickled { " (pytorch_model.bin is a pickle: save the model as safetensors)" } else { "" },
        })
    }

    /// Opens a full checkpoint, or a LoRA adapter as a view over `base`.
    ///
    /// # Errors
    /// As [`Checkpoint::open`], or if the adapter does not fit the base.
    pub fn open_over(path: &Path, base: &Arc<Checkpoint>) -> Result<Self, OpenError> {
        if !adapter::is_adapter(path) {
            return Self::open(path);
        }
        let file = adapter::weights(path)?;
        let parts = Self::from_files(path, std::slice::from_ref(&file), None)?;
        let plan = adapter::plan(path, &parts, base)?;
        let mut places: BTreeMap<_, _> = base.tensors.keys().map(|name| (name.clone(), Place::Base)).collect();
        let mut tensors = base.tensors.clone();
        for (name, part) in plan.replaced {
            if let (Some(Place::File { file, start }), Some(info)) = (parts.places.get(&part), parts.tensors.get(&part)) {
                places.insert(name.clone(), Place::File { file: *file, start: *start });
                tensors.insert(name, info.clone());
            }
        }
        for (name, change) in plan.changed {
            let under = match places.get(&name) {
                Some(Place::File { file, start }) => Some((*file, *start)),
                _ => None,
            };
            places.insert(name, Place::Changed(change, under));
        }
        Ok(Self { path: path.to_owned(), files: parts.files, tensors, places, base: Some(Arc::clone(base)) })
    }

    /// Whether it is a view over a base.
    pub(super) fn is_over_a_base(&self) -> bool {
        self.base.is_some()
    }

    fn from_files(path: &Path, paths: &[PathBuf], index: Option<&BTreeMap<String, String>>) -> Result<Self, OpenError> {
        let mut files = Vec::with_capacity(paths.len());
        let mut tensors = BTreeMap::new();
        let mut places = BTreeMap::new();
        for (number, file) in paths.iter().enumerate() {
            if let Some((tensor, shard)) =
                index.filter(|_| !file.is_file()).and_then(|index| index.iter().find(|(_, shard)| path.join(shard) == *file))
            {
                return Err(OpenError::Side {
                    path: path.join(INDEX),
                    what: format!(
                        "it places tensor {tensor:?} in {shard}, and there is no such file: the checkpoint is incomplete"
                    ),
                });
            }
            let mapping = Mapping::open(file).map_err(|source| OpenError::Read { path: file.clone(), source })?;
            let entries = header::check(mapping.bytes()).map_err(|source| OpenError::Header { path: file.clone(), source })?;
            for (name, entry) in entries {
                let listed = index.is_none_or(|index| index.get(&name).map(|shard| path.join(shard)).as_ref() == Some(file));
                if !listed {
                    return Err(OpenError::Side {
                        path: path.join(INDEX),
                        what: format!("tensor {name:?} is in {}, but the index does not say so", file.display()),
                    });
                }
                places.insert(name.clone(), Place::File { file: number, start: entry.start });
                tensors.insert(name, entry.info);
            }
            files.push(mapping);
        }
        if let Some((name, format)) = tensors.keys().find_map(|name| Some((name, quantized::mark(name)?))) {
            let what = format!(
                "tensor {name:?} is part of a quantized model ({format}), and only plain weights can be read: dequantize it first"
            );
            return Err(OpenError::Side { path: path.to_owned(), what });
        }
        let missing = index.into_iter().flat_map(BTreeMap::iter).find(|(name, _)| !tensors.contains_key(*name));
        if let Some((name, shard)) = missing {
            return Err(OpenError::Side {
                path: path.join(INDEX),
                what: format!("it places tensor {name:?} in {shard}, which does not hold it"),
            });
        }
        Ok(Self { path: path.to_owned(), files, tensors, places, base: None })
    }

    /// The folder or file that it was opened from.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Every tensor by name.
    #[must_use]
    pub fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    /// Bytes of all tensors in their own types.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.tensors.values().map(|info| (info.elements() * info.dtype.size()) as u64).sum()
    }

    /// The base that this is an adapter over.
    pub(super) fn base(&self) -> Option<&Arc<Checkpoint>> {
        self.base.as_ref()
    }

    /// How many weight files it has of its own.
    #[must_use]
    pub fn file_count(&self) -> usize {
        self.files.len()
    }

    /// Its own weight files, in a fixed order, with their stamps.
    pub(super) fn files(&self) -> impl Iterator<Item = (&Path, &Stamp, &[u8])> {
        self.files.iter().map(|file| (file.path(), file.stamp(), file.bytes()))
    }

    /// Finds a tensor for reading.
    ///
    /// # Errors
    /// If there is none of this name.
    pub fn view(&self, name: &str) -> Result<View<'_>, ReadError> {
        let unknown = || ReadError::Unknown { path: self.path.clone(), name: name.to_owned() };
        let info = self.tensors.get(name).ok_or_else(unknown)?;
        let length = info.elements() * info.dtype.size();
        let stored = |file: usize, start: usize| &self.files[file].bytes()[start..start + length];
        let values = match self.places.get(name).ok_or_else(unknown)? {
            Place::File { file, start } => Values::Bytes(stored(*file, *start)),
            Place::Base => return self.base.as_ref().ok_or_else(unknown)?.view(name),
            Place::Changed(change, Some((file, start))) => Values::Changed(change, stored(*file, *start)),
            Place::Changed(change, None) => match self.base.as_ref().ok_or_else(unknown)?.view(name)?.values {
                Values::Bytes(bytes) => Values::Changed(change, bytes),
                Values::Changed(..) => return Err(unknown()),
            },
        };
        Ok(View { dtype: info.dtype, elements: info.elements(), values })
    }

    /// The place of a tensor in one of the checkpoint's own files; `None` if it is not stored there as it is.
    #[must_use]
    pub fn slot(&self, name: &str) -> Option<Slot> {
        let info = self.tensors.get(name)?;
        match self.places.get(name)? {
            Place::File { file, start } => {
                Some(Slot { file: *file, start: *start, dtype: info.dtype, elements: info.elements() })
            }
            Place::Base | Place::Changed(..) => None,
        }
    }

    /// The tensor at a place that [`Checkpoint::slot`] of this checkpoint gave.
    #[must_use]
    pub fn at(&self, slot: Slot) -> View<'_> {
        let Slot { file, start, dtype, elements } = slot;
        View { dtype, elements, values: Values::Bytes(&self.files[file].bytes()[start..start + elements * dtype.size()]) }
    }

    /// Reads the flat, row-major `elements` of a tensor as F32.
    ///
    /// # Errors
    /// If there is no such tensor or it has no such elements.
    pub fn read(&self, name: &str, elements: Range<usize>, out: &mut [f32]) -> Result<(), ReadError> {
        self.view(name)?.read(elements, out)
    }

    /// Whether every file is still the one that was opened.
    ///
    /// # Errors
    /// Names the first that is not.
    pub fn unchanged(&self) -> Result<(), ChangedError> {
        for file in &self.files {
            let now = fs::metadata(file.path()).ok().map(|metadata| Stamp::of(&metadata));
            if now.as_ref() != Some(file.stamp()) {
                return Err(ChangedError(file.path().to_owned()));
            }
        }
        self.base.as_ref().map_or(Ok(()), |base| base.unchanged())
    }

    /// The model's `config.json`; an adapter has its base's.
    ///
    /// # Errors
    /// If it is missing or not JSON.
    pub fn config(&self) -> Result<Value, OpenError> {
        match &self.base {
            Some(base) => base.config(),
            None => read_json(&self.folder().join("config.json")),
        }
    }

    /// The folder that holds config and tokenizer; an adapter's is its base's.
    #[must_use]
    pub fn folder(&self) -> &Path {
        match &self.base {
            Some(base) => base.folder(),
            None if self.path.is_file() => self.path.parent().unwrap_or(&self.path),
            None => &self.path,
        }
    }

    /// Looks for NaN and infinite weights in every float tensor.
    ///
    /// # Errors
    /// Names the first such tensor, with how many there are in it.
    pub fn scan_finite(&self) -> Result<(), NonFiniteError> {
        for name in self.places.iter().filter(|(_, place)| !matches!(place, Place::Base)).map(|(name, _)| name) {
            let Ok(view) = self.view(name) else { continue };
            if !view.dtype.is_float() {
                continue;
            }
            let blocks = view.elements.div_ceil(SCAN_ELEMENTS);
            let found = (0..blocks)
                .into_par_iter()
                .map_init(Vec::new, |buffer, block| {
                    let start = block * SCAN_ELEMENTS;
                    let end = view.elements.min(start + SCAN_ELEMENTS);
                    view.non_finite(start..end, buffer)
                })
                .reduce(|| (0, usize::MAX), |a, b| (a.0 + b.0, a.1.min(b.1)));
            if found.0 > 0 {
                return Err(NonFiniteError { path: self.path.clone(), tensor: name.clone(), count: found.0, first: found.1 });
            }
        }
        Ok(())
    }
}

impl<'a> View<'a> {
    /// Number of elements.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.elements
    }

    /// The tensor's own bytes, where it is stored as it is.
    #[must_use]
    pub fn bytes(&self) -> Option<&'a [u8]> {
        match self.values {
            Values::Bytes(bytes) => Some(bytes),
            Values::Changed(..) => None,
        }
    }

    /// The whole tensor without a copy, where it is stored as aligned F32.
    #[must_use]
    pub fn as_f32(&self) -> Option<&'a [f32]> {
        match (self.dtype, self.values) {
            (Dtype::F32, Values::Bytes(bytes)) => map::as_f32(bytes),
            _ => None,
        }
    }

    /// The whole tensor's values as they are stored, where that is a type that rows have.
    #[must_use]
    pub fn row(&self) -> Option<Row<'a>> {
        match (self.dtype, self.values) {
            (Dtype::F32, Values::Bytes(bytes)) => map::as_f32(bytes).map(Row::F32),
            (Dtype::Bf16, Values::Bytes(bytes)) => Some(Row::Bf16(bytes.as_chunks().0)),
            _ => None,
        }
    }

    /// Reads the flat, row-major `elements` as F32; `out` has as many.
    ///
    /// # Errors
    /// If the tensor has no such elements, or `out` another length.
    pub fn read(&self, elements: Range<usize>, out: &mut [f32]) -> Result<(), ReadError> {
        if elements.start > elements.end || elements.end > self.elements || out.len() != elements.len() {
            return Err(ReadError::Range { start: elements.start, end: elements.end, elements: self.elements });
        }
        let size = self.dtype.size();
        let of = |bytes: &'a [u8]| &bytes[elements.start * size..elements.end * size];
        match self.values {
            Values::Bytes(bytes) => self.dtype.to_f32(of(bytes), out),
            Values::Changed(change, bytes) => {
                self.dtype.to_f32(of(bytes), out);
                change.apply(elements.start, out);
            }
        }
        Ok(())
    }

    /// How many of `elements` are NaN or infinite, and the first.
    fn non_finite(&self, elements: Range<usize>, buffer: &mut Vec<f32>) -> (usize, usize) {
        buffer.resize(elements.len(), 0.0);
        let values = match self.as_f32() {
            Some(values) => &values[elements.clone()],
            None if self.read(elements.clone(), buffer).is_ok() => buffer,
            None => return (0, usize::MAX),
        };
        let count = values.iter().filter(|value| !value.is_finite()).count();
        let first = if count == 0 { None } else { values.iter().position(|value| !value.is_finite()) };
        (count, first.map_or(usize::MAX, |first| elements.start + first))
    }
}

/// Reads a JSON file beside the weights.
pub(super) fn read_json(path: &Path) -> Result<Value, OpenError> {
    let size = fs::metadata(path).map_or(0, |metadata| metadata.len());
    if size > INDEX_BYTES_MAX {
        let what = format!("has {size} bytes, and at most {INDEX_BYTES_MAX} are allowed");
        return Err(OpenError::Side { path: path.to_owned(), what });
    }
    let bytes = fs::read(path).map_err(|source| OpenError::Read { path: path.to_owned(), source })?;
    serde_json::from_slice(&bytes).map_err(|error| OpenError::Side { path: path.to_owned(), what: format!("not JSON: {error}") })
}

/// The weight map of a sharded checkpoint: tensor name to file name.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>, OpenError> {
    let bad = |what: String| OpenError::Side { path: path.to_owned(), what };
    parse_index(read_json(path)?).map_err(bad)
}

/// Checks an index: a table of tensors with the plain names of files beside it.
///
/// # Errors
/// The sentence.
pub fn check_index(text: &[u8]) -> Result<(), String> {
    let tree = serde_json::from_slice(text).map_err(|error| format!("not JSON: {error}"))?;
    parse_index(tree).map(drop)
}

fn parse_index(tree: Value) -> Result<BTreeMap<String, String>, String> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index: Index = serde_json::from_value(tree).map_err(|error| format!("not an index: {error}"))?;
    for (tensor, shard) in &index.weight_map {
        let plain = Path::new(shard).file_name().is_some_and(|name| name == shard.as_str());
        if !plain || !shard.ends_with(".safetensors") {
            return Err(format!("it places tensor {tensor:?} in {shard:?}: a .safetensors file of the same folder is expected"));
        }
    }
    Ok(index.weight_map)
}
