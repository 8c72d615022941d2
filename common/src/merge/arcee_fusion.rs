//! Arcee Fusion: takes the model's values where they matter (mergekit). Importance is `|model - base|` times the divergence of the softmax of the line along
//! the last side, `KL(model || base)`; values at or above `median + 1.5 * (third quartile - first quartile)` of their tensor's importance
//! are the model's, the others the base's. Importance is rounded to F32 before it is ranked; quantiles are exact, where mergekit samples
//! tensors of more than a million elements.

use super::{
    Base, Combine, Inputs, Method, ParameterSpec, Pass, Settings,
    elementary::{exp, ln},
    lanes::{self, Chunk, LANES},
    order::{Cost, Selector},
    round,
    slerp::one_model,
    statistics,
};
use crate::{recipe::Merge, simd};

pub(super) struct ArceeFusion;

struct Fusion {
    /// `[tensor][line]`: how far the model's softmax is from the base's.
    divergences: Vec<Vec<f64>>,
    /// For each tensor: importances from here on are the model's.
    thresholds: Vec<f32>,
}

/// Added to every probability.
const EPS: f64 = 1e-8;

impl Method for ArceeFusion {
    fn name(&self) -> &'static str {
        "arcee_fusion"
    }

    fn summary(&self) -> &'static str {
        "take the model's values whose change and whose line's softmax divergence are outstanding (Arcee Fusion, mergekit)"
    }

    fn base(&self) -> Base {
        Base::Needed
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        &[]
    }

    fn check(&self, merge: &Merge) -> Result<(), String> {
        one_model(merge)
    }

    fn prepare(&self, _settings: &Settings, pass: &Pass<'_>) -> Box<dyn Combine> {
        let jobs = pass.jobs_by(|_, shape| line(shape));
        let pass = pass.with(&jobs);
        let mut this = Fusion { divergences: divergences(&pass), thresholds: vec![f32::INFINITY; pass.elements().len()] };
        let selector = Selector::default();
        for tensor in (0..pass.elements().len()).filter(|tensor| pass.elements()[*tensor] > 0) {
            let ranks = [0.25, 0.5, 0.75].map(|share| rank(share, pass.elements()[tensor]));
            let found = selector.select(
                &pass,
                Some(tensor),
                &[ranks.to_vec()],
                (Cost::Low, |inputs, rows| {
                    for row in rows {
                        this.walk(
                            inputs,
                            #[inline(always)]
                            |chunk, importances| chunk.put(&importances, row),
                        );
                    }
                }),
            );
            let quartiles: Vec<_> = found[0].iter().map(|value| f64::from(*value)).collect();
            this.thresholds[tensor] = round(quartiles[1] + 1.5 * (quartiles[2] - quartiles[0]));
        }
        Box::new(this)
    }
}

/// Elements of a line: along the last side.
fn line(shape: &[usize]) -> usize {
    shape.last().copied().unwrap_or(1).max(1)
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "a rank")]
fn rank(share: f64, elements: usize) -> u64 {
    (share * (elements - 1) as f64) as u64
}

/// A line's tensor, its number and its divergence.
type Line = (usize, usize, f64);

/// A line's values, and the softmax of the model's and of the base's.
#[derive(std::default::Default)]
struct Buffers {
    values: Vec<f32>,
    p: Vec<f64>,
    q: Vec<f64>,
}

/// `[tensor][line]`: the Kullback-Leibler divergence of the model's softmax from the base's.
fn divergences(pass: &Pass<'_>) -> Vec<Vec<f64>> {
    let parts = pass.fold(
        None,
        || (Vec::new(), Buffers::default()),
        |(parts, Buffers { values, p, q }): &mut (Vec<Line>, Buffers), inputs| {
            let line = line(inputs.shape);
            for (number, start) in (0..inputs.base.len()).step_by(line).enumerate() {
                softmax(inputs.models[0].part(start..start + line).floats(values), p);
                softmax(inputs.base.part(start..start + line).floats(values), q);
                simd::dispatch(
                    #[inline(always)]
                    || p.iter_mut().zip(&*q).for_each(|(p, q)| *p *= ln(*p / q)),
                );
                parts.push((inputs.tensor, inputs.offset / line + number, statistics::total(p)));
            }
        },
        |(mut a, buffers), (b, _)| {
            a.extend(b);
            (a, buffers)
        },
    );
    let mut parts = parts.0;
    parts.sort_unstable_by_key(|(tensor, line, _)| (*tensor, *line));
    let mut table = vec![Vec::new(); pass.elements().len()];
    parts.into_iter().for_each(|(tensor, _, divergence)| table[tensor].push(divergence));
    table
}

/// Softmax of a line, plus [`EPS`].
fn softmax(line: &[f32], out: &mut Vec<f64>) {
    out.resize(line.len(), 0.0);
    let top = f64::from(line.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    simd::dispatch(
        #[inline(always)]
        || out.iter_mut().zip(line).for_each(|(out, x)| *out = exp(f64::from(*x) - top)),
    );
    let scale = 1.0 / statistics::total(out);
    out.iter_mut().for_each(|p| *p = *p * scale + EPS);
}

impl Fusion {
    /// Walks a block with its importances: the changes' magnitudes times their lines' divergences.
    #[inline]
    fn walk(&self, inputs: &Inputs<'_>, mut step: impl FnMut(&Chunk<'_>, [f32; LANES])) {
        let line = line(inputs.shape);
        let divergences = &self.divergences[inputs.tensor][inputs.offset / line..];
        for (start, divergence) in (0..inputs.base.len()).step_by(line).zip(divergences) {
            lanes::walk(
                inputs,
                start..start + line,
                #[inline(always)]
                |chunk| step(chunk, chunk.delta(0).map(|change| round(change.abs() * divergence))),
            );
        }
    }
}

impl Combine for Fusion {
    fn block(&self, inputs: &Inputs<'_>, out: &mut [f32]) {
        let threshold = self.thresholds[inputs.tensor];
        self.walk(
            inputs,
            #[inline(always)]
            |chunk, importances| {
                let (mut values, model) = (chunk.base(), chunk.model(0));
                for l in 0..LANES {
                    values[l] = if importances[l] >= threshold { model[l] } else { values[l] };
                }
                chunk.store(&values, out);
            },
        );
    }

    fn unit(&self, _tensor: usize, shape: &[usize]) -> usize {
        line(shape)
    }
}
