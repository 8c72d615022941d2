//! What TIES, DARE, DELLA and Model Breadcrumbs share, as in mergekit: sparse task vectors, weighted; where `elect` says so only those
//! whose sign is that of their sum; their sum, divided by the weights that take part where `normalize` says so, times lambda, on top of the base.
//!
//! Rescaling keeps the L1 norm of each tensor's task vector, as mergekit does, or divides by the probability of being kept, as the papers of DARE and
//! DELLA do.

use std::ops::Range;

use super::{
    Combine, Default, Inputs, Kind, ParameterSpec, Pass, Scope, Settings,
    drawn::{Bits, Drawn, Place},
    lanes::{self, Chunk, LANES, Lanes},
    linear::WEIGHT,
    order::{self, Cost, Selector},
    pass::CHUNK,
    statistics,
    task_arithmetic::LAMBDA,
};
use crate::rng::Stream;

/// L1 norms below this are not rescaled, and sums of weights below it do not divide (mergekit has 1e-7 and 0).
const SMALL: f64 = 1e-8;

pub(super) const DENSITY: ParameterSpec = ParameterSpec {
    name: "density",
    scope: Scope::Model,
    kind: Kind::Number(0.0, 1.0),
    default: Default::Number(1.0),
    doc: "Share of each tensor's task vector that is kept.",
};

pub(super) const SEED: ParameterSpec = ParameterSpec {
    name: "seed",
    scope: Scope::Merge,
    kind: Kind::Integer(0.0, 9_007_199_254_740_992.0),
    default: Default::Number(0.0),
    doc: "Seed of what is dropped.",
};

const fn flag(name: &'static str, default: bool, doc: &'static str) -> ParameterSpec {
    ParameterSpec { name, scope: Scope::Merge, kind: Kind::Flag, default: Default::Flag(default), doc }
}

/// Whether to divide by the weights that take part.
pub(super) const fn normalize(default: bool) -> ParameterSpec {
    flag("normalize", default, "Divide by the sum of the weights that take part.")
}

/// Whether to rescale what is kept.
pub(super) const fn rescale(default: bool) -> ParameterSpec {
    flag("rescale", default, "Rescale what is kept.")
}

/// The parameters of every sparse method; each adds its own.
pub(super) const COMMON: [ParameterSpec; 3] = [WEIGHT, DENSITY, LAMBDA];

pub(super) const RESCALE_BY: ParameterSpec = ParameterSpec {
    name: "rescale_by",
    scope: Scope::Merge,
    kind: Kind::Choice(&["l1", "density"]),
    default: Default::Choice("l1"),
    doc: "What rescaling keeps: the L1 norm (mergekit), or the mean, by 1 / density (the papers).",
};

/// A piece of a model's task vector.
pub(super) struct Piece<'a> {
    inputs: &'a Inputs<'a>,
    /// Of the block.
    elements: Range<usize>,
    pub(super) model: usize,
}

impl Piece<'_> {
    pub(super) fn tensor(&self) -> usize {
        self.inputs.tensor
    }

    pub(super) fn shape(&self) -> &[usize] {
        self.inputs.shape
    }

    /// Of its first element, from the tensor's start.
    pub(super) fn offset(&self) -> u64 {
        (self.inputs.offset + self.elements.start) as u64
    }

    /// Writes the magnitudes' bits, which order as they do.
    pub(super) fn magnitudes(&self, out: &mut Vec<u32>) {
        out.resize(self.elements.len(), 0);
        let inputs = Inputs {
            base: self.inputs.base.part(self.elements.clone()),
            models: &[self.inputs.models[self.model].part(self.elements.clone())],
            ..*self.inputs
        };
        lanes::walk(
            &inputs,
            0..out.len(),
            #[inline(always)]
            |chunk| chunk.put(&chunk.task_vector(0).map(|change| change.abs().to_bits()), out),
        );
    }
}

/// What is drawn for a piece.
#[derive(Clone, Default)]
pub(super) struct Draws {
    /// Which elements are kept.
    pub(super) kept: Bits,
    /// What each kept element is multiplied by, where that differs between elements; else empty.
    pub(super) factors: Vec<f64>,
}

