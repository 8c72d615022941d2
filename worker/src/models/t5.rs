//! T5 and Flan-T5 (Raffel et al., 2020): an encoder and a decoder with relative positions that all layers share.

use std::ops::Range;

use candle_core::{Device, Tensor};
use rayon::prelude::*;
use serde::Deserialize;
use serde_json::Value;

use super::{
    architecture::{Body, config, refuse},
    attention::{Attention, Mask, Prepare, ScoreBias, Segment},
    language::{Answer, LanguageModel, Likelihood, Prompt, Vocabulary, gather},
    layers::{FeedForward, Linear, Loader, embed},
    matrix::{Matrix, Mode},
    ops::{Activation, Join, Norm, map3},
    transformer::{Layer, Order},
    weights::ModelError,
};

#[derive(Clone, Deserialize)]
struct Config {
    d_model: usize,
    d_kv: usize,
    d_ff: usize,
    num_layers: usize,
    #[serde(default)]
    num_decoder_layers: Option<usize>,
    num_heads: usize,
    vocab_size: usize,
    #[serde(default = "thirty_two")]
    relative_attention_num_buckets: usize,
    #[serde(default = "far")]
    relative_attention_max_distance: usize,
    #[serde(default = "epsilon")]
    layer_norm_epsilon: f32,
    #[serde(default = "relu")]
    feed_forward_proj: String,
    #[serde(default)]
    decoder_start_token_id: u32,
    #[serde(default)]
    tie_word_embeddings: Option<bool>,
    /// How newer configs say that the embeddings were tied when the model was trained.
    #[serde(default)]
    scale_decoder_outputs: Option<bool>,
    #[serde(default)]
    n_positions: Option<usize>,
}

fn thirty_two() -> usize {
    32
}
fn far() -> usize {
    128
}
fn epsilon() -> f32 {
    1e-6
}
fn relu() -> String {
    "relu".into()
}

pub(super) fn limit(value: &Value) -> Result<usize, ModelError> {
    Ok(config::<Config>(value)?.n_positions.unwrap_or(512))
}

/// A table of scores by the bucket of the distance from query to key.
struct Relative {
    /// `buckets x heads`.
    table: Vec<f32>,
    heads: usize,
    buckets: usize,
    farthest: usize,
    /// Whether keys behind the query have buckets of their own.
    both: bool,
}

impl Relative {
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "as PyTorch rounds")]
    fn bucket(&self, distance: i64) -> usize {
        let (buckets, first) = match self.both {
            true => (self.buckets / 2, if distance > 0 { self.buckets / 2 } else { 0 }),
            false => (self.buckets, 0),
        };
        let distance = if self.both { distance.unsigned_abs() } else { distance.min(0).unsigned_abs() } as usize;
        let exact = buckets / 2;
        if distance < exact {
            return first + distance;
        }
        let log = (distance as f32 / exact as f32).ln() / (self.farthest as f64 / exact as f64).ln() as f32;
        first + (exact + (log * (buckets - exact) as f32) as usize).min(buckets - 1)
    }

    /// The scores of every distance up to a length: `heads x (2 * length - 1)`.
    fn within(&self, length: usize) -> Distances {
        let far = i64::try_from(length).unwrap_or(i64::MAX).max(1);
        let buckets: Vec<_> = (1 - far..far).map(|distance| self.bucket(distance)).collect();
        let score = |head| buckets.iter().map(move |bucket| self.table[bucket * self.heads + head]);
        Distances { scores: (0..self.heads).flat_map(score).collect(), zero: buckets.len() / 2, width: buckets.len() }
    }
}

struct Distances {
    scores: Vec<f32>,
    zero: usize,
    width: usize,
}

impl ScoreBias for Distances {
    fn add(&self, head: usize, _: usize, position: usize, keys: Range<usize>, scores: &mut [f32]) {
        let start = head * self.width + self.zero + keys.start - position;
        scores.iter_mut().zip(&self.scores[start..start + keys.len()]).for_each(|(score, bias)| *score += bias);
    }
}

/// What a decoder's layer asks of the encoder's states.
struct Cross {
    norm: Norm,
    queries: Linear,
    keys: Linear,
    values: Linear,
    out: Linear,
}

