//! Arcee Fusion: takes the model's values where they matter (mergekit). Importance is `|model - base|` times the divergence of the softmax of the line along
//! the last side, `KL(model || base)`; values at or above `median + 1.5 * (third quartile - first quartile)` of their tensor's importance
//! are the model's, the others the base's. Importance is rounded to F32 before it is ranked; quantiles are exact, where mergekit samples
//! tensors of more than a million elements.

use super::{
    Base, Combine, Inputs, Method, ParameterSpec, Pass, Settings, elementary::exp, round, slerp::one_model, task_vector,
};
use crate::recipe::Merge;

pub(super) struct ArceeFusion;

struct Fusion;

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

    fn prepare(&self, _settings: &Settings, _pass: &Pass<'_>) -> Box<dyn Combine> {
        Box::new(Fusion)
    }
}

/// Softmax of a line, plus [`EPS`].
fn softmax(line: &[f32], out: &mut Vec<f64>) {
    let top = f64::from(line.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    out.clear();
    out.extend(line.iter().map(|x| exp(f64::from(*x) - top)));
    let sum: f64 = out.iter().sum();
    out.iter_mut().for_each(|p| *p = *p / sum + EPS);
}

impl Combine for Fusion {
    fn block(&self, inputs: &Inputs<'_>, out: &mut [f32]) {
        let (base, model) = (inputs.base, inputs.models[0]);
        let line = inputs.shape.last().copied().unwrap_or(1).max(1);
        let (mut p, mut q) = (Vec::new(), Vec::new());
        for ((out, base), model) in out.chunks_mut(line).zip(base.chunks(line)).zip(model.chunks(line)) {
            softmax(model, &mut p);
            softmax(base, &mut q);
            let divergence: f64 = p.iter().zip(&q).map(|(p, q)| p * libm::log(p / q)).sum();
            for ((out, base), model) in out.iter_mut().zip(base).zip(model) {
                *out = round(f64::from(task_vector(*model, *base).abs()) * divergence);
            }
        }
        // `out` holds the importance; its quartiles are found on a copy.
        let mut ranked = out.to_vec();
        let quartiles = [0.25, 0.5, 0.75].map(|share| {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "an index")]
            let index = (share * (ranked.len() - 1) as f64) as usize;
            f64::from(*ranked.select_nth_unstable_by(index, f32::total_cmp).1)
        });
        let threshold = round(quartiles[1] + 1.5 * (quartiles[2] - quartiles[0]));
        for ((out, base), model) in out.iter_mut().zip(base).zip(model) {
            *out = if *out >= threshold { *model } else { *base };
        }
    }

    fn unit(&self, _tensor: usize, shape: &[usize]) -> usize {
        shape.iter().product()
    }
}
