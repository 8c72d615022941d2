//! Weights built in the 16 bits that the checkpoints have: half the memory, and the values that an export will have.

use std::{
    io,
    sync::{Mutex, PoisonError},
};

use evolver_common::{
    checkpoint::{Checkpoint, Dtype, Space},
    merge::Sink,
};
use half::{bf16, f16};

use crate::models::Values;

/// The evolving tensors, each in its own type; blocks come in any order.
pub(super) struct Short {
    tensors: Vec<Mutex<Tensor>>,
}

enum Tensor {
    Full(Vec<f32>),
    Brain(Vec<bf16>),
    Half(Vec<f16>),
}

impl Short {
    /// A place for the tensors of `space` in the types that `base` has them in; none if no type there is shorter than F32.
    pub(super) fn of(space: &Space, base: &Checkpoint) -> Option<Self> {
        let dtype = |name: &str| base.tensors().get(name).map_or(Dtype::F32, |info| info.dtype);
        if !space.tensors.iter().any(|tensor| matches!(dtype(&tensor.name), Dtype::Bf16 | Dtype::F16)) {
            return None;
        }
        let place = |tensor: &evolver_common::checkpoint::SpaceTensor| {
            let elements = tensor.shape.iter().product();
            Mutex::new(match dtype(&tensor.name) {
                Dtype::Bf16 => Tensor::Brain(vec![bf16::ZERO; elements]),
                Dtype::F16 => Tensor::Half(vec![f16::ZERO; elements]),
                _ => Tensor::Full(vec![0.0; elements]),
            })
        };
        Some(Self { tensors: space.tensors.iter().map(place).collect() })
    }

    pub(super) fn finish(self) -> Vec<Values> {
        let values = |tensor: Mutex<Tensor>| match tensor.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Tensor::Full(values) => Values::Owned(values.into()),
            Tensor::Brain(values) => Values::Brain(values.into()),
            Tensor::Half(values) => Values::Half(values.into()),
        };
        self.tensors.into_iter().map(values).collect()
    }
}

impl Sink for Short {
    fn write(&self, tensor: usize, offset: usize, values: &[f32]) -> io::Result<()> {
        let end = offset + values.len();
        match &mut *self.tensors[tensor].lock().unwrap_or_else(PoisonError::into_inner) {
            Tensor::Full(all) => all[offset..end].copy_from_slice(values),
            Tensor::Brain(all) => {
                all[offset..end].iter_mut().zip(values).for_each(|(out, value)| *out = bf16::from_f32(*value));
            }
            Tensor::Half(all) => all[offset..end].iter_mut().zip(values).for_each(|(out, value)| *out = f16::from_f32(*value)),
        }
        Ok(())
    }
}