/// How a task vector is made sparse: by the values themselves, by draws, or by both.
pub(super) trait Sparsify: Send + Sync {
    /// Whether anything is drawn.
    const DRAWS: bool;

    /// Elements of a tensor of this shape whose draws depend on each other.
    fn unit(&self, _shape: &[usize]) -> usize {
        1
    }

    /// Says what is kept of a piece. `draws` comes with a zero for every element and without factors.
    fn draw(&self, _piece: &Piece<'_>, _draws: &mut Draws) {}

    /// What all kept elements of a tensor and model are multiplied by.
    fn factor(&self, _tensor: usize, _model: usize) -> f64 {
        1.0
    }

    /// The values that are left of a chunk of a model's task vector; `draws` begin at element `start` of the block.
    #[inline(always)]
    fn kept(&self, chunk: &Chunk<'_>, tensor: usize, model: usize, (start, draws): (usize, &Draws)) -> Lanes {
        let mut values = self.trim(tensor, model, chunk.delta(model));
        if Self::DRAWS {
            let bits = chunk.word(start, &draws.kept);
            for (l, value) in values.iter_mut().enumerate() {
                *value = if bits >> l & 1 == 1 { *value } else { 0.0 };
            }
            if !draws.factors.is_empty() {
                values = lanes::each(&values, &chunk.behind(start, &draws.factors), |value, factor| value * factor);
            }
        }
        values
    }

    /// The values that are left: zero for those that are dropped for what they are.
    #[inline(always)]
    fn trim(&self, _tensor: usize, _model: usize, values: Lanes) -> Lanes {
        values
    }
}

/// Sparse task vectors and how they are joined.
pub(super) struct Sparse<S> {
    sparsify: S,
    /// `[tensor][model]`: the weights, with the factors that keep the L1 norms.
    scales: Vec<Vec<f64>>,
    weights: Vec<Vec<f64>>,
    lambda: Vec<f64>,
    normalize: Vec<bool>,
    elect: bool,
    drawn: Drawn,
}

impl<S: Sparsify> Sparse<S> {
    /// Reads the common parameters, and takes the L1 norms where `keep_norm` says so.
    pub(super) fn prepare(settings: &Settings, pass: &Pass<'_>, sparsify: S, elect: bool, keep_norm: bool) -> Self {
        let weights = settings.per_model("weight");
        let scales = |(tensor, row): (usize, &Vec<f64>)| {
            row.iter().enumerate().map(|(model, weight)| weight * sparsify.factor(tensor, model)).collect()
        };
        let keep_norm = keep_norm && settings.flags("rescale").contains(&true);
        let pieces = |tensor: usize| {
            let length = Self::piece(&sparsify, pass.shape(tensor));
            let pieces = if S::DRAWS && keep_norm { pass.elements()[tensor].div_ceil(length) } else { 0 };
            (pieces, length.div_ceil(LANES))
        };
        let mut this = Self {
            scales: weights.iter().enumerate().map(scales).collect(),
            drawn: Drawn::new((0..pass.elements().len()).map(pieces), pass.models()),
            weights,
            lambda: settings.per_tensor("lambda"),
            normalize: settings.flags("normalize"),
            sparsify,
            elect,
        };
        if keep_norm {
            let norms = this.norms(pass);
            for ((scales, norms), _) in
                this.scales.iter_mut().zip(&norms).zip(settings.flags("rescale")).filter(|(_, rescale)| *rescale)
            {
                for (model, scale) in scales.iter_mut().enumerate() {
                    let (before, after) = (norms[2 * model], norms[2 * model + 1]);
                    if before >= SMALL && after >= SMALL {
                        *scale *= before / after;
                    }
                }
            }
        }
        this
    }

