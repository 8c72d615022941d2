//! DELLA: drop elements of each task vector at random, the smaller the likelier, rescale the rest (Deep et al., DELLA-Merging, arXiv 2406.11617), with
//! mergekit's conventions: an element is kept with probability `density - epsilon + 2 epsilon rank / (n - 1)`, where its magnitude's rank counts from 0 along
//! the tensor's second side (a matrix's rows), or along a vector. Ties rank by place; a line of one element is kept with probability density.
//!
//! What is dropped is a pure function of seed, tensor name, model's place and element; it is not what mergekit's generator draws. `rescale_by` names mergekit's
//! rescaling (`l1`) or the paper's, by each element's probability (`density`).

use std::cell::RefCell;

use super::{
    Base, Combine, Default, Kind, Method, ParameterSpec, Pass, Scope, Settings,
    lanes::{self, LANES},
    sparse::{COMMON, Draws, Piece, RESCALE_BY, SEED, Sparse, Sparsify, normalize, rescale, streams},
};
use crate::{
    checkpoint::padded,
    recipe::{Merge, Parameters, Value},
    rng::Stream,
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
    const DRAWS: bool = true;

    fn unit(&self, shape: &[usize]) -> usize {
        // The lines along the second side that share an index of the first; a vector is one line.
        if shape.len() < 2 { shape.iter().product() } else { shape[1..].iter().product() }
    }

    fn draw(&self, piece: &Piece<'_>, draws: &mut Draws) {
        let density = self.densities[piece.tensor()][piece.model];
        if density >= 1.0 {
            return draws.kept.fill(u64::MAX);
        }
        if density <= 0.0 {
            return;
        }
        SCRATCH.with_borrow_mut(|Scratch { magnitudes, numbers, line }| {
            self.draw_with(piece, draws, (magnitudes, numbers), line);
        });
    }
}

impl MagPrune {
    /// Draws for a piece, of a density between 0 and 1.
    fn draw_with(
        &self,
        piece: &Piece<'_>,
        draws: &mut Draws,
        (magnitudes, numbers): (&mut Vec<u32>, &mut Vec<u32>),
        scratch: &mut LineScratch,
    ) {
        let density = self.densities[piece.tensor()][piece.model];
        piece.magnitudes(magnitudes);
        numbers.resize(magnitudes.len(), 0);
        self.streams[piece.tensor()][piece.model].fill(piece.offset(), numbers);
        let divide = self.divide[piece.tensor()];
        draws.factors.resize(if divide { numbers.len() } else { 0 }, 0.0);
        // A line's elements stand `inner` apart; a piece may hold lines of several rows of a matrix.
        let inner: usize = piece.shape().get(2..).unwrap_or(&[]).iter().product();
        let length = (self.unit(piece.shape()) / inner.max(1)).max(1);
        let line = Line::new(density, self.epsilons[piece.tensor()][piece.model], length);
        if inner == 1 {
            let mut factors = draws.factors.chunks_mut(length);
            for (magnitudes, numbers) in magnitudes.chunks(length).zip(numbers.chunks_mut(length)) {
                line.draw(magnitudes, numbers, factors.next(), scratch);
            }
        } else {
            for first in (0..numbers.len()).step_by(length * inner).flat_map(|block| (0..inner).map(move |first| block + first)) {
                let along = (first..).step_by(inner).take(length);
                let of = |row: &[u32]| along.clone().map(|at| row[at]).collect::<Vec<_>>();
                let (magnitudes, mut decided) = (of(magnitudes), of(numbers));
                let mut factors = divide.then(|| vec![0.0; length]);
                line.draw(&magnitudes, &mut decided, factors.as_deref_mut(), scratch);
                along.clone().zip(decided).for_each(|(at, decided)| numbers[at] = decided);
                along.zip(factors.iter().flatten()).for_each(|(at, factor)| draws.factors[at] = *factor);
            }
        }
        numbers.resize(numbers.len().next_multiple_of(LANES), 0);
        simd::dispatch(
            #[inline(always)]
            || {
                for (kept, numbers) in draws.kept.iter_mut().zip(numbers.as_chunks::<LANES>().0) {
                    *kept = lanes::bits(numbers, |number| number == KEPT);
                }
            },
        );
    }
}

/// What stands for a number that was drawn, when it is decided.
const KEPT: u32 = 1;
const DROPPED: u32 = 0;

/// How one line is pruned: the probability of being kept grows with the rank.
struct Line {
    lowest: f64,
    /// From one rank to the next.
    step: f64,
}

/// Most bins that a line's magnitudes are sorted into, the powers of two that they span, and the elements that there is a bin for.
const BINS: usize = 1024;
const OCTAVES: usize = 16;
const PER_BIN: usize = 8;
/// Elements of a line from which on their ranks are found by a sort of all.
const MANY: usize = 128;
/// Bits of an F32's mantissa.
const MANTISSA: u32 = 23;
/// Elements from which on a line is sorted outright.
const LONG: usize = 1 << 16;

