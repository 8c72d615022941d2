//! Operators on packed tokens, where candle's own are slow or none.
//!
//! Tokens of several sequences lie one after the other without padding, as rows of a matrix. The same operations in the same order run for every row
//! whatever the batch or the thread count, so a sequence's numbers do not depend on its company. Everything here runs on the CPU; on other devices
//! the tensors come over and go back, and only the matrix products stay there.

use candle_core::{CpuStorage, Device, Result, Storage, Tensor, bail};
use pulp::Arch;
use rayon::prelude::*;
use serde::Deserialize;

/// Rows that one task handles.
const ROWS: usize = 16;

/// Runs `work` with the widest instructions that the machine has. The bits do not depend on them: nothing is fused or put in another order.
#[inline]
pub(super) fn wide<R>(work: impl FnOnce() -> R) -> R {
    Arch::new().dispatch(work)
}

/// `e^x` in F32 by a polynomial, within 3 units in the last place for x in [-87, 0]; smaller x give the value at -87.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
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
#[inline(always)]
fn gelu(x: f32) -> f32 {
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * z);
    let poly = ((((1.061_405_4 * t - 1.453_152) * t + 1.421_413_7) * t - 0.284_496_74) * t + 0.254_829_6) * t;
    let tail = 0.5 * poly * exp(-z * z);
    let phi = if x < 0.0 { tail } else { 1.0 - tail };
    x * phi
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    let e = exp(-x.abs());
    let small = e / (1.0 + e);
    if x < 0.0 { small } else { 1.0 - small }
}

#[inline(always)]
pub(super) fn tanh(x: f32) -> f32 {
    let e = exp(-2.0 * x.abs());
    // Near zero the quotient cancels, and the series is exact to the last place or so.
    let large = (1.0 - e) / (1.0 + e);
    let square = x * x;
    let series = x.abs() * (1.0 - square * (1.0 / 3.0 - square * (2.0 / 15.0 - square * (17.0 / 315.0))));
    let y = if square < 0.01 { series } else { large };
    if x < 0.0 { -y } else { y }
}

/// The tanh approximation of GELU (Hendrycks and Gimpel, 2016).
#[inline(always)]
fn gelu_tanh(x: f32) -> f32 {
    0.5 * x * (1.0 + tanh(0.797_884_6 * (x + 0.044_715 * x * x * x)))
}

/// An activation function, by the names that configs have.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
pub(super) enum Activation {
    #[serde(rename = "linear")]
    None,
    #[serde(rename = "gelu")]
    Gelu,
    #[serde(rename = "gelu_new", alias = "gelu_pytorch_tanh", alias = "gelu_fast")]
    GeluTanh,
    #[serde(rename = "quick_gelu")]
    QuickGelu,
    #[serde(rename = "silu", alias = "swish")]
    Silu,
    #[serde(rename = "relu")]
    Relu,
    #[serde(rename = "tanh")]
    Tanh,
}

impl Activation {
    /// Applies it to every element, with one loop per function so that each vectorises.
    #[inline(always)]
    pub(super) fn map(self, out: &mut [f32]) {
        macro_rules! each {
            ($f:expr) => {
                out.iter_mut().for_each(|x| *x = $f(*x))
            };
        }
        match self {
            Self::None => {}
            Self::Gelu => each!(gelu),
            Self::GeluTanh => each!(gelu_tanh),
            Self::QuickGelu => each!(|x: f32| x * sigmoid(1.702 * x)),
            Self::Silu => each!(|x: f32| x * sigmoid(x)),
            Self::Relu => each!(|x: f32| x.max(0.0)),
            Self::Tanh => each!(tanh),
        }
    }

    /// `f(x + bias)` for every row; an empty bias is none.
    #[inline(always)]
    pub(super) fn rows(self, out: &mut [f32], bias: &[f32]) {
        if bias.is_empty() {
            return self.map(out);
        }
        for row in out.chunks_mut(bias.len()) {
            shift(row, bias);
            self.map(row);
        }
    }
}

/// A layer norm, or with `shift` empty and `centred` false a root-mean-square norm.
#[derive(Clone, Debug)]
pub(super) struct Norm {
    pub(super) gain: Vec<f32>,
    /// Empty where there is none.
    pub(super) shift: Vec<f32>,
    pub(super) epsilon: f32,
    /// Whether the mean is taken out.
    pub(super) centred: bool,
}

impl Norm {
    /// Normalises one row in place.
    #[inline(always)]
    pub(super) fn row(&self, row: &mut [f32]) {
        #[expect(clippy::cast_precision_loss, reason = "a width")]
        let width = row.len() as f32;
        let mean = if self.centred { sum(row, |x| x) / width } else { 0.0 };
        let variance = sum(row, |x| (x - mean) * (x - mean)) / width;
        let scale = 1.0 / (variance + self.epsilon).sqrt();
        row.iter_mut().zip(&self.gain).for_each(|(x, gain)| *x = (*x - mean) * scale * gain);
        row.iter_mut().zip(&self.shift).for_each(|(x, shift)| *x += shift);
    }

    /// Every row normalised.
    pub(super) fn run(&self, x: &Tensor) -> Result<Tensor> {
        let width = self.gain.len();
        map1(x, width, |out, input| {
            chunks(out, width, |first, out| {
                out.copy_from_slice(&input[first * width..][..out.len()]);
                out.chunks_mut(width).for_each(|row| self.row(row));
            });
        })
    }
}

