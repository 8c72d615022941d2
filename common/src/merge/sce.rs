//! SCE: select, calculate, erase (Wan et al., FuseChat, arXiv 2408.07990), with mergekit's conventions.
//!
//! Select the elements of each tensor whose task vectors vary most between models (population variance, rounded to F32 before it is ranked; ties at the
//! threshold are all selected); weigh each model by the sum of squares of what is selected; erase at each element the models whose sign is not that of
//! the sum; mean of the rest by those weights.

use super::{
    Base, Combine, Default, Inputs, Kind, Method, ParameterSpec, Pass, Scope, Settings,
    lanes::{self, Chunk, LANES, Lanes},
    order::{Cost, Selector},
    round, statistics,
};

pub(super) struct Sce;

struct Selected {
    /// For each tensor: variances from here on are selected.
    thresholds: Vec<f64>,
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
            lanes::sum(
                inputs,
                elements,
                sums,
                #[inline(always)]
                |chunk, sums| sums[0].add(&variance(chunk).map(|variance| if variance > 0.0 { 1.0 } else { 0.0 })),
            );
        });
        let selector = Selector::default();
        let threshold = |(tensor, share): (usize, &f64)| threshold(&selector, pass, tensor, varying[tensor][0], *share);
        let mut this = Selected { thresholds: shares.iter().enumerate().map(threshold).collect(), weights: Vec::new() };
        this.weights = statistics::sums(pass, pass.models(), |inputs, elements, sums| {
            lanes::sum(
                inputs,
                elements,
                sums,
                #[inline(always)]
                |chunk, sums| {
                    let selected = this.selected(inputs.tensor, chunk);
                    for (model, sum) in sums.iter_mut().enumerate() {
                        let mut delta = chunk.delta(model);
                        for l in 0..LANES {
                            delta[l] *= selected[l];
                        }
                        sum.add_products(&delta, &delta);
                    }
                },
            );
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
fn threshold(selector: &Selector, pass: &Pass<'_>, tensor: usize, varying: f64, share: f64) -> f64 {
    if share >= 1.0 {
        return 0.0;
    }
    let kept = (varying * share) as usize;
    if kept == 0 {
        return f64::INFINITY;
    }
    let found = selector.select(
        pass,
        Some(tensor),
        &[vec![(pass.elements()[tensor] - kept) as u64]],
        (Cost::Low, |inputs, rows| {
            if let [row] = rows {
                lanes::map(inputs, row, variance);
            }
        }),
    );
    f64::from(found[0][0])
}

/// The population variance of the task vectors, rounded to F32 since it is ranked as such.
#[inline(always)]
#[expect(clippy::cast_precision_loss, reason = "a count of models")]
fn variance(chunk: &Chunk<'_>) -> Lanes {
    let count = chunk.models() as f64;
    let (mut mean, mut variance) = ([0.0; LANES], [0.0; LANES]);
    for model in 0..chunk.models() {
        let delta = chunk.delta(model);
        for l in 0..LANES {
            mean[l] += delta[l];
        }
    }
    for mean in &mut mean {
        *mean /= count;
    }
    for model in 0..chunk.models() {
        let delta = chunk.delta(model);
        for l in 0..LANES {
            let apart = delta[l] - mean[l];
            variance[l] += apart * apart;
        }
    }
    variance.map(|variance| f64::from(round(variance / count)))
}

impl Selected {
    /// 1 where an element is selected, 0 elsewhere.
    #[inline(always)]
    fn selected(&self, tensor: usize, chunk: &Chunk<'_>) -> Lanes {
        let threshold = self.thresholds[tensor];
        variance(chunk).map(|variance| if variance >= threshold { 1.0 } else { 0.0 })
    }
}

impl Combine for Selected {
    fn block(&self, inputs: &Inputs<'_>, out: &mut [f32]) {
        let weights = self.weights[inputs.tensor].as_slice();
        lanes::map(
            inputs,
            out,
            #[inline(always)]
            |chunk| {
                let (mut total, mut sum, mut divisor) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
                for model in 0..weights.len() {
                    let delta = chunk.delta(model);
                    for l in 0..LANES {
                        total[l] += delta[l];
                    }
                }
                for (model, weight) in weights.iter().enumerate() {
                    let delta = chunk.delta(model);
                    for l in 0..LANES {
                        let agrees = (delta[l] > 0.0) == (total[l] >= 0.0) && delta[l] != 0.0;
                        sum[l] += if agrees { weight * delta[l] } else { 0.0 };
                        divisor[l] += if agrees { *weight } else { 0.0 };
                    }
                }
                let (mut merged, selected) = (chunk.base(), self.selected(inputs.tensor, chunk));
                for l in 0..LANES {
                    merged[l] += selected[l] * (sum[l] / f64::max(divisor[l], 1e-6));
                }
                merged
            },
        );
    }
}
