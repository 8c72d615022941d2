//! TIES-Merging: trim, elect sign, disjoint merge (Yadav et al., NeurIPS 2023), with mergekit's conventions: density per tensor, signs elected on the
//! weighted task vectors.

use super::{
    Base, Combine, Default, Inputs, Kind, Method, ParameterSpec, Pass, Scope, Settings, linear::WEIGHT, order, round,
    task_arithmetic::LAMBDA, task_vector,
};

pub(super) struct Ties;

struct Trimmed {
    /// `[tensor][model]`: magnitudes from here on are kept.
    thresholds: Vec<Vec<f32>>,
    /// `[tensor][model]`.
    weights: Vec<Vec<f64>>,
    lambda: Vec<f64>,
    normalize: Vec<bool>,
}

impl Method for Ties {
    fn name(&self) -> &'static str {
        "ties"
    }

    fn summary(&self) -> &'static str {
        "trim each task vector to its largest magnitudes, elect a sign per parameter, merge what agrees (Yadav et al., TIES-Merging, NeurIPS 2023)"
    }

    fn base(&self) -> Base {
        Base::Needed
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        const PARAMETERS: &[ParameterSpec] = &[
            WEIGHT,
            ParameterSpec {
                name: "density",
                scope: Scope::Model,
                kind: Kind::Number(0.0, 1.0),
                default: Default::Number(1.0),
                doc: "Share of each tensor's task vector that is kept, largest magnitudes first.",
            },
            LAMBDA,
            ParameterSpec {
                name: "normalize",
                scope: Scope::Merge,
                kind: Kind::Flag,
                default: Default::Flag(true),
                doc: "Divide by the sum of the weights that agree.",
            },
        ];
        PARAMETERS
    }

    fn prepare(&self, settings: &Settings, pass: &Pass<'_>) -> Box<dyn Combine> {
        let densities = settings.per_model("density");
        let thresholds = pass
            .elements()
            .iter()
            .zip(&densities)
            .enumerate()
            .map(|(tensor, (&elements, densities))| thresholds(pass, tensor, elements, densities));
        Box::new(Trimmed {
            thresholds: thresholds.collect(),
            weights: settings.per_model("weight"),
            lambda: settings.per_tensor("lambda"),
            normalize: settings.flags("normalize"),
        })
    }
}

/// The magnitude of rank `k = max(1, floor(density * elements))` from the top, for each model; 0 keeps all, infinity none.
fn thresholds(pass: &Pass<'_>, tensor: usize, elements: usize, densities: &[f64]) -> Vec<f32> {
    if elements == 0 {
        return vec![0.0; densities.len()];
    }
    let ranks: Vec<_> = densities
        .iter()
        .map(|&density| {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                clippy::cast_precision_loss,
                reason = "density lies in [0, 1]"
            )]
            let kept = ((density * elements as f64) as usize).max(1);
            if density == 0.0 || kept >= elements { vec![] } else { vec![(elements - kept) as u64] }
        })
        .collect();
    let found = order::select(pass, Some(tensor), &ranks, |inputs, rows| {
        for ((row, model), ranks) in rows.iter_mut().zip(inputs.models).zip(&ranks) {
            if !ranks.is_empty() {
                row.extend(model.iter().zip(inputs.base).map(|(m, b)| task_vector(*m, *b).abs()));
            }
        }
    });
    found
        .iter()
        .zip(densities)
        .map(|(found, &density)| match found.first() {
            Some(&threshold) => threshold,
            None if density == 0.0 => f32::INFINITY,
            None => 0.0,
        })
        .collect()
}

impl Combine for Trimmed {
    fn block(&self, inputs: &Inputs<'_>, out: &mut [f32]) {
        let (thresholds, weights) = (&self.thresholds[inputs.tensor], &self.weights[inputs.tensor]);
        let (lambda, normalize) = (self.lambda[inputs.tensor], self.normalize[inputs.tensor]);
        for (element, out) in out.iter_mut().enumerate() {
            let base = inputs.base[element];
            let kept = |model: usize| {
                let delta = task_vector(inputs.models[model][element], base);
                if delta.abs() >= thresholds[model] { weights[model] * f64::from(delta) } else { 0.0 }
            };
            let models = 0..inputs.models.len();
            let positive = models.clone().map(kept).sum::<f64>() >= 0.0;
            let (mut sum, mut divisor) = (0.0, 0.0);
            for model in models {
                let delta = kept(model);
                if delta != 0.0 && (delta > 0.0) == positive {
                    sum += delta;
                    divisor += weights[model];
                }
            }
            if normalize && divisor.abs() >= 1e-8 {
                sum /= divisor;
            }
            *out = round(f64::from(base) + lambda * sum);
        }
    }
}
