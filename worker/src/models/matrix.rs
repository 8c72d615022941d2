//! Matrices of weights, and their products with rows.

use std::ops::Range;

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::{
    ops::{chunks, dot, wide, with},
    product::{product, share},
    weights::{ModelError, Values},
};

/// Which product suits: the rows of whole texts, or one row of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// Any number of rows, as one matrix.
    Batch,
    /// A step of generation.
    Step,
}

/// Outputs of a step that one task computes.
const STEP_OUTPUTS: usize = 64;

/// A matrix of weights, row by row.
#[derive(Clone, Debug)]
pub(super) struct Matrix {
    rows: usize,
    columns: usize,
    weights: Weights,
}

#[derive(Clone, Debug)]
enum Weights {
    /// F32, ready for products.
    Ready(Tensor),
    /// 16 bits an element: read where they lie, when they are used.
    Stored(Values, Device),
}

impl Matrix {
    /// A matrix of these values, row by row; one without rows or columns is refused.
    pub(super) fn new(values: Values, rows: usize, columns: usize, device: &Device) -> Result<Self, ModelError> {
        if rows == 0 || columns == 0 {
            return Err(ModelError::Config(format!("a matrix would be {rows} x {columns}, and neither side may be 0")));
        }
        let weights = if values.is_short() {
            Weights::Stored(values, device.clone())
        } else {
            Weights::Ready(Tensor::from_vec(values.into_vec()?, (rows, columns), device)?)
        };
        Ok(Self { rows, columns, weights })
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Whether products take it from the CPU's memory as it lies.
    pub(super) fn is_ready_here(&self) -> bool {
        matches!(&self.weights, Weights::Ready(tensor) if tensor.device().is_cpu())
    }

    /// Some of its rows as F32, on the device.
    fn tensor(&self, rows: Range<usize>) -> Result<Tensor, ModelError> {
        match &self.weights {
            Weights::Ready(tensor) => Ok(tensor.narrow(0, rows.start, rows.len())?),
            Weights::Stored(values, device) => {
                Ok(Tensor::from_vec(self.widened(values, rows.clone())?, (rows.len(), self.columns), device)?)
            }
        }
    }

    fn widened(&self, values: &Values, rows: Range<usize>) -> Result<Vec<f32>, ModelError> {
        let mut all = vec![0.0; rows.len() * self.columns];
        let share = (1usize << 16).next_multiple_of(self.columns);
        let first = rows.start * self.columns;
        all.par_chunks_mut(share).enumerate().try_for_each(|(index, out)| values.read(first + index * share, out))?;
        Ok(all)
    }

    /// Runs `work` over some of its rows, widened by all threads if they are stored in 16 bits.
    pub(super) fn open<R>(&self, rows: Range<usize>, work: impl FnOnce(&[f32]) -> R) -> Result<R, ModelError> {
        match &self.weights {
            Weights::Ready(tensor) => Ok(with(&tensor.narrow(0, rows.start, rows.len())?, work)?),
            Weights::Stored(values, _) => Ok(work(&self.widened(values, rows)?)),
        }
    }

    /// As [`Matrix::open`], for a few rows, by this thread alone.
    fn open_few<R>(&self, rows: Range<usize>, scratch: &mut Vec<f32>, work: impl FnOnce(&[f32]) -> R) -> Result<R, ModelError> {
        match &self.weights {
            Weights::Ready(tensor) => Ok(with(&tensor.narrow(0, rows.start, rows.len())?, work)?),
            Weights::Stored(values, _) => Ok(work(values.slice(rows.start * self.columns, rows.end * self.columns, scratch)?)),
        }
    }

    /// Adds a row to `out`, times `scale`.
    pub(super) fn add_row(&self, row: usize, scale: f32, out: &mut [f32], scratch: &mut Vec<f32>) -> Result<(), ModelError> {
        self.open_few(row..row + 1, scratch, |values| {
            out.iter_mut().zip(values).for_each(|(out, value)| *out += scale * value);
        })
    }

    /// `x` times some of this matrix's rows, transposed; what comes out passes through `then`, which is given the index of a share's first row and the
    /// share's rows, while they are near.
    pub(super) fn times(
        &self,
        x: &Tensor,
        mode: Mode,
        rows: Range<usize>,
        then: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Result<Tensor, ModelError> {
        let (count, width) = (x.dim(0)?, rows.len());
        let mut out = match mode {
            Mode::Step => with(x, |x| self.step(x, rows))??,
            Mode::Batch if x.device().is_cpu() => {
                let mut out = vec![0.0; count * width];
                with(x, |x| {
                    self.open(rows, |weights| {
                        shares(&mut out, width, |first, out| {
                            product(out, part(x, first, self.columns, out.len() / width), weights, self.columns);
                            wide(
                                #[inline(always)]
                                || then(first, out),
                            );
                        });
                    })
                })??;
                return Ok(Tensor::from_vec(out, (count, width), x.device())?);
            }
            Mode::Batch => x.matmul(&self.tensor(rows)?.t()?)?.flatten_all()?.to_vec1()?,
        };
        chunks(&mut out, width, then);
        Ok(Tensor::from_vec(out, (count, width), x.device())?)
    }

    /// Each output is one inner product, so that the weights are read once, where they lie.
    fn step(&self, x: &[f32], rows: Range<usize>) -> Result<Vec<f32>, ModelError> {
        let (columns, width) = (self.columns, rows.len());
        let part = |scratch: &mut Vec<f32>, part: usize| {
            let start = rows.start + part * STEP_OUTPUTS;
            self.open_few(start..(start + STEP_OUTPUTS).min(rows.end), scratch, |weights| {
                wide(
                    #[inline(always)]
                    || weights.chunks(columns).flat_map(|w| x.chunks(columns).map(move |x| dot(x, w))).collect::<Vec<f32>>(),
                )
            })
        };
        let parts = (0..width.div_ceil(STEP_OUTPUTS)).into_par_iter().map_init(Vec::new, part);
        let parts = parts.collect::<Result<Vec<_>, ModelError>>()?;
        let count = x.len() / columns;
        let mut out = vec![0.0; count * width];
        for (output, value) in parts.iter().flat_map(|part| part.chunks(count)).enumerate() {
            value.iter().enumerate().for_each(|(row, value)| out[row * width + output] = *value);
        }
        Ok(out)
    }
}

/// Hands shares of `out`'s rows, with the index of the first, to all threads.
fn shares(out: &mut [f32], width: usize, work: impl Fn(usize, &mut [f32]) + Sync) {
    let rows = share(out.len() / width);
    out.par_chunks_mut(rows * width).enumerate().for_each(|(index, out)| work(index * rows, out));
}

/// Rows of `x`, `count` of them.
pub(super) fn part(x: &[f32], first: usize, columns: usize, count: usize) -> &[f32] {
    &x[first * columns..][..count * columns]
}

#[cfg(test)]
mod tests {
    use evolver_common::checkpoint::Dtype;

    use super::*;

    #[test]
    fn a_matrix_without_a_side_is_refused() {
        for (rows, columns) in [(0, 3), (3, 0), (0, 0)] {
            let values = Values::of(Dtype::F32, Vec::new());
            let refusal = Matrix::new(values, rows, columns, &Device::Cpu).unwrap_err().to_string();
            assert!(refusal.contains(&format!("{rows} x {columns}")), "{refusal}");
        }
    }
}
