//! `LiNeS`: layer-increasing scaling (Wang et al., `LiNeS`: post-training layer scaling prevents forgetting and enhances model merging, ICLR 2025, arXiv 2410.17146):
//! `base + (alpha + beta * depth) * sum of weight_i * (model_i - base)`, where depth runs from 0 at the first layer to 1 at the last, and is 0 for what lies
//! outside the layers.

use super::{
    Base, Combine, Default, Kind, Method, ParameterSpec, Pass, Scope, Settings,
    linear::{WEIGHT, WeightedSum},
};

pub(super) struct Lines;

impl Method for Lines {
    fn name(&self) -> &'static str {
        "lines"
    }

    fn summary(&self) -> &'static str {
        "task arithmetic that grows linearly from the first layer to the last (Wang et al., LiNeS, ICLR 2025)"
    }

    fn base(&self) -> Base {
        Base::Needed
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        const PARAMETERS: &[ParameterSpec] = &[
            WEIGHT,
            ParameterSpec {
                name: "alpha",
                scope: Scope::Merge,
                kind: Kind::Number(-100.0, 100.0),
                default: Default::Number(0.0),
                doc: "Scale at the first layer.",
            },
            ParameterSpec {
                name: "beta",
                scope: Scope::Merge,
                kind: Kind::Number(-100.0, 100.0),
                default: Default::Number(1.0),
                doc: "What the scale grows by until the last layer.",
            },
        ];
        PARAMETERS
    }

    fn prepare(&self, settings: &Settings, _pass: &Pass<'_>) -> Box<dyn Combine> {
        let mut weights = settings.per_model("weight");
        let (alpha, beta) = (settings.per_tensor("alpha"), settings.per_tensor("beta"));
        for (tensor, row) in weights.iter_mut().enumerate() {
            let scale = alpha[tensor] + beta[tensor] * settings.layers().depth(tensor);
            row.iter_mut().for_each(|weight| *weight *= scale);
        }
        Box::new(WeightedSum { weights, from_base: true })
    }
}