struct T5 {
    words: Matrix,
    encoder: Vec<Layer>,
    encoder_bias: Relative,
    encoder_norm: Norm,
    /// Self-attention, the look at the encoder, and the feed-forward block.
    decoder: Vec<(Attending, Cross, Feeding)>,
    decoder_bias: Relative,
    decoder_norm: Norm,
    vocabulary: Vocabulary,
    attention: Attention,
    start: u32,
    hidden: usize,
    device: Device,
}

struct Attending {
    norm: Norm,
    qkv: [Linear; 3],
    out: Linear,
}

struct Feeding {
    norm: Norm,
    block: FeedForward,
}

struct Parts<'a, 'b> {
    c: &'a Config,
    loader: &'a mut Loader<'b>,
    activation: Activation,
    gated: bool,
}

impl Parts<'_, '_> {
    fn norm(&mut self, name: &str) -> Result<Norm, ModelError> {
        self.loader.rms_norm(name, self.c.d_model, self.c.layer_norm_epsilon, false)
    }

    fn attention(&mut self, name: &str) -> Result<([Linear; 3], Linear), ModelError> {
        let (inner, hidden) = (self.c.num_heads * self.c.d_kv, self.c.d_model);
        let mut linear = |part: &str, rows, columns| self.loader.linear(&format!("{name}.{part}"), rows, columns, false);
        Ok(([linear("q", inner, hidden)?, linear("k", inner, hidden)?, linear("v", inner, hidden)?], linear("o", hidden, inner)?))
    }

    fn feed(&mut self, name: &str) -> Result<FeedForward, ModelError> {
        let (inner, hidden) = (self.c.d_ff, self.c.d_model);
        let mut linear =
            |part: &str, rows, columns| self.loader.linear(&format!("{name}.DenseReluDense.{part}"), rows, columns, false);
        let (gate, up) = match self.gated {
            true => (Some(linear("wi_0", inner, hidden)?), linear("wi_1", inner, hidden)?),
            false => (None, linear("wi", inner, hidden)?),
        };
        Ok(FeedForward { gate, up, down: linear("wo", hidden, inner)?, activation: self.activation })
    }

    fn relative(&mut self, side: &str) -> Result<Relative, ModelError> {
        let (buckets, heads) = (self.c.relative_attention_num_buckets, self.c.num_heads);
        let name = format!("{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight");
        Ok(Relative {
            table: self.loader.weights.vector_of(&name, &[buckets, heads])?,
            heads,
            buckets,
            farthest: self.c.relative_attention_max_distance,
            both: side == "encoder",
        })
    }
}

pub(super) fn load(value: &Value, loader: &mut Loader<'_>) -> Result<Body, ModelError> {
    let c: Config = config(value)?;
    let (gated, activation) = match c.feed_forward_proj.as_str() {
        "relu" => (false, Activation::Relu),
        "gated-gelu" => (true, Activation::GeluTanh),
        "gated-silu" => (true, Activation::Silu),
        other => return Err(refuse("feed_forward_proj", other, "relu, gated-gelu or gated-silu")),
    };
    let words = loader.matrix("shared.weight", c.vocab_size, c.d_model)?;
    let mut vocabulary = Vocabulary::tied(&words);
    if loader.weights.contains("lm_head.weight") {
        vocabulary.head = loader.linear("lm_head", c.vocab_size, c.d_model, false)?;
    }
    if c.scale_decoder_outputs.unwrap_or(c.tie_word_embeddings != Some(false)) {
        vocabulary.scale = super::attention::root(c.d_model);
    }
    let plain =
        Attention { heads: c.num_heads, kv_heads: c.num_heads, depth: c.d_kv, scale: 1.0, softcap: None, mask: Mask::Full };
    let device = loader.device.clone();
    let mut parts = Parts { c: &c, loader, activation, gated };
    let mut encoder = Vec::new();
    for index in 0..c.num_layers {
        let at = |part: &str| format!("encoder.block.{index}.layer.{part}");
        let (qkv, out) = parts.attention(&at("0.SelfAttention"))?;
        encoder.push(Layer {
            order: Order::Pre {
                attention: Some(parts.norm(&at("0.layer_norm"))?),
                feed: parts.norm(&at("1.layer_norm"))?,
                after: None,
            },
            attention: plain.clone(),
            qkv,
            prepare: [Prepare::default(), Prepare::default(), Prepare::default()],
            out,
            feed: parts.feed(&at("1"))?,
        });
    }
    let mut decoder = Vec::new();
    for index in 0..c.num_decoder_layers.unwrap_or(c.num_layers) {
        let at = |part: &str| format!("decoder.block.{index}.layer.{part}");
        let (qkv, out) = parts.attention(&at("0.SelfAttention"))?;
        let own = Attending { norm: parts.norm(&at("0.layer_norm"))?, qkv, out };
        let ([queries, keys, values], out) = parts.attention(&at("1.EncDecAttention"))?;
        let cross = Cross { norm: parts.norm(&at("1.layer_norm"))?, queries, keys, values, out };
        decoder.push((own, cross, Feeding { norm: parts.norm(&at("2.layer_norm"))?, block: parts.feed(&at("2"))? }));
    }
    Ok(Body::Language(Box::new(T5 {
        encoder_bias: parts.relative("encoder")?,
        decoder_bias: parts.relative("decoder")?,
        encoder_norm: parts.norm("encoder.final_layer_norm")?,
        decoder_norm: parts.norm("decoder.final_layer_norm")?,
        words,
        encoder,
        decoder,
        vocabulary,
        attention: plain,
        start: c.decoder_start_token_id,
        hidden: c.d_model,
        device,
    })))
}

