//! `MagMax`: at each element the task vector with the largest magnitude (Marczak et al., `MagMax`: leveraging model merging for seamless continual
//! learning, ECCV 2024, arXiv 2407.06322). Of equal magnitudes the first model's counts.

use super::{
    Base, Combine, Inputs, Method, ParameterSpec, Pass, Settings,
    lanes::{self, LANES},
    linear::WEIGHT,
    task_arithmetic::LAMBDA,
};

pub(super) struct MagMax;

struct Largest {
    /// `[tensor][model]`.
    weights: Vec<Vec<f64>>,
    lambda: Vec<f64>,
}

impl Method for MagMax {
    fn name(&self) -> &'static str {
        "magmax"
    }

    fn summary(&self) -> &'static str {
        "the task vector of largest magnitude at each element (Marczak et al., MagMax, ECCV 2024)"
    }

    fn base(&self) -> Base {
        Base::Needed
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        const PARAMETERS: &[ParameterSpec] = &[WEIGHT, LAMBDA];
        PARAMETERS
    }

    fn prepare(&self, settings: &Settings, _pass: &Pass<'_>) -> Box<dyn Combine> {
        Box::new(Largest { weights: settings.per_model("weight"), lambda: settings.per_tensor("lambda") })
    }
}

impl Combine for Largest {
    fn block(&self, inputs: &Inputs<'_>, out: &mut [f32]) {
        let (weights, lambda) = (self.weights[inputs.tensor].as_slice(), self.lambda[inputs.tensor]);
        lanes::map(
            inputs,
            out,
            #[inline(always)]
            |chunk| {
                let mut largest = [0.0f64; LANES];
                for (model, weight) in weights.iter().enumerate() {
                    let delta = chunk.delta(model);
                    for l in 0..LANES {
                        let delta = weight * delta[l];
                        largest[l] = if delta.abs() > largest[l].abs() { delta } else { largest[l] };
                    }
                }
                let mut merged = chunk.base();
                for l in 0..LANES {
                    merged[l] += lambda * largest[l];
                }
                merged
            },
        );
    }
}
