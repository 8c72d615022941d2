//! What TIES, DARE, DELLA and Model Breadcrumbs share, as in mergekit: sparse task vectors, weighted; where `elect` says so only those
//! whose sign is that of their sum; their sum, divided by the weights that take part where `normalize` says so, times lambda, on top of the base.
//!
//! Rescaling keeps the L1 norm of each tensor's task vector, as mergekit does, or divides by the probability of being kept, as the papers of DARE and
//! DELLA do.

use std::ops::Range;

use super::{
    Combine, Default, Inputs, Kind, ParameterSpec, Pass, Scope, Settings,
    lanes::LANES,
    linear::WEIGHT,
    order::{self, Selector},
    pass::CHUNK,
    round, statistics,
    task_arithmetic::LAMBDA,
    task_vector,
};
use crate::{rng::Stream, simd};

/// Elements that are treated together where a method does not need lines.
const PIECE: usize = 1024;
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

/// Where a piece of a task vector stands.
pub(super) struct Piece<'a> {
    pub(super) tensor: usize,
    pub(super) shape: &'a [usize],
    /// Of its first element, from the tensor's start.
    pub(super) offset: usize,
    pub(super) model: usize,
}

/// How a task vector is made sparse.
pub(super) trait Sparsify: Send + Sync {
    /// Elements of a tensor of this shape whose masks depend on each other.
    fn unit(&self, _shape: &[usize]) -> usize {
        1
    }

    /// Sets to zero what is dropped, and rescales what is kept where that does not depend on the rest.
    fn mask(&self, piece: &Piece<'_>, values: &mut [f64]);
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
}

impl<S: Sparsify> Sparse<S> {
    /// Reads the common parameters, and takes the L1 norms where `keep_norm` says so.
    pub(super) fn prepare(settings: &Settings, pass: &Pass<'_>, sparsify: S, elect: bool, keep_norm: bool) -> Self {
        let weights = settings.per_model("weight");
        let mut this = Self {
            scales: weights.clone(),
            weights,
            lambda: settings.per_tensor("lambda"),
            normalize: settings.flags("normalize"),
            sparsify,
            elect,
        };
        let rescale = settings.flags("rescale");
        if keep_norm && rescale.contains(&true) {
            let norms = this.norms(pass);
            for ((scales, norms), _) in this.scales.iter_mut().zip(&norms).zip(rescale).filter(|(_, rescale)| *rescale) {
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
            |shape| self.piece(shape, CHUNK),
            2 * pass.models(),
            |inputs, elements, sums| {
                let mut values = Vec::new();
                for (model, sums) in sums.chunks_mut(2).enumerate() {
                    deltas(inputs, model, elements.clone(), &mut values);
                    sums[0] = statistics::magnitude(&values);
                    self.sparsify.mask(&piece(inputs, elements.start, model), &mut values);
                    sums[1] = statistics::magnitude(&values);
                }
            },
        )
    }

    /// Elements that are treated together: about as many as `usual`.
    fn piece(&self, shape: &[usize], usual: usize) -> usize {
        let unit = self.sparsify.unit(shape).max(1);
        if usual.is_multiple_of(unit) { usual } else { unit }
    }
}

fn piece<'a>(inputs: &Inputs<'a>, start: usize, model: usize) -> Piece<'a> {
    Piece { tensor: inputs.tensor, shape: inputs.shape, offset: inputs.offset + start, model }
}

/// One model's task vector over some elements of a block.
fn deltas(inputs: &Inputs<'_>, model: usize, elements: Range<usize>, out: &mut Vec<f64>) {
    let (model, base) = (&inputs.models[model][elements.clone()], &inputs.base[elements]);
    out.resize(model.len(), 0.0);
    simd::dispatch(
        #[inline(always)]
        || {
            for ((out, model), base) in out.iter_mut().zip(model).zip(base) {
                *out = f64::from(task_vector(*model, *base));
            }
        },
    );
}