    /// For each tensor and model the L1 norms before and after.
    fn norms(&self, pass: &Pass<'_>) -> Vec<Vec<f64>> {
        let jobs = pass.jobs_by(|_, shape| self.sparsify.unit(shape));
        statistics::sums_by(
            &pass.with(&jobs),
            |shape| Self::piece(&self.sparsify, shape),
            2 * pass.models(),
            |inputs, elements, sums| {
                let mut draws = Draws::default();
                for (model, sums) in sums.chunks_mut(2).enumerate() {
                    let place = self.draw(inputs, elements.clone(), model, &mut draws);
                    let start = elements.start;
                    lanes::sum(
                        inputs,
                        elements.clone(),
                        sums,
                        #[inline(always)]
                        |chunk, sums| {
                            let kept = self.sparsify.kept(chunk, inputs.tensor, model, (start, &draws));
                            sums[0].add(&chunk.delta(model).map(f64::abs));
                            sums[1].add(&kept.map(f64::abs));
                        },
                    );
                    if draws.factors.is_empty() {
                        self.drawn.put(place, &draws.kept);
                    }
                }
            },
        )
    }

    /// Draws for a piece of a model's task vector, or remembers.
    fn draw(&self, inputs: &Inputs<'_>, elements: Range<usize>, model: usize, draws: &mut Draws) -> Place {
        let piece = (inputs.offset + elements.start) / Self::piece(&self.sparsify, inputs.shape);
        let place = Place { tensor: inputs.tensor, piece, model };
        if S::DRAWS {
            draws.factors.clear();
            if let Some(kept) = self.drawn.take(place) {
                draws.kept = kept;
            } else {
                draws.kept.clear();
                draws.kept.resize(elements.len().div_ceil(LANES), 0);
                self.sparsify.draw(&Piece { inputs, elements, model }, draws);
            }
        }
        place
    }

    /// Elements that are treated together.
    fn piece(sparsify: &S, shape: &[usize]) -> usize {
        let unit = sparsify.unit(shape).max(1);
        if CHUNK.is_multiple_of(unit) { CHUNK } else { unit }
    }
}

impl<S: Sparsify> Combine for Sparse<S> {
    fn block(&self, inputs: &Inputs<'_>, out: &mut [f32]) {
        let (scales, weights) = (self.scales[inputs.tensor].as_slice(), self.weights[inputs.tensor].as_slice());
        let (lambda, normalize) = (self.lambda[inputs.tensor], self.normalize[inputs.tensor]);
        let total: f64 = weights.iter().sum();
        let step = Self::piece(&self.sparsify, inputs.shape);
        let mut draws = vec![Draws::default(); inputs.models.len()];
        let mut rows = vec![[0.0; LANES]; inputs.models.len()];
        for start in (0..out.len()).step_by(step) {
            let elements = start..out.len().min(start + step);
            for (model, draws) in draws.iter_mut().enumerate() {
                self.draw(inputs, elements.clone(), model, draws);
            }
            lanes::walk(
                inputs,
                elements,
                #[inline(always)]
                |chunk| {
                    let (mut sum, mut divisor) = ([0.0; LANES], [total; LANES]);
                    for (model, (row, scale)) in rows.iter_mut().zip(scales).enumerate() {
                        let kept = self.sparsify.kept(chunk, inputs.tensor, model, (start, &draws[model]));
                        for l in 0..LANES {
                            row[l] = kept[l] * scale;
                            sum[l] += row[l];
                        }
                    }
                    if self.elect {
                        elect(&rows, weights, &mut sum, &mut divisor);
                    }
                    if normalize {
                        sum =
                            lanes::each(&sum, &divisor, |sum, divisor| sum / if divisor.abs() >= SMALL { divisor } else { 1.0 });
                    }
                    let mut merged = chunk.base();
                    for l in 0..LANES {
                        merged[l] += lambda * sum[l];
                    }
                    chunk.store(&merged, out);
                },
            );
        }
    }

