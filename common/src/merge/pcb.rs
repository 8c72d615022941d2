//! PCB-Merging: parameter competition balancing (Du et al., NeurIPS 2024).
//!
//! Statistics are taken per task over the whole model, as the paper does, or with `scope` over each layer or tensor. Variants:
//! - `paper`: the paper's equations, with the softmax denominators in F64;
//! - `script`, `nlp`, `vision`, `vision_es`: what the official programs compute: magnitudes a_i clamped at both ends, a signed `tanh` for the
//!   competition between tasks, and survivors rescaled to (0, 1] instead of a binary mask. With `n_i = norm(a_i)` and `h_i = sign(T_i) n_i` they are
//!
//! | variant | official program | clamped at either end | competition between tasks | `ratio` | `weight` |
//! |---|---|---|---|---|---|
//! | `script` | `pcb-merging.py` | 0.0001 | `tanh(T_i sum_j T_j)` | 0.1 | 1 |
//! | `nlp` | `merge_utils.py` | 0.01 | `tanh(T_i sum_j T_j)` | 0.1 | 1 |
//! | `vision` | `pcb.py` | 0.01 | `tanh(T_i sum_j h_j)` | 0.05 | 1.2 |
//! | `vision_es` | `pcb_ES.py` | 0.01 | `sum_j tanh(h_i h_j)` | 0.05 | 1 |
//!
//! Only orders and sums per task matter, so the order in which a program flattens a model does not. `nlp` leaves T5's tied copies of the embedding out:
//! `removed` says so by its default there. Removed tensors count nowhere and stay the base's. Scores are rounded to F32 before they are ranked. `weight` is
//! the coefficient lambda_i, inside the mean over tasks.

use std::sync::Arc;

use super::{
    Base, Combine, Default, Inputs, Kind, Method, ParameterSpec, Pass, Scope, Settings,
    elementary::{exp, tanh},
    lanes::{self, Chunk, LANES, Lanes},
    linear::WEIGHT,
    order::{self, Cost, Selector},
    round, statistics,
    store::Table,
};
use crate::recipe::{Merge, Rule, Value};

pub(super) struct Pcb;

/// Coefficients: `[tensor][model]`.
type Weights = Arc<[Vec<f64>]>;

impl Method for Pcb {
    fn name(&self) -> &'static str {
        "pcb"
    }

    fn summary(&self) -> &'static str {
        "weigh each parameter by its competition within and between tasks, drop the weak, rescale the rest (Du et al., Parameter Competition Balancing, NeurIPS 2024)"
    }

    fn base(&self) -> Base {
        Base::Needed
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        const PARAMETERS: &[ParameterSpec] = &[
            WEIGHT,
            ParameterSpec {
                name: "variant",
                scope: Scope::Merge,
                kind: Kind::Choice(&["paper", "script", "nlp", "vision", "vision_es"]),
                default: Default::Choice("paper"),
                doc: "The paper's equations, or what one of the official programs computes.",
            },
            ParameterSpec {
                name: "scope",
                scope: Scope::Merge,
                kind: Kind::Choice(&["global", "layer", "tensor"]),
                default: Default::Choice("global"),
                doc: "What statistics are taken over.",
            },
            ParameterSpec {
                name: "removed",
                scope: Scope::Merge,
                kind: Kind::Flag,
                default: Default::Flag(false),
                doc: "Tensors that take no part and stay the base's; nlp: T5's tied embeddings.",
            },
            ParameterSpec {
                name: "ratio",
                scope: Scope::Merge,
                kind: Kind::Constant(0.0, 1.0),
                default: Default::Number(0.1),
                doc: "Share of each task's parameters that is kept; vision and vision_es: 0.05.",
            },
        ];
        PARAMETERS
    }

    fn complete(&self, merge: &mut Merge) {
        let variant = match merge.parameters.get("variant") {
            Some(Value::Text(variant)) => variant.clone(),
            _ => return,
        };
        let mut default = |name: &str, value: Value| {
            merge.parameters.entry(name.to_owned()).or_insert(value);
        };
        if variant == "nlp" {
            let tied = |side: &str| Rule { filter: Some(format!("{side}.embed_tokens.weight")), value: Value::Flag(true) };
            default("removed", Value::Rules(vec![tied("encoder"), tied("decoder")]));
        }
        if variant == "vision" {
            default("weight", Value::Number(1.2));
        }
        if variant.starts_with("vision") {
            default("ratio", Value::Number(0.05));
        }
    }

    fn prepare(&self, settings: &Settings, pass: &Pass<'_>) -> Box<dyn Combine> {
        let weights: Weights = settings.per_model("weight").into();
        let removed = settings.flags("removed");
        let groups = match settings.choice("scope") {
            "tensor" => (0..removed.len()).map(|tensor| vec![tensor]).collect(),
            "layer" => settings.layers().groups(),
            _ => vec![(0..removed.len()).collect()],
        };
        let mut this = Groups { parts: Vec::new(), of: vec![None; removed.len()] };
        let selector = Selector::default();
        for mut group in groups {
            group.retain(|tensor| !removed[*tensor]);
            let elements: usize = group.iter().map(|tensor| pass.elements()[*tensor]).sum();
            if elements == 0 {
                continue;
            }
            group.iter().for_each(|tensor| this.of[*tensor] = Some(this.parts.len()));
            let jobs = pass.jobs_of(&group);
            let group = Group {
                pass: &pass.with(&jobs),
                selector: &selector,
                tensors: group.iter().map(|tensor| f64::from(u32::try_from(*tensor).unwrap_or(u32::MAX))).collect(),
                elements,
                cut: rank(elements, 1.0 - settings.number("ratio"), 0.0),
            };
            let weights = Arc::clone(&weights);
            let part: Box<dyn Combine> = match Variant::of(settings.choice("variant")) {
                Some(variant) => Box::new(Script::prepare(variant, &group, weights)),
                None => Box::new(Paper::prepare(&group, weights)),
            };
            this.parts.push(part);
        }
        Box::new(this)
    }
}

