//! Named tensors of one model: evolved ones are owned, frozen ones are read where they are mapped.

use std::{collections::HashMap, sync::Arc};

use evolver_common::checkpoint::{Checkpoint, Dtype, ReadError};
use half::{bf16, f16};
use thiserror::Error;

/// A model that cannot be run.
#[derive(Debug, Error)]
pub enum ModelError {
    /// The config is not one that is known.
    #[error("config.json: {0}")]
    Config(String),
    /// A tensor is missing or has another shape than the config says.
    #[error("tensor {name:?} {what}")]
    Tensor {
        /// Its name.
        name: String,
        /// What is wrong with it.
        what: String,
    },
    /// The model cannot take this input.
    #[error("{0}")]
    Input(String),
    /// The tensor library reports an error.
    #[error("while running the model: {0}")]
    Run(#[from] candle_core::Error),
}

/// A tensor's values.
#[derive(Clone, Debug)]
pub enum Values {
    /// Built for this model.
    Owned(Arc<Vec<f32>>),
    /// Built for this model and rounded to BF16, the type that the checkpoints have.
    Brain(Arc<Vec<bf16>>),
    /// Built for this model and rounded to F16.
    Half(Arc<Vec<f16>>),
    /// A tensor of a mapped checkpoint.
    Mapped(Arc<Checkpoint>, String),
}

/// The tensors of one model by name.
#[derive(Clone, Debug, Default)]
pub struct ModelWeights {
    tensors: HashMap<String, (Vec<usize>, Values)>,
}

impl ModelWeights {
    /// Every float tensor of a checkpoint, read where it is mapped.
    #[must_use]
    pub fn of(checkpoint: &Arc<Checkpoint>) -> Self {
        let floats = checkpoint.tensors().iter().filter(|(_, info)| info.dtype.is_float());
        let mapped =
            floats.map(|(name, info)| (name.clone(), (info.shape.clone(), Values::Mapped(Arc::clone(checkpoint), name.clone()))));
        Self { tensors: mapped.collect() }
    }

    /// Every tensor with its shape, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &(Vec<usize>, Values))> {
        self.tensors.iter()
    }

    /// Whether there is a tensor of this name.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The shape of a tensor.
    #[must_use]
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|(shape, _)| &shape[..])
    }

    /// The named tensors, those of `self` before those of `other`.
    #[must_use]
    pub fn subset(&self, names: &[String], other: &Self) -> Self {
        let find = |name: &String| self.tensors.get(name).or_else(|| other.tensors.get(name));
        Self { tensors: names.iter().filter_map(|name| Some((name.clone(), find(name)?.clone()))).collect() }
    }

    /// Adds or replaces a tensor.
    pub fn insert(&mut self, name: &str, shape: &[usize], values: Values) {
        self.tensors.insert(name.to_owned(), (shape.to_vec(), values));
    }

    /// Takes a tensor out, checked against the shape that the network needs.
    ///
    /// # Errors
    /// If it is missing or has another shape.
    pub fn take(&mut self, name: &str, shape: &[usize]) -> Result<Values, ModelError> {
        let bad = |what: String| ModelError::Tensor { name: name.to_owned(), what };
        let (found, values) = self.tensors.remove(name).ok_or_else(|| bad("is missing".into()))?;
        if found != shape {
            return Err(bad(format!("has shape {found:?}, and {shape:?} is needed")));
        }
        Ok(values)
    }

    /// Takes a tensor out as plain values, for small ones.
    ///
    /// # Errors
    /// As [`ModelWeights::take`].
    pub fn vector(&mut self, name: &str, length: usize) -> Result<Vec<f32>, ModelError> {
        self.vector_of(name, &[length])
    }

    /// As [`ModelWeights::vector`], of a tensor of any shape.
    ///
    /// # Errors
    /// As [`ModelWeights::take`].
    pub fn vector_of(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>, ModelError> {
        self.take(name, shape)?.into_vec()
    }
}

