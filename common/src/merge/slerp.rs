//! SLERP: interpolation along the great circle between the base and one model, tensor by tensor (Shoemake, Animating rotation with quaternion
//! curves, SIGGRAPH 1985), with mergekit's conventions: the angle is that of the whole tensors, the tensors keep their lengths, and nearly parallel or
//! opposed tensors (|cos| above 0.9995) are interpolated linearly.

use super::{
    Base, Combine, Default, Kind, Method, ParameterSpec, Pass, Scope, Settings,
    span::{Axis, Span},
    statistics::{Gram, Vectors},
};
use crate::recipe::Merge;

pub(super) struct Slerp;

/// Above this |cos| the sine of the angle is too small to divide by.
const PARALLEL: f64 = 0.9995;
/// Shorter tensors count as zero.
const SHORT: f64 = 1e-8;

impl Method for Slerp {
    fn name(&self) -> &'static str {
        "slerp"
    }

    fn summary(&self) -> &'static str {
        "spherical interpolation between the base and one model, tensor by tensor (Shoemake, Animating rotation with quaternion curves, 1985)"
    }

    fn base(&self) -> Base {
        Base::Needed
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        const PARAMETERS: &[ParameterSpec] = &[ParameterSpec {
            name: "t",
            scope: Scope::Merge,
            kind: Kind::Number(-10.0, 10.0),
            default: Default::Number(0.5),
            doc: "Place between the base (0) and the model (1).",
        }];
        PARAMETERS
    }

    fn check(&self, merge: &Merge) -> Result<(), String> {
        one_model(merge)
    }

    fn prepare(&self, settings: &Settings, _pass: &Pass<'_>) -> Box<dyn Combine> {
        let places = settings.per_tensor("t");
        let axes = vec![Axis::All; places.len()];
        Span::prepare(Vectors::BaseAndModels, axes, Box::new(move |tensor, gram| coefficients(places[tensor], gram)))
    }
}

/// Refuses all but one model besides the base.
pub(super) fn one_model(merge: &Merge) -> Result<(), String> {
    match merge.models.len() {
        1 => Ok(()),
        count => Err(format!("exactly one model is merged with the base, and {count} are given")),
    }
}

fn coefficients(t: f64, gram: &Gram) -> Vec<f64> {
    let length = |i| Some(gram.norm(i)).filter(|norm| *norm > SHORT).unwrap_or(1.0);
    let cos = (gram.dot(0, 1) / (length(0) * length(1))).clamp(-1.0, 1.0);
    if cos.abs() > PARALLEL {
        return vec![1.0 - t, t];
    }
    let angle = libm::acos(cos);
    vec![libm::sin((1.0 - t) * angle) / libm::sin(angle), libm::sin(t * angle) / libm::sin(angle)]
}
