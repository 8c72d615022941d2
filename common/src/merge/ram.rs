//! RAM and RAM+: reinforced agent merging (arXiv 2601.13572; mergekit's tensor-local form of RAM+).
//!
//! A task vector counts where its magnitude is above `epsilon`. Where one model alone counts its value is taken, where several do the mean of theirs. RAM+
//! scales what is a model's alone by `1 + r * clamp(shared / unique, 0, alpha)`, from the counts of its shared and unique elements in the tensor.

use super::{Base, Combine, Default, Inputs, Kind, Method, ParameterSpec, Pass, Scope, Settings, round, statistics, task_vector};

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
            for element in elements {
                let counting = counting(inputs, element, epsilon[inputs.tensor]);
                for model in 0..models {
                    if counts_at(inputs, element, model, epsilon[inputs.tensor]) {
                        sums[if counting > 1 { model } else { models + model }] += 1.0;
                    }
                }
            }
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

fn counts_at(inputs: &Inputs<'_>, element: usize, model: usize, epsilon: f64) -> bool {
    f64::from(task_vector(inputs.models[model][element], inputs.base[element]).abs()) > epsilon
}

/// How many models count at an element.
fn counting(inputs: &Inputs<'_>, element: usize, epsilon: f64) -> usize {
    (0..inputs.models.len()).filter(|&model| counts_at(inputs, element, model, epsilon)).count()
}

impl Combine for Reinforced {
    #[expect(clippy::cast_precision_loss, reason = "a count of models")]
    fn block(&self, inputs: &Inputs<'_>, out: &mut [f32]) {
        let (epsilon, unique) = (self.epsilon[inputs.tensor], &self.unique[inputs.tensor]);
        for (element, out) in out.iter_mut().enumerate() {
            let counting = counting(inputs, element, epsilon);
            let base = inputs.base[element];
            let mut sum = 0.0;
            for (model, unique) in inputs.models.iter().zip(unique) {
                let delta = f64::from(task_vector(model[element], base));
                if delta.abs() > epsilon {
                    sum += if counting == 1 { unique * delta } else { delta / counting as f64 };
                }
            }
            *out = round(f64::from(base) + sum);
        }
    }
}
