//! What language models are asked: how likely an answer is, and which answer they give.

use std::ops::Range;

use candle_core::Tensor;
use rayon::prelude::*;

use super::{
    layers::Linear,
    matrix::{Matrix, Mode},
    ops::{chunks, exp, sum, tanh, wide},
    weights::ModelError,
};

/// Tokens whose logits are held at once, and rows that have them.
const TOKENS: usize = 1 << 12;
const ROWS: usize = 1 << 10;

/// A text with its possible continuations.
#[derive(Clone, Debug)]
pub struct Prompt<'a> {
    /// The text before them, at least one token.
    pub context: &'a [u32],
    /// The continuations, at least one token each.
    pub continuations: Vec<&'a [u32]>,
}

/// How likely one continuation is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Likelihood {
    /// Natural logarithm of its probability after the context.
    pub log: f64,
    /// Whether it is what greedy decoding gives.
    pub greedy: bool,
}

/// A model of the next token.
pub trait LanguageModel: Send + Sync {
    /// Likelihoods of every prompt's continuations.
    ///
    /// # Errors
    /// If the tensor library fails, or a token is outside the vocabulary.
    fn likelihoods(&self, prompts: &[Prompt<'_>]) -> Result<Vec<Vec<Likelihood>>, ModelError>;

    /// Greedy answers to every prompt: at most `limit` tokens each, without the one of `ends` that ended it. `stop` sees an answer after each token and
    /// may end it.
    ///
    /// # Errors
    /// As [`LanguageModel::likelihoods`].
    fn generate(
        &self,
        prompts: &[&[u32]],
        limit: usize,
        ends: &[u32],
        stop: &(dyn Fn(&[u32]) -> bool + Sync),
    ) -> Result<Vec<Vec<u32>>, ModelError>;

    /// Tokens that a prompt of this length and an answer of that length take in a batch.
    fn cost(&self, context: usize, answer: usize) -> usize {
        context + answer
    }
}

/// From hidden states to the vocabulary.
#[derive(Clone, Debug)]
pub(super) struct Vocabulary {
    pub(super) head: Linear,
    pub(super) size: usize,
    /// Logits are `cap * tanh(logit / cap)`.
    pub(super) softcap: Option<f32>,
    /// States are multiplied by it first.
    pub(super) scale: f32,
}

impl Vocabulary {
    /// With the embedding's own table as the matrix.
    pub(super) fn tied(words: &Matrix) -> Self {
        Self { head: Linear::of(words.clone()), size: words.rows(), softcap: None, scale: 1.0 }
    }

    fn scaled(&self, states: &Tensor) -> Result<Tensor, ModelError> {
        Ok(if self.scale == 1.0 { states.clone() } else { (states * f64::from(self.scale))? })
    }

    /// Logits of some of the tokens.
    fn logits(&self, states: &Tensor, mode: Mode, tokens: Range<usize>) -> Result<Vec<f32>, ModelError> {
        let mut logits: Vec<f32> = self.head.outputs(states, mode, tokens)?.flatten_all()?.to_vec1()?;
        if let Some(cap) = self.softcap {
            chunks(&mut logits, 1 << 8, |_, logits| logits.iter_mut().for_each(|logit| *logit = cap * tanh(*logit / cap)));
        }
        Ok(logits)
    }

    /// For each (row of the states, token): the token's log-probability, and whether it is the likeliest. A part of the vocabulary is looked at after the
    /// other, since all logits of a batch, and all of the matrix as F32, would be larger than many a model.
    pub(super) fn log_probabilities(&self, states: &Tensor, wanted: &[(usize, u32)]) -> Result<Vec<(f64, bool)>, ModelError> {
        if let Some((_, token)) = wanted.iter().find(|(_, token)| *token as usize >= self.size) {
            return Err(ModelError::Input(format!("token {token} is outside the vocabulary of {}", self.size)));
        }
        let mut all = Vec::with_capacity(wanted.len());
        for asked in wanted.chunks(ROWS) {
            let rows: Vec<_> = asked.iter().map(|(row, _)| u32::try_from(*row).unwrap_or(u32::MAX)).collect();
            let states = self.scaled(&states.index_select(&Tensor::new(rows, states.device())?, 0)?)?;
            let mut seen = vec![Seen::NOTHING; asked.len()];
            for first in (0..self.size).step_by(TOKENS) {
                let tokens = first..self.size.min(first + TOKENS);
                let logits = self.logits(&states, Mode::Batch, tokens.clone())?;
                let rows = seen.par_iter_mut().zip(asked).zip(logits.par_chunks(tokens.len()));
                rows.for_each(|((seen, (_, token)), logits)| {
                    wide(
                        #[inline(always)]
                        || seen.add(first, logits, *token as usize),
                    );
                });
            }
            all.extend(seen.iter().zip(asked).map(|(seen, (_, token))| seen.log_probability(*token as usize)));
        }
        Ok(all)
    }

    /// The likeliest token of each row, the first of equal ones, with its logit.
    pub(super) fn best(&self, states: &Tensor) -> Result<Vec<(u32, f32)>, ModelError> {
        let logits = self.logits(&self.scaled(states)?, Mode::Step, 0..self.size)?;
        let best = |row: &[f32]| {
            let (mut token, mut best) = (0, f32::NEG_INFINITY);
            for (index, &logit) in (0u32..).zip(row) {
                if logit > best || logit.is_nan() {
                    (token, best) = (index, logit);
                }
                if logit.is_nan() {
                    break;
                }
            }
            (token, best)
        };
        Ok(logits.chunks(self.size).map(best).collect())
    }
}

/// What is known of a row's logits after a part of the vocabulary.
#[derive(Clone, Copy)]
struct Seen {
    largest: f32,
    /// The first token that has it.
    likeliest: usize,
    /// Sum of `e^(logit - largest)`.
    total: f32,
    /// The logit of the token that is asked for.
    own: f32,
}

impl Seen {
    const NOTHING: Self = Self { largest: f32::NEG_INFINITY, likeliest: 0, total: 0.0, own: f32::NAN };

    /// Adds the logits of the tokens from `first` on.
    #[inline(always)]
    fn add(&mut self, first: usize, logits: &[f32], token: usize) {
        let largest = logits.iter().copied().fold(self.largest, f32::max);
        if largest > self.largest {
            self.total *= exp(self.largest - largest);
            self.likeliest = first + logits.iter().position(|&logit| logit == largest).unwrap_or_default();
            self.largest = largest;
        }
        self.total += sum(logits, |logit| exp(logit - largest));
        // `max` overlooks NaN, and a logit that is one must be seen.
        if logits.iter().any(|logit| logit.is_nan()) {
            self.total = f32::NAN;
        }
        if let Some(own) = token.checked_sub(first).and_then(|at| logits.get(at)) {
            self.own = *own;
        }
    }

    fn log_probability(&self, token: usize) -> (f64, bool) {
        (f64::from(self.own - self.largest) - libm::log(f64::from(self.total)), self.likeliest == token)
    }
}

/// Sums up the tokens of each continuation.
pub(super) fn gather(prompts: &[Prompt<'_>], tokens: &[(f64, bool)]) -> Vec<Vec<Likelihood>> {
    let mut tokens = tokens.iter();
    let mut likelihood = |length: usize| {
        let mut all = Likelihood { log: 0.0, greedy: true };
        for (log, greedy) in tokens.by_ref().take(length) {
            all.log += log;
            all.greedy &= greedy;
        }
        all
    };
    prompts.iter().map(|prompt| prompt.continuations.iter().map(|tokens| likelihood(tokens.len())).collect()).collect()
}

/// One answer while it is being given.
#[derive(Debug, Default)]
pub(super) struct Answer {
    pub(super) tokens: Vec<u32>,
    pub(super) done: bool,
}

impl Answer {
    /// Takes the next token, and says whether there is to be another.
    ///
    /// # Errors
    /// If the logits hold NaN.
    pub(super) fn take(
        &mut self,
        (token, logit): (u32, f32),
        limit: usize,
        ends: &[u32],
        stop: &(dyn Fn(&[u32]) -> bool + Sync),
    ) -> Result<(), ModelError> {
        if !logit.is_finite() {
            return Err(ModelError::Input("the model's output is NaN or infinite".into()));
        }
        if ends.contains(&token) {
            self.done = true;
        } else {
            self.tokens.push(token);
            self.done = self.tokens.len() >= limit || stop(&self.tokens);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use evolver_common::{checkpoint::Dtype, rng::Stream};

    use super::*;
    use crate::models::{ModelWeights, Values, layers::Loader};

    #[test]
    fn a_vocabulary_looked_at_in_parts_gives_what_the_whole_gives() {
        let (size, width, rows) = (2 * TOKENS + 77, 16, 5);
        let draw = |name: &str, count: usize| {
            let mut numbers = vec![0; count];
            Stream::new(1, name).fill(0, &mut numbers);
            numbers.into_iter().map(|number| number as f32 / 2f32.powi(31) - 1.0).collect::<Vec<f32>>()
        };
        let (table, states) = (draw("table", size * width), draw("states", rows * width));
        // Of each row the likeliest token, the one after it, and those at the parts' edges.
        let logit = |row: usize, token: usize| {
            let pairs = states[row * width..][..width].iter().zip(&table[token * width..][..width]);
            pairs.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>()
        };
        let likeliest = |row: usize| (0..size).max_by(|a, b| logit(row, *a).total_cmp(&logit(row, *b))).unwrap();
        let edges = [0, TOKENS - 1, TOKENS, 2 * TOKENS, size - 1];
        let tokens = |row: usize| [likeliest(row), (likeliest(row) + 1) % size].into_iter().chain(edges);
        let wanted: Vec<_> = (0..rows).flat_map(|row| tokens(row).map(move |token| (row, token as u32))).collect();
        let device = Device::Cpu;
        let mut weights = ModelWeights::default();
        weights.insert("table", &[size, width], Values::of(Dtype::F32, table.clone()));
        let words = Loader { weights: &mut weights, device: &device }.matrix("table", size, width).unwrap();
        let states = Tensor::from_vec(states.clone(), (rows, width), &device).unwrap();
        let found = Vocabulary::tied(&words).log_probabilities(&states, &wanted).unwrap();
        for (&(row, token), (log, greedy)) in wanted.iter().zip(found) {
            let total: f64 = (0..size).map(|token| logit(row, token).exp()).sum();
            let expected = logit(row, token as usize) - total.ln();
            assert!((log - expected).abs() < 1e-4, "row {row}, token {token}: {log} and not {expected}");
            assert_eq!(greedy, likeliest(row) == token as usize, "row {row}, token {token}");
        }
        let outside = Vocabulary::tied(&words).log_probabilities(&states, &[(0, size as u32)]).unwrap_err();
        assert!(outside.to_string().contains("outside the vocabulary"), "{outside}");
    }
}
