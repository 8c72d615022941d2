//! RAM and RAM+: reinforced agent merging (arXiv 2601.13572; mergekit's tensor-local form of RAM+).
//!
//! A task vector counts where its magnitude is above `epsilon`. Where one model alone counts its value is taken, where several do the mean of theirs. RAM+
//! scales what is a model's alone by `1 + r * clamp(shared / unique, 0, alpha)`, from the counts of its shared and unique elements in the tensor.

use super::{
    Base, Combine, Default, Inputs, Kind, Method, ParameterSpec, Pass, Scope, Settings,
    lanes::{self, Chunk, LANES, Lanes},
    statistics,
};

pub(super) struct Ram;
pub(super) struct RamPlus;

const EPSILON: ParameterSpec = ParameterSpec {
    name: "epsilon",
    scope: Scope::Merge,
    kind: Kind::Number(0.0, 100.0),
    default: Default::Number(1e-5),
    doc: "Magnitude up to which a change counts as none, in the weights' unit.",
};

struct Reinforced {
    /// For each tensor.
    epsilon: Vec<f64>,
    /// `[tensor][model]`: factors of what is a model's alone.
    unique: Vec<Vec<f64>>,
}

impl Method for Ram {
    fn name(&self) -> &'static str {
        "ram"
    }

    fn summary(&self) -> &'static str {
        "mean of the task vectors that count at each element, and what is one model's alone in full (Reinforced Agent Merging, arXiv 2601.13572)"
    }

    fn base(&self) -> Base {
        Base::Needed
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        const PARAMETERS: &[ParameterSpec] = &[EPSILON];
        PARAMETERS
    }

    fn prepare(&self, settings: &Settings, pass: &Pass<'_>) -> Box<dyn Combine> {
        let unique = vec![vec![1.0; pass.models()]; pass.elements().len()];
        Box::new(Reinforced { epsilon: settings.per_tensor("epsilon"), unique })
    }
}

impl Method for RamPlus {
    fn name(&self) -> &'static str {
        "ramplus_tl"
    }

    fn summary(&self) -> &'static str {
        "RAM, with what is one model's alone scaled up by its share of shared elements in the tensor (RAM+, arXiv 2601.13572)"
    }

    fn base(&self) -> Base {
        Base::Needed
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        const PARAMETERS: &[ParameterSpec] = &[
            ParameterSpec {
                name: "r",
                scope: Scope::Merge,
                kind: Kind::Number(-100.0, 100.0),
                default: Default::Number(0.1),
                doc: "Strength of the scaling.",
            },
            ParameterSpec {
                name: "alpha",
                scope: Scope::Merge,
                kind: Kind::Number(0.0, 100.0),
                default: Default::Number(0.2),
                doc: "Largest ratio of shared to unique elements that counts.",
            },
            EPSILON,
        ];
        PARAMETERS
    }

    fn prepare(&self, settings: &Settings, pass: &Pass<'_>) -> Box<dyn Combine> {
        let models = pass.models();
        let epsilon = settings.per_tensor("epsilon");
        let (r, alpha) = (settings.per_tensor("r"), settings.per_tensor("alpha"));
        // For each model: shared elements, then unique ones.
        let counts = statistics::sums(pass, 2 * models, |inputs, elements, sums| {
            let epsilon = epsilon[inputs.tensor];
            lanes::sum(
                inputs,
                elements,
                sums,
                #[inline(always)]
                |chunk, sums| {
                    let counting = counting(chunk, epsilon);
                    for model in 0..models {
                        let delta = chunk.delta(model);
                        let (mut shared, mut unique) = ([0.0; LANES], [0.0; LANES]);
                        for l in 0..LANES {
                            let counts = if delta[l].abs() > epsilon { 1.0 } else { 0.0 };
                            shared[l] = if counting[l] > 1.0 { counts } else { 0.0 };
                            unique[l] = counts - shared[l];
                        }
                        sums[model].add(&shared);
                        sums[models + model].add(&unique);
                    }
                },
            );
        });
        let unique = |(tensor, counts): (usize, &Vec<f64>)| {
            (0..models)
                .map(|model| {
                    let ratio = counts[model] / counts[models + model].max(epsilon[tensor]);
                    // Nothing shared and nothing to divide by: no scaling.
                    let ratio = if counts[model] == 0.0 { 0.0 } else { ratio };
                    1.0 + r[tensor] * ratio.clamp(0.0, alpha[tensor])
                })
                .collect()
        };
        let unique = counts.iter().enumerate().map(unique).collect();
        Box::new(Reinforced { epsilon, unique })
    }
}

/// How many models count at each element.
#[inline(always)]
fn counting(chunk: &Chunk<'_>, epsilon: f64) -> Lanes {
    let mut counting = [0.0; LANES];
    for model in 0..chunk.models() {
        let delta = chunk.delta(model);
        for l in 0..LANES {
            counting[l] += if delta[l].abs() > epsilon { 1.0 } else { 0.0 };
        }
    }
    counting
}

impl Combine for Reinforced {
    fn block(&self, inputs: &Inputs<'_>, out: &mut [f32]) {
        let (epsilon, unique) = (self.epsilon[inputs.tensor], self.unique[inputs.tensor].as_slice());
        lanes::map(
            inputs,
            out,
            #[inline(always)]
            |chunk| {
                let (counting, mut sum) = (counting(chunk, epsilon), [0.0; LANES]);
                for (model, unique) in unique.iter().enumerate() {
                    let delta = chunk.delta(model);
                    for l in 0..LANES {
                        let part = if counting[l] == 1.0 { unique * delta[l] } else { delta[l] / counting[l] };
                        sum[l] += if delta[l].abs() > epsilon { part } else { 0.0 };
                    }
                }
                let mut merged = chunk.base();
                for l in 0..LANES {
                    merged[l] += sum[l];
                }
                merged
            },
        );
    }
}
