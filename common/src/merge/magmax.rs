//! `MagMax`: at each element the task vector with the largest magnitude (Marczak et al., `MagMax`: leveraging model merging for seamless continual
//! learning, ECCV 2024, arXiv 2407.06322). Of equal magnitudes the first model's counts.

use super::{
    Base, Combine, Inputs, Method, ParameterSpec, Pass, Settings, linear::WEIGHT, round, task_arithmetic::LAMBDA, task_vector,
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
        let weights = &self.weights[inputs.tensor];
        for (element, out) in out.iter_mut().enumerate() {
            let base = inputs.base[element];
            let mut largest = 0.0f64;
            for (model, weight) in inputs.models.iter().zip(weights) {
                let delta = weight * f64::from(task_vector(model[element], base));
                if delta.abs() > largest.abs() {
                    largest = delta;
                }
            }
            *out = round(f64::from(base) + self.lambda[inputs.tensor] * largest);
        }
    }
}
