//! Karcher mean: the point of the sphere with the least sum of squared angles to the models' directions, tensor by tensor, times their mean length
//! (Karcher, Riemannian center of mass, 1977; mergekit). The iterations run on coordinates in the models' span, from their inner products.

use super::{
    Base, Combine, Default, Kind, Method, ParameterSpec, Pass, Scope, Settings,
    span::{Axis, Span},
    statistics::{Gram, Vectors},
};

pub(super) struct Karcher;

impl Method for Karcher {
    fn name(&self) -> &'static str {
        "karcher"
    }

    fn summary(&self) -> &'static str {
        "Riemannian mean of the models' directions times their mean length, tensor by tensor (Karcher, Riemannian center of mass, 1977)"
    }

    fn base(&self) -> Base {
        Base::Unused
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        const PARAMETERS: &[ParameterSpec] = &[
            ParameterSpec {
                name: "max_iter",
                scope: Scope::Merge,
                kind: Kind::Integer(0.0, 10_000.0),
                default: Default::Number(10.0),
                doc: "Most iterations.",
            },
            ParameterSpec {
                name: "tol",
                scope: Scope::Merge,
                kind: Kind::Constant(0.0, 1.0),
                default: Default::Number(1e-5),
                doc: "Angles and lengths that count as zero, and the step that ends the iterations.",
            },
        ];
        PARAMETERS
    }

    fn prepare(&self, settings: &Settings, pass: &Pass<'_>) -> Box<dyn Combine> {
        let (iterations, tolerance) = (settings.integer("max_iter"), settings.number("tol"));
        let axes = vec![Axis::All; pass.elements().len()];
        Span::prepare(Vectors::Models, axes, Box::new(move |_, gram| coefficients(iterations, tolerance, gram)))
    }
}

fn coefficients(iterations: u64, tolerance: f64, gram: &Gram) -> Vec<f64> {
    let size = gram.size();
    if size == 1 {
        return vec![1.0];
    }
    let norms: Vec<_> = (0..size).map(|i| gram.norm(i)).collect();
    let valid: Vec<_> = (0..size).filter(|&i| norms[i] > tolerance).collect();
    if valid.is_empty() {
        return vec![0.0; size];
    }
    #[expect(clippy::cast_precision_loss, reason = "counts of models")]
    let (share, count) = (1.0 / valid.len() as f64, size as f64);
    // Unit vectors, the mean and tangents are coordinates in the models.
    let unit = |i: usize| {
        let mut unit = vec![0.0; size];
        unit[i] = 1.0 / norms[i];
        unit
    };
    let mut mean = vec![0.0; size];
    valid.iter().for_each(|&i| mean[i] = share / norms[i]);
    let length = gram.norm_of(&mean);
    if length < tolerance {
        mean = unit(valid[0]);
    } else {
        mean.iter_mut().for_each(|x| *x /= length);
    }
    for _ in 0..iterations {
        let mut tangent = vec![0.0; size];
        for &i in &valid {
            let unit = unit(i);
            let cos = gram.dot_of(&mean, &unit).clamp(-1.0, 1.0);
            let angle = libm::acos(cos);
            // An opposed model has no direction to pull in.
            if angle < tolerance || libm::sin(angle) < f64::EPSILON {
                continue;
            }
            let pull = share * angle / libm::sin(angle);
            for (tangent, (unit, mean)) in tangent.iter_mut().zip(unit.iter().zip(&mean)) {
                *tangent += pull * (unit - cos * mean);
            }
        }
        let step = gram.norm_of(&tangent);
        if step < tolerance {
            break;
        }
        let (sin, cos) = (libm::sin(step), libm::cos(step));
        mean.iter_mut().zip(&tangent).for_each(|(mean, tangent)| *mean = cos * *mean + sin / step * tangent);
        let length = gram.norm_of(&mean);
        if length > tolerance {
            mean.iter_mut().for_each(|x| *x /= length);
        }
    }
    let scale = norms.iter().sum::<f64>() / count;
    mean.iter().map(|x| scale * x).collect()
}