/// Tensors that have statistics in common.
struct Group<'a> {
    pass: &'a Pass<'a>,
    selector: &'a Selector,
    /// Their indices, which name the statistics.
    tensors: Vec<f64>,
    elements: usize,
    /// Rank of the smallest score that is kept.
    cut: u64,
}

impl Group<'_> {
    /// The values of these ranks, the same for every task, of `rows` and what writes them; known by what `kind` and `parameters` say.
    #[expect(clippy::cast_precision_loss, reason = "ranks below 2^53")]
    fn order_statistics(
        &self,
        kind: &str,
        parameters: &[f64],
        ranks: &[u64],
        rows: (Cost, impl Fn(&Inputs<'_>, &mut [Vec<f32>]) + Sync),
    ) -> Arc<Table> {
        let places: Vec<_> = ranks.iter().map(|rank| *rank as f64).collect();
        self.pass.once(kind, &[parameters, &self.tensors, &places], || {
            let found = self.selector.select(self.pass, None, &vec![ranks.to_vec(); self.pass.models()], rows);
            found.into_iter().map(|row| row.into_iter().map(f64::from).collect()).collect()
        })
    }
}

/// What is merged by statistics of its own: everything, a layer, or a tensor.
struct Groups {
    parts: Vec<Box<dyn Combine>>,
    /// Each tensor's part, if it is not removed.
    of: Vec<Option<usize>>,
}

impl Combine for Groups {
    fn block(&self, inputs: &Inputs<'_>, out: &mut [f32]) {
        match self.of[inputs.tensor] {
            Some(part) => self.parts[part].block(inputs, out),
            None => inputs.base.read(out),
        }
    }
}

/// `int(elements * share - less)` as Python computes it, kept inside the row.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "Python's int() truncates just so"
)]
fn rank(elements: usize, share: f64, less: f64) -> u64 {
    ((elements as f64 * share - less) as usize).min(elements.saturating_sub(1)) as u64
}

/// Smallest and largest value of a row, for min-max normalisation; a constant row becomes 0.
#[derive(Clone, Copy)]
struct Span {
    low: f64,
    high: f64,
}

impl Span {
    /// Factor that maps the span to 1.
    #[inline(always)]
    fn scale(self) -> f64 {
        if self.high > self.low { 1.0 / (self.high - self.low) } else { 0.0 }
    }

    fn of(table: &Table) -> Vec<Self> {
        table.iter().map(|row| Self { low: row[0], high: row[1] }).collect()
    }
}

/// Room for the numbers of a chunk, one of each for every task, and for every pair of tasks.
struct Work {
    deltas: Vec<Lanes>,
    /// Normalised magnitudes.
    norms: Vec<Lanes>,
    scores: Vec<Lanes>,
    pairs: Vec<Lanes>,
}

impl Work {
    fn new(tasks: usize) -> Self {
        let rows = |count| vec![[0.0; LANES]; count];
        Self { deltas: rows(tasks), norms: rows(tasks), scores: rows(tasks), pairs: rows(pair(0, tasks)) }
    }

