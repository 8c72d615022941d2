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
    Base, Combine, Default, Inputs, Kind, Method, ParameterSpec, Pass, Scope, Settings, elementary::exp, linear::WEIGHT, order,
    round, task_vector,
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
        for mut group in groups {
            group.retain(|tensor| !removed[*tensor]);
            let elements: usize = group.iter().map(|tensor| pass.elements()[*tensor]).sum();
            if elements == 0 {
                continue;
            }
            group.iter().for_each(|tensor| this.of[*tensor] = Some(this.parts.len()));
            let jobs = pass.jobs_of(&group);
            let pass = pass.with(&jobs);
            let cut = rank(elements, 1.0 - settings.number("ratio"), 0.0);
            let weights = Arc::clone(&weights);
            let part: Box<dyn Combine> = match Variant::of(settings.choice("variant")) {
                Some(variant) => Box::new(Script::prepare(variant, &pass, elements, cut, weights)),
                None => Box::new(Paper::prepare(&pass, cut, weights)),
            };
            this.parts.push(part);
        }
        Box::new(this)
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
            None => out.copy_from_slice(inputs.base),
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
    const EMPTY: Self = Self { low: f64::INFINITY, high: f64::NEG_INFINITY };

    fn join(self, other: Self) -> Self {
        Self { low: self.low.min(other.low), high: self.high.max(other.high) }
    }

    fn norm(self, x: f64) -> f64 {
        if self.high > self.low { (x - self.low) / (self.high - self.low) } else { 0.0 }
    }
}

/// The task vectors of one element.
fn task_vectors(inputs: &Inputs<'_>, element: usize, out: &mut [f64]) {
    for (out, model) in out.iter_mut().zip(inputs.models) {
        *out = f64::from(task_vector(model[element], inputs.base[element]));
    }
}

/// `Norm` and `Softmax` of the paper's two terms, for pairs (i, j) with i <= j; the pair (i, i) serves both terms.
struct Paper {
    spans: Vec<Span>,
    /// Softmax denominators of the pairs.
    inter: Vec<f64>,
    /// Softmax denominators of the intra term, one per task.
    intra: Vec<f64>,
    cuts: Vec<f32>,
    weights: Weights,
}

/// Index of the pair (i, j) in a list over i <= j.
fn pair(i: usize, j: usize) -> usize {
    let (i, j) = (i.min(j), i.max(j));
    j * (j + 1) / 2 + i
}

impl Paper {
    fn prepare(pass: &Pass<'_>, cut: u64, weights: Weights) -> Self {
        let models = pass.models();
        let pairs = models * (models + 1) / 2;
        let spans = pass.fold(
            None,
            || vec![Span::EMPTY; pairs],
            |spans: &mut Vec<Span>, inputs| {
                let mut deltas = vec![0.0; models];
                for element in 0..inputs.base.len() {
                    task_vectors(inputs, element, &mut deltas);
                    for j in 0..models {
                        for i in 0..=j {
                            let product = deltas[i] * deltas[j];
                            let span = &mut spans[pair(i, j)];
                            *span = span.join(Span { low: product, high: product });
                        }
                    }
                }
            },
            |a, b| a.into_iter().zip(b).map(|(a, b)| a.join(b)).collect(),
        );
        let mut this = Self { spans, inter: vec![1.0; pairs], intra: vec![1.0; models], cuts: Vec::new(), weights };
        let sums = pass.sums(pairs + models, |inputs, elements, sums| {
            let mut work = Work::new(models);
            for element in elements {
                task_vectors(inputs, element, &mut work.deltas);
                this.terms(&mut work);
                let terms = work.inter.iter().chain(&work.intra);
                sums.iter_mut().zip(terms).for_each(|(sum, term)| *sum += term);
            }
        });
        this.inter = sums[..pairs].to_vec();
        this.intra = sums[pairs..].to_vec();
        let found = order::Selector::new(pass).select(None, &vec![vec![cut]; models], |inputs, rows| {
            score_rows(inputs, rows, |element, work| this.score(inputs, element, work));
        });
        this.cuts = found.into_iter().map(|row| row[0]).collect();
        this
    }

    /// The numerators of both softmaxes.
    fn terms(&self, work: &mut Work) {
        let models = work.deltas.len();
        #[expect(clippy::cast_precision_loss, reason = "a count of models")]
        let n = models as f64;
        for j in 0..models {
            for i in 0..=j {
                let at = pair(i, j);
                let norm = self.spans[at].norm(work.deltas[i] * work.deltas[j]);
                work.inter[at] = exp(norm);
                if i == j {
                    work.intra[i] = exp(n * norm);
                }
            }
        }
    }

    /// beta_i = Softmax(N Norm(tau_i^2)) * sum_j Softmax(Norm(tau_i tau_j)).
    fn score(&self, inputs: &Inputs<'_>, element: usize, work: &mut Work) {
        task_vectors(inputs, element, &mut work.deltas);
        self.terms(work);
        let models = work.deltas.len();
        for i in 0..models {
            let mut inter = 0.0;
            for j in 0..models {
                inter += work.inter[pair(i, j)] / self.inter[pair(i, j)];
            }
            work.scores[i] = round(work.intra[i] / self.intra[i] * inter);
        }
    }
}

