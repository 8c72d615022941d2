//! ModernBERT (Warner et al., 2024): norms before the blocks, rotary positions, gated feed-forward blocks, and layers that see only their
//! neighbourhood.

use serde::Deserialize;
use serde_json::Value;

use super::{
    architecture::{Body, config, even},
    attention::{Attention, Mask, Rotary},
    encoder::{HeadPlan, HeadStep, Pooling, Stack, Use},
    layers::{FeedForward, Loader},
    ops::Activation,
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
    #[serde(default = "gelu")]
    hidden_activation: Activation,
    #[serde(default = "epsilon")]
    norm_eps: f32,
    #[serde(default)]
    norm_bias: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default = "half_window")]
    local_attention: usize,
    #[serde(default)]
    layer_types: Option<Vec<String>>,
    #[serde(default = "three")]
    global_attn_every_n_layers: usize,
    #[serde(default = "global_theta")]
    global_rope_theta: f64,
    #[serde(default)]
    local_rope_theta: Option<f64>,
    #[serde(default)]
    rope_parameters: Option<Value>,
    #[serde(default = "cls")]
    classifier_pooling: String,
    #[serde(default)]
    classifier_bias: bool,
    #[serde(default = "gelu")]
    classifier_activation: Activation,
}

fn gelu() -> Activation {
    Activation::Gelu
}
fn epsilon() -> f32 {
    1e-5
}
fn half_window() -> usize {
    128
}
fn three() -> usize {
    3
}
fn global_theta() -> f64 {
    160_000.0
}
fn cls() -> String {
    "cls".into()
}

impl Config {
    fn is_local(&self, layer: usize) -> bool {
        match &self.layer_types {
            Some(types) => types.get(layer).is_some_and(|kind| kind == "sliding_attention"),
            None => !layer.is_multiple_of(self.global_attn_every_n_layers.max(1)),
        }
    }

    fn theta(&self, local: bool) -> f64 {
        let kind = if local { "sliding_attention" } else { "full_attention" };
        let written = self.rope_parameters.as_ref().and_then(|all| all[kind]["rope_theta"].as_f64());
        let plain = if local { self.local_rope_theta.unwrap_or(10_000.0) } else { self.global_rope_theta };
        written.unwrap_or(plain)
    }
}

pub(super) fn limit(value: &Value) -> Result<usize, ModelError> {
    Ok(config::<Config>(value)?.max_position_embeddings)
}

pub(super) fn head(value: &Value, of: Use) -> Result<HeadPlan, ModelError> {
    let c: Config = config(value)?;
    let mut head = HeadPlan::linear(c.hidden_size, "classifier");
    if of == Use::Whole && c.classifier_pooling == "mean" {
        head.pooling = Pooling::Mean;
    }
    head.steps.push(HeadStep {
        name: "head.dense",
        bias: c.classifier_bias,
        activation: c.classifier_activation,
        norm: Some(("head.norm", c.norm_eps, c.norm_bias)),
    });
    Ok(head)
}

pub(super) fn load(value: &Value, loader: &mut Loader<'_>) -> Result<Body, ModelError> {
    let c: Config = config(value)?;
    even(c.hidden_size, c.num_attention_heads)?;
    let layers = (0..c.num_hidden_layers).map(|index| layer(&c, loader, index)).collect::<Result<_, _>>()?;
    Ok(Body::Encoder(Box::new(Stack {
        words: loader.matrix("model.embeddings.tok_embeddings.weight", c.vocab_size, c.hidden_size)?,
        positions: None,
        types: None,
        embedding_norm: loader.layer_norm("model.embeddings.norm", c.hidden_size, c.norm_eps, c.norm_bias)?,
        layers,
        bias: None,
        last_norm: Some(loader.layer_norm("model.final_norm", c.hidden_size, c.norm_eps, c.norm_bias)?),
        hidden: c.hidden_size,
        device: loader.device.clone(),
    })))
}

fn layer(c: &Config, loader: &mut Loader<'_>, index: usize) -> Result<Layer, ModelError> {
    let (hidden, inner) = (c.hidden_size, c.intermediate_size);
    let name = |part: &str| format!("model.layers.{index}.{part}");
    let mut qkv = loader.stacked(&name("attn.Wqkv"), [hidden; 3], hidden, c.attention_bias)?;
    let local = c.is_local(index);
    let mut prepare = prepare(&mut qkv);
    for part in &mut prepare[..2] {
        part.rotary = Some(Rotary::new(c.theta(local), hidden / c.num_attention_heads));
    }
    let mask = if local { Mask::Local(c.local_attention / 2) } else { Mask::Full };
    let [gate, up] = loader.stacked(&name("mlp.Wi"), [inner; 2], hidden, c.mlp_bias)?;
    let norm = |loader: &mut Loader<'_>, part: &str| loader.layer_norm(&name(part), hidden, c.norm_eps, c.norm_bias);
    Ok(Layer {
        order: Order::Pre {
            attention: if index == 0 { None } else { Some(norm(loader, "attn_norm")?) },
            feed: norm(loader, "mlp_norm")?,
            after: None,
        },
        attention: Attention { mask, ..Attention::plain(c.num_attention_heads, hidden) },
        prepare,
        qkv,
        out: loader.linear(&name("attn.Wo"), hidden, hidden, c.attention_bias)?,
        feed: FeedForward {
            gate: Some(gate),
            up,
            down: loader.linear(&name("mlp.Wo"), hidden, inner, c.mlp_bias)?,
            activation: c.hidden_activation,
        },
    })
}
