//! Linear: the weighted mean of the models, or their weighted sum.

use super::{
    Base, Combine, Default, Inputs, Kind, Method, ParameterSpec, Pass, Scope, Settings,
    lanes::{self, LANES},
};

pub(super) struct Linear;

pub(super) const WEIGHT: ParameterSpec = ParameterSpec {
    name: "weight",
    scope: Scope::Model,
    kind: Kind::Number(-100.0, 100.0),
    default: Default::Number(1.0),
    doc: "Coefficient of the model.",
};

/// A weighted sum `start + sum_i weight_i * x_i`, where the x_i are models or task vectors.
pub(super) struct WeightedSum {
    /// `[tensor][model]`.
    pub(super) weights: Vec<Vec<f64>>,
    pub(super) from_base: bool,
}

impl Method for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn summary(&self) -> &'static str {
        "sum of weight_i * model_i, divided by the sum of the weights (Wortsman et al., Model soups, ICML 2022)"
    }

    fn base(&self) -> Base {
        Base::Unused
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        const PARAMETERS: &[ParameterSpec] = &[
            WEIGHT,
            ParameterSpec {
                name: "normalize",
                scope: Scope::Merge,
                kind: Kind::Flag,
                default: Default::Flag(true),
                doc: "Divide by the sum of the weights.",
            },
        ];
        PARAMETERS
    }

    fn prepare(&self, settings: &Settings, _pass: &Pass<'_>) -> Box<dyn Combine> {
        Box::new(WeightedSum { weights: normalized(settings), from_base: false })
    }
}

/// The weights for each tensor, divided by their sum where `normalize` says so.
pub(super) fn normalized(settings: &Settings) -> Vec<Vec<f64>> {
    divided(settings.per_model("weight"), &settings.flags("normalize"))
}

/// Rows divided by their sums where the flags say so. A sum of zero gives infinities, which the engine refuses by name.
pub(super) fn divided(mut rows: Vec<Vec<f64>>, flags: &[bool]) -> Vec<Vec<f64>> {
    for row in rows.iter_mut().zip(flags).filter_map(|(row, flag)| flag.then_some(row)) {
        let divisor: f64 = row.iter().sum();
        row.iter_mut().for_each(|weight| *weight /= divisor);
    }
    rows
}

impl Combine for WeightedSum {
    fn block(&self, inputs: &Inputs<'_>, out: &mut [f32]) {
        let weights = self.weights[inputs.tensor].as_slice();
        lanes::map(
            inputs,
            out,
            #[inline(always)]
            |chunk| {
                let mut sum = if self.from_base { chunk.base() } else { [0.0; LANES] };
                for (model, weight) in weights.iter().enumerate() {
                    let values = if self.from_base { chunk.task_vector(model) } else { chunk.values(model) };
                    for l in 0..LANES {
                        sum[l] += weight * f64::from(values[l]);
                    }
                }
                sum
            },
        );
    }
}