impl Line {
    #[expect(clippy::cast_precision_loss, reason = "a place in a line")]
    fn new(density: f64, epsilon: f64, length: usize) -> Self {
        if length < 2 {
            return Self { lowest: density, step: 0.0 };
        }
        Self { lowest: density - epsilon, step: 2.0 * epsilon / (length - 1) as f64 }
    }

    #[inline(always)]
    fn probability(&self, rank: u32) -> f64 {
        self.lowest + f64::from(rank) * self.step
    }

    /// The number that draws fall below at a rank: [`crate::rng::threshold`] in 32 bits, since no probability is 1, and at least 1, since none is 0.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the low half is what is wanted")]
    fn threshold(&self, rank: u32) -> u32 {
        /// Whole numbers below 2^32 that this is added to stand in the low half of the sum's bits: a conversion that every vector level has.
        const SHIFT: f64 = (1u64 << 52) as f64;
        let threshold = (self.probability(rank) * 4_294_967_296.0 + 0.5).floor().clamp(1.0, f64::from(u32::MAX));
        (threshold + SHIFT).to_bits() as u32
    }

    /// Replaces the numbers that were drawn for a line by [`KEPT`] and [`DROPPED`], and writes what is kept is multiplied by where that is asked for.
    fn draw(&self, magnitudes: &[u32], numbers: &mut [u32], factors: Option<&mut [f64]>, scratch: &mut LineScratch) {
        if factors.is_some() || magnitudes.len() >= LONG {
            self.draw_by_sort(magnitudes, numbers, factors);
        } else {
            simd::dispatch(
                #[inline(always)]
                || self.draw_by_bins(magnitudes, numbers, scratch),
            );
        }
    }

    fn draw_by_sort(&self, magnitudes: &[u32], numbers: &mut [u32], mut factors: Option<&mut [f64]>) {
        for (at, rank) in ranks(magnitudes).into_iter().enumerate() {
            if let Some(factors) = &mut factors {
                factors[at] = 1.0 / self.probability(rank);
            }
            numbers[at] = if numbers[at] < self.threshold(rank) { KEPT } else { DROPPED };
        }
    }

    /// The same without a sort: probabilities grow with the rank, so most draws are decided whatever the rank, and nearly all others by the ranks that an
    /// element's bin may have. Only for the few that are left the rank is counted.
    #[inline(always)]
    fn draw_by_bins(&self, magnitudes: &[u32], numbers: &mut [u32], LineScratch { open, tables }: &mut LineScratch) {
        let length = magnitudes.len();
        let bins = Bins::over(magnitudes, (length / PER_BIN).next_power_of_two().clamp(4 * OCTAVES, BINS));
        bins.ranks(magnitudes, tables);
        let Tables { first: low, last: high, .. } = &mut **tables;
        low[..bins.count].iter_mut().for_each(|bound| *bound = self.threshold(*bound));
        high[..bins.count].iter_mut().for_each(|bound| *bound = self.threshold(*bound));
        // Whatever the rank, draws below the first of these are kept, those from the second on are dropped.
        #[expect(clippy::cast_possible_truncation, reason = "long lines are sorted")]
        let range = (self.threshold(0), self.threshold(length as u32 - 1));
        open.resize(length, 0);
        let open = open.as_mut_slice();
        let mut left = 0;
        for first in (0..length).step_by(LANES) {
            let here = padded(&numbers[first..length.min(first + LANES)]);
            // One comparison for both bounds; zeros beyond the end lie below them.
            let inside = lanes::bits(&here, |number| number.wrapping_sub(range.0) < range.1 - range.0);
            for lane in lanes::set(inside) {
                let (at, number) = (first + lane, here[lane]);
                // The same with the bounds of the bin. What is decided here lies outside the range afterwards.
                let bin = bins.of(magnitudes[at]);
                let is_open = (number >= low[bin]) & (number < high[bin]);
                let decided = if number < low[bin] { 0 } else { u32::MAX };
                numbers[at] = if is_open { number } else { decided };
                #[expect(clippy::cast_possible_truncation, reason = "long lines are sorted")]
                let place = at as u16;
                open[left] = place;
                left += usize::from(is_open);
            }
        }
        // Where many values are equal many are left.
        let ranks = if left > MANY { ranks(magnitudes) } else { Vec::new() };
        for at in open[..left].iter().map(|at| usize::from(*at)) {
            let rank = ranks.get(at).copied().unwrap_or_else(|| rank(magnitudes, at));
            numbers[at] = if numbers[at] < self.threshold(rank) { 0 } else { u32::MAX };
        }
        for number in numbers {
            *number = if *number < range.0 { KEPT } else { DROPPED };
        }
    }
}

