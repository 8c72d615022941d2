//! DELLA: drop elements of each task vector at random, the smaller the likelier, rescale the rest (Deep et al., DELLA-Merging, arXiv 2406.11617), with
//! mergekit's conventions: an element is kept with probability `density - epsilon + 2 epsilon rank / (n - 1)`, where its magnitude's rank counts from 0 along
//! the tensor's second side (a matrix's rows), or along a vector. Ties rank by place; a line of one element is kept with probability density.
//!
//! What is dropped is a pure function of seed, tensor name, model's place and element; it is not what mergekit's generator draws. `rescale_by` names mergekit's
//! rescaling (`l1`) or the paper's, by each element's probability (`density`).

use super::{
    Base, Combine, Default, Kind, Method, ParameterSpec, Pass, Scope, Settings,
    sparse::{COMMON, Piece, RESCALE_BY, SEED, Sparse, Sparsify, normalize, rescale, streams},
};
use crate::{
    recipe::{Merge, Parameters, Value},
    rng::{self, Stream},
    simd,
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

    fn draw(&self, piece: &Piece<'_>, factors: &mut [f64]) {
        let density = self.densities[piece.tensor()][piece.model];
        if density >= 1.0 {
            return;
        }
        if density <= 0.0 {
            return factors.fill(0.0);
        }
        let (mut magnitudes, mut draws) = (Vec::new(), vec![0; factors.len()]);
        piece.magnitudes(&mut magnitudes);
        self.streams[piece.tensor()][piece.model].fill(piece.offset(), &mut draws);
        let line = Line { density, epsilon: self.epsilons[piece.tensor()][piece.model], divide: self.divide[piece.tensor()] };
        // A line's elements stand `inner` apart; a piece may hold lines of several rows of a matrix.
        let inner: usize = piece.shape().get(2..).unwrap_or(&[]).iter().product();
        let length = (self.unit(piece.shape()) / inner.max(1)).max(1);
        if inner == 1 {
            let lines = magnitudes.chunks(length).zip(draws.chunks(length)).zip(factors.chunks_mut(length));
            lines.for_each(|((magnitudes, draws), factors)| line.draw(magnitudes, draws, factors));
            return;
        }
        for block in 0..factors.len() / (length * inner).max(1) {
            for first in (0..inner).map(|first| block * length * inner + first) {
                let along = |numbers: &[u32]| (0..length).map(|index| numbers[first + index * inner]).collect::<Vec<_>>();
                let mut of_line = vec![1.0; length];
                line.draw(&along(&magnitudes), &along(&draws), &mut of_line);
                of_line.iter().enumerate().for_each(|(index, factor)| factors[first + index * inner] = *factor);
            }
        }
    }
}

/// How one line is pruned.
struct Line {
    density: f64,
    epsilon: f64,
    divide: bool,
}

/// Most bins that a line's magnitudes are sorted into, and the powers of two that they span.
const BINS: usize = 1024;
const OCTAVES: usize = 16;
/// Bits of an F32's mantissa.
const MANTISSA: u32 = 23;
/// Elements from which on a line is sorted outright.
const LONG: usize = 1 << 16;

impl Line {
    /// The probability of being kept at a rank.
    #[inline(always)]
    #[expect(clippy::cast_precision_loss, reason = "a place in a line")]
    fn probability(&self, rank: usize, length: usize) -> f64 {
        let place = if length > 1 { rank as f64 / (length - 1) as f64 } else { 0.5 };
        self.density - self.epsilon + place * 2.0 * self.epsilon
    }

    fn draw(&self, magnitudes: &[u32], draws: &[u32], factors: &mut [f64]) {
        if self.divide || magnitudes.len() >= LONG {
            self.draw_by_sort(magnitudes, draws, factors);
        } else {
            self.draw_by_bins(magnitudes, draws, factors);
        }
    }

    fn draw_by_sort(&self, magnitudes: &[u32], draws: &[u32], factors: &mut [f64]) {
        // The place below the magnitude breaks ties.
        let mut line: Vec<_> =
            magnitudes.iter().enumerate().map(|(index, magnitude)| (u64::from(*magnitude) << 32) | index as u64).collect();
        line.sort_unstable();
        for (rank, key) in line.iter().enumerate() {
            let at = (key & 0xffff_ffff) as usize;
            let probability = self.probability(rank, line.len());
            let kept = if self.divide { 1.0 / probability } else { 1.0 };
            factors[at] = if rng::falls(draws[at], rng::threshold(probability)) { kept } else { 0.0 };
        }
    }

    /// The same without a sort: probabilities grow with the rank, so nearly all draws are decided by the ranks that an element's bin may have. Only for
    /// the few others the rank is counted.
    fn draw_by_bins(&self, magnitudes: &[u32], draws: &[u32], factors: &mut [f64]) {
        let length = magnitudes.len();
        let bins = length.next_power_of_two().clamp(4 * OCTAVES, BINS);
        let shift = MANTISSA - (bins / OCTAVES).ilog2();
        let top = simd::dispatch(
            #[inline(always)]
            || magnitudes.iter().fold(0, |top, magnitude| top.max(*magnitude)),
        );
        #[expect(clippy::cast_possible_truncation, reason = "at most 1024 bins")]
        let lowest = (top >> shift).saturating_sub(bins as u32 - 1);
        let bin = |magnitude: u32| (magnitude >> shift).saturating_sub(lowest) as usize % BINS;
        let mut counts = [0u32; BINS];
        magnitudes.iter().for_each(|magnitude| counts[bin(*magnitude)] += 1);
        // Draws below the first number of a bin are kept, those from the second on are dropped. No probability is 1, so they fit 32 bits.
        let mut bounds = [(0, 0); BINS];
        let mut before = 0;
        for (bounds, count) in bounds.iter_mut().zip(&counts[..bins]).filter(|(_, count)| **count > 0) {
            let threshold = |rank| u32::try_from(rng::threshold(self.probability(rank, length))).unwrap_or(u32::MAX);
            let count = *count as usize;
            *bounds = (threshold(before), threshold(before + count - 1));
            before += count;
        }
        for (at, ((magnitude, draw), factor)) in magnitudes.iter().zip(draws).zip(factors).enumerate() {
            let (low, high) = bounds[bin(*magnitude)];
            *factor = f64::from(u8::from(*draw < low));
            if (*draw >= low) & (*draw < high) {
                let probability = self.probability(rank(magnitudes, at), length);
                *factor = f64::from(u8::from(rng::falls(*draw, rng::threshold(probability))));
            }
        }
    }
}

/// How many elements come before this one: smaller ones, and equal ones at earlier places.
fn rank(magnitudes: &[u32], at: usize) -> usize {
    let own = magnitudes[at];
    simd::dispatch(
        #[inline(always)]
        || {
            let count = |numbers: &[u32], before: u32| numbers.iter().map(|number| u32::from(*number < before)).sum::<u32>();
            // A magnitude's bits never reach 2^31.
            count(&magnitudes[..at], own + 1) + count(&magnitudes[at..], own)
        },
    ) as usize
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
