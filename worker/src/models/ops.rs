//! Fused operators on packed tokens.
//!
//! Tokens of several sequences lie one after the other without padding, as rows of a matrix; `offsets` says where each sequence starts. The same
//! operations in the same order run for every row whatever the batch or the thread count, so a sequence's numbers do not depend on its company.
//! On devices other than the CPU candle's own operators do the same work.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

/// Rows that one task handles.
const ROWS: usize = 16;

/// `e^x` in F32 by a polynomial, within 3 units in the last place for x in [-87, 0]; smaller x give the value at -87.
#[inline]
fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.0, 0.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let k = shifted - ROUND;
    let r = (x - k * 0.693_359_4) - k * -2.121_944_4e-4;
    let p = ((((1.987_569_1e-4 * r + 1.398_2e-3) * r + 8.333_452e-3) * r + 4.166_579_6e-2) * r + 1.666_666_5e-1) * r + 0.5;
    let sum = p * r * r + r + 1.0;
    let exponent = (shifted.to_bits() << 23).wrapping_add(127 << 23);
    sum * f32::from_bits(exponent)
}

/// `x * Phi(x)`, Phi by the error function (Abramowitz and Stegun 7.1.26, absolute error below 1.5e-7).
#[inline]
fn gelu(x: f32) -> f32 {
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * z);
    let poly = ((((1.061_405_4 * t - 1.453_152) * t + 1.421_413_7) * t - 0.284_496_74) * t + 0.254_829_6) * t;
    let tail = 0.5 * poly * exp(-z * z);
    let phi = if x < 0.0 { tail } else { 1.0 - tail };
    x * phi
}

fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let (CpuStorage::F32(values), Some((start, end))) = (storage, layout.contiguous_offsets()) else {
        bail!("a contiguous F32 matrix is expected");
    };
    Ok(&values[start..end])
}

/// `gelu(x + bias)`, the bias along the last dimension.
pub(super) struct BiasGelu {
    pub(super) bias: Vec<f32>,
}

impl CustomOp1 for BiasGelu {
    fn name(&self) -> &'static str {
        "bias-gelu"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let input = slice(storage, layout)?;
        let mut out = vec![0.0; input.len()];
        let width = self.bias.len();
        out.par_chunks_mut(ROWS * width).zip(input.par_chunks(ROWS * width)).for_each(|(out, input)| {
            for (out, input) in out.chunks_mut(width).zip(input.chunks(width)) {
                for ((out, x), bias) in out.iter_mut().zip(input).zip(&self.bias) {
                    *out = gelu(x + bias);
                }
            }
        });
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }
}

/// Layer norm of `x + bias + residual`.
pub(super) struct ResidualNorm {
    pub(super) bias: Vec<f32>,
    pub(super) gain: Vec<f32>,
    pub(super) shift: Vec<f32>,
    pub(super) epsilon: f32,
}

impl ResidualNorm {
    /// Normalises one row in place.
    pub(super) fn row(&self, row: &mut [f32]) {
        #[expect(clippy::cast_precision_loss, reason = "a width")]
        let width = row.len() as f32;
        let mean = sum(row, |x| x) / width;
        let variance = sum(row, |x| (x - mean) * (x - mean)) / width;
        let scale = 1.0 / (variance + self.epsilon).sqrt();
        for ((x, gain), shift) in row.iter_mut().zip(&self.gain).zip(&self.shift) {
            *x = (*x - mean) * scale * gain + shift;
        }
    }
}

/// A sum in eight interleaved parts: a fixed order that vectorises.
#[inline]
fn sum(values: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    let mut parts = [0.0f32; 8];
    let (chunks, rest) = values.as_chunks::<8>();
    for chunk in chunks {
        for (part, value) in parts.iter_mut().zip(chunk) {
            *part += term(*value);
        }
    }
    for (part, value) in parts.iter_mut().zip(rest) {
        *part += term(*value);
    }
    ((parts[0] + parts[4]) + (parts[1] + parts[5])) + ((parts[2] + parts[6]) + (parts[3] + parts[7]))
}