    fn unit(&self, _tensor: usize, shape: &[usize]) -> usize {
        self.sparsify.unit(shape)
    }
}

/// Replaces sums by those of the values that have their sign (a sum of zero counts as positive), and gives the sums of those values' weights.
#[inline(always)]
fn elect(rows: &[Lanes], weights: &[f64], sum: &mut Lanes, divisor: &mut Lanes) {
    let mut sign = [0.0; LANES];
    for l in 0..LANES {
        sign[l] = if sum[l] >= 0.0 { 1.0 } else { -1.0 };
    }
    (*sum, *divisor) = ([0.0; LANES], [0.0; LANES]);
    for (row, weight) in rows.iter().zip(weights) {
        for l in 0..LANES {
            let agrees = row[l] * sign[l] > 0.0;
            sum[l] += if agrees { row[l] } else { 0.0 };
            divisor[l] += if agrees { *weight } else { 0.0 };
        }
    }
}

/// Keeps the magnitudes between two bounds, both included.
pub(super) struct Band {
    /// `[tensor][model]`.
    bounds: Vec<Vec<(f64, f64)>>,
}

impl Band {
    /// Keeps, of each tensor and model, the magnitudes of the ranks (0 is the smallest) from the first to the second that `ranks(tensor, model)`
    /// gives, with all that tie with them; `None` keeps none.
    pub(super) fn prepare(pass: &Pass<'_>, ranks: impl Fn(usize, usize) -> Option<(u64, u64)>) -> Self {
        let wanted: Vec<Vec<_>> =
            (0..pass.elements().len()).map(|tensor| (0..pass.models()).map(|model| ranks(tensor, model)).collect()).collect();
        let numbers = |wanted: &Vec<Option<(u64, u64)>>| wanted.iter().flat_map(|ranks| numbers(*ranks)).collect::<Vec<_>>();
        let names: Vec<_> = wanted.iter().map(numbers).collect();
        let names: Vec<_> = names.iter().map(Vec::as_slice).collect();
        let table = pass.once("band", &names, || {
            let selector = Selector::default();
            wanted.iter().enumerate().map(|(tensor, wanted)| bounds(&selector, pass, tensor, wanted)).collect()
        });
        let pairs = |row: &Vec<f64>| row.as_chunks::<2>().0.iter().map(|[low, high]| (*low, *high)).collect();
        Self { bounds: table.iter().map(pairs).collect() }
    }
}

/// Ranks as numbers; -1 for none.
#[expect(clippy::cast_precision_loss, reason = "ranks below 2^53")]
fn numbers(ranks: Option<(u64, u64)>) -> [f64; 2] {
    ranks.map_or([-1.0; 2], |(low, high)| [low as f64, high as f64])
}

/// The bounds of one tensor's models, each a lower and an upper one.
fn bounds(selector: &Selector, pass: &Pass<'_>, tensor: usize, wanted: &[Option<(u64, u64)>]) -> Vec<f64> {
    let last = pass.elements()[tensor].saturating_sub(1) as u64;
    // The largest has no upper bound, and the smallest no lower one; where neither is needed there is nothing to search.
    let needed = |wanted: &Option<(u64, u64)>| {
        let (low, high) = wanted.unwrap_or((0, last));
        let low = Some(low).filter(|low| *low != 0);
        low.into_iter().chain(Some(high).filter(|high| *high != last)).collect::<Vec<_>>()
    };
    let searched: Vec<_> = wanted.iter().map(needed).collect();
    let found = selector.select(pass, Some(tensor), &searched, (Cost::Low, order::magnitudes));
    let bounds = |model: usize| {
        let (searched, found) = (&searched[model], &found[model]);
        let Some((low, high)) = &wanted[model] else {
            return [f64::INFINITY, f64::NEG_INFINITY];
        };
        let of = |rank: &u64, bound: f64| {
            searched.iter().position(|searched| searched == rank).map_or(bound, |at| f64::from(found[at]))
        };
        [if *low == 0 { 0.0 } else { of(low, 0.0) }, if *high == last { f64::INFINITY } else { of(high, f64::INFINITY) }]
    };
    (0..wanted.len()).flat_map(bounds).collect()
}

impl Sparsify for Band {
    const DRAWS: bool = false;

    #[inline(always)]
    fn trim(&self, tensor: usize, model: usize, mut values: Lanes) -> Lanes {
        let (low, high) = self.bounds[tensor][model];
        for value in &mut values {
            let magnitude = value.abs();
            *value = if (magnitude >= low) & (magnitude <= high) { *value } else { 0.0 };
        }
        values
    }
}

/// The random numbers of every tensor and model.
pub(super) fn streams(settings: &Settings, models: usize) -> Vec<Vec<Stream>> {
    let seed = settings.integer("seed");
    let stream = |tensor, model| Stream::new(seed, &format!("{}#{model}", settings.layers().name(tensor)));
    (0..settings.layers().tensors()).map(|tensor| (0..models).map(|model| stream(tensor, model)).collect()).collect()
}
