//! Gemma 1, 2 and 3 (text): Llama with scaled embeddings and gains stored less one; from 2 on norms behind the blocks too and windows; capped scores
//! in 2, norms of each head in 3.

use serde::Deserialize;
use serde_json::Value;

use super::{
    architecture::{Body, config},
    attention::Mask,
    layers::Loader,
    llama::{self, name},
    ops::Activation,
    transformer::{Layer, Order, prepare},
    weights::ModelError,
};

#[derive(Deserialize)]
struct Own {
    #[serde(default)]
    query_pre_attn_scalar: Option<f64>,
    #[serde(default)]
    attn_logit_softcapping: Option<f32>,
    #[serde(default)]
    final_logit_softcapping: Option<f32>,
    #[serde(default)]
    sliding_window_pattern: Option<usize>,
    #[serde(default)]
    rope_local_base_freq: Option<f64>,
}

pub(super) fn load(value: &Value, loader: &mut Loader<'_>) -> Result<Body, ModelError> {
    let mut c = llama::parse(value)?;
    let own: Own = config(value)?;
    let (first, third) = (c.model_type == "gemma", c.model_type == "gemma3_text");
    // The configs of the first say "gelu" and mean the approximation that it was trained with.
    c.hidden_act = c.hidden_act.filter(|_| !first);
    c.tie_word_embeddings.get_or_insert(true);
    let pattern = own.sliding_window_pattern.unwrap_or(if third { 6 } else { 2 });
    let layer = |loader: &mut Loader<'_>, index: usize| {
        let sliding = !first && c.is_sliding(index).unwrap_or(!(index + 1).is_multiple_of(pattern.max(1)));
        let (mut qkv, out) = llama::projections(&c, loader, index, c.attention_bias, c.attention_bias)?;
        let mut prepare = prepare(&mut qkv);
        let rotary = if third && sliding && c.rope_parameters.is_none() {
            super::attention::Rotary::new(own.rope_local_base_freq.unwrap_or(10_000.0), c.depth())
        } else if third && sliding {
            c.rotary(c.depth(), "sliding_attention", 10_000.0)?
        } else {
            c.rotary(c.depth(), "full_attention", if third { 1_000_000.0 } else { 10_000.0 })?
        };
        for (part, norm) in prepare[..2].iter_mut().zip(["self_attn.q_norm", "self_attn.k_norm"]) {
            part.rotary = Some(rotary.clone());
            if third {
                part.norm = Some(loader.rms_norm(&name(index, norm), c.depth(), c.rms_norm_eps, true)?);
            }
        }
        let mask = c.sliding_window.filter(|_| sliding).map_or(Mask::Causal, Mask::Window);
        let mut attention = c.attention(mask);
        if let Some(scalar) = own.query_pre_attn_scalar {
            #[expect(clippy::cast_possible_truncation, reason = "rounded as PyTorch does")]
            let scale = (1.0 / scalar.sqrt()) as f32;
            attention.scale = scale;
        }
        attention.softcap = own.attn_logit_softcapping;
        let mut norm = |part: &str| loader.rms_norm(&name(index, part), c.hidden_size, c.rms_norm_eps, true);
        let order = if first {
            Order::Pre { attention: Some(norm("input_layernorm")?), feed: norm("post_attention_layernorm")?, after: None }
        } else {
            Order::Pre {
                attention: Some(norm("input_layernorm")?),
                feed: norm("pre_feedforward_layernorm")?,
                after: Some([norm("post_attention_layernorm")?, norm("post_feedforward_layernorm")?]),
            }
        };
        let feed = llama::gated(&c, loader, index, Activation::GeluTanh)?;
        Ok(Layer { order, attention, qkv, prepare, out, feed })
    };
    let mut decoder = llama::decoder(&c, loader, layer, true)?;
    #[expect(clippy::cast_precision_loss, reason = "a width")]
    let scale = (c.hidden_size as f32).sqrt();
    decoder.scale = scale;
    decoder.vocabulary.softcap = own.final_logit_softcapping;
    Ok(Body::Language(Box::new(decoder)))
}
