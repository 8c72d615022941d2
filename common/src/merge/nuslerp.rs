//! `NuSLERP`: SLERP between two models or two task vectors, by weights (mergekit). Vectors are whole tensors, or with `nuslerp_flatten` off a tensor's
//! rows along its last side, or with `nuslerp_row_wise` too its columns along the first side (mergekit's naming).

use super::{
    Base, Combine, Default, Kind, Method, ParameterSpec, Pass, Scope, Settings,
    linear::WEIGHT,
    span::{Axis, Span},
    statistics::{Gram, Vectors},
};
use crate::recipe::Merge;

pub(super) struct Nuslerp;

/// Shorter vectors are divided by this instead of their length.
const SHORT: f64 = 1e-7;
/// sin² of the angle up to which vectors count as parallel.
const PARALLEL: f64 = 1e-16;

impl Method for Nuslerp {
    fn name(&self) -> &'static str {
        "nuslerp"
    }

    fn summary(&self) -> &'static str {
        "spherical interpolation between two models, or two task vectors if there is a base, tensor by tensor or line by line (mergekit)"
    }

    fn base(&self) -> Base {
        Base::Optional
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        const PARAMETERS: &[ParameterSpec] = &[
            WEIGHT,
            ParameterSpec {
                name: "nuslerp_flatten",
                scope: Scope::Merge,
                kind: Kind::Flag,
                default: Default::Flag(true),
                doc: "Take each tensor as one vector.",
            },
            ParameterSpec {
                name: "nuslerp_row_wise",
                scope: Scope::Merge,
                kind: Kind::Flag,
                default: Default::Flag(false),
                doc: "Without nuslerp_flatten: vectors along the first side instead of the last.",
            },
        ];
        PARAMETERS
    }

    fn check(&self, merge: &Merge) -> Result<(), String> {
        match merge.models.len() {
            2 => Ok(()),
            count => Err(format!("exactly two models are merged, and {count} are given")),
        }
    }

    fn prepare(&self, settings: &Settings, pass: &Pass<'_>) -> Box<dyn Combine> {
        let axis = |(flatten, row_wise)| match (flatten, row_wise) {
            (true, _) => Axis::All,
            (false, false) => Axis::Last,
            (false, true) => Axis::First,
        };
        let axes = settings.flags("nuslerp_flatten").into_iter().zip(settings.flags("nuslerp_row_wise")).map(axis).collect();
        let share = |weights: &Vec<f64>| {
            let total = weights[0] + weights[1];
            if total.abs() < 1e-6 { 0.5 } else { weights[1] / total }
        };
        let places: Vec<_> = settings.per_model("weight").iter().map(share).collect();
        let vectors = if pass.has_base { Vectors::Deltas } else { Vectors::Models };
        Span::prepare(vectors, axes, Box::new(move |tensor, gram| coefficients(places[tensor], gram)))
    }
}

fn coefficients(t: f64, gram: &Gram) -> Vec<f64> {
    let cos = (gram.dot(0, 1) / (gram.norm(0).max(SHORT) * gram.norm(1).max(SHORT))).clamp(-1.0, 1.0);
    if 1.0 - cos * cos <= PARALLEL {
        return vec![1.0 - t, t];
    }
    let angle = libm::acos(cos);
    vec![libm::sin((1.0 - t) * angle) / libm::sin(angle), libm::sin(t * angle) / libm::sin(angle)]
}