    #[inline(always)]
    fn load(&mut self, chunk: &Chunk<'_>) {
        self.deltas.iter_mut().enumerate().for_each(|(task, delta)| *delta = chunk.delta(task));
    }
}

/// Index of the pair (i, j) in a list over i <= j.
#[inline(always)]
fn pair(i: usize, j: usize) -> usize {
    let (i, j) = (i.min(j), i.max(j));
    j * (j + 1) / 2 + i
}

/// How tasks are scored at each element.
trait Score: Sync {
    /// Writes every task's scores, rounded to F32, into `work.scores`.
    fn score(&self, work: &mut Work);

    /// Every task's scores over one block, for ranking.
    #[inline(always)]
    fn rows(&self, inputs: &Inputs<'_>, rows: &mut [Vec<f32>]) {
        let mut work = Work::new(inputs.models.len());
        lanes::walk(
            inputs,
            0..inputs.base.len(),
            #[inline(always)]
            |chunk| {
                work.load(chunk);
                self.score(&mut work);
                rows.iter_mut().zip(&work.scores).for_each(|(row, scores)| chunk.store(scores, row));
            },
        );
    }
}

/// `Norm` and `Softmax` of the paper's two terms, for pairs (i, j) with i <= j; the pair (i, i) serves both terms.
struct Paper {
    spans: Vec<Span>,
    /// One over the softmax denominators of the pairs.
    inter: Vec<f64>,
    /// One over the softmax denominators of the intra term, one for each task.
    intra: Vec<f64>,
    cuts: Vec<f64>,
    weights: Weights,
}

