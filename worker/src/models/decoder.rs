//! Decoders: one stack of causal layers over the tables of words and perhaps positions.

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::{
    attention::Segment,
    language::{Answer, LanguageModel, Likelihood, Prompt, Vocabulary, gather},
    layers::embed,
    matrix::{Matrix, Mode},
    ops::Norm,
    transformer::Layer,
    weights::ModelError,
};

/// Tokens at the beginning of all texts of a batch that are worth computing once.
const SHARED_MIN: usize = 8;

pub(super) struct Decoder {
    pub(super) words: Matrix,
    /// What a word's row is multiplied by.
    pub(super) scale: f32,
    pub(super) positions: Option<Matrix>,
    pub(super) layers: Vec<Layer>,
    pub(super) norm: Norm,
    pub(super) vocabulary: Vocabulary,
    pub(super) hidden: usize,
    pub(super) device: Device,
}

/// Texts as segments, those that begin alike sharing their beginning.
#[derive(Default)]
struct Forest {
    segments: Vec<Segment>,
    tokens: Vec<u32>,
}

impl Forest {
    fn push(&mut self, tokens: &[u32], parent: Option<usize>) -> usize {
        let start = self.tokens.len();
        self.tokens.extend(tokens);
        self.segments.push(Segment { rows: start..self.tokens.len(), parent });
        self.segments.len() - 1
    }

    /// A segment with what all texts begin with, if that is worth it; and its length. The last token of a text is never shared.
    fn begin(&mut self, texts: &[&[u32]]) -> (Option<usize>, usize) {
        let shared = texts.iter().skip(1).fold(texts.first().map_or(0, |text| text.len()), |shared, text| {
            let first = texts[0];
            text.iter().zip(&first[..shared]).take_while(|(a, b)| a == b).count()
        });
        let shared = texts.iter().map(|text| text.len() - 1).fold(shared, usize::min);
        if texts.len() < 2 || shared < SHARED_MIN { (None, 0) } else { (Some(self.push(&texts[0][..shared], None)), shared) }
    }
}

/// Is shown a layer's keys and values.
type Show<'a> = &'a mut dyn FnMut(usize, [&Tensor; 2]) -> Result<(), ModelError>;

impl Decoder {
    fn embed(&self, tokens: &[u32], positions: &[usize]) -> Result<Tensor, ModelError> {
        let mut tables = vec![(&self.words, self.scale)];
        tables.extend(self.positions.as_ref().map(|table| (table, 1.0)));
        let rows = tokens.iter().zip(positions).map(|(&token, &position)| {
            let mut row = vec![token as usize];
            row.extend(self.positions.as_ref().map(|_| position));
            row
        });
        embed(&tables, &rows.collect::<Vec<_>>(), self.hidden, &self.device)
    }

    /// The last hidden state of every token. `seen` is shown each layer's keys and values.
    fn states(&self, forest: &Forest, seen: Show<'_>) -> Result<Tensor, ModelError> {
        let positions = Segment::positions(&forest.segments);
        let mut x = self.embed(&forest.tokens, &positions)?;
        for (index, layer) in self.layers.iter().enumerate() {
            x = layer.run(&x, Mode::Batch, &positions, &mut |attention, qkv| {
                seen(index, [qkv[1], qkv[2]])?;
                Ok(attention.run(qkv, &forest.segments, None)?)
            })?;
        }
        Ok(self.norm.run(&x)?)
    }
}

/// Keys and values of every layer for one text, grown by a row a step.
#[derive(Clone, Default)]
struct Cache {
    layers: Vec<[Vec<f32>; 2]>,
    length: usize,
}