impl CustomOp2 for ResidualNorm {
    fn name(&self) -> &'static str {
        "residual-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        residual: &CpuStorage,
        residual_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, residual) = (slice(x, x_layout)?, slice(residual, residual_layout)?);
        let mut out = vec![0.0; x.len()];
        let width = self.gain.len();
        let chunk = ROWS * width;
        out.par_chunks_mut(chunk).zip(x.par_chunks(chunk)).zip(residual.par_chunks(chunk)).for_each(|((out, x), residual)| {
            let rows = out.chunks_mut(width).zip(x.chunks(width)).zip(residual.chunks(width));
            for ((out, x), residual) in rows {
                for (((out, x), residual), bias) in out.iter_mut().zip(x).zip(residual).zip(&self.bias) {
                    *out = x + bias + residual;
                }
                self.row(out);
            }
        });
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }
}

/// Multi-head attention over packed sequences; the queries', keys' and values' biases are added on the way.
pub(super) struct Attention<'a> {
    pub(super) heads: usize,
    /// Row where each sequence starts, and the number of rows at the end.
    pub(super) offsets: &'a [usize],
    pub(super) biases: &'a [Vec<f32>; 3],
}

impl Attention<'_> {
    /// One sequence: `out` and the inputs are its rows.
    fn sequence(&self, out: &mut [f32], inputs: [&[f32]; 3]) {
        let width = self.biases[0].len();
        let (length, depth) = (out.len() / width, width / self.heads);
        #[expect(clippy::cast_precision_loss, reason = "a width")]
        let scale = 1.0 / (depth as f32).sqrt();
        let [queries, keys, values] = inputs;
        let mut transposed = vec![0.0; depth * length];
        let mut scores = vec![0.0f32; length];
        let mut value = vec![0.0; length * depth];
        for head in 0..self.heads {
            let columns = head * depth..(head + 1) * depth;
            let [query_bias, key_bias, value_bias] = self.biases.each_ref().map(|bias| &bias[columns.clone()]);
            for row in 0..length {
                let at = row * width + head * depth;
                for d in 0..depth {
                    transposed[d * length + row] = keys[at + d] + key_bias[d];
                    value[row * depth + d] = values[at + d] + value_bias[d];
                }
            }
            for row in 0..length {
                let at = row * width + head * depth;
                scores.fill(0.0);
                for d in 0..depth {
                    let query = (queries[at + d] + query_bias[d]) * scale;
                    let keys = &transposed[d * length..(d + 1) * length];
                    scores.iter_mut().zip(keys).for_each(|(score, key)| *score += query * key);
                }
                softmax(&mut scores);
                let out = &mut out[at..at + depth];
                out.fill(0.0);
                for (score, value) in scores.iter().zip(value.chunks(depth)) {
                    out.iter_mut().zip(value).for_each(|(out, value)| *out += score * value);
                }
            }
        }
    }
}

fn softmax(scores: &mut [f32]) {
    let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    scores.iter_mut().for_each(|score| *score = exp(*score - largest));
    let total = sum(scores, |x| x);
    scores.iter_mut().for_each(|score| *score /= total);
}

impl CustomOp3 for Attention<'_> {
    fn name(&self) -> &'static str {
        "packed-attention"
    }

    fn cpu_fwd(
        &self,
        queries: &CpuStorage,
        layout: &Layout,
        keys: &CpuStorage,
        keys_layout: &Layout,
        values: &CpuStorage,
        values_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let inputs = [slice(queries, layout)?, slice(keys, keys_layout)?, slice(values, values_layout)?];
        let width = self.biases[0].len();
        let mut out = vec![0.0; inputs[0].len()];
        let mut rest = out.as_mut_slice();
        let mut parts = Vec::new();
        for pair in self.offsets.windows(2) {
            let (part, after) = rest.split_at_mut((pair[1] - pair[0]) * width);
            parts.push((part, pair[0] * width..pair[1] * width));
            rest = after;
        }
        // Rows after the last sequence, if any, stay zeros.
        parts.into_par_iter().for_each(|(part, rows)| {
            self.sequence(part, inputs.map(|input| &input[rows.clone()]));
        });
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }
}

