//! Multi-SLERP: barycentric interpolation on the sphere (mergekit): models or task vectors of unit length are moved onto the tangent space at their
//! weighted mean, averaged there, moved back, and given their mean length.

use super::{
    Base, Combine, Default, Kind, Method, ParameterSpec, Pass, Scope, Settings,
    linear::{WEIGHT, divided},
    span::{Axis, Span},
    statistics::{Gram, Vectors},
};

pub(super) struct Multislerp;

impl Method for Multislerp {
    fn name(&self) -> &'static str {
        "multislerp"
    }

    fn summary(&self) -> &'static str {
        "weighted mean on the sphere of models, or of task vectors if there is a base, tensor by tensor (mergekit)"
    }

    fn base(&self) -> Base {
        Base::Optional
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        const PARAMETERS: &[ParameterSpec] = &[
            WEIGHT,
            ParameterSpec {
                name: "normalize_weights",
                scope: Scope::Merge,
                kind: Kind::Flag,
                default: Default::Flag(true),
                doc: "Divide by the sum of the weights.",
            },
            ParameterSpec {
                name: "eps",
                scope: Scope::Merge,
                kind: Kind::Number(0.0, 1.0),
                default: Default::Number(1e-8),
                doc: "Added to lengths before they divide.",
            },
        ];
        PARAMETERS
    }

    fn prepare(&self, settings: &Settings, pass: &Pass<'_>) -> Box<dyn Combine> {
        let weights = divided(settings.per_model("weight"), &settings.flags("normalize_weights"));
        let eps = settings.per_tensor("eps");
        let vectors = if pass.has_base { Vectors::Deltas } else { Vectors::Models };
        let axes = vec![Axis::All; eps.len()];
        let has_base = pass.has_base;
        let rule = move |tensor: usize, gram: &Gram| match weights[tensor].as_slice() {
            // One model is itself, whatever its weight; over a base too.
            [_] => vec![1.0],
            weights => coefficients(weights, eps[tensor], has_base, gram),
        };
        Span::prepare(vectors, axes, Box::new(rule))
    }
}

fn coefficients(weights: &[f64], eps: f64, has_base: bool, gram: &Gram) -> Vec<f64> {
    let norms: Vec<_> = (0..gram.size()).map(|i| gram.norm(i)).collect();
    // All vectors below are in coordinates of the inputs.
    let mean: Vec<_> = weights.iter().zip(&norms).map(|(weight, norm)| weight / (norm + eps)).collect();
    let length = gram.norm_of(&mean);
    if length < eps || !length.is_finite() {
        // Opposed pairs cancel: mergekit interpolates two of them linearly and refuses more. Zero task vectors leave the base as it is.
        let zero = has_base && norms.iter().all(|norm| *norm == 0.0);
        let linear = weights.len() == 2 || zero;
        return weights.iter().map(|weight| if linear { *weight } else { f64::NAN }).collect();
    }
    let mean: Vec<_> = mean.iter().map(|x| x / length).collect();
    let mut tangent = vec![0.0; weights.len()];
    for (i, (weight, norm)) in weights.iter().zip(&norms).enumerate() {
        let mut unit = vec![0.0; weights.len()];
        unit[i] = 1.0 / (norm + eps);
        let cos = gram.dot_of(&unit, &mean);
        for (tangent, (unit, mean)) in tangent.iter_mut().zip(unit.iter().zip(&mean)) {
            *tangent += weight * (unit - cos * mean);
        }
    }
    let angle = gram.norm_of(&tangent) + eps;
    let scale: f64 = weights.iter().zip(&norms).map(|(weight, norm)| weight * norm).sum();
    let (sin, cos) = (libm::sin(angle), libm::cos(angle));
    let step = if angle == 0.0 { 1.0 } else { sin / angle };
    mean.iter().zip(&tangent).map(|(mean, tangent)| scale * (cos * mean + step * tangent)).collect()
}