impl Paper {
    fn prepare(group: &Group<'_>, weights: Weights) -> Self {
        let models = group.pass.models();
        let pairs = pair(0, models);
        let spans = group.pass.once("pcb spans", &[&group.tensors], || spans(group.pass, pairs));
        let mut this =
            Self { spans: Span::of(&spans), inter: vec![1.0; pairs], intra: vec![1.0; models], cuts: vec![0.0; models], weights };
        let sums = group.pass.once("pcb sums", &[&group.tensors], || {
            let sums = statistics::totals(group.pass, pairs + models, |inputs, elements, sums| {
                let mut work = Work::new(models);
                lanes::sum(
                    inputs,
                    elements,
                    sums,
                    #[inline(always)]
                    |chunk, sums| {
                        work.load(chunk);
                        this.terms(&mut work);
                        let inside = chunk.inside();
                        let terms = work.pairs.iter().chain(&work.scores);
                        sums.iter_mut().zip(terms).for_each(|(sum, term)| sum.add_products(term, &inside));
                    },
                );
            });
            vec![sums]
        });
        this.inter = sums[0][..pairs].iter().map(|sum| 1.0 / sum).collect();
        this.intra = sums[0][pairs..].iter().map(|sum| 1.0 / sum).collect();
        let cuts = group.order_statistics(
            "pcb cuts",
            &[],
            &[group.cut],
            (Cost::High, |inputs: &Inputs<'_>, rows: &mut [Vec<f32>]| this.rows(inputs, rows)),
        );
        this.cuts = cuts.iter().map(|row| row[0]).collect();
        this
    }

    /// The numerators of both softmaxes: of the pairs, and, among the scores, of the tasks.
    #[inline(always)]
    fn terms(&self, work: &mut Work) {
        let Work { deltas, scores, pairs, .. } = work;
        for j in 0..deltas.len() {
            for i in 0..=j {
                let (low, scale) = (self.spans[pair(i, j)].low, self.spans[pair(i, j)].scale());
                let norm = lanes::each(
                    &deltas[i],
                    &deltas[j],
                    #[inline(always)]
                    |a, b| (a * b - low) * scale,
                );
                pairs[pair(i, j)] = lanes::each(
                    &norm,
                    &norm,
                    #[inline(always)]
                    |norm, _| exp(norm),
                );
                if i == j {
                    // exp(n Norm), since n is a whole number.
                    scores[i] = lanes::power(&pairs[pair(i, i)], deltas.len());
                }
            }
        }
    }
}

/// The smallest and the largest product of each pair of tasks.
fn spans(pass: &Pass<'_>, pairs: usize) -> Table {
    let models = pass.models();
    pass.fold(
        None,
        || vec![vec![f64::INFINITY, f64::NEG_INFINITY]; pairs],
        |spans: &mut Table, inputs| {
            let mut work = Work::new(models);
            let mut lanes = vec![([f64::INFINITY; LANES], [f64::NEG_INFINITY; LANES]); pairs];
            lanes::walk(
                inputs,
                0..inputs.base.len(),
                #[inline(always)]
                |chunk| {
                    work.load(chunk);
                    let inside = chunk.inside();
                    for j in 0..models {
                        for i in 0..=j {
                            let (a, b, (low, high)) = (&work.deltas[i], &work.deltas[j], &mut lanes[pair(i, j)]);
                            for l in 0..LANES {
                                let product = a[l] * b[l];
                                low[l] = if (inside[l] > 0.0) & (product < low[l]) { product } else { low[l] };
                                high[l] = if (inside[l] > 0.0) & (product > high[l]) { product } else { high[l] };
                            }
                        }
                    }
                },
            );
            for (span, (low, high)) in spans.iter_mut().zip(&lanes) {
                span[0] = low.iter().copied().fold(span[0], f64::min);
                span[1] = high.iter().copied().fold(span[1], f64::max);
            }
        },
        |a, b| a.iter().zip(&b).map(|(a, b)| vec![a[0].min(b[0]), a[1].max(b[1])]).collect(),
    )
}

impl Score for Paper {
    /// beta_i = Softmax(N Norm(tau_i^2)) * sum_j Softmax(Norm(tau_i tau_j)).
    #[inline(always)]
    fn score(&self, work: &mut Work) {
        self.terms(work);
        for i in 0..work.deltas.len() {
            let mut inter = [0.0; LANES];
            for j in 0..work.deltas.len() {
                let (terms, scale) = (&work.pairs[pair(i, j)], self.inter[pair(i, j)]);
                for l in 0..LANES {
                    inter[l] += terms[l] * scale;
                }
            }
            let scale = self.intra[i];
            work.scores[i] = lanes::each(
                &work.scores[i],
                &inter,
                #[inline(always)]
                |term, inter| f64::from(round(term * scale * inter)),
            );
        }
    }
}

impl Combine for Paper {
    fn block(&self, inputs: &Inputs<'_>, out: &mut [f32]) {
        let mut work = Work::new(inputs.models.len());
        let weights = self.weights[inputs.tensor].as_slice();
        lanes::map(
            inputs,
            out,
            #[inline(always)]
            |chunk| {
                work.load(chunk);
                self.score(&mut work);
                let (mut sum, mut divisor) = ([0.0; LANES], [0.0; LANES]);
                for (i, weight) in weights.iter().enumerate() {
                    let (scores, deltas, cut) = (&work.scores[i], &work.deltas[i], self.cuts[i]);
                    for l in 0..LANES {
                        let score = if scores[l] >= cut { scores[l] } else { 0.0 };
                        sum[l] += weight * score * deltas[l];
                        divisor[l] += score;
                    }
                }
                let mut merged = chunk.base();
                for l in 0..LANES {
                    merged[l] += if divisor[l] == 0.0 { 0.0 } else { sum[l] / divisor[l] };
                }
                merged
            },
        );
    }
}

/// How tasks compete in an official program.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Inter {
    /// `tanh(T_i sum_j T_j)`.
    Raw,
    /// `tanh(T_i sum_j h_j)`.
    Half,
    /// `sum_j tanh(h_i h_j)`.
    Normalized,
}

/// What differs between the official programs.
#[derive(Clone, Copy)]
struct Variant {
    /// Share of the magnitudes that is clamped at either end.
    winsor: f64,
    inter: Inter,
}

impl Variant {
    /// `None` is the paper.
    fn of(name: &str) -> Option<Self> {
        let (winsor, inter) = match name {
            "script" => (0.0001, Inter::Raw),
            "nlp" => (0.01, Inter::Raw),
            "vision" => (0.01, Inter::Half),
            "vision_es" => (0.01, Inter::Normalized),
            _ => return None,
        };
        Some(Self { winsor, inter })
    }
}

/// The official programs' computation.
struct Script {
    inter: Inter,
    /// Bounds that magnitudes are clamped to, for each task.
    bounds: Vec<Span>,
    /// Cut and largest score, for each task.
    scores: Vec<Span>,
    weights: Weights,
}