/// Every task's scores over one block, for ranking.
fn score_rows(inputs: &Inputs<'_>, rows: &mut [Vec<f32>], score: impl Fn(usize, &mut Work)) {
    let mut work = Work::new(inputs.models.len());
    for element in 0..inputs.base.len() {
        score(element, &mut work);
        rows.iter_mut().zip(&work.scores).for_each(|(row, score)| row[element] = *score);
    }
}

/// Room for one element's numbers.
struct Work {
    deltas: Vec<f64>,
    /// Signed normalised magnitudes.
    halves: Vec<f64>,
    inter: Vec<f64>,
    intra: Vec<f64>,
    scores: Vec<f32>,
}

impl Work {
    fn new(models: usize) -> Self {
        Self {
            deltas: vec![0.0; models],
            halves: vec![0.0; models],
            inter: vec![0.0; models * (models + 1) / 2],
            intra: vec![0.0; models],
            scores: vec![0.0; models],
        }
    }
}

impl Combine for Paper {
    fn block(&self, inputs: &Inputs<'_>, out: &mut [f32]) {
        let mut work = Work::new(inputs.models.len());
        for (element, out) in out.iter_mut().enumerate() {
            self.score(inputs, element, &mut work);
            let (mut sum, mut divisor) = (0.0, 0.0);
            for (i, &score) in work.scores.iter().enumerate() {
                if score >= self.cuts[i] {
                    sum += self.weights[inputs.tensor][i] * f64::from(score) * work.deltas[i];
                    divisor += f64::from(score);
                }
            }
            let merged = if divisor == 0.0 { 0.0 } else { sum / divisor };
            *out = round(f64::from(inputs.base[element]) + merged);
        }
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
    variant: Variant,
    /// Bounds that magnitudes are clamped to, per task.
    bounds: Vec<Span>,
    /// Cut and largest score, per task.
    scores: Vec<Span>,
    weights: Weights,
}

impl Script {
    fn prepare(variant: Variant, pass: &Pass<'_>, elements: usize, cut: u64, weights: Weights) -> Self {
        let models = pass.models();
        let low = rank(elements, variant.winsor, 0.0);
        let high = rank(elements, 1.0 - variant.winsor, 1.0).max(low);
        let spans = |found: Vec<Vec<f32>>| -> Vec<Span> {
            let span = |row: &Vec<f32>| Span { low: f64::from(row[0]), high: f64::from(row[1]) };
            found.iter().map(span).collect()
        };
        let magnitudes = order::Selector::new(pass).select(None, &vec![vec![low, high]; models], |inputs, rows| {
            order::magnitudes(inputs, rows);
        });
        let mut this = Self { variant, bounds: spans(magnitudes), scores: Vec::new(), weights };
        let last = elements.saturating_sub(1) as u64;
        let scores = order::Selector::new(pass).select(None, &vec![vec![cut, last]; models], |inputs, rows| {
            score_rows(inputs, rows, |element, work| this.score(inputs, element, work));
        });
        this.scores = spans(scores);
        this
    }

    fn clamped(&self, task: usize, delta: f64) -> f64 {
        delta.abs().clamp(self.bounds[task].low, self.bounds[task].high)
    }

    /// exp(n norm(a_i)^2) times the competition between tasks.
    fn score(&self, inputs: &Inputs<'_>, element: usize, work: &mut Work) {
        let Work { deltas, halves, scores, .. } = work;
        task_vectors(inputs, element, deltas);
        #[expect(clippy::cast_precision_loss, reason = "a count of models")]
        let n = deltas.len() as f64;
        let norm = |i: usize, delta: f64| self.bounds[i].norm(self.clamped(i, delta));
        for (i, (half, &delta)) in halves.iter_mut().zip(&*deltas).enumerate() {
            // The sign of 0 is 0.
            *half = if delta == 0.0 { 0.0 } else { norm(i, delta).copysign(delta) };
        }
        let total: f64 = if self.variant.inter == Inter::Raw { deltas.iter().sum() } else { halves.iter().sum() };
        for (i, &delta) in deltas.iter().enumerate() {
            let inter = match self.variant.inter {
                Inter::Raw | Inter::Half => libm::tanh(delta * total),
                Inter::Normalized => halves.iter().map(|other| libm::tanh(halves[i] * other)).sum(),
            };
            let norm = norm(i, delta);
            scores[i] = round(exp(n * norm * norm) * inter);
        }
    }
}

impl Combine for Script {
    fn block(&self, inputs: &Inputs<'_>, out: &mut [f32]) {
        let mut work = Work::new(inputs.models.len());
        for (element, out) in out.iter_mut().enumerate() {
            self.score(inputs, element, &mut work);
            let (mut sum, mut divisor) = (0.0, 0.0);
            for (i, &score) in work.scores.iter().enumerate() {
                let scale = self.scores[i].norm(f64::from(score).max(self.scores[i].low));
                let delta = work.deltas[i];
                // Exact zeros stay zero; other values take their sign to the clamped magnitude.
                let clamped = if delta == 0.0 { 0.0 } else { self.clamped(i, delta).copysign(delta) };
                sum += self.weights[inputs.tensor][i] * clamped * scale;
                divisor += scale;
            }
            *out = round(f64::from(inputs.base[element]) + sum / divisor.max(1e-12));
        }
    }
}