impl<S: Sparsify> Combine for Sparse<S> {
    fn block(&self, inputs: &Inputs<'_>, out: &mut [f32]) {
        let (scales, weights) = (&self.scales[inputs.tensor], &self.weights[inputs.tensor]);
        let (lambda, normalize) = (self.lambda[inputs.tensor], self.normalize[inputs.tensor]);
        let step = self.piece(inputs.shape, PIECE);
        let mut rows = vec![Vec::new(); inputs.models.len()];
        let (mut sums, mut divisors) = (Vec::new(), Vec::new());
        for start in (0..out.len()).step_by(step) {
            let elements = start..out.len().min(start + step);
            for (model, row) in rows.iter_mut().enumerate() {
                deltas(inputs, model, elements.clone(), row);
                self.sparsify.mask(&piece(inputs, start, model), row);
            }
            sums.clear();
            sums.resize(elements.len(), 0.0);
            divisors.clear();
            divisors.resize(elements.len(), if self.elect { 0.0 } else { weights.iter().sum() });
            let (out, base) = (&mut out[elements.clone()], &inputs.base[elements]);
            simd::dispatch(
                #[inline(always)]
                || {
                    for (row, scale) in rows.iter_mut().zip(scales) {
                        for (sum, value) in sums.iter_mut().zip(row) {
                            *value *= scale;
                            *sum += *value;
                        }
                    }
                    if self.elect {
                        elect(&rows, weights, &mut sums, &mut divisors);
                    }
                    for (((out, base), sum), divisor) in out.iter_mut().zip(base).zip(&sums).zip(&divisors) {
                        let divisor = if normalize && divisor.abs() >= SMALL { *divisor } else { 1.0 };
                        *out = round(f64::from(*base) + lambda * (sum / divisor));
                    }
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
fn elect(rows: &[Vec<f64>], weights: &[f64], sums: &mut [f64], divisors: &mut [f64]) {
    for (start, (sums, divisors)) in (0..).step_by(LANES).zip(sums.chunks_mut(LANES).zip(divisors.chunks_mut(LANES))) {
        let mut signs = [0.0; LANES];
        for (sign, sum) in signs.iter_mut().zip(&mut *sums) {
            *sign = if *sum >= 0.0 { 1.0 } else { -1.0 };
            *sum = 0.0;
        }
        for (row, weight) in rows.iter().zip(weights) {
            for (((value, sign), sum), divisor) in row[start..].iter().zip(&signs).zip(&mut *sums).zip(&mut *divisors) {
                let agrees = value * sign > 0.0;
                *sum += if agrees { *value } else { 0.0 };
                *divisor += if agrees { *weight } else { 0.0 };
            }
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
            let selector = Selector::new(pass);
            wanted.iter().enumerate().map(|(tensor, wanted)| bounds(&selector, tensor, pass.elements()[tensor], wanted)).collect()
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
fn bounds(selector: &Selector<'_>, tensor: usize, elements: usize, wanted: &[Option<(u64, u64)>]) -> Vec<f64> {
    let last = elements.saturating_sub(1) as u64;
    // The largest has no upper bound, and the smallest no lower one; where neither is needed there is nothing to search.
    let needed = |wanted: &Option<(u64, u64)>| {
        let (low, high) = wanted.unwrap_or((0, last));
        let low = Some(low).filter(|low| *low != 0);
        low.into_iter().chain(Some(high).filter(|high| *high != last)).collect::<Vec<_>>()
    };
    let searched: Vec<_> = wanted.iter().map(needed).collect();
    let found = selector.select(Some(tensor), &searched, order::magnitudes);
    let bounds = |((wanted, searched), found): ((&Option<(u64, u64)>, &Vec<u64>), &Vec<f32>)| {
        let Some((low, high)) = wanted else {
            return [f64::INFINITY, f64::NEG_INFINITY];
        };
        let of = |rank: &u64, bound: f64| searched.iter().position(|searched| searched == rank).map_or(bound, |at| f64::from(found[at]));
        [if *low == 0 { 0.0 } else { of(low, 0.0) }, if *high == last { f64::INFINITY } else { of(high, f64::INFINITY) }]
    };
    wanted.iter().zip(&searched).zip(&found).flat_map(bounds).collect()
}

impl Sparsify for Band {
    fn mask(&self, piece: &Piece<'_>, values: &mut [f64]) {
        let (low, high) = self.bounds[piece.tensor][piece.model];
        simd::dispatch(
            #[inline(always)]
            || {
                for value in values {
                    let magnitude = value.abs();
                    *value = if (magnitude >= low) & (magnitude <= high) { *value } else { 0.0 };
                }
            },
        );
    }
}

/// The random numbers of every tensor and model.
pub(super) fn streams(settings: &Settings, models: usize) -> Vec<Vec<Stream>> {
    let seed = settings.integer("seed");
    let stream = |tensor, model| Stream::new(seed, &format!("{}#{model}", settings.layers().name(tensor)));
    (0..settings.layers().tensors()).map(|tensor| (0..models).map(|model| stream(tensor, model)).collect()).collect()
}
