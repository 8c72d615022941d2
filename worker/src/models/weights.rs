//! Named tensors of one model: evolved ones are owned, frozen ones are read where they are mapped.

use std::{collections::HashMap, sync::Arc};

use candle_core::{Device, Tensor};
use evolver_common::checkpoint::{Checkpoint, ReadError};
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
    /// The tensor library reports an error.
    #[error("while running the model: {0}")]
    Run(#[from] candle_core::Error),
}

/// A tensor's values.
#[derive(Clone, Debug)]
pub enum Values {
    /// Built for this model.
    Owned(Vec<f32>),
    /// A tensor of a mapped checkpoint.
    Mapped(Arc<Checkpoint>, String),
}

/// The tensors of one model by name.
#[derive(Debug, Default)]
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

    /// Adds the tensors of `other` that are named and that `self` lacks.
    pub fn share(&mut self, names: &[&str], other: &Self) {
        for &name in names {
            if let (false, Some(tensor)) = (self.tensors.contains_key(name), other.tensors.get(name)) {
                self.tensors.insert(name.to_owned(), tensor.clone());
            }
        }
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

    /// Takes a tensor out as one of candle's; owned values are not copied.
    ///
    /// # Errors
    /// As [`ModelWeights::take`].
    pub fn tensor(&mut self, name: &str, shape: &[usize], device: &Device) -> Result<Tensor, ModelError> {
        let values = self.take(name, shape)?.into_vec()?;
        Ok(Tensor::from_vec(values, shape, device)?)
    }

    /// Takes a tensor out as plain values, for small ones.
    ///
    /// # Errors
    /// As [`ModelWeights::take`].
    pub fn vector(&mut self, name: &str, length: usize) -> Result<Vec<f32>, ModelError> {
        self.take(name, &[length])?.into_vec()
    }
}

impl Values {
    fn into_vec(self) -> Result<Vec<f32>, ModelError> {
        match self {
            Self::Owned(values) => Ok(values),
            Self::Mapped(checkpoint, name) => {
                let view = checkpoint.view(&name).map_err(unreadable(&name))?;
                let mut values = vec![0.0; view.elements()];
                view.read(0..values.len(), &mut values).map_err(unreadable(&name))?;
                Ok(values)
            }
        }
    }

    /// Adds the elements from `start` on to `out`, reading them where they lie.
    pub(super) fn add_to(&self, start: usize, out: &mut [f32], scratch: &mut Vec<f32>) -> Result<(), ModelError> {
        let end = start + out.len();
        let add = |out: &mut [f32], row: &[f32]| out.iter_mut().zip(row).for_each(|(out, value)| *out += value);
        match self {
            Self::Owned(values) => add(out, &values[start..end]),
            Self::Mapped(checkpoint, name) => {
                let view = checkpoint.view(name).map_err(unreadable(name))?;
                if let Some(values) = view.as_f32() {
                    add(out, &values[start..end]);
                } else {
                    scratch.resize(out.len(), 0.0);
                    view.read(start..end, scratch).map_err(unreadable(name))?;
                    add(out, scratch);
                }
            }
        }
        Ok(())
    }
}

fn unreadable(name: &str) -> impl Fn(ReadError) -> ModelError {
    move |error| ModelError::Tensor { name: name.to_owned(), what: error.to_string() }
}