/// The encoder's states as each decoder layer reads them: keys and values, and the rows of each text.
struct Read {
    layers: Vec<[Tensor; 2]>,
    texts: Vec<Segment>,
}

type MixLayer<'a> = &'a mut dyn FnMut(usize, [&Tensor; 3]) -> Result<Tensor, ModelError>;

impl T5 {
    fn embed(&self, tokens: impl Iterator<Item = u32>) -> Result<Tensor, ModelError> {
        let rows: Vec<_> = tokens.map(|token| vec![token as usize]).collect();
        embed(&[(&self.words, 1.0)], &rows, self.hidden, &self.device)
    }

    fn read(&self, texts: &[&[u32]]) -> Result<Read, ModelError> {
        let segments = Segment::of(texts.iter().map(|text| text.len()));
        let positions = Segment::positions(&segments);
        let bias = self.encoder_bias.within(texts.iter().map(|text| text.len()).max().unwrap_or(1));
        let mut x = self.embed(texts.iter().copied().flatten().copied())?;
        for layer in &self.encoder {
            x = layer.forward(&x, &segments, &positions, Some(&bias))?;
        }
        let x = self.encoder_norm.run(&x)?;
        let layers = self.decoder.iter().map(|(_, cross, _)| {
            Ok([cross.keys.forward(&x, Activation::None, Mode::Batch)?, cross.values.forward(&x, Activation::None, Mode::Batch)?])
        });
        Ok(Read { layers: layers.collect::<Result<_, ModelError>>()?, texts: segments })
    }

    fn decode(
        &self,
        mut x: Tensor,
        mode: Mode,
        own: MixLayer<'_>,
        cross: MixLayer<'_>,
        read: &Read,
    ) -> Result<Tensor, ModelError> {
        for (index, (attending, looking, feeding)) in self.decoder.iter().enumerate() {
            let normed = attending.norm.run(&x)?;
            let [q, k, v] = attending.qkv.each_ref().map(|linear| linear.forward(&normed, Activation::None, mode));
            let mixed = own(index, [&q?, &k?, &v?])?;
            x = attending.out.joined(&mixed, mode, &x, Join::default())?;
            let queries = looking.queries.forward(&looking.norm.run(&x)?, Activation::None, mode)?;
            let [keys, values] = &read.layers[index];
            x = looking.out.joined(&cross(index, [&queries, keys, values])?, mode, &x, Join::default())?;
            x = feeding.block.joined(&feeding.norm.run(&x)?, mode, &x, Join::default())?;
        }
        Ok(self.decoder_norm.run(&x)?)
    }

    /// Queries in `rows` of each pair over the encoder's rows of the pair's text.
    fn look(&self, inputs: [&Tensor; 3], pairs: &[(Range<usize>, Range<usize>)]) -> Result<Tensor, ModelError> {
        let width = self.attention.heads * self.attention.depth;
        Ok(map3(inputs, width, |out, [queries, keys, values]| {
            let mut rest = out;
            let mut parts = Vec::with_capacity(pairs.len());
            for pair in pairs {
                let (part, after) = rest.split_at_mut(pair.0.len() * width);
                parts.push((pair, part));
                rest = after;
            }
            parts.into_par_iter().for_each(|((rows, seen), part)| {
                let seen: Vec<_> = seen.clone().collect();
                self.attention.heads_over(part, queries, rows.clone(), [keys, values], &seen, None);
            });
        })?)
    }
}

