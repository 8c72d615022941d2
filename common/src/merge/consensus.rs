//! Consensus merging by TALL masks (Wang et al., Localizing task information for improved model merging and compression, ICML 2024, arXiv 2405.07813).
//!
//! With `T = sum of weight_i * T_i`, an element matters to task i where `|T_i| > tall_lambda_i * |T - T_i|`. Elements that matter to fewer than
//! `k` tasks (selfish or catastrophic ones) are dropped from T; the result is `base + lambda * T` on the others.

use super::{
    Base, Combine, Default, Inputs, Kind, Method, ParameterSpec, Pass, Scope, Settings,
    lanes::{self, LANES},
    linear::WEIGHT,
    task_arithmetic::LAMBDA,
};

pub(super) struct Consensus;

struct Masks {
    /// `[tensor][model]`.
    weights: Vec<Vec<f64>>,
    tall: Vec<Vec<f64>>,
    lambda: Vec<f64>,
    k: u64,
}

impl Method for Consensus {
    fn name(&self) -> &'static str {
        "consensus"
    }

    fn summary(&self) -> &'static str {
        "task arithmetic on the elements that matter to at least k tasks (Wang et al., TALL masks, ICML 2024)"
    }

    fn base(&self) -> Base {
        Base::Needed
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        const PARAMETERS: &[ParameterSpec] = &[
            WEIGHT,
            ParameterSpec {
                name: "tall_lambda",
                scope: Scope::Model,
                kind: Kind::Number(0.0, 100.0),
                default: Default::Number(0.4),
                doc: "How far a task's own change must outweigh the others' to matter.",
            },
            ParameterSpec {
                name: "k",
                scope: Scope::Merge,
                kind: Kind::Integer(0.0, 4096.0),
                default: Default::Number(2.0),
                doc: "Least number of tasks that an element must matter to.",
            },
            LAMBDA,
        ];
        PARAMETERS
    }

    fn prepare(&self, settings: &Settings, _pass: &Pass<'_>) -> Box<dyn Combine> {
        Box::new(Masks {
            weights: settings.per_model("weight"),
            tall: settings.per_model("tall_lambda"),
            lambda: settings.per_tensor("lambda"),
            k: settings.integer("k"),
        })
    }
}

impl Combine for Masks {
    #[expect(clippy::cast_precision_loss, reason = "a count of models")]
    fn block(&self, inputs: &Inputs<'_>, out: &mut [f32]) {
        let (weights, tall) = (self.weights[inputs.tensor].as_slice(), self.tall[inputs.tensor].as_slice());
        let (lambda, k) = (self.lambda[inputs.tensor], self.k as f64);
        lanes::map(
            inputs,
            out,
            #[inline(always)]
            |chunk| {
                let (mut total, mut matters) = ([0.0; LANES], [0.0; LANES]);
                for (model, weight) in weights.iter().enumerate() {
                    let delta = chunk.delta(model);
                    for l in 0..LANES {
                        total[l] += weight * delta[l];
                    }
                }
                for (model, tall) in tall.iter().enumerate() {
                    let delta = chunk.delta(model);
                    for l in 0..LANES {
                        matters[l] += if delta[l].abs() > tall * (total[l] - delta[l]).abs() { 1.0 } else { 0.0 };
                    }
                }
                let mut merged = chunk.base();
                for l in 0..LANES {
                    merged[l] += if matters[l] >= k { lambda * total[l] } else { 0.0 };
                }
                merged
            },
        );
    }
}