/// A sum in eight interleaved parts: a fixed order that vectorises.
#[inline(always)]
pub(super) fn sum(values: &[f32], term: impl Fn(f32) -> f32) -> f32 {
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

/// The inner product of two vectors, in sixteen interleaved parts.
#[inline(always)]
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut parts = [0.0f32; 16];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<16>(), b.as_chunks::<16>());
    for (a, b) in a.iter().zip(b) {
        for ((part, a), b) in parts.iter_mut().zip(a).zip(b) {
            *part += a * b;
        }
    }
    for ((part, a), b) in parts.iter_mut().zip(a_rest).zip(b_rest) {
        *part += a * b;
    }
    sum(&parts, |x| x)
}

/// Splits `out` into blocks of rows and hands each, with the index of its first row, to a thread, for work that is done element by element.
pub(super) fn chunks(out: &mut [f32], width: usize, work: impl Fn(usize, &mut [f32]) + Sync) {
    out.par_chunks_mut(ROWS * width).enumerate().for_each(|(chunk, out)| {
        wide(
            #[inline(always)]
            || work(chunk * ROWS, out),
        );
    });
}

/// Adds a vector to every row; an empty one is none.
#[inline(always)]
pub(super) fn shift(out: &mut [f32], bias: &[f32]) {
    if !bias.is_empty() {
        out.chunks_mut(bias.len()).for_each(|row| row.iter_mut().zip(bias).for_each(|(out, bias)| *out += bias));
    }
}

/// How a block's rows go back into the stream that they came from: `after(before(rows + bias) + residual)`, where a norm that is missing does nothing.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Join<'a> {
    pub(super) before: Option<&'a Norm>,
    pub(super) after: Option<&'a Norm>,
}

impl Join<'_> {
    /// Joins `out`, rows of `width`, with the first rows of the residual; an empty bias is none.
    #[inline(always)]
    pub(super) fn rows(&self, out: &mut [f32], bias: &[f32], residual: &[f32], width: usize) {
        for (out, residual) in out.chunks_mut(width).zip(residual.chunks(width)) {
            shift(out, bias);
            if let Some(norm) = self.before {
                norm.row(out);
            }
            out.iter_mut().zip(residual).for_each(|(out, residual)| *out += residual);
            if let Some(norm) = self.after {
                norm.row(out);
            }
        }
    }
}

/// Runs `work` over a matrix's values, brought here if they are on another device.
pub(super) fn with<R>(x: &Tensor, work: impl FnOnce(&[f32]) -> R) -> Result<R> {
    let x = x.to_device(&Device::Cpu)?.contiguous()?;
    let (storage, layout) = x.storage_and_layout();
    let (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) = (&*storage, layout.contiguous_offsets()) else {
        bail!("an F32 tensor is expected");
    };
    Ok(work(&values[start..end]))
}

/// A matrix of as many rows as `x` and `width` columns, filled by `run` from x's values.
pub(super) fn map1(x: &Tensor, width: usize, run: impl FnOnce(&mut [f32], &[f32])) -> Result<Tensor> {
    let rows = x.dim(0)?;
    let mut out = vec![0.0; rows * width];
    with(x, |x| run(&mut out, x))?;
    Tensor::from_vec(out, (rows, width), x.device())
}

/// As [`map1`], from three matrices.
pub(super) fn map3(inputs: [&Tensor; 3], width: usize, run: impl FnOnce(&mut [f32], [&[f32]; 3])) -> Result<Tensor> {
    let [a, b, c] = inputs;
    let rows = a.dim(0)?;
    let mut out = vec![0.0; rows * width];
    with(a, |a| with(b, |b| with(c, |c| run(&mut out, [a, b, c]))))???;
    Tensor::from_vec(out, (rows, width), a.device())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_accurate() {
        for step in 0..=43_000u16 {
            let x = -f32::from(step) * 2e-3;
            let reference = libm::exp(f64::from(x));
            let error = (f64::from(exp(x)) - reference).abs() / reference;
            assert!(error < 4e-7, "exp({x}): {error:e}");
        }
        for step in -8000..=8000i16 {
            let x = f32::from(step) * 1e-3;
            let wide = f64::from(x);
            let near = |what: &str, found: f32, expected: f64, tolerance: f64| {
                let error = (f64::from(found) - expected).abs();
                assert!(error < tolerance, "{what}({x}): {error:e}");
            };
            near("gelu", gelu(x), 0.5 * wide * libm::erfc(-wide * std::f64::consts::FRAC_1_SQRT_2), 2e-6);
            near("tanh", tanh(x), libm::tanh(wide), 3e-7);
            near("sigmoid", sigmoid(x), 1.0 / (1.0 + libm::exp(-wide)), 3e-7);
            let inner = 0.797_884_560_802_865_4 * (wide + 0.044_715 * wide * wide * wide);
            near("gelu_tanh", gelu_tanh(x), 0.5 * wide * (1.0 + libm::tanh(inner)), 3e-6);
        }
    }

    #[test]
    fn wide_instructions_give_the_same_bits() {
        let values: Vec<f32> = (0..1000u16).map(|n| (f32::from(n) - 500.0) * 0.01).collect();
        let plain = dot(&values, &values);
        assert_eq!(wide(|| dot(&values, &values)).to_bits(), plain.to_bits());
        let mut out = [values.clone(), values.clone()];
        Activation::Gelu.map(&mut out[0]);
        wide(|| Activation::Gelu.map(&mut out[1]));
        assert_eq!(out[0], out[1]);
    }
}