impl Values {
    /// Values in this type, if it is one of 16 bits, else in F32.
    pub(super) fn of(dtype: Dtype, values: Vec<f32>) -> Self {
        match dtype {
            Dtype::Bf16 => Self::Brain(Arc::new(values.into_iter().map(bf16::from_f32).collect())),
            Dtype::F16 => Self::Half(Arc::new(values.into_iter().map(f16::from_f32).collect())),
            _ => Self::Owned(values.into()),
        }
    }

    /// All values, not copied where they are owned as F32 and by nobody else.
    pub(super) fn into_vec(self) -> Result<Vec<f32>, ModelError> {
        if let Self::Owned(values) = self {
            return Ok(Arc::unwrap_or_clone(values));
        }
        let mut values = vec![0.0; self.len()?];
        self.read(0, &mut values)?;
        Ok(values)
    }

    fn len(&self) -> Result<usize, ModelError> {
        Ok(match self {
            Self::Owned(values) => values.len(),
            Self::Brain(values) => values.len(),
            Self::Half(values) => values.len(),
            Self::Mapped(checkpoint, name) => checkpoint.view(name).map_err(unreadable(name))?.elements(),
        })
    }

    /// Reads the elements from `start` on.
    ///
    /// # Errors
    /// If a mapped file does not give them.
    pub fn read(&self, start: usize, out: &mut [f32]) -> Result<(), ModelError> {
        let end = start + out.len();
        match self {
            Self::Owned(values) => out.copy_from_slice(&values[start..end]),
            Self::Brain(values) => out.iter_mut().zip(&values[start..end]).for_each(|(out, value)| *out = value.to_f32()),
            Self::Half(values) => out.iter_mut().zip(&values[start..end]).for_each(|(out, value)| *out = value.to_f32()),
            Self::Mapped(checkpoint, name) => {
                let view = checkpoint.view(name).map_err(unreadable(name))?;
                view.read(start..end, out).map_err(unreadable(name))?;
            }
        }
        Ok(())
    }

    /// The elements from `start` to `end` where they lie as F32, else read into `scratch`.
    pub(super) fn slice<'a>(&'a self, start: usize, end: usize, scratch: &'a mut Vec<f32>) -> Result<&'a [f32], ModelError> {
        match self {
            Self::Owned(values) => return Ok(&values[start..end]),
            Self::Mapped(checkpoint, name) => {
                let view = checkpoint.view(name).map_err(unreadable(name))?;
                if let Some(values) = view.as_f32() {
                    return Ok(&values[start..end]);
                }
            }
            _ => {}
        }
        scratch.resize(end - start, 0.0);
        self.read(start, scratch)?;
        Ok(scratch)
    }

    /// Some of them as values of their own, of the same type.
    pub(super) fn part(&self, start: usize, length: usize) -> Result<Self, ModelError> {
        let end = start + length;
        Ok(match self {
            Self::Brain(values) => Self::Brain(values[start..end].to_vec().into()),
            Self::Half(values) => Self::Half(values[start..end].to_vec().into()),
            other => {
                let mut part = vec![0.0; length];
                other.read(start, &mut part)?;
                Self::of(other.dtype(), part)
            }
        })
    }

    /// The type that they are held in.
    #[must_use]
    pub fn dtype(&self) -> Dtype {
        match self {
            Self::Owned(_) => Dtype::F32,
            Self::Brain(_) => Dtype::Bf16,
            Self::Half(_) => Dtype::F16,
            Self::Mapped(checkpoint, name) => checkpoint.tensors().get(name).map_or(Dtype::F32, |info| info.dtype),
        }
    }

    /// Whether they take 16 bits each and are to stay so.
    pub(super) fn is_short(&self) -> bool {
        matches!(self.dtype(), Dtype::Bf16 | Dtype::F16)
    }
}

fn unreadable(name: &str) -> impl Fn(ReadError) -> ModelError {
    move |error| ModelError::Tensor { name: name.to_owned(), what: error.to_string() }
}