thread_local! {
    /// One thread's buffers, allocated once and used again.
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// A piece's magnitudes, the numbers that are drawn for it, and what its lines need.
#[derive(std::default::Default)]
struct Scratch {
    magnitudes: Vec<u32>,
    numbers: Vec<u32>,
    line: LineScratch,
}

/// The places of a line that are not decided yet, and its bins.
#[derive(std::default::Default)]
struct LineScratch {
    open: Vec<u16>,
    tables: Box<Tables>,
}

/// Of each bin how many magnitudes it has, neighbours counted apart so that equal ones do not wait for each other, and their first and last rank.
struct Tables {
    counts: [[u32; BINS]; 2],
    first: [u32; BINS],
    last: [u32; BINS],
}

impl std::default::Default for Tables {
    fn default() -> Self {
        Self { counts: [[0; BINS]; 2], first: [0; BINS], last: [0; BINS] }
    }
}

/// A line's magnitudes in bins of equal width on a logarithmic scale, the lowest of which holds all that is smaller.
struct Bins {
    shift: u32,
    lowest: u32,
    count: usize,
}

impl Bins {
    #[inline(always)]
    fn over(magnitudes: &[u32], count: usize) -> Self {
        let shift = MANTISSA - (count / OCTAVES).ilog2();
        let top = magnitudes.iter().fold(0, |top, magnitude| top.max(*magnitude));
        #[expect(clippy::cast_possible_truncation, reason = "at most 1024 bins")]
        let lowest = (top >> shift).saturating_sub(count as u32 - 1);
        Self { shift, lowest, count }
    }

    #[inline(always)]
    fn of(&self, magnitude: u32) -> usize {
        (magnitude >> self.shift).saturating_sub(self.lowest) as usize % BINS
    }

    /// Writes the first and the last rank of each bin's magnitudes; of an empty bin, which no magnitude asks for, whatever.
    #[inline(always)]
    fn ranks(&self, magnitudes: &[u32], Tables { counts, first, last }: &mut Tables) {
        counts.iter_mut().for_each(|counts| counts[..self.count].fill(0));
        let (pairs, odd) = magnitudes.as_chunks::<2>();
        for [a, b] in pairs {
            counts[0][self.of(*a)] += 1;
            counts[1][self.of(*b)] += 1;
        }
        odd.iter().for_each(|magnitude| counts[0][self.of(*magnitude)] += 1);
        let mut before = 0u32;
        for bin in 0..self.count {
            first[bin] = before;
            before += counts[0][bin] + counts[1][bin];
            last[bin] = before.saturating_sub(1);
        }
    }
}

/// Every element's rank, by a sort; the place breaks ties.
fn ranks(magnitudes: &[u32]) -> Vec<u32> {
    let mut order: Vec<_> = (0..).zip(magnitudes).map(|(place, magnitude)| u64::from(*magnitude) << 32 | place).collect();
    order.sort_unstable();
    let mut ranks = vec![0; order.len()];
    for (rank, key) in (0..).zip(order) {
        ranks[(key & 0xffff_ffff) as usize] = rank;
    }
    ranks
}

/// How many elements come before this one: smaller ones, and equal ones at earlier places.
#[inline(always)]
fn rank(magnitudes: &[u32], at: usize) -> u32 {
    let own = magnitudes[at];
    let count = |numbers: &[u32], before: u32| numbers.iter().map(|number| u32::from(*number < before)).sum::<u32>();
    // A magnitude's bits never reach 2^31.
    count(&magnitudes[..at], own + 1) + count(&magnitudes[at..], own)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_decide_as_a_sort_does() {
        let mut scratch = LineScratch::default();
        let stream = |seed: u64, length: usize| {
            let mut numbers = vec![0; length];
            Stream::new(seed, "line").fill(0, &mut numbers);
            numbers
        };
        let values: [fn(u32) -> f32; 5] =
            [|n| n as f32, |n| (n % 7) as f32, |_| 0.0, |n| if n % 5 == 0 { 1e-30 } else { 1.0 }, |n| f32::from_bits(n >> 2)];
        for length in [1, 2, 63, 64, 65, 130, 1000, 5000] {
            for (seed, value) in (0..).zip(values) {
                let magnitudes: Vec<_> = stream(seed, length).into_iter().map(|n| value(n).to_bits()).collect();
                for (density, epsilon) in [(0.2, 0.1), (0.5, 0.0), (0.5, 0.499_999), (0.2, 0.2 - 1e-13), (0.9, 0.1 - 1e-13)] {
                    let line = Line::new(density, epsilon, length);
                    let drawn = stream(seed + 100, length);
                    // Draws at the very ends too.
                    let drawn: Vec<_> = drawn.into_iter().enumerate().map(|(at, n)| [0, u32::MAX, n, n][at % 4]).collect();
                    let (mut by_bins, mut by_sort) = (drawn.clone(), drawn);
                    line.draw_by_bins(&magnitudes, &mut by_bins, &mut scratch);
                    line.draw_by_sort(&magnitudes, &mut by_sort, None);
                    assert_eq!(by_bins, by_sort, "{length} {seed} {density} {epsilon}");
                }
            }
        }
    }
}