impl BiasGelu {
    /// Runs on the tensor's device.
    pub(super) fn run(&self, x: &Tensor) -> Result<Tensor> {
        if x.device().is_cpu() {
            return x.apply_op1_no_bwd(self);
        }
        x.broadcast_add(&vector(&self.bias, x)?)?.gelu_erf()
    }
}

impl ResidualNorm {
    /// Runs on the tensor's device.
    pub(super) fn run(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        if x.device().is_cpu() {
            return x.apply_op2_no_bwd(residual, self);
        }
        let x = (x.broadcast_add(&vector(&self.bias, x)?)? + residual)?;
        let centred = x.broadcast_sub(&x.mean_keepdim(1)?)?;
        let variance = centred.sqr()?.mean_keepdim(1)?;
        let normed = centred.broadcast_div(&(variance + f64::from(self.epsilon))?.sqrt()?)?;
        normed.broadcast_mul(&vector(&self.gain, &normed)?)?.broadcast_add(&vector(&self.shift, &normed)?)
    }
}

impl Attention<'_> {
    /// Runs on the tensors' device.
    pub(super) fn run(&self, queries: &Tensor, keys: &Tensor, values: &Tensor) -> Result<Tensor> {
        if queries.device().is_cpu() {
            return queries.apply_op3_no_bwd(keys, values, self);
        }
        let width = self.biases[0].len();
        let depth = width / self.heads;
        #[expect(clippy::cast_precision_loss, reason = "a width")]
        let scale = 1.0 / (depth as f64).sqrt();
        let mut parts = Vec::new();
        let rows = self.offsets[self.offsets.len() - 1];
        for pair in self.offsets.windows(2) {
            let length = pair[1] - pair[0];
            let part = |x: &Tensor, bias: &[f32]| -> Result<Tensor> {
                let rows = x.narrow(0, pair[0], length)?.broadcast_add(&vector(bias, x)?)?;
                rows.reshape((length, self.heads, depth))?.transpose(0, 1)?.contiguous()
            };
            let [q, k, v] = [part(queries, &self.biases[0])?, part(keys, &self.biases[1])?, part(values, &self.biases[2])?];
            let scores = (q.matmul(&k.t()?)? * scale)?;
            let weights = scores.broadcast_sub(&scores.max_keepdim(2)?)?.exp()?;
            let weights = weights.broadcast_div(&weights.sum_keepdim(2)?)?;
            parts.push(weights.matmul(&v)?.transpose(0, 1)?.reshape((length, width))?);
        }
        Tensor::cat(&parts, 0)?.pad_with_zeros(0, 0, queries.dim(0)? - rows)
    }
}

fn vector(values: &[f32], like: &Tensor) -> Result<Tensor> {
    Tensor::from_slice(values, values.len(), like.device())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_and_gelu_are_accurate() {
        for step in 0..=43_000u16 {
            let x = -f32::from(step) * 2e-3;
            let reference = libm::exp(f64::from(x));
            let error = (f64::from(exp(x)) - reference).abs() / reference;
            assert!(error < 4e-7, "exp({x}): {error:e}");
        }
        for step in -8000..=8000i16 {
            let x = f32::from(step) * 1e-3;
            let wide = f64::from(x);
            let reference = 0.5 * wide * libm::erfc(-wide * std::f64::consts::FRAC_1_SQRT_2);
            assert!((f64::from(gelu(x)) - reference).abs() < 2e-6, "gelu({x})");
        }
    }
}
