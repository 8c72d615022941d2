//! DeBERTa-v2 and v3 (He et al., 2021): attention between contents and relative positions.
//!
//! The score of query i and key j is `(q_i k_j + q_i P^k_d + k_j P^q_d) / sqrt(3 depth)`, where d is the bucket of `i - j` and the P are projections
//! of a table of relative positions.

use std::ops::Range;

use candle_core::Tensor;
use rayon::prelude::*;
use serde::Deserialize;
use serde_json::Value;

use super::{
    architecture::{Body, config, even, refuse},
    attention::{Attention, ScoreBias, Segment},
    encoder::{HeadPlan, LayerBias, Stack, Use},
    layers::{FeedForward, Linear, Loader},
    matrix::Mode,
    ops::{Activation, with},
    product::product,
    transformer::{Layer, Order, prepare},
    weights::ModelError,
};

#[derive(Deserialize)]
struct Config {
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    vocab_size: usize,
    max_position_embeddings: usize,
    #[serde(default)]
    type_vocab_size: usize,
    #[serde(default = "epsilon")]
    layer_norm_eps: f32,
    #[serde(default = "gelu")]
    hidden_act: Activation,
    #[serde(default = "gelu")]
    pooler_hidden_act: Activation,
    #[serde(default)]
    relative_attention: bool,
    #[serde(default = "minus_one")]
    position_buckets: i64,
    #[serde(default = "minus_one")]
    max_relative_positions: i64,
    #[serde(default)]
    share_att_key: bool,
    #[serde(default)]
    pos_att_type: Value,
    #[serde(default)]
    norm_rel_ebd: Option<String>,
    #[serde(default = "yes")]
    position_biased_input: bool,
    #[serde(default)]
    conv_kernel_size: usize,
    #[serde(default)]
    embedding_size: Option<usize>,
}

fn epsilon() -> f32 {
    1e-7
}
fn gelu() -> Activation {
    Activation::Gelu
}
fn minus_one() -> i64 {
    -1
}
fn yes() -> bool {
    true
}

impl Config {
    fn has(&self, kind: &str) -> bool {
        match &self.pos_att_type {
            Value::String(text) => text.split('|').any(|part| part.trim() == kind),
            Value::Array(kinds) => kinds.iter().any(|known| known == kind),
            _ => false,
        }
    }

    fn farthest(&self) -> usize {
        usize::try_from(self.max_relative_positions).ok().filter(|&far| far > 0).unwrap_or(self.max_position_embeddings)
    }

    /// Relative positions on each side that the table tells apart.
    fn span(&self) -> usize {
        usize::try_from(self.position_buckets).ok().filter(|&buckets| buckets > 0).unwrap_or_else(|| self.farthest())
    }

    fn scale(&self) -> f32 {
        let parts = 1 + usize::from(self.has("c2p")) + usize::from(self.has("p2c"));
        super::attention::root(parts * self.hidden_size / self.num_attention_heads)
    }
}

fn parse(value: &Value) -> Result<Config, ModelError> {
    let c: Config = config(value)?;
    even(c.hidden_size, c.num_attention_heads)?;
    if !c.relative_attention {
        return Err(refuse("relative_attention", "false", "true"));
    }
    if c.conv_kernel_size > 0 {
        return Err(refuse("conv_kernel_size", &c.conv_kernel_size.to_string(), "0"));
    }
    if let Some(size) = c.embedding_size.filter(|&size| size != c.hidden_size) {
        return Err(refuse("embedding_size", &size.to_string(), &c.hidden_size.to_string()));
    }
    Ok(c)
}

pub(super) fn limit(value: &Value) -> Result<usize, ModelError> {
    Ok(parse(value)?.max_position_embeddings)
}

pub(super) fn head(value: &Value, of: Use) -> Result<HeadPlan, ModelError> {
    let c = parse(value)?;
    let head = HeadPlan::linear(c.hidden_size, "classifier");
    Ok(if of == Use::Whole { head.after("pooler.dense", c.pooler_hidden_act) } else { head })
}

