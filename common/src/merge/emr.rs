//! EMR-Merging: elect, mask, rescale (Huang et al., EMR-Merging: tuning-free high-performance model merging, NeurIPS 2024, arXiv 2405.17461).
//!
//! At each element the sign of the sum of the task vectors is elected (none where it is 0), and the unified vector takes the largest magnitude of that sign. With `task` k
//! from 1 the result is the k-th task's model: the unified vector where its sign is the task's, times `sum |T_k| / sum |masked|` over the whole model;
//! with 0 it is the unified vector alone.

use super::{
    Base, Combine, Default, Inputs, Kind, Method, ParameterSpec, Pass, Scope, Settings, round, task_arithmetic::LAMBDA,
    task_vector,
};
use crate::recipe::{Merge, Value};

pub(super) struct Emr;

struct Unified {
    /// The model whose mask is applied.
    task: Option<usize>,
    rescale: f64,
    lambda: Vec<f64>,
}

impl Method for Emr {
    fn name(&self) -> &'static str {
        "emr"
    }

    fn summary(&self) -> &'static str {
        "largest magnitude of the elected sign, masked and rescaled for one task if wanted (Huang et al., EMR-Merging, NeurIPS 2024)"
    }

    fn base(&self) -> Base {
        Base::Needed
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        const PARAMETERS: &[ParameterSpec] = &[
            ParameterSpec {
                name: "task",
                scope: Scope::Merge,
                kind: Kind::Integer(0.0, 4096.0),
                default: Default::Number(0.0),
                doc: "Place of the model, from 1, whose mask and scale are applied; 0: none.",
            },
            LAMBDA,
        ];
        PARAMETERS
    }

    fn check(&self, merge: &Merge) -> Result<(), String> {
        match merge.parameters.get("task") {
            #[expect(clippy::cast_precision_loss, reason = "a count of models")]
            Some(Value::Number(task)) if *task > merge.models.len() as f64 => {
                Err(format!("task is {task}, and {} models are merged", merge.models.len()))
            }
            _ => Ok(()),
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "a place among models")]
    fn prepare(&self, settings: &Settings, pass: &Pass<'_>) -> Box<dyn Combine> {
        let mut this = Unified {
            task: (settings.integer("task") as usize).checked_sub(1),
            rescale: 1.0,
            lambda: settings.per_tensor("lambda"),
        };
        if let Some(task) = this.task {
            let sums = pass.sums(2, |inputs, elements, sums| {
                for element in elements {
                    sums[0] += f64::from(task_vector(inputs.models[task][element], inputs.base[element])).abs();
                    sums[1] += this.vector(inputs, element).abs();
                }
            });
            if sums[1] > 0.0 {
                this.rescale = sums[0] / sums[1];
            }
        }
        Box::new(this)
    }
}

impl Unified {
    /// The unified vector at an element, masked but not rescaled.
    fn vector(&self, inputs: &Inputs<'_>, element: usize) -> f64 {
        let base = inputs.base[element];
        let deltas = || inputs.models.iter().map(|model| f64::from(task_vector(model[element], base)));
        let total: f64 = deltas().sum();
        if total == 0.0 {
            return 0.0;
        }
        let sign = total.signum();
        let elected = sign * deltas().map(|delta| delta * sign).fold(0.0, f64::max);
        match self.task {
            Some(task) if elected * f64::from(task_vector(inputs.models[task][element], base)) <= 0.0 => 0.0,
            _ => elected,
        }
    }
}

impl Combine for Unified {
    fn block(&self, inputs: &Inputs<'_>, out: &mut [f32]) {
        let scale = self.lambda[inputs.tensor] * self.rescale;
        for (element, out) in out.iter_mut().enumerate() {
            *out = round(f64::from(inputs.base[element]) + scale * self.vector(inputs, element));
        }
    }
}
