//! DistilBERT (Sanh et al., 2019): BERT without token types and pooler.

use serde::Deserialize;
use serde_json::Value;

use super::{
    architecture::{Body, config, even},
    attention::Attention,
    encoder::{HeadPlan, Stack, Use},
    gradient::{LayerNames, Outline},
    layers::{FeedForward, Loader},
    ops::Activation,
    transformer::{Layer, Order, prepare},
    weights::ModelError,
};

const EPSILON: f32 = 1e-12;

#[derive(Deserialize)]
struct Config {
    dim: usize,
    n_layers: usize,
    n_heads: usize,
    hidden_dim: usize,
    vocab_size: usize,
    max_position_embeddings: usize,
    #[serde(default = "gelu")]
    activation: Activation,
}

fn gelu() -> Activation {
    Activation::Gelu
}

pub(super) fn limit(value: &Value) -> Result<usize, ModelError> {
    Ok(config::<Config>(value)?.max_position_embeddings)
}

pub(super) fn head(value: &Value, of: Use) -> Result<HeadPlan, ModelError> {
    let head = HeadPlan::linear(config::<Config>(value)?.dim, "classifier");
    Ok(if of == Use::Whole { head.after("pre_classifier", Activation::Relu) } else { head })
}

pub(super) fn load(value: &Value, loader: &mut Loader<'_>) -> Result<Body, ModelError> {
    let c: Config = config(value)?;
    even(c.dim, c.n_heads)?;
    let layers = (0..c.n_layers).map(|index| layer(&c, loader, index)).collect::<Result<_, _>>()?;
    let table = |name: &str| format!("distilbert.embeddings.{name}");
    Ok(Body::Encoder(Box::new(Stack {
        words: loader.matrix(&table("word_embeddings.weight"), c.vocab_size, c.dim)?,
        positions: Some((loader.matrix(&table("position_embeddings.weight"), c.max_position_embeddings, c.dim)?, 0)),
        types: None,
        embedding_norm: loader.layer_norm(&table("LayerNorm"), c.dim, EPSILON, true)?,
        layers,
        bias: None,
        last_norm: None,
        hidden: c.dim,
        device: loader.device.clone(),
    })))
}

/// What the network consists of.
pub(super) fn outline(value: &Value) -> Result<Outline, ModelError> {
    let c: Config = config(value)?;
    even(c.dim, c.n_heads)?;
    let layer = |index: usize| {
        let at = |part: &str| format!("distilbert.transformer.layer.{index}.{part}");
        LayerNames {
            qkv: ["q_lin", "k_lin", "v_lin"].map(|part| at(&format!("attention.{part}"))),
            out: at("attention.out_lin"),
            attention_norm: at("sa_layer_norm"),
            up: at("ffn.lin1"),
            down: at("ffn.lin2"),
            feed_norm: at("output_layer_norm"),
        }
    };
    let table = |name: &str| format!("distilbert.embeddings.{name}");
    Ok(Outline {
        hidden: c.dim,
        heads: c.n_heads,
        epsilon: EPSILON.into(),
        activation: c.activation,
        words: table("word_embeddings"),
        positions: (table("position_embeddings"), 0),
        types: None,
        embedding_norm: table("LayerNorm"),
        layers: (0..c.n_layers).map(layer).collect(),
    })
}

fn layer(c: &Config, loader: &mut Loader<'_>, index: usize) -> Result<Layer, ModelError> {
    let name = |part: &str| format!("distilbert.transformer.layer.{index}.{part}");
    let mut qkv = [
        loader.linear(&name("attention.q_lin"), c.dim, c.dim, true)?,
        loader.linear(&name("attention.k_lin"), c.dim, c.dim, true)?,
        loader.linear(&name("attention.v_lin"), c.dim, c.dim, true)?,
    ];
    Ok(Layer {
        order: Order::Post {
            attention: loader.layer_norm(&name("sa_layer_norm"), c.dim, EPSILON, true)?,
            feed: loader.layer_norm(&name("output_layer_norm"), c.dim, EPSILON, true)?,
        },
        attention: Attention::plain(c.n_heads, c.dim),
        prepare: prepare(&mut qkv),
        qkv,
        out: loader.linear(&name("attention.out_lin"), c.dim, c.dim, true)?,
        feed: FeedForward {
            gate: None,
            up: loader.linear(&name("ffn.lin1"), c.hidden_dim, c.dim, true)?,
            down: loader.linear(&name("ffn.lin2"), c.dim, c.hidden_dim, true)?,
            activation: c.activation,
        },
    })
}