pub(super) fn load(value: &Value, loader: &mut Loader<'_>) -> Result<Body, ModelError> {
    let c = parse(value)?;
    let hidden = c.hidden_size;
    let name = |part: &str| format!("deberta.{part}");
    let norm = |loader: &mut Loader<'_>, part: &str| loader.layer_norm(&name(part), hidden, c.layer_norm_eps, true);
    let relative = loader.weights.vector_of(&name("encoder.rel_embeddings.weight"), &[2 * c.span(), hidden])?;
    let mut relative = Tensor::from_vec(relative, (2 * c.span(), hidden), loader.device)?;
    if c.norm_rel_ebd.as_deref().is_some_and(|kinds| kinds.contains("layer_norm")) {
        relative = norm(loader, "encoder.LayerNorm")?.run(&relative)?;
    }
    let mut layers = Vec::new();
    let mut tables = Vec::new();
    for index in 0..c.num_hidden_layers {
        let (layer, table) = self::layer(&c, loader, index, &relative)?;
        layers.push(layer);
        tables.push(table);
    }
    let bias = Disentangled {
        tables,
        heads: c.num_attention_heads,
        depth: hidden / c.num_attention_heads,
        span: c.span(),
        buckets: c.position_buckets > 0,
        farthest: c.farthest(),
        scale: c.scale(),
    };
    let mut table = |part: &str, rows: usize| loader.matrix(&name(&format!("embeddings.{part}.weight")), rows, hidden);
    Ok(Body::Encoder(Box::new(Stack {
        words: table("word_embeddings", c.vocab_size)?,
        positions: if c.position_biased_input {
            Some((table("position_embeddings", c.max_position_embeddings)?, 0))
        } else {
            None
        },
        types: if c.type_vocab_size > 0 { Some(table("token_type_embeddings", c.type_vocab_size)?) } else { None },
        embedding_norm: norm(loader, "embeddings.LayerNorm")?,
        layers,
        bias: Some(Box::new(bias)),
        last_norm: None,
        hidden,
        device: loader.device.clone(),
    })))
}

/// What a layer's queries meet as keys, and its keys as queries: `heads x positions x depth`, empty where there is none.
type Tables = [Vec<f32>; 2];

fn layer(c: &Config, loader: &mut Loader<'_>, index: usize, relative: &Tensor) -> Result<(Layer, Tables), ModelError> {
    let (hidden, inner, heads) = (c.hidden_size, c.intermediate_size, c.num_attention_heads);
    let name = |part: &str| format!("deberta.encoder.layer.{index}.{part}");
    let mut qkv = [
        loader.linear(&name("attention.self.query_proj"), hidden, hidden, true)?,
        loader.linear(&name("attention.self.key_proj"), hidden, hidden, true)?,
        loader.linear(&name("attention.self.value_proj"), hidden, hidden, true)?,
    ];
    let positions = relative.dim(0)?;
    let mut table = |wanted: bool, own: &str, shared: &Linear| -> Result<Vec<f32>, ModelError> {
        if !wanted {
            return Ok(Vec::new());
        }
        let projected = if c.share_att_key {
            shared.forward(relative, Activation::None, Mode::Batch)?
        } else {
            loader.linear(&name(own), hidden, hidden, true)?.forward(relative, Activation::None, Mode::Batch)?
        };
        let by_head = projected.reshape((positions, heads, hidden / heads))?.transpose(0, 1)?;
        Ok(by_head.flatten_all()?.to_vec1()?)
    };
    let tables = [
        table(c.has("c2p"), "attention.self.pos_key_proj", &qkv[1])?,
        table(c.has("p2c"), "attention.self.pos_query_proj", &qkv[0])?,
    ];
    let layer = Layer {
        order: Order::Post {
            attention: loader.layer_norm(&name("attention.output.LayerNorm"), hidden, c.layer_norm_eps, true)?,
            feed: loader.layer_norm(&name("output.LayerNorm"), hidden, c.layer_norm_eps, true)?,
        },
        attention: Attention { scale: c.scale(), ..Attention::plain(heads, hidden) },
        prepare: prepare(&mut qkv),
        qkv,
        out: loader.linear(&name("attention.output.dense"), hidden, hidden, true)?,
        feed: FeedForward {
            gate: None,
            up: loader.linear(&name("intermediate.dense"), inner, hidden, true)?,
            down: loader.linear(&name("output.dense"), hidden, inner, true)?,
            activation: c.hidden_act,
        },
    };
    Ok((layer, tables))
}

