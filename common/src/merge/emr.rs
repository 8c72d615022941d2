//! EMR-Merging: elect, mask, rescale (Huang et al., EMR-Merging: tuning-free high-performance model merging, NeurIPS 2024, arXiv 2405.17461).
//!
//! At each element the sign of the sum of the task vectors is elected (none where it is 0), and the unified vector takes the largest magnitude of that sign. With `task` k
//! from 1 the result is the k-th task's model: the unified vector where its sign is the task's, times `sum |T_k| / sum |masked|` over the whole model;
//! with 0 it is the unified vector alone.

use super::{
    Base, Combine, Default, Inputs, Kind, Method, ParameterSpec, Pass, Scope, Settings,
    lanes::{self, Chunk, LANES, Lanes},
    statistics,
    task_arithmetic::LAMBDA,
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
            let sums = statistics::totals(pass, 2, |inputs, elements, sums| {
                lanes::sum(
                    inputs,
                    elements,
                    sums,
                    #[inline(always)]
                    |chunk, sums| {
                        sums[0].add(&chunk.delta(task).map(f64::abs));
                        sums[1].add(&this.vector(chunk).map(f64::abs));
                    },
                );
            });
            if sums[1] > 0.0 {
                this.rescale = sums[0] / sums[1];
            }
        }
        Box::new(this)
    }
}

impl Unified {
    /// The unified vector, masked but not rescaled.
    #[inline(always)]
    fn vector(&self, chunk: &Chunk<'_>) -> Lanes {
        let (mut total, mut elected) = ([0.0; LANES], [0.0; LANES]);
        for model in 0..chunk.models() {
            let delta = chunk.delta(model);
            for l in 0..LANES {
                total[l] += delta[l];
            }
        }
        for model in 0..chunk.models() {
            let delta = chunk.delta(model);
            for l in 0..LANES {
                elected[l] = f64::max(elected[l], f64::copysign(1.0, total[l]) * delta[l]);
            }
        }
        for l in 0..LANES {
            // Without a sign there is nothing to elect.
            elected[l] = if total[l] == 0.0 { 0.0 } else { f64::copysign(elected[l], total[l]) };
        }
        if let Some(task) = self.task {
            let delta = chunk.delta(task);
            for l in 0..LANES {
                elected[l] = if elected[l] * delta[l] <= 0.0 { 0.0 } else { elected[l] };
            }
        }
        elected
    }
}

impl Combine for Unified {
    fn block(&self, inputs: &Inputs<'_>, out: &mut [f32]) {
        let scale = self.lambda[inputs.tensor] * self.rescale;
        lanes::map(
            inputs,
            out,
            #[inline(always)]
            |chunk| {
                let (mut merged, vector) = (chunk.base(), self.vector(chunk));
                for l in 0..LANES {
                    merged[l] += scale * vector[l];
                }
                merged
            },
        );
    }
}
