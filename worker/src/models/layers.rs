//! Layers that the networks share: matrices, linear layers, tables, feed-forward blocks, and what takes their tensors out of a model's weights.

use std::ops::Range;

use candle_core::{CpuStorage, Device, Storage, Tensor};
use rayon::prelude::*;

use super::{
    ops::{self, Activation, Norm, dot, wide},
    weights::{ModelError, ModelWeights, Values},
};

/// Rows that every matrix product has at least, those missing being zeros.
///
/// The gemm crate (0.19) sums in another order where a product has a single row, or at most 256 elements, or at most 64 rows and columns; with more
/// rows than that a row's bits depend on nothing but the row.
pub(super) const ROWS_MIN: usize = 257;
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
    /// 16 bits an element: read where they lie, a matrix at a time, when they are used.
    Stored(Values, Device),
}

impl Matrix {
    fn new(values: Values, rows: usize, columns: usize, device: &Device) -> Result<Self, ModelError> {
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

    /// Some of its rows as F32.
    fn tensor(&self, rows: Range<usize>) -> Result<Tensor, ModelError> {
        match &self.weights {
            Weights::Ready(tensor) => Ok(tensor.narrow(0, rows.start, rows.len())?),
            Weights::Stored(values, device) => {
                let mut all = vec![0.0; rows.len() * self.columns];
                let share = (1usize << 16).next_multiple_of(self.columns);
                let first = rows.start * self.columns;
                all.par_chunks_mut(share).enumerate().try_for_each(|(index, out)| values.read(first + index * share, out))?;
                Ok(Tensor::from_vec(all, (rows.len(), self.columns), device)?)
            }
        }
    }

    /// Runs `work` over the rows from `start` to `end` as one slice.
    fn with_rows<R>(
        &self,
        start: usize,
        end: usize,
        scratch: &mut Vec<f32>,
        work: impl FnOnce(&[f32]) -> R,
    ) -> Result<R, ModelError> {
        let elements = start * self.columns..end * self.columns;
        match &self.weights {
            Weights::Stored(values, _) => Ok(work(values.slice(elements.start, elements.end, scratch)?)),
            Weights::Ready(tensor) => {
                let (storage, layout) = tensor.storage_and_layout();
                if let Storage::Cpu(CpuStorage::F32(values)) = &*storage {
                    let start = layout.start_offset() + elements.start;
                    return Ok(work(&values[start..start + elements.len()]));
                }
                drop(storage);
                let rows = tensor.narrow(0, start, end - start)?.flatten_all()?.to_vec1()?;
                Ok(work(&rows))
            }
        }
    }

    /// Adds a row to `out`, times `scale`.
    pub(super) fn add_row(&self, row: usize, scale: f32, out: &mut [f32], scratch: &mut Vec<f32>) -> Result<(), ModelError> {
        self.with_rows(row, row + 1, scratch, |values| {
            out.iter_mut().zip(values).for_each(|(out, value)| *out += scale * value);
        })
    }

    /// `x` times this matrix, transposed: by the product that suits many rows, or by the one that suits a few.
    pub(super) fn times(&self, x: &Tensor, mode: Mode) -> Result<Tensor, ModelError> {
        match mode {
            Mode::Batch => Ok(x.matmul(&self.tensor(0..self.rows)?.t()?)?),
            Mode::Step => self.step(x),
        }
    }

    /// Each output is one inner product, so that the weights are read once, where they lie.
    fn step(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        let (rows, columns) = (x.dim(0)?, self.columns);
        let x_values: Vec<f32> = x.flatten_all()?.to_vec1()?;
        let part = |scratch: &mut Vec<f32>, part: usize| {
            let (start, end) = (part * STEP_OUTPUTS, ((part + 1) * STEP_OUTPUTS).min(self.rows));
            self.with_rows(start, end, scratch, |weights| {
                wide(
                    #[inline(always)]
                    || {
                        let x = x_values.as_slice();
                        weights.chunks(columns).flat_map(|w| x.chunks(columns).map(move |x| dot(x, w))).collect::<Vec<f32>>()
                    },
                )
            })
        };
        let parts = (0..self.rows.div_ceil(STEP_OUTPUTS)).into_par_iter().map_init(Vec::new, part);
        let parts = parts.collect::<Result<Vec<_>, ModelError>>()?;
        let mut out = vec![0.0; rows * self.rows];
        for (output, value) in parts.iter().flat_map(|part| part.chunks(rows)).enumerate() {
            value.iter().enumerate().for_each(|(row, value)| out[row * self.rows + output] = *value);
        }
        Ok(Tensor::from_vec(out, (rows, self.rows), x.device())?)
    }
}

/// Which product suits: the rows of whole texts, or one row of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// At least [`ROWS_MIN`] rows.
    Batch,
    /// A step of generation.
    Step,
}

