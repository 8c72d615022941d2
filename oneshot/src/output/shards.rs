//! Weights in one file, or in shards of a given size with an index, by the names that `transformers` gives them.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use evolver_common::checkpoint::{
    Checkpoint,
    write::{Announced, WeightsWriter, WriteError},
};
use serde_json::{Map, json};
use thiserror::Error;

/// Bytes of a shard where nothing else is asked for.
pub const DEFAULT_SHARD_BYTES: u64 = 5_000_000_000;

/// Weights that cannot be written.
#[derive(Debug, Error)]
pub enum ShardsError {
    /// A file cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// A tensor that was to be copied cannot be read.
    #[error("{0}")]
    Read(String),
}

/// Weight files under construction.
#[derive(Debug)]
pub struct Shards {
    folder: PathBuf,
    stem: String,
    names: Vec<String>,
    writers: Vec<WeightsWriter>,
    /// Shard, index in it and type of each tensor.
    places: Vec<(usize, usize)>,
    dtypes: Vec<evolver_common::checkpoint::Dtype>,
}

impl Shards {
    /// Begins the files of `tensors` in `folder`, cut before a file would have more than `limit` bytes of data.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn create(folder: &Path, stem: &str, tensors: &[Announced], limit: u64) -> Result<Self, ShardsError> {
        let mut cuts = vec![0];
        let mut size = 0;
        for (index, tensor) in tensors.iter().enumerate() {
            let bytes = (tensor.shape.iter().product::<usize>() * tensor.dtype.size()) as u64;
            if size > 0 && size + bytes > limit {
                cuts.push(index);
                size = 0;
            }
            size += bytes;
        }
        let count = cuts.len();
        cuts.push(tensors.len());
        let mut this = Self {
            folder: folder.to_owned(),
            stem: stem.to_owned(),
            names: Vec::new(),
            writers: Vec::new(),
            places: Vec::new(),
            dtypes: tensors.iter().map(|tensor| tensor.dtype).collect(),
        };
        for (shard, range) in cuts.windows(2).map(|ends| ends[0]..ends[1]).enumerate() {
            let name = match count {
                1 => format!("{stem}.safetensors"),
                _ => format!("{stem}-{:05}-of-{count:05}.safetensors", shard + 1),
            };
            this.places.extend((0..range.len()).map(|index| (shard, index)));
            this.writers.push(WeightsWriter::create(&folder.join(&name), &tensors[range], &Map::new())?);
            this.names.push(name);
        }
        Ok(this)
    }

    /// Writes F32 values, rounded to the tensor's type, from element `offset` of the tensor with this index on.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn values(&self, tensor: usize, offset: usize, values: &[f32]) -> Result<(), ShardsError> {
        let (shard, index) = self.places[tensor];
        Ok(self.writers[shard].values(index, offset, values)?)
    }

    /// Writes a tensor as it stands in `checkpoint`, or rounded to the type that it was announced with.
    ///
    /// # Errors
    /// If it cannot be read, or the system refuses.
    pub fn copy(&self, tensor: usize, checkpoint: &Checkpoint, name: &str) -> Result<(), ShardsError> {
        let (shard, index) = self.places[tensor];
        let info = checkpoint.tensors().get(name);
        if info.is_some_and(|info| info.dtype == self.dtypes[tensor]) {
            return Ok(self.writers[shard].copy(index, checkpoint, name)?);
        }
        let mut values = vec![0.0; info.map_or(0, |info| info.elements())];
        checkpoint.read(name, 0..values.len(), &mut values).map_err(|error| ShardsError::Read(error.to_string()))?;
        self.values(tensor, 0, &values)
    }

    /// Completes the files, and writes their index where there are several; gives their number.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn finish(self, tensors: &[Announced]) -> Result<usize, ShardsError> {
        let count = self.writers.len();
        for writer in self.writers {
            writer.finish(true)?;
        }
        if count > 1 {
            let total: u64 =
                tensors.iter().map(|tensor| (tensor.shape.iter().product::<usize>() * tensor.dtype.size()) as u64).sum();
            let map: BTreeMap<_, _> =
                tensors.iter().zip(&self.places).map(|(tensor, (shard, _))| (&tensor.name, &self.names[*shard])).collect();
            let index = json!({ "metadata": { "total_size": total }, "weight_map": map });
            let path = self.folder.join(format!("{}.safetensors.index.json", self.stem));
            let text = serde_json::to_string_pretty(&index).unwrap_or_default();
            evolver_common::checkpoint::write::file(&path, text.as_bytes()).map_err(|source| WriteError::Io { path, source })?;
        }
        Ok(count)
    }
}

/// Bytes from a text such as `5GB`, `500MB`, `2GiB` or `1000000`.
///
/// # Errors
/// If it is no size above 0.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let bad =
        || format!("{text:?} is no size: a number and B, KB, MB, GB, TB, KiB, MiB, GiB or TiB are expected, for instance 5GB");
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let number: f64 = number.parse().map_err(|_| bad())?;
    let factor = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kb" => 1e3,
        "m" | "mb" => 1e6,
        "g" | "gb" => 1e9,
        "t" | "tb" => 1e12,
        "kib" => 1024.0,
        "mib" => 1024.0 * 1024.0,
        "gib" => 1024.0 * 1024.0 * 1024.0,
        "tib" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        _ => return Err(bad()),
    };
    let size = number * factor;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounded below")]
    if (1.0..1e18).contains(&size) { Ok(size as u64) } else { Err(bad()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use evolver_common::checkpoint::Dtype;

    #[test]
    fn sizes_are_read() {
        for (text, size) in [("5GB", 5_000_000_000), ("1.5kb", 1500), ("2GiB", 1 << 31), ("77", 77), ("3 MB", 3_000_000)] {
            assert_eq!(parse_size(text), Ok(size));
        }
        for text in ["", "GB", "5XB", "0", "-1GB", "1e9", "1.2.3MB"] {
            assert!(parse_size(text).unwrap_err().contains("is no size"), "{text}");
        }
    }

    #[test]
    fn a_folder_of_shards_opens_as_one_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        let tensor = |name: &str, side: usize| Announced { name: name.into(), dtype: Dtype::F32, shape: vec![side] };
        // The second is larger than the limit and stands alone; the last two fit one shard.
        let tensors = [tensor("a", 3), tensor("b", 30), tensor("c", 4), tensor("d", 6)];
        let shards = Shards::create(folder.path(), "model", &tensors, 40).unwrap();
        for (index, tensor) in tensors.iter().enumerate() {
            shards.values(index, 0, &vec![index as f32; tensor.shape[0]]).unwrap();
        }
        assert_eq!(shards.finish(&tensors).unwrap(), 3);
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        assert_eq!(checkpoint.tensors().len(), 4);
        let mut last = [0.0; 6];
        checkpoint.read("d", 0..6, &mut last).unwrap();
        assert_eq!(last, [3.0; 6]);
        let index = std::fs::read_to_string(folder.path().join("model.safetensors.index.json")).unwrap();
        assert!(
            index.contains("\"total_size\": 172") && index.contains("\"c\": \"model-00003-of-00003.safetensors\""),
            "{index}"
        );
    }
}
