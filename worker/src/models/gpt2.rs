//! GPT-2 (Radford et al., 2019): learned positions, layer norms, and matrices that are stored transposed.

use serde::Deserialize;
use serde_json::Value;

use super::{
    architecture::{Body, config, even, refuse},
    attention::{Attention, Mask},
    decoder::Decoder,
    language::Vocabulary,
    layers::{FeedForward, Loader},
    ops::Activation,
    transformer::{Layer, Order, prepare},
    weights::ModelError,
};

#[derive(Deserialize)]
struct Config {
    n_embd: usize,
    n_layer: usize,
    n_head: usize,
    n_positions: usize,
    vocab_size: usize,
    #[serde(default)]
    n_inner: Option<usize>,
    #[serde(default = "new")]
    activation_function: Activation,
    #[serde(default = "epsilon")]
    layer_norm_epsilon: f32,
    #[serde(default)]
    scale_attn_by_inverse_layer_idx: bool,
    #[serde(default = "yes")]
    scale_attn_weights: bool,
}

fn new() -> Activation {
    Activation::GeluTanh
}
fn epsilon() -> f32 {
    1e-5
}
fn yes() -> bool {
    true
}

pub(super) fn limit(value: &Value) -> Result<usize, ModelError> {
    Ok(config::<Config>(value)?.n_positions)
}

pub(super) fn load(value: &Value, loader: &mut Loader<'_>) -> Result<Body, ModelError> {
    let c: Config = config(value)?;
    even(c.n_embd, c.n_head)?;
    if c.scale_attn_by_inverse_layer_idx || !c.scale_attn_weights {
        return Err(refuse("scale_attn_by_inverse_layer_idx or scale_attn_weights", "not the default", "the default"));
    }
    // Some checkpoints name the tensors of the bare model.
    let prefix = if loader.weights.contains("wte.weight") { "" } else { "transformer." };
    let layers = (0..c.n_layer).map(|index| layer(&c, loader, &format!("{prefix}h.{index}"))).collect::<Result<_, _>>()?;
    let words = loader.matrix(&format!("{prefix}wte.weight"), c.vocab_size, c.n_embd)?;
    Ok(Body::Language(Box::new(Decoder {
        vocabulary: Vocabulary::tied(&words),
        words,
        scale: 1.0,
        positions: Some(loader.matrix(&format!("{prefix}wpe.weight"), c.n_positions, c.n_embd)?),
        layers,
        norm: loader.layer_norm(&format!("{prefix}ln_f"), c.n_embd, c.layer_norm_epsilon, true)?,
        hidden: c.n_embd,
        device: loader.device.clone(),
    })))
}

fn layer(c: &Config, loader: &mut Loader<'_>, prefix: &str) -> Result<Layer, ModelError> {
    let (hidden, inner) = (c.n_embd, c.n_inner.unwrap_or(4 * c.n_embd));
    let name = |part: &str| format!("{prefix}.{part}");
    let mut qkv = loader.transposed(&name("attn.c_attn"), [hidden; 3], hidden)?;
    let [out] = loader.transposed(&name("attn.c_proj"), [hidden], hidden)?;
    let [up] = loader.transposed(&name("mlp.c_fc"), [inner], hidden)?;
    let [down] = loader.transposed(&name("mlp.c_proj"), [hidden], inner)?;
    let mut norm = |part: &str| loader.layer_norm(&name(part), hidden, c.layer_norm_epsilon, true);
    Ok(Layer {
        order: Order::Pre { attention: Some(norm("ln_1")?), feed: norm("ln_2")?, after: None },
        attention: Attention { mask: Mask::Causal, ..Attention::plain(c.n_head, hidden) },
        prepare: prepare(&mut qkv),
        qkv,
        out,
        feed: FeedForward { gate: None, up, down, activation: c.activation_function },
    })
}
