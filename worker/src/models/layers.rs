//! Layers that the networks share: linear layers, feed-forward blocks, tables, and what takes their tensors out of a model's weights.

use std::ops::Range;

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::{
    matrix::{Matrix, Mode, part},
    ops::{Activation, Join, Norm, shift, wide, with},
    product::{product, share},
    weights::{ModelError, ModelWeights, Values},
};

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

    /// Columns of what comes out.
    pub(super) fn width(&self) -> usize {
        self.matrix.rows()
    }

    /// Without the bias, which `then` may add: it is given the index of a share's first row, and the share's rows.
    pub(super) fn product(&self, x: &Tensor, mode: Mode, then: impl Fn(usize, &mut [f32]) + Sync) -> Result<Tensor, ModelError> {
        self.matrix.times(x, mode, 0..self.width(), then)
    }

    /// With the bias, joined with `residual`.
    pub(super) fn joined(&self, x: &Tensor, mode: Mode, residual: &Tensor, join: Join<'_>) -> Result<Tensor, ModelError> {
        let width = self.width();
        with(residual, |residual| {
            self.product(x, mode, |first, out| join.rows(out, &self.bias, &residual[first * width..], width))
        })?
    }

    /// Some of the outputs.
    pub(super) fn outputs(&self, x: &Tensor, mode: Mode, outputs: Range<usize>) -> Result<Tensor, ModelError> {
        let bias = self.bias.get(outputs.clone()).unwrap_or_default();
        self.matrix.times(x, mode, outputs, |_, out| shift(out, bias))
    }

    /// `f(x W^T + b)`.
    pub(super) fn forward(&self, x: &Tensor, activation: Activation, mode: Mode) -> Result<Tensor, ModelError> {
        self.product(x, mode, |_, out| activation.rows(out, &self.bias))
    }
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
    /// What it makes of `x`, joined with `residual`.
    pub(super) fn joined(&self, x: &Tensor, mode: Mode, residual: &Tensor, join: Join<'_>) -> Result<Tensor, ModelError> {
        if mode == Mode::Batch && x.device().is_cpu() {
            return self.near(x, residual, join);
        }
        let inner = match &self.gate {
            None => self.up.forward(x, self.activation, mode)?,
            Some(gate) => {
                let up = self.up.forward(x, Activation::None, mode)?;
                let inner = gate.width();
                with(&up, |up| {
                    gate.product(x, mode, |first, out| {
                        self.activation.rows(out, &gate.bias);
                        times(out, &up[first * inner..]);
                    })
                })??
            }
        };
        self.down.joined(&inner, mode, residual, join)
    }

    /// Takes each share of the rows through the whole block, so that the inner state, several times as wide as the rows, is never there for all of them.
    fn near(&self, x: &Tensor, residual: &Tensor, join: Join<'_>) -> Result<Tensor, ModelError> {
        let (count, hidden, inner, width) = (x.dim(0)?, x.dim(1)?, self.up.width(), self.down.width());
        let mut out = vec![0.0; count * width];
        let run = |[x, residual]: [&[f32]; 2], gate: &[f32], up: &[f32], down: &[f32], out: &mut [f32]| {
            let rows = share(count);
            out.par_chunks_mut(rows * width).enumerate().for_each_init(
                || [vec![0.0; rows * inner], vec![0.0; if gate.is_empty() { 0 } else { rows * inner }]],
                |[state, gated], (index, out)| {
                    let here = out.len() / width;
                    let (first, state) = (index * rows, &mut state[..here * inner]);
                    let x = part(x, first, hidden, here);
                    product(state, x, up, hidden);
                    if let Some(linear) = &self.gate {
                        let gated = &mut gated[..here * inner];
                        product(gated, x, gate, hidden);
                        wide(
                            #[inline(always)]
                            || {
                                self.activation.rows(gated, &linear.bias);
                                shift(state, &self.up.bias);
                                times(state, gated);
                            },
                        );
                    } else {
                        wide(
                            #[inline(always)]
                            || self.activation.rows(state, &self.up.bias),
                        );
                    }
                    product(out, state, down, inner);
                    wide(
                        #[inline(always)]
                        || join.rows(out, &self.down.bias, &residual[first * width..], width),
                    );
                },
            );
        };
        let all = |linear: &Linear| 0..linear.width();
        with(x, |x| {
            with(residual, |residual| {
                self.up.matrix.open(all(&self.up), |up| {
                    self.down.matrix.open(all(&self.down), |down| match &self.gate {
                        None => {
                            run([x, residual], &[], up, down, &mut out);
                            Ok(())
                        }
                        Some(gate) => gate.matrix.open(all(gate), |gate| run([x, residual], gate, up, down, &mut out)),
                    })
                })
            })
        })?????;
        Ok(Tensor::from_vec(out, (count, width), x.device())?)
    }
}

#[inline(always)]
fn times(out: &mut [f32], factors: &[f32]) {
    out.iter_mut().zip(factors).for_each(|(out, factor)| *out *= factor);
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

/// The rows of several tables added up, one row for each of `rows`.
pub(super) fn embed(tables: &[(&Matrix, f32)], rows: &[Vec<usize>], width: usize, device: &Device) -> Result<Tensor, ModelError> {
    let mut out = vec![0.0; rows.len() * width];
    let fill = |scratch: &mut Vec<f32>, (indices, out): (&Vec<usize>, &mut [f32])| {
        for ((table, scale), &index) in tables.iter().zip(indices) {
            if index >= table.rows() {
                return Err(ModelError::Input(format!(
                    "a text has number {index} among tokens, positions or types, and the model has {} of them",
                    table.rows()
                )));
            }
            table.add_row(index, *scale, out, scratch)?;
        }
        Ok(())
    };
    rows.par_iter().zip(out.par_chunks_mut(width)).map_init(Vec::new, fill).collect::<Result<(), _>>()?;
    Ok(Tensor::from_vec(out, (rows.len(), width), device)?)
}
