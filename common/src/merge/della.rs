//! DELLA: drop elements of each task vector at random, the smaller the likelier, rescale the rest (Deep et al., DELLA-Merging, arXiv 2406.11617), with
//! mergekit's conventions: an element is kept with probability `density - epsilon + 2 epsilon rank / (n - 1)`, where its magnitude's rank counts from 0 along
//! the tensor's second side (a matrix's rows), or along a vector. Ties rank by place; a line of one element is kept with probability density.
//!
//! What is dropped is a pure function of seed, tensor name, model's place and element; it is not what mergekit's generator draws. `rescale_by` names mergekit's
//! rescaling (`l1`) or the paper's, by each element's probability (`density`).

use super::{
    Base, Combine, Default, Kind, Method, ParameterSpec, Pass, Scope, Settings, round,
    sparse::{COMMON, Piece, RESCALE_BY, SEED, Sparse, Sparsify, normalize, rescale, streams},
};
use crate::{
    recipe::{Merge, Parameters, Value},
    rng::{self, Stream},
};

/// With TIES's election of signs.
pub(super) struct Della;
/// The weighted sum of what is left.
pub(super) struct DellaLinear;

const fn parameters(normalized: bool) -> [ParameterSpec; 8] {
    let epsilon = ParameterSpec {
        name: "epsilon",
        scope: Scope::Model,
        kind: Kind::Number(0.0, 1.0),
        default: Default::Number(0.15),
        doc: "Half the range of the probabilities around density.",
    };
    [COMMON[0], COMMON[1], epsilon, COMMON[2], normalize(normalized), rescale(true), RESCALE_BY, SEED]
}

struct MagPrune {
    /// `[tensor][model]`.
    densities: Vec<Vec<f64>>,
    epsilons: Vec<Vec<f64>>,
    streams: Vec<Vec<Stream>>,
    /// For each tensor: whether what is kept is divided by its probability.
    divide: Vec<bool>,
}

fn prepare(settings: &Settings, pass: &Pass<'_>, elect: bool) -> Box<dyn Combine> {
    let by_density = settings.choice("rescale_by") == "density";
    let prune = MagPrune {
        densities: settings.per_model("density"),
        epsilons: settings.per_model("epsilon"),
        streams: streams(settings, pass.models()),
        divide: settings.flags("rescale").into_iter().map(|rescale| rescale && by_density).collect(),
    };
    Box::new(Sparse::prepare(settings, pass, prune, elect, !by_density))
}

/// Refuses probabilities outside (0, 1), as mergekit does.
fn check(merge: &Merge) -> Result<(), String> {
    let numbers = |parameters: &Parameters, name: &str| parameters.get(name).map(all_numbers).unwrap_or_default();
    for input in &merge.models {
        for density in numbers(&input.parameters, "density").into_iter().filter(|density| *density > 0.0 && *density < 1.0) {
            for epsilon in numbers(&input.parameters, "epsilon") {
                if density - epsilon <= 0.0 || density + epsilon >= 1.0 {
                    return Err(format!(
                        "density {density} with epsilon {epsilon}: density - epsilon and density + epsilon must lie between 0 and 1, both excluded"
                    ));
                }
            }
        }
    }
    Ok(())
}

fn all_numbers(value: &Value) -> Vec<f64> {
    match value {
        Value::Number(number) => vec![*number],
        Value::Numbers(numbers) => numbers.clone(),
        Value::Rules(rules) => rules.iter().flat_map(|rule| all_numbers(&rule.value)).collect(),
        Value::Flag(_) | Value::Text(_) => vec![],
    }
}

impl Sparsify for MagPrune {
    fn unit(&self, shape: &[usize]) -> usize {
        // The lines along the second side that share an index of the first; a vector is one line.
        if shape.len() < 2 { shape.iter().product() } else { shape[1..].iter().product() }
    }

    fn mask(&self, piece: &Piece<'_>, values: &mut [f64]) {
        let (density, epsilon) = (self.densities[piece.tensor][piece.model], self.epsilons[piece.tensor][piece.model]);
        if density >= 1.0 {
            return;
        }
        if density <= 0.0 {
            return values.fill(0.0);
        }
        let inner: usize = piece.shape.get(2..).unwrap_or(&[]).iter().product();
        let length = values.len() / inner.max(1);
        let mut draws = vec![0; values.len()];
        self.streams[piece.tensor][piece.model].fill(piece.offset as u64, &mut draws);
        let mut line = Vec::with_capacity(length);
        for first in 0..inner {
            line.clear();
            // Magnitudes order like their bits; the place below them breaks ties.
            line.extend((0..length).map(|index| {
                let magnitude = round(values[first + index * inner].abs());
                (u64::from(magnitude.to_bits()) << 32) | index as u64
            }));
            line.sort_unstable();
            for (rank, key) in line.iter().enumerate() {
                #[expect(clippy::cast_precision_loss, reason = "a place in a line")]
                let place = if length > 1 { rank as f64 / (length - 1) as f64 } else { 0.5 };
                let probability = density - epsilon + place * 2.0 * epsilon;
                let at = first + (key & 0xffff_ffff) as usize * inner;
                let factor = if self.divide[piece.tensor] { 1.0 / probability } else { 1.0 };
                values[at] = if u64::from(draws[at]) < rng::threshold(probability) { values[at] * factor } else { 0.0 };
            }
        }
    }
}

impl Method for Della {
    fn name(&self) -> &'static str {
        "della"
    }

    fn summary(&self) -> &'static str {
        "drop elements at random, the smaller the likelier, elect signs, merge what agrees (Deep et al., DELLA-Merging, arXiv 2406.11617)"
    }

    fn base(&self) -> Base {
        Base::Needed
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        const PARAMETERS: &[ParameterSpec] = &parameters(true);
        PARAMETERS
    }

    fn check(&self, merge: &Merge) -> Result<(), String> {
        check(merge)
    }

    fn prepare(&self, settings: &Settings, pass: &Pass<'_>) -> Box<dyn Combine> {
        prepare(settings, pass, true)
    }
}

impl Method for DellaLinear {
    fn name(&self) -> &'static str {
        "della_linear"
    }

    fn summary(&self) -> &'static str {
        "drop elements at random, the smaller the likelier, and sum the rest (Deep et al., DELLA-Merging, arXiv 2406.11617; mergekit)"
    }

    fn base(&self) -> Base {
        Base::Needed
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        const PARAMETERS: &[ParameterSpec] = &parameters(false);
        PARAMETERS
    }

    fn check(&self, merge: &Merge) -> Result<(), String> {
        check(merge)
    }

    fn prepare(&self, settings: &Settings, pass: &Pass<'_>) -> Box<dyn Combine> {
        prepare(settings, pass, false)
    }
}