impl LanguageModel for T5 {
    fn likelihoods(&self, prompts: &[Prompt<'_>]) -> Result<Vec<Vec<Likelihood>>, ModelError> {
        let read = self.read(&prompts.iter().map(|prompt| prompt.context).collect::<Vec<_>>())?;
        let answers = || prompts.iter().flat_map(|prompt| &prompt.continuations);
        if answers().any(|answer| answer.is_empty()) {
            return Err(ModelError::Input("a continuation without tokens has no likelihood".into()));
        }
        let segments = Segment::of(answers().map(|answer| answer.len()));
        let tokens = answers().flat_map(|answer| std::iter::once(self.start).chain(answer[..answer.len() - 1].iter().copied()));
        let x = self.embed(tokens)?;
        let bias = self.decoder_bias.within(answers().map(|answer| answer.len()).max().unwrap_or(1));
        let causal = Attention { mask: Mask::Causal, ..self.attention.clone() };
        let texts =
            prompts.iter().zip(&read.texts).flat_map(|(prompt, text)| prompt.continuations.iter().map(|_| text.rows.clone()));
        let pairs: Vec<_> = segments.iter().map(|segment| segment.rows.clone()).zip(texts).collect();
        let states = self.decode(
            x,
            Mode::Batch,
            &mut |_, qkv| Ok(causal.run(qkv, &segments, Some(&bias))?),
            &mut |_, inputs| self.look(inputs, &pairs),
            &read,
        )?;
        let wanted: Vec<_> = answers().flat_map(|answer| answer.iter().copied()).enumerate().collect();
        Ok(gather(prompts, &self.vocabulary.log_probabilities(&states, &wanted)?))
    }

    fn generate(
        &self,
        prompts: &[&[u32]],
        limit: usize,
        ends: &[u32],
        stop: &(dyn Fn(&[u32]) -> bool + Sync),
    ) -> Result<Vec<Vec<u32>>, ModelError> {
        let read = self.read(prompts)?;
        let mut answers: Vec<_> = prompts.iter().map(|_| Answer::default()).collect();
        let mut caches = vec![vec![[Vec::<f32>::new(), Vec::new()]; self.decoder.len()]; prompts.len()];
        let mut live: Vec<usize> = (0..prompts.len()).collect();
        let causal = Attention { mask: Mask::Causal, ..self.attention.clone() };
        for step in 1.. {
            let last = live.iter().map(|&index| answers[index].tokens.last().copied().unwrap_or(self.start));
            let x = self.embed(last)?;
            let bias = self.decoder_bias.within(step);
            let pairs: Vec<_> =
                live.iter().enumerate().map(|(row, &text)| (row..row + 1, read.texts[text].rows.clone())).collect();
            let states = self.decode(
                x,
                Mode::Step,
                &mut |layer, [q, k, v]| {
                    let width = q.dim(1)?;
                    let [q, k, v]: [Vec<f32>; 3] =
                        [q.flatten_all()?.to_vec1()?, k.flatten_all()?.to_vec1()?, v.flatten_all()?.to_vec1()?];
                    for (row, &text) in live.iter().enumerate() {
                        let [keys, values] = &mut caches[text][layer];
                        keys.extend(&k[row * width..(row + 1) * width]);
                        values.extend(&v[row * width..(row + 1) * width]);
                    }
                    let mut out = vec![0.0; q.len()];
                    out.par_chunks_mut(width).zip(q.par_chunks(width)).zip(&live).for_each(|((out, query), &text)| {
                        let [keys, values] = &caches[text][layer];
                        causal.step(out, query, keys, values, Some(&bias));
                    });
                    Ok(Tensor::from_vec(out, (live.len(), width), &self.device)?)
                },
                &mut |_, inputs| self.look(inputs, &pairs),
                &read,
            )?;
            for (&index, best) in live.iter().zip(self.vocabulary.best(&states)?) {
                answers[index].take(best, limit, ends, stop)?;
            }
            live.retain(|&index| !answers[index].done);
            if live.is_empty() {
                break;
            }
        }
        Ok(answers.into_iter().map(|answer| answer.tokens).collect())
    }
}