struct Disentangled {
    tables: Vec<Tables>,
    heads: usize,
    depth: usize,
    span: usize,
    /// Whether far positions share logarithmic buckets.
    buckets: bool,
    farthest: usize,
    scale: f32,
}

impl Disentangled {
    /// The place in the table of the distance `query - key`.
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "positions, rounded as PyTorch does")]
    fn place(&self, distance: i64) -> usize {
        let span = self.span as i64;
        let mid = span / 2;
        let bucket = if !self.buckets || distance.abs() <= mid {
            distance
        } else {
            let (far, mid_f) = (distance.abs() as f32, mid as f32);
            let log = (far / mid_f).ln() / ((self.farthest as f32 - 1.0) / mid_f).ln() * (mid_f - 1.0);
            (log.ceil() as i64 + mid) * distance.signum()
        };
        usize::try_from((bucket + span).clamp(0, 2 * span - 1)).unwrap_or(0)
    }
}

impl LayerBias for Disentangled {
    fn of(&self, layer: usize, queries: &Tensor, keys: &Tensor, segments: &[Segment]) -> Result<Box<dyn ScoreBias>, ModelError> {
        let rows = queries.dim(0)?;
        let (depth, width) = (self.depth, 2 * self.span);
        let against = |x: &Tensor, table: &[f32]| {
            with(x, |x| {
                let mut out = vec![0.0; table.len() / depth * rows];
                let heads = out.par_chunks_mut(rows * width).zip(table.par_chunks(width * depth)).enumerate();
                heads.for_each(|(head, (out, table))| {
                    let rows = x.chunks(self.heads * depth).flat_map(|row| &row[head * depth..][..depth]);
                    product(out, &rows.copied().collect::<Vec<_>>(), table, depth);
                });
                out
            })
        };
        let longest = segments.iter().map(|segment| segment.rows.len()).max().unwrap_or(0);
        let longest = i64::try_from(longest).unwrap_or(0);
        let [keys_table, queries_table] = &self.tables[layer];
        Ok(Box::new(Bias {
            by_query: against(queries, keys_table)?,
            by_key: against(keys, queries_table)?,
            places: (1 - longest..longest.max(1)).map(|distance| self.place(distance)).collect(),
            rows,
            width,
            scale: self.scale,
        }))
    }
}

/// The products of one layer: `heads x rows x positions`, empty where there is none.
struct Bias {
    by_query: Vec<f32>,
    by_key: Vec<f32>,
    /// Place in the table of every distance, from the most negative on.
    places: Vec<usize>,
    rows: usize,
    width: usize,
    scale: f32,
}

impl ScoreBias for Bias {
    fn add(&self, head: usize, row: usize, position: usize, keys: Range<usize>, scores: &mut [f32]) {
        let zero = self.places.len() / 2;
        let line = |row: usize| (head * self.rows + row) * self.width;
        for (key, score) in keys.zip(scores) {
            let place = self.places[zero + position - key];
            let by_query = self.by_query.get(line(row) + place).copied().unwrap_or(0.0);
            let by_key = self.by_key.get(line(row + key - position) + place).copied().unwrap_or(0.0);
            *score += self.scale * (by_query + by_key);
        }
    }
}
