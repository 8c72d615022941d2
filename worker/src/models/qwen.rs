//! Qwen2 (Yang et al., 2024) and Qwen3: Llama with biases before the attention, or with norms of each head.

use serde::Deserialize;
use serde_json::Value;

use super::{
    architecture::{Body, config},
    attention::Mask,
    layers::Loader,
    llama,
    ops::Activation,
    transformer::{Layer, prepare},
    weights::ModelError,
};

#[derive(Deserialize)]
struct Windows {
    #[serde(default)]
    use_sliding_window: bool,
    #[serde(default)]
    max_window_layers: usize,
}

pub(super) fn load(value: &Value, loader: &mut Loader<'_>) -> Result<Body, ModelError> {
    let c = llama::parse(value)?;
    let windows: Windows = config(value)?;
    let third = c.model_type == "qwen3";
    let (rotary, bias) = (c.rotary(c.depth(), "full_attention", 10_000.0)?, if third { c.attention_bias } else { true });
    let layer = |loader: &mut Loader<'_>, index: usize| {
        let (mut qkv, out) = llama::projections(&c, loader, index, bias, third && c.attention_bias)?;
        let mut prepare = prepare(&mut qkv);
        for (part, norm) in prepare[..2].iter_mut().zip(["self_attn.q_norm", "self_attn.k_norm"]) {
            part.rotary = Some(rotary.clone());
            if third {
                part.norm = Some(loader.rms_norm(&llama::name(index, norm), c.depth(), c.rms_norm_eps, false)?);
            }
        }
        let sliding = c.is_sliding(index).unwrap_or(windows.use_sliding_window && index >= windows.max_window_layers);
        let mask = c.sliding_window.filter(|_| sliding).map_or(Mask::Causal, Mask::Window);
        let order = llama::order(&c, loader, index)?;
        let feed = llama::gated(&c, loader, index, Activation::Silu)?;
        Ok(Layer { order, attention: c.attention(mask), qkv, prepare, out, feed })
    };
    Ok(Body::Language(Box::new(llama::decoder(&c, loader, layer, false)?)))
}
