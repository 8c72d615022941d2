//! Phi 1 and 2 (both blocks of a layer side by side, part of each head turned), and Phi-3 (Llama with stacked matrices).

use serde::Deserialize;
use serde_json::Value;

use super::{
    architecture::{Body, config, refuse},
    attention::Mask,
    layers::{FeedForward, Loader},
    llama::{self, name},
    ops::Activation,
    transformer::{Layer, Order, prepare},
    weights::ModelError,
};

#[derive(Deserialize)]
struct Own {
    #[serde(default = "epsilon")]
    layer_norm_eps: f32,
    #[serde(default)]
    partial_rotary_factor: Option<f64>,
    #[serde(default)]
    qk_layernorm: bool,
}

fn epsilon() -> f32 {
    1e-5
}

impl Own {
    /// Columns of each head that are turned.
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a part of a width")]
    fn columns(&self, c: &llama::Config, default: f64) -> usize {
        let written = c.rope_parameters.as_ref().and_then(|all| all["partial_rotary_factor"].as_f64());
        let factor = written.or(self.partial_rotary_factor).unwrap_or(default);
        ((c.depth() as f64 * factor) as usize).min(c.depth()) / 2 * 2
    }
}

pub(super) fn load(value: &Value, loader: &mut Loader<'_>) -> Result<Body, ModelError> {
    let c = llama::parse(value)?;
    let own: Own = config(value)?;
    if own.qk_layernorm {
        return Err(refuse("qk_layernorm", "true", "false"));
    }
    let rotary = c.rotary(own.columns(&c, 0.5), "full_attention", 10_000.0)?;
    let (hidden, inner) = (c.hidden_size, c.intermediate_size);
    let (wide, narrow) = (c.num_attention_heads * c.depth(), c.kv_heads() * c.depth());
    let layer = |loader: &mut Loader<'_>, index: usize| -> Result<Layer, ModelError> {
        let at = |part: &str| name(index, part);
        let mut qkv = [
            loader.linear(&at("self_attn.q_proj"), wide, hidden, true)?,
            loader.linear(&at("self_attn.k_proj"), narrow, hidden, true)?,
            loader.linear(&at("self_attn.v_proj"), narrow, hidden, true)?,
        ];
        let mut prepare = prepare(&mut qkv);
        prepare[..2].iter_mut().for_each(|part| part.rotary = Some(rotary.clone()));
        Ok(Layer {
            order: Order::Parallel(loader.layer_norm(&at("input_layernorm"), hidden, own.layer_norm_eps, true)?),
            attention: c.attention(Mask::Causal),
            qkv,
            prepare,
            out: loader.linear(&at("self_attn.dense"), hidden, wide, true)?,
            feed: FeedForward {
                gate: None,
                up: loader.linear(&at("mlp.fc1"), inner, hidden, true)?,
                down: loader.linear(&at("mlp.fc2"), hidden, inner, true)?,
                activation: c.hidden_act.unwrap_or(Activation::GeluTanh),
            },
        })
    };
    let layers = (0..c.num_hidden_layers).map(|index| layer(loader, index)).collect::<Result<_, _>>()?;
    let norm = loader.layer_norm("model.final_layernorm", hidden, own.layer_norm_eps, true)?;
    Ok(Body::Language(Box::new(llama::around(&c, loader, layers, norm, c.tie_word_embeddings.unwrap_or(false), true)?)))
}

pub(super) fn load_3(value: &Value, loader: &mut Loader<'_>) -> Result<Body, ModelError> {
    let c = llama::parse(value)?;
    let own: Own = config(value)?;
    let rotary = c.rotary(own.columns(&c, 1.0), "full_attention", 10_000.0)?;
    let (hidden, inner) = (c.hidden_size, c.intermediate_size);
    let (wide, narrow) = (c.num_attention_heads * c.depth(), c.kv_heads() * c.depth());
    let mask = c.sliding_window.map_or(Mask::Causal, Mask::Window);
    let layer = |loader: &mut Loader<'_>, index: usize| {
        let at = |part: &str| name(index, part);
        let mut qkv = loader.stacked(&at("self_attn.qkv_proj"), [wide, narrow, narrow], hidden, false)?;
        let mut prepare = prepare(&mut qkv);
        prepare[..2].iter_mut().for_each(|part| part.rotary = Some(rotary.clone()));
        let [gate, up] = loader.stacked(&at("mlp.gate_up_proj"), [inner; 2], hidden, false)?;
        Ok(Layer {
            order: llama::order(&c, loader, index)?,
            attention: c.attention(mask),
            qkv,
            prepare,
            out: loader.linear(&at("self_attn.o_proj"), hidden, wide, false)?,
            feed: FeedForward {
                gate: Some(gate),
                up,
                down: loader.linear(&at("mlp.down_proj"), hidden, inner, false)?,
                activation: c.hidden_act.unwrap_or(Activation::Silu),
            },
        })
    };
    Ok(Body::Language(Box::new(llama::decoder(&c, loader, layer, false)?)))
}