impl LanguageModel for Decoder {
    fn likelihoods(&self, prompts: &[Prompt<'_>]) -> Result<Vec<Vec<Likelihood>>, ModelError> {
        let mut forest = Forest::default();
        let contexts: Vec<_> = prompts.iter().map(|prompt| prompt.context).collect();
        let (root, shared) = forest.begin(&contexts);
        let mut wanted = Vec::new();
        for prompt in prompts {
            let context = forest.push(&prompt.context[shared..], root);
            let last = forest.tokens.len() - 1;
            for continuation in &prompt.continuations {
                let (Some(first), [inner @ .., _]) = (continuation.first(), *continuation) else {
                    return Err(ModelError::Input("a continuation without tokens has no likelihood".into()));
                };
                wanted.push((last, *first));
                let start = forest.tokens.len();
                if !inner.is_empty() {
                    forest.push(inner, Some(context));
                }
                wanted.extend(continuation[1..].iter().enumerate().map(|(index, &token)| (start + index, token)));
            }
        }
        let states = self.states(&forest, &mut |_, _| Ok(()))?;
        Ok(gather(prompts, &self.vocabulary.log_probabilities(&states, &wanted)?))
    }

    fn generate(
        &self,
        prompts: &[&[u32]],
        limit: usize,
        ends: &[u32],
        stop: &(dyn Fn(&[u32]) -> bool + Sync),
    ) -> Result<Vec<Vec<u32>>, ModelError> {
        let mut forest = Forest::default();
        let (root, shared) = forest.begin(prompts);
        let segments: Vec<_> = prompts.iter().map(|prompt| forest.push(&prompt[shared..], root)).collect();
        let mut caches = vec![Cache::default(); prompts.len()];
        let states = self.states(&forest, &mut |_, [keys, values]| {
            let width = keys.dim(1)?;
            let [keys, values]: [Vec<f32>; 2] = [keys.flatten_all()?.to_vec1()?, values.flatten_all()?.to_vec1()?];
            for (cache, &segment) in caches.iter_mut().zip(&segments) {
                let line = Segment::line(&forest.segments, segment);
                let rows = |all: &[f32]| {
                    let rows = line.iter().map(|&segment| forest.segments[segment].rows.clone());
                    rows.flat_map(|rows| &all[rows.start * width..rows.end * width]).copied().collect()
                };
                cache.layers.push([rows(&keys), rows(&values)]);
                cache.length = line.iter().map(|&segment| forest.segments[segment].rows.len()).sum();
            }
            Ok(())
        })?;
        let last: Vec<_> = segments.iter().map(|&s| u32::try_from(forest.segments[s].rows.end - 1).unwrap_or(u32::MAX)).collect();
        let mut best = self.vocabulary.best(&states.index_select(&Tensor::new(last, &self.device)?, 0)?)?;
        drop(states);
        let mut answers: Vec<_> = prompts.iter().map(|_| Answer::default()).collect();
        let mut live: Vec<usize> = (0..prompts.len()).collect();
        loop {
            for (&index, best) in live.iter().zip(best) {
                answers[index].take(best, limit, ends, stop)?;
            }
            live.retain(|&index| !answers[index].done);
            if live.is_empty() {
                return Ok(answers.into_iter().map(|answer| answer.tokens).collect());
            }
            best = self.step(&live, &answers, &mut caches)?;
        }
    }
}

impl Decoder {
    /// The next token of every answer that goes on.
    fn step(&self, live: &[usize], answers: &[Answer], caches: &mut [Cache]) -> Result<Vec<(u32, f32)>, ModelError> {
        let tokens: Vec<_> = live.iter().filter_map(|&index| answers[index].tokens.last().copied()).collect();
        let positions: Vec<_> = live.iter().map(|&index| caches[index].length).collect();
        let mut x = self.embed(&tokens, &positions)?;
        for (index, layer) in self.layers.iter().enumerate() {
            x = layer.run(&x, Mode::Step, &positions, &mut |attention, [q, k, v]| {
                let (width, narrow) = (q.dim(1)?, k.dim(1)?);
                let [q, k, v]: [Vec<f32>; 3] =
                    [q.flatten_all()?.to_vec1()?, k.flatten_all()?.to_vec1()?, v.flatten_all()?.to_vec1()?];
                for (row, &text) in live.iter().enumerate() {
                    let [keys, values] = &mut caches[text].layers[index];
                    keys.extend(&k[row * narrow..(row + 1) * narrow]);
                    values.extend(&v[row * narrow..(row + 1) * narrow]);
                }
                let mut out = vec![0.0; q.len()];
                out.par_chunks_mut(width).zip(q.par_chunks(width)).zip(live).for_each(|((out, query), &text)| {
                    let [keys, values] = &caches[text].layers[index];
                    attention.step(out, query, keys, values, None);
                });
                Ok(Tensor::from_vec(out, (live.len(), width), &self.device)?)
            })?;
        }
        live.iter().for_each(|&index| caches[index].length += 1);
        self.vocabulary.best(&self.norm.run(&x)?)
    }
}