/// `x W^T + b`.
#[derive(Clone, Debug)]
pub(super) struct Linear {
    matrix: Matrix,
    /// Empty where there is none.
    pub(super) bias: Vec<f32>,
}

impl Linear {
    /// A matrix without a bias.
    pub(super) fn of(matrix: Matrix) -> Self {
        Self { matrix, bias: Vec::new() }
    }

    /// Without the bias, for operators that add it on their way.
    pub(super) fn product(&self, x: &Tensor, mode: Mode) -> Result<Tensor, ModelError> {
        self.matrix.times(x, mode)
    }

    /// Some of the outputs of at least [`ROWS_MIN`] rows.
    pub(super) fn outputs(&self, x: &Tensor, outputs: Range<usize>) -> Result<Tensor, ModelError> {
        let product = x.matmul(&self.matrix.tensor(outputs.clone())?.t()?)?;
        if self.bias.is_empty() {
            return Ok(product);
        }
        Ok(ops::activate(&product, &self.bias[outputs], Activation::None)?)
    }

    pub(super) fn forward(&self, x: &Tensor, activation: Activation, mode: Mode) -> Result<Tensor, ModelError> {
        let product = self.matrix.times(x, mode)?;
        if self.bias.is_empty() && activation == Activation::None {
            return Ok(product);
        }
        Ok(ops::activate(&product, &self.bias, activation)?)
    }
}

/// At least [`ROWS_MIN`] rows, zeros below.
pub(super) fn pad(x: &Tensor) -> Result<Tensor, ModelError> {
    Ok(x.pad_with_zeros(0, 0, ROWS_MIN.saturating_sub(x.dim(0)?))?)
}

/// A feed-forward block.
#[derive(Clone, Debug)]
pub(super) struct FeedForward {
    /// With a gate the inner state is `f(gate) * up`, without it `f(up)`.
    pub(super) gate: Option<Linear>,
    pub(super) up: Linear,
    pub(super) down: Linear,
    pub(super) activation: Activation,
}

impl FeedForward {
    /// Without the last bias.
    pub(super) fn product(&self, x: &Tensor, mode: Mode) -> Result<Tensor, ModelError> {
        let inner = match &self.gate {
            None => self.up.forward(x, self.activation, mode)?,
            Some(gate) => {
                let (gate, up) = (gate.forward(x, Activation::None, mode)?, self.up.forward(x, Activation::None, mode)?);
                ops::gated(&gate, &up, self.activation)?
            }
        };
        self.down.product(&inner, mode)
    }
}

/// Takes a network's tensors out of a model's weights, each checked against the shape that the network needs.
pub(super) struct Loader<'a> {
    pub(super) weights: &'a mut ModelWeights,
    pub(super) device: &'a Device,
}

