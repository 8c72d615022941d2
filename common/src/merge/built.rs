//! What is built in memory: each tensor in the type that its checkpoints have, so that 16 bits stay 16 bits.

use half::{bf16, f16, slice::HalfFloatSliceExt as _, vec::HalfBitsVecExt as _};

use super::pass::Job;
use crate::checkpoint::{Dtype, narrow};

/// The values of one evolving tensor.
#[derive(Clone, Debug, PartialEq)]
pub enum Built {
    /// As they were computed.
    F32(Vec<f32>),
    /// Rounded to the nearest BF16, ties to even, as an export rounds.
    Bf16(Vec<bf16>),
    /// Rounded to the nearest F16, ties to even.
    F16(Vec<f16>),
}

impl Built {
    /// Zeros of this type, which take no memory before they are written; F32 for types that are neither BF16 nor F16.
    #[must_use]
    pub fn zeros(dtype: Dtype, elements: usize) -> Self {
        match dtype {
            Dtype::Bf16 => Self::Bf16(vec![0u16; elements].reinterpret_into()),
            Dtype::F16 => Self::F16(vec![0u16; elements].reinterpret_into()),
            _ => Self::F32(vec![0.0; elements]),
        }
    }

    /// The places of these blocks, which together are the whole tensor, in order.
    pub(super) fn places<'a>(&'a mut self, jobs: &'a [Job]) -> Vec<(&'a Job, Place<'a>)> {
        match self {
            Self::F32(values) => split(values, jobs, Place::F32),
            Self::Bf16(values) => split(values.reinterpret_cast_mut(), jobs, |bits| Place::Short(Dtype::Bf16, bits)),
            Self::F16(values) => split(values.reinterpret_cast_mut(), jobs, |bits| Place::Short(Dtype::F16, bits)),
        }
    }
}

fn split<'a, T>(mut rest: &'a mut [T], jobs: &'a [Job], place: impl Fn(&'a mut [T]) -> Place<'a>) -> Vec<(&'a Job, Place<'a>)> {
    let cut = |job: &'a Job| {
        let (block, after) = std::mem::take(&mut rest).split_at_mut(job.elements.len());
        rest = after;
        (job, place(block))
    };
    jobs.iter().map(cut).collect()
}

/// Where a block's values go.
pub(super) enum Place<'a> {
    F32(&'a mut [f32]),
    /// Bits of one of the types of 16.
    Short(Dtype, &'a mut [u16]),
}

impl Place<'_> {
    /// Lets `write` give the values; `scratch` holds them where they have to be rounded.
    pub(super) fn fill<E>(self, scratch: &mut Vec<f32>, write: impl FnOnce(&mut [f32]) -> Result<(), E>) -> Result<(), E> {
        match self {
            Self::F32(out) => write(out),
            Self::Short(dtype, out) => {
                scratch.resize(out.len(), 0.0);
                write(scratch)?;
                narrow(dtype, scratch, out);
                Ok(())
            }
        }
    }
}
