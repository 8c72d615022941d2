//! BERT encoders (Devlin et al., 2019), as `transformers`' `BertModel`, and the layer that RoBERTa shares.

use serde::Deserialize;
use serde_json::Value;

use super::{
    architecture::{Body, config, even, refuse},
    attention::Attention,
    encoder::{HeadPlan, Stack, Use},
    gradient::{LayerNames, Outline},
    layers::{FeedForward, Loader},
    ops::Activation,
    transformer::{Layer, Order, prepare},
    weights::ModelError,
};

#[derive(Clone, Debug, Deserialize)]
pub(super) struct BertConfig {
    pub(super) hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    vocab_size: usize,
    pub(super) max_position_embeddings: usize,
    #[serde(default = "two")]
    type_vocab_size: usize,
    #[serde(default = "epsilon")]
    layer_norm_eps: f32,
    #[serde(default = "gelu")]
    hidden_act: Activation,
    #[serde(default)]
    position_embedding_type: Option<String>,
}

fn two() -> usize {
    2
}
fn epsilon() -> f32 {
    1e-12
}
fn gelu() -> Activation {
    Activation::Gelu
}

fn parse(value: &Value) -> Result<BertConfig, ModelError> {
    let this: BertConfig = config(value)?;
    if let Some(other) = this.position_embedding_type.as_deref().filter(|kind| *kind != "absolute") {
        return Err(refuse("position_embedding_type", other, "absolute"));
    }
    even(this.hidden_size, this.num_attention_heads)?;
    Ok(this)
}

pub(super) fn limit(value: &Value) -> Result<usize, ModelError> {
    Ok(parse(value)?.max_position_embeddings)
}

pub(super) fn head(value: &Value, of: Use) -> Result<HeadPlan, ModelError> {
    let head = HeadPlan::linear(parse(value)?.hidden_size, "classifier");
    Ok(if of == Use::Whole { head.after("bert.pooler.dense", Activation::Tanh) } else { head })
}

pub(super) fn load(value: &Value, loader: &mut Loader<'_>) -> Result<Body, ModelError> {
    Ok(Body::Encoder(Box::new(stack(value, loader, "bert", 0)?)))
}

/// What the network consists of.
pub(super) fn outline(value: &Value) -> Result<Outline, ModelError> {
    outline_of(value, "bert", 0)
}

/// What the network under the names that begin with `prefix` consists of; its first position is `first`.
pub(super) fn outline_of(value: &Value, prefix: &str, first: usize) -> Result<Outline, ModelError> {
    let c = parse(value)?;
    let at = |part: &str| format!("{prefix}.{part}");
    let layer = |index: usize| {
        let at = |part: &str| at(&format!("encoder.layer.{index}.{part}"));
        LayerNames {
            qkv: ["query", "key", "value"].map(|part| at(&format!("attention.self.{part}"))),
            out: at("attention.output.dense"),
            attention_norm: at("attention.output.LayerNorm"),
            up: at("intermediate.dense"),
            down: at("output.dense"),
            feed_norm: at("output.LayerNorm"),
        }
    };
    Ok(Outline {
        hidden: c.hidden_size,
        heads: c.num_attention_heads,
        epsilon: c.layer_norm_eps.into(),
        activation: c.hidden_act,
        words: at("embeddings.word_embeddings"),
        positions: (at("embeddings.position_embeddings"), first),
        types: Some(at("embeddings.token_type_embeddings")),
        embedding_norm: at("embeddings.LayerNorm"),
        layers: (0..c.num_hidden_layers).map(layer).collect(),
    })
}

/// The network under the names that begin with `prefix`; its first position is `first`.
pub(super) fn stack(value: &Value, loader: &mut Loader<'_>, prefix: &str, first: usize) -> Result<Stack, ModelError> {
    let c = parse(value)?;
    let table = |name: &str| format!("{prefix}.embeddings.{name}.weight");
    let mut layers = Vec::new();
    for index in 0..c.num_hidden_layers {
        layers.push(layer(&c, loader, &format!("{prefix}.encoder.layer.{index}"))?);
    }
    Ok(Stack {
        words: loader.matrix(&table("word_embeddings"), c.vocab_size, c.hidden_size)?,
        positions: Some((loader.matrix(&table("position_embeddings"), c.max_position_embeddings, c.hidden_size)?, first)),
        types: Some(loader.matrix(&table("token_type_embeddings"), c.type_vocab_size, c.hidden_size)?),
        embedding_norm: loader.layer_norm(&format!("{prefix}.embeddings.LayerNorm"), c.hidden_size, c.layer_norm_eps, true)?,
        layers,
        bias: None,
        last_norm: None,
        hidden: c.hidden_size,
        device: loader.device.clone(),
    })
}

fn layer(c: &BertConfig, loader: &mut Loader<'_>, prefix: &str) -> Result<Layer, ModelError> {
    let (hidden, inner) = (c.hidden_size, c.intermediate_size);
    let name = |part: &str| format!("{prefix}.{part}");
    let mut qkv = [
        loader.linear(&name("attention.self.query"), hidden, hidden, true)?,
        loader.linear(&name("attention.self.key"), hidden, hidden, true)?,
        loader.linear(&name("attention.self.value"), hidden, hidden, true)?,
    ];
    Ok(Layer {
        order: Order::Post {
            attention: loader.layer_norm(&name("attention.output.LayerNorm"), hidden, c.layer_norm_eps, true)?,
            feed: loader.layer_norm(&name("output.LayerNorm"), hidden, c.layer_norm_eps, true)?,
        },
        attention: Attention::plain(c.num_attention_heads, hidden),
        prepare: prepare(&mut qkv),
        qkv,
        out: loader.linear(&name("attention.output.dense"), hidden, hidden, true)?,
        feed: FeedForward {
            gate: None,
            up: loader.linear(&name("intermediate.dense"), inner, hidden, true)?,
            down: loader.linear(&name("output.dense"), hidden, inner, true)?,
            activation: c.hidden_act,
        },
    })
}
