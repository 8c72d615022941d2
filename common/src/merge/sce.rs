//! SCE: select, calculate, erase (Wan et al., FuseChat, arXiv 2408.07990), with mergekit's conventions.
//!
//! Select the elements of each tensor whose task vectors vary most between models (population variance, rounded to F32 before it is ranked; ties at the
//! threshold are all selected); weigh each model by the sum of squares of what is selected; erase at each element the models whose sign is not that of
//! the sum; mean of the rest by those weights.

use super::{
    Base, Combine, Default, Inputs, Kind, Method, ParameterSpec, Pass, Scope, Settings, order, round, statistics, task_vector,
};

pub(super) struct Sce;

struct Selected {
    /// For each tensor: variances from here on are selected.
    thresholds: Vec<f32>,
    /// `[tensor][model]`.
    weights: Vec<Vec<f64>>,
}

impl Method for Sce {
    fn name(&self) -> &'static str {
        "sce"
    }

    fn summary(&self) -> &'static str {
        "select what varies most between models, weigh by its energy, erase minority signs (Wan et al., FuseChat, arXiv 2408.07990)"
    }

    fn base(&self) -> Base {
        Base::Needed
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        const PARAMETERS: &[ParameterSpec] = &[ParameterSpec {
            name: "select_topk",
            scope: Scope::Merge,
            kind: Kind::Number(0.0, 1.0),
            default: Default::Number(1.0),
            doc: "Share of each tensor's varying elements that is selected.",
        }];
        PARAMETERS
    }

    fn prepare(&self, settings: &Settings, pass: &Pass<'_>) -> Box<dyn Combine> {
        let shares = settings.per_tensor("select_topk");
        let varying = statistics::sums(pass, 1, |inputs, elements, sums| {
            sums[0] += elements.map(|element| f64::from(u8::from(variance(inputs, element) > 0.0))).sum::<f64>();
        });
        let thresholds =
            shares.iter().enumerate().map(|(tensor, &share)| threshold(pass, tensor, varying[tensor][0], share)).collect();
        let mut this = Selected { thresholds, weights: Vec::new() };
        this.weights = statistics::sums(pass, pass.models(), |inputs, elements, sums| {
            for element in elements.filter(|&element| this.selects(inputs, element)) {
                for (sum, model) in sums.iter_mut().zip(inputs.models) {
                    let delta = f64::from(task_vector(model[element], inputs.base[element]));
                    *sum += delta * delta;
                }
            }
        });
        for (weights, &elements) in this.weights.iter_mut().zip(pass.elements()) {
            weigh(weights, elements);
        }
        Box::new(this)
    }
}

/// Turns sums of squares into shares. A mean square below 1e-6 over all models counts as none (mergekit), and then all weigh the same.
#[expect(clippy::cast_precision_loss, reason = "counts")]
fn weigh(sums: &mut [f64], elements: usize) {
    let total: f64 = sums.iter().sum();
    let equal = 1.0 / sums.len() as f64;
    let none = total / (elements.max(1) as f64) < 1e-6;
    sums.iter_mut().for_each(|sum| *sum = if none { equal } else { *sum / total });
}

/// The variance of rank `k = floor(share * varying)` from the top; 0 selects all, infinity none.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
fn threshold(pass: &Pass<'_>, tensor: usize, varying: f64, share: f64) -> f32 {
    if share >= 1.0 {
        return 0.0;
    }
    let kept = (varying * share) as usize;
    if kept == 0 {
        return f32::INFINITY;
    }
    let rank = (pass.elements()[tensor] - kept) as u64;
    let found = order::select(pass, Some(tensor), &[vec![rank]], |inputs, rows| {
        rows[0].extend((0..inputs.base.len()).map(|element| variance(inputs, element)));
    });
    found[0][0]
}

/// The population variance of the task vectors at an element.
#[expect(clippy::cast_precision_loss, reason = "a count of models")]
fn variance(inputs: &Inputs<'_>, element: usize) -> f32 {
    let deltas = || inputs.models.iter().map(|model| f64::from(task_vector(model[element], inputs.base[element])));
    let count = inputs.models.len() as f64;
    let mean = deltas().sum::<f64>() / count;
    round(deltas().map(|delta| (delta - mean) * (delta - mean)).sum::<f64>() / count)
}

impl Selected {
    fn selects(&self, inputs: &Inputs<'_>, element: usize) -> bool {
        let threshold = self.thresholds[inputs.tensor];
        threshold == 0.0 || variance(inputs, element) >= threshold
    }
}

impl Combine for Selected {
    fn block(&self, inputs: &Inputs<'_>, out: &mut [f32]) {
        let weights = &self.weights[inputs.tensor];
        for (element, out) in out.iter_mut().enumerate() {
            let base = inputs.base[element];
            *out = base;
            if !self.selects(inputs, element) {
                continue;
            }
            let deltas = || inputs.models.iter().map(|model| f64::from(task_vector(model[element], base)));
            let positive = deltas().sum::<f64>() >= 0.0;
            let (mut sum, mut divisor) = (0.0, 0.0);
            for (delta, weight) in deltas().zip(weights) {
                if delta != 0.0 && (delta > 0.0) == positive {
                    sum += weight * delta;
                    divisor += weight;
                }
            }
            *out = round(f64::from(base) + sum / divisor.max(1e-6));
        }
    }
}