impl Script {
    fn prepare(variant: Variant, group: &Group<'_>, weights: Weights) -> Self {
        let elements = group.elements;
        let low = rank(elements, variant.winsor, 0.0);
        let high = rank(elements, 1.0 - variant.winsor, 1.0).max(low);
        let bounds = group.order_statistics("pcb bounds", &[], &[low, high], (Cost::Low, order::magnitudes));
        let mut this = Self { inter: variant.inter, bounds: Span::of(&bounds), scores: Vec::new(), weights };
        let last = elements.saturating_sub(1) as u64;
        let inter = match variant.inter {
            Inter::Raw => 0.0,
            Inter::Half => 1.0,
            Inter::Normalized => 2.0,
        };
        let scores = group.order_statistics(
            "pcb scores",
            &[variant.winsor, inter],
            &[group.cut, last],
            (Cost::High, |inputs: &Inputs<'_>, rows: &mut [Vec<f32>]| this.rows(inputs, rows)),
        );
        this.scores = Span::of(&scores);
        this
    }
}

impl Score for Script {
    /// exp(n norm(a_i)^2) times the competition between tasks.
    #[inline(always)]
    #[expect(clippy::cast_precision_loss, reason = "a count of models")]
    fn score(&self, work: &mut Work) {
        let Work { deltas, norms, scores, pairs } = work;
        let tasks = deltas.len();
        let n = tasks as f64;
        let mut total = [0.0; LANES];
        for i in 0..tasks {
            let (Span { low, high }, scale) = (self.bounds[i], self.bounds[i].scale());
            let delta = &deltas[i];
            // The scores' place holds h_i until they are known.
            norms[i] = lanes::each(
                delta,
                delta,
                #[inline(always)]
                |delta, _| (delta.abs().max(low).min(high) - low) * scale,
            );
            scores[i] = lanes::each(
                &norms[i],
                delta,
                #[inline(always)]
                |norm: f64, delta: f64| if delta == 0.0 { 0.0 } else { norm.copysign(delta) },
            );
            let terms = if self.inter == Inter::Raw { delta } else { &scores[i] };
            total = lanes::each(
                &total,
                terms,
                #[inline(always)]
                |total, term| total + term,
            );
        }
        if self.inter == Inter::Normalized {
            for j in 0..tasks {
                for i in 0..=j {
                    pairs[pair(i, j)] = lanes::each(
                        &scores[i],
                        &scores[j],
                        #[inline(always)]
                        |a, b| tanh(a * b),
                    );
                }
            }
        }
        for i in 0..tasks {
            let mut inter = [0.0; LANES];
            if self.inter == Inter::Normalized {
                for j in 0..tasks {
                    inter = lanes::each(
                        &inter,
                        &pairs[pair(i, j)],
                        #[inline(always)]
                        |inter, term| inter + term,
                    );
                }
            } else {
                inter = lanes::each(
                    &deltas[i],
                    &total,
                    #[inline(always)]
                    |delta, total| tanh(delta * total),
                );
            }
            scores[i] = lanes::each(
                &norms[i],
                &inter,
                #[inline(always)]
                |norm, inter| f64::from(round(exp(n * norm * norm) * inter)),
            );
        }
    }
}

/// A normalised magnitude with its task vector's sign; the sign of 0 is 0.
#[inline(always)]
fn half(norm: f64, delta: f64) -> f64 {
    if delta == 0.0 { 0.0 } else { norm.copysign(delta) }
}

impl Combine for Script {
    fn block(&self, inputs: &Inputs<'_>, out: &mut [f32]) {
        let mut work = Work::new(inputs.models.len());
        let weights = self.weights[inputs.tensor].as_slice();
        lanes::map(
            inputs,
            out,
            #[inline(always)]
            |chunk| {
                work.load(chunk);
                self.score(&mut work);
                let (mut sum, mut divisor) = ([0.0; LANES], [0.0; LANES]);
                for (i, weight) in weights.iter().enumerate() {
                    let (bounds, span, factor) = (self.bounds[i], self.scores[i], self.scores[i].scale());
                    let (deltas, scores) = (&work.deltas[i], &work.scores[i]);
                    for l in 0..LANES {
                        let delta = deltas[l];
                        let scale = (scores[l].max(span.low) - span.low) * factor;
                        // Exact zeros stay zero; other values take their sign to the clamped magnitude.
                        let clamped = half(delta.abs().max(bounds.low).min(bounds.high), delta);
                        sum[l] += weight * clamped * scale;
                        divisor[l] += scale;
                    }
                }
                let mut merged = chunk.base();
                for l in 0..LANES {
                    merged[l] += sum[l] / divisor[l].max(1e-12);
                }
                merged
            },
        );
    }
}
