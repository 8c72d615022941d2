//! Model Stock: the models' mean, drawn towards the base by the mean angle between task vectors (Jang et al., Model Stock: all we need is just a few
//! fine-tuned models, ECCV 2024): `t = k cos / (1 + (k - 1) cos)`, result `t * mean + (1 - t) * base`. Angles are those of whole tensors,
//! or with `filter_wise` of the lines along the last side.

use super::{
    Base, Combine, Default, Kind, Method, ParameterSpec, Pass, Scope, Settings,
    span::{Axis, Span},
    statistics::{Gram, Vectors},
};
use crate::recipe::Merge;

pub(super) struct ModelStock;

/// Products of lengths, and denominators, below this count as zero (mergekit).
const SMALL: f64 = 1e-6;

impl Method for ModelStock {
    fn name(&self) -> &'static str {
        "model_stock"
    }

    fn summary(&self) -> &'static str {
        "mean of the models, drawn towards the base by the angle between task vectors (Jang et al., Model Stock, ECCV 2024)"
    }

    fn base(&self) -> Base {
        Base::Needed
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        const PARAMETERS: &[ParameterSpec] = &[ParameterSpec {
            name: "filter_wise",
            scope: Scope::Merge,
            kind: Kind::Flag,
            default: Default::Flag(false),
            doc: "Angles of the lines along the last side instead of whole tensors.",
        }];
        PARAMETERS
    }

    fn check(&self, merge: &Merge) -> Result<(), String> {
        if merge.models.len() < 2 {
            Err("at least two models besides the base are needed: it goes by their angle".into())
        } else {
            Ok(())
        }
    }

    fn prepare(&self, settings: &Settings, _pass: &Pass<'_>) -> Box<dyn Combine> {
        let axis = |filter_wise| if filter_wise { Axis::Last } else { Axis::All };
        let axes = settings.flags("filter_wise").into_iter().map(axis).collect();
        Span::prepare(Vectors::Deltas, axes, Box::new(|_, gram| coefficients(gram)))
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of models")]
fn coefficients(gram: &Gram) -> Vec<f64> {
    let count = gram.size();
    let mut cosines = 0.0;
    for j in 0..count {
        for i in 0..j {
            cosines += (gram.dot(i, j) / (gram.norm(i) * gram.norm(j)).max(SMALL)).clamp(-1.0, 1.0);
        }
    }
    let k = count as f64;
    let cos = cosines / (k * (k - 1.0) / 2.0);
    let divisor = 1.0 + (k - 1.0) * cos;
    let t = if divisor.abs() < SMALL { 0.0 } else { k * cos / divisor };
    vec![t / k; count]
}