impl Loader<'_> {
    /// The matrix `name`.
    pub(super) fn matrix(&mut self, name: &str, rows: usize, columns: usize) -> Result<Matrix, ModelError> {
        Matrix::new(self.weights.take(name, &[rows, columns])?, rows, columns, self.device)
    }

    /// `name.weight`, and `name.bias` if there is to be one.
    pub(super) fn linear(&mut self, name: &str, rows: usize, columns: usize, bias: bool) -> Result<Linear, ModelError> {
        let matrix = self.matrix(&format!("{name}.weight"), rows, columns)?;
        Ok(Linear { matrix, bias: self.bias(name, rows, bias)? })
    }

    /// A convolution whose patches do not overlap, as the linear layer of a patch's values.
    pub(super) fn unfolded(&mut self, name: &str, rows: usize, patch: [usize; 3], bias: bool) -> Result<Linear, ModelError> {
        let [channels, height, width] = patch;
        let values = self.weights.take(&format!("{name}.weight"), &[rows, channels, height, width])?;
        let matrix = Matrix::new(values, rows, channels * height * width, self.device)?;
        Ok(Linear { matrix, bias: self.bias(name, rows, bias)? })
    }

    fn bias(&mut self, name: &str, length: usize, there: bool) -> Result<Vec<f32>, ModelError> {
        if there { self.weights.vector(&format!("{name}.bias"), length) } else { Ok(Vec::new()) }
    }

    /// One matrix that holds several under each other, taken apart.
    pub(super) fn stacked<const N: usize>(
        &mut self,
        name: &str,
        rows: [usize; N],
        columns: usize,
        bias: bool,
    ) -> Result<[Linear; N], ModelError> {
        let all = rows.iter().sum();
        let values = self.weights.take(&format!("{name}.weight"), &[all, columns])?;
        let bias = self.bias(name, all, bias)?;
        self.apart(&values, &bias, rows, columns)
    }

    fn apart<const N: usize>(
        &self,
        values: &Values,
        bias: &[f32],
        rows: [usize; N],
        columns: usize,
    ) -> Result<[Linear; N], ModelError> {
        let mut start = 0;
        let mut parts = Vec::with_capacity(N);
        for rows in rows {
            let part = values.part(start * columns, rows * columns)?;
            let bias = bias.get(start..start + rows).unwrap_or_default().to_vec();
            parts.push(Linear { matrix: Matrix::new(part, rows, columns, self.device)?, bias });
            start += rows;
        }
        parts.try_into().map_err(|_| ModelError::Config("a stacked matrix has other parts".into()))
    }

    /// As [`Loader::stacked`], of a matrix that is stored transposed, as GPT-2's are, with a bias.
    pub(super) fn transposed<const N: usize>(
        &mut self,
        name: &str,
        rows: [usize; N],
        columns: usize,
    ) -> Result<[Linear; N], ModelError> {
        let all: usize = rows.iter().sum();
        let stored = self.weights.take(&format!("{name}.weight"), &[columns, all])?;
        let dtype = stored.dtype();
        let values = stored.into_vec()?;
        let bias = self.bias(name, all, true)?;
        let mut turned = vec![0.0; values.len()];
        turned.par_chunks_mut(columns).enumerate().for_each(|(row, out)| {
            out.iter_mut().enumerate().for_each(|(column, out)| *out = values[column * all + row]);
        });
        drop(values);
        self.apart(&Values::of(dtype, turned), &bias, rows, columns)
    }

    /// A layer norm with gain and, if it has one, shift.
    pub(super) fn layer_norm(&mut self, name: &str, width: usize, epsilon: f32, shift: bool) -> Result<Norm, ModelError> {
        let gain = self.weights.vector(&format!("{name}.weight"), width)?;
        Ok(Norm { gain, shift: self.bias(name, width, shift)?, epsilon, centred: true })
    }

    /// A root-mean-square norm; `one_more` adds 1 to the stored gain, as Gemma does.
    pub(super) fn rms_norm(&mut self, name: &str, width: usize, epsilon: f32, one_more: bool) -> Result<Norm, ModelError> {
        let mut gain = self.weights.vector(&format!("{name}.weight"), width)?;
        if one_more {
            gain.iter_mut().for_each(|gain| *gain += 1.0);
        }
        Ok(Norm { gain, shift: Vec::new(), epsilon, centred: false })
    }
}

/// The rows of several tables added up, one row for each of `rows`, padded to [`ROWS_MIN`] in batches.
pub(super) fn embed(
    tables: &[(&Matrix, f32)],
    rows: &[Vec<usize>],
    width: usize,
    mode: Mode,
    device: &Device,
) -> Result<Tensor, ModelError> {
    let padded = if mode == Mode::Batch { rows.len().max(ROWS_MIN) } else { rows.len() };
    let mut out = vec![0.0; padded * width];
    let fill = |scratch: &mut Vec<f32>, (indices, out): (&Vec<usize>, &mut [f32])| {
        for ((table, scale), &index) in tables.iter().zip(indices) {
            if index >= table.rows {
                return Err(ModelError::Input(format!(
                    "a text has number {index} among tokens, positions or types, and the model has {} of them",
                    table.rows
                )));
            }
            table.add_row(index, *scale, out, scratch)?;
        }
        Ok(())
    };
    rows.par_iter().zip(out.par_chunks_mut(width)).map_init(Vec::new, fill).collect::<Result<(), _>>()?;
    Ok(Tensor::from_vec(out, (padded, width), device)?)
}
