//! Llama (Touvron et al., 2023) and Mistral, and what their relatives do otherwise.

use candle_core::Device;
use serde::Deserialize;
use serde_json::Value;

use super::{
    architecture::{Body, config, refuse},
    attention::{Attention, Mask, Rotary},
    decoder::Decoder,
    language::Vocabulary,
    layers::{FeedForward, Linear, Loader},
    matrix::Matrix,
    ops::{Activation, Norm},
    transformer::{Layer, Order, prepare},
    weights::ModelError,
};

/// The keys that Llama's relatives share.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Config {
    pub(super) model_type: String,
    pub(super) hidden_size: usize,
    pub(super) num_hidden_layers: usize,
    pub(super) num_attention_heads: usize,
    #[serde(default)]
    num_key_value_heads: Option<usize>,
    #[serde(default)]
    head_dim: Option<usize>,
    pub(super) intermediate_size: usize,
    pub(super) vocab_size: usize,
    pub(super) max_position_embeddings: usize,
    #[serde(default = "epsilon")]
    pub(super) rms_norm_eps: f32,
    #[serde(default, alias = "hidden_activation")]
    pub(super) hidden_act: Option<Activation>,
    #[serde(default)]
    pub(super) tie_word_embeddings: Option<bool>,
    #[serde(default)]
    pub(super) attention_bias: bool,
    #[serde(default)]
    pub(super) mlp_bias: bool,
    #[serde(default)]
    pub(super) sliding_window: Option<usize>,
    #[serde(default)]
    pub(super) layer_types: Option<Vec<String>>,
    #[serde(default)]
    pub(super) rope_theta: Option<f64>,
    #[serde(default)]
    pub(super) rope_scaling: Option<Value>,
    #[serde(default)]
    pub(super) rope_parameters: Option<Value>,
}

fn epsilon() -> f32 {
    1e-6
}

impl Config {
    pub(super) fn kv_heads(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    pub(super) fn depth(&self) -> usize {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads.max(1))
    }

    /// Attention as Llama has it.
    pub(super) fn attention(&self, mask: Mask) -> Attention {
        Attention {
            kv_heads: self.kv_heads(),
            depth: self.depth(),
            scale: super::attention::root(self.depth()),
            mask,
            ..Attention::plain(self.num_attention_heads, self.hidden_size)
        }
    }

    /// Whether a layer sees a window only, by the config's list.
    pub(super) fn is_sliding(&self, layer: usize) -> Option<bool> {
        let kind = self.layer_types.as_ref()?.get(layer)?;
        Some(kind == "sliding_attention")
    }

    /// The rotary positions over `columns` columns, of a kind of layer where the config tells them apart.
    pub(super) fn rotary(&self, columns: usize, kind: &str, theta: f64) -> Result<Rotary, ModelError> {
        let parameters = self.rope_parameters.as_ref().map(|all| all.get(kind).unwrap_or(all));
        let scaling = parameters.or(self.rope_scaling.as_ref()).filter(|value| !value.is_null());
        let number = |key: &str| scaling.and_then(|table| table.get(key)).and_then(Value::as_f64);
        let theta = parameters.and_then(|table| table["rope_theta"].as_f64()).or(self.rope_theta).unwrap_or(theta);
        let mut rotary = Rotary::new(theta, columns);
        let name = |key: &str| scaling.and_then(|table| table.get(key)).and_then(Value::as_str);
        match name("rope_type").or(name("type")).unwrap_or("default") {
            "default" => {}
            "linear" => {
                #[expect(clippy::cast_possible_truncation, reason = "rounded as PyTorch does")]
                let factor = number("factor").unwrap_or(1.0) as f32;
                rotary.frequencies.iter_mut().for_each(|frequency| *frequency /= factor);
            }
            "llama3" => llama3(&mut rotary, number)?,
            other => return Err(refuse("rope_type", other, "default, linear or llama3")),
        }
        Ok(rotary)
    }
}

/// Llama 3.1's stretching: low frequencies divided, high ones kept, those between blended.
#[expect(clippy::cast_possible_truncation, reason = "rounded as PyTorch does")]
fn llama3(rotary: &mut Rotary, number: impl Fn(&str) -> Option<f64>) -> Result<(), ModelError> {
    let need = |key: &str| {
        number(key).map(|value| value as f32).ok_or_else(|| ModelError::Config(format!("the rope parameters lack {key}")))
    };
    let (factor, low, high) = (need("factor")?, need("low_freq_factor")?, need("high_freq_factor")?);
    let old = need("original_max_position_embeddings")?;
    for frequency in &mut rotary.frequencies {
        let length = 2.0 * std::f32::consts::PI / *frequency;
        if length > old / low {
            *frequency /= factor;
        } else if length >= old / high {
            let smooth = (old / length - low) / (high - low);
            *frequency = (1.0 - smooth) * *frequency / factor + smooth * *frequency;
        }
    }
    Ok(())
}

pub(super) fn parse(value: &Value) -> Result<Config, ModelError> {
    let c: Config = config(value)?;
    if c.num_attention_heads == 0 || c.kv_heads() == 0 || !c.num_attention_heads.is_multiple_of(c.kv_heads()) {
        return Err(ModelError::Config(format!(
            "{} attention heads are not a multiple of {} key-value heads",
            c.num_attention_heads,
            c.kv_heads()
        )));
    }
    Ok(c)
}

pub(super) fn limit(value: &Value) -> Result<usize, ModelError> {
    Ok(parse(value)?.max_position_embeddings)
}

pub(super) fn load(value: &Value, loader: &mut Loader<'_>) -> Result<Body, ModelError> {
    let c = parse(value)?;
    let mask = c.sliding_window.filter(|_| c.model_type == "mistral").map_or(Mask::Causal, Mask::Window);
    let rotary = c.rotary(c.depth(), "full_attention", 10_000.0)?;
    let layer = |loader: &mut Loader<'_>, index: usize| {
        let (mut qkv, out) = projections(&c, loader, index, c.attention_bias, c.attention_bias)?;
        let mut prepare = prepare(&mut qkv);
        prepare[..2].iter_mut().for_each(|part| part.rotary = Some(rotary.clone()));
        let order = order(&c, loader, index)?;
        let feed = gated(&c, loader, index, Activation::Silu)?;
        Ok(Layer { order, attention: c.attention(mask), qkv, prepare, out, feed })
    };
    let decoder = decoder(&c, loader, layer, false)?;
    Ok(Body::Language(Box::new(decoder)))
}

/// Name of a layer's tensor.
pub(super) fn name(index: usize, part: &str) -> String {
    format!("model.layers.{index}.{part}")
}

/// The four projections of a layer's attention.
pub(super) fn projections(
    c: &Config,
    loader: &mut Loader<'_>,
    index: usize,
    bias: bool,
    out_bias: bool,
) -> Result<([Linear; 3], Linear), ModelError> {
    let (wide, narrow) = (c.num_attention_heads * c.depth(), c.kv_heads() * c.depth());
    let at = |part: &str| name(index, &format!("self_attn.{part}"));
    let qkv = [
        loader.linear(&at("q_proj"), wide, c.hidden_size, bias)?,
        loader.linear(&at("k_proj"), narrow, c.hidden_size, bias)?,
        loader.linear(&at("v_proj"), narrow, c.hidden_size, bias)?,
    ];
    Ok((qkv, loader.linear(&at("o_proj"), c.hidden_size, wide, out_bias)?))
}

/// A norm before each block.
pub(super) fn order(c: &Config, loader: &mut Loader<'_>, index: usize) -> Result<Order, ModelError> {
    let mut norm = |part: &str| loader.rms_norm(&name(index, part), c.hidden_size, c.rms_norm_eps, false);
    Ok(Order::Pre { attention: Some(norm("input_layernorm")?), feed: norm("post_attention_layernorm")?, after: None })
}

/// A gated feed-forward block.
pub(super) fn gated(
    c: &Config,
    loader: &mut Loader<'_>,
    index: usize,
    activation: Activation,
) -> Result<FeedForward, ModelError> {
    let (hidden, inner) = (c.hidden_size, c.intermediate_size);
    let at = |part: &str| name(index, &format!("mlp.{part}"));
    Ok(FeedForward {
        gate: Some(loader.linear(&at("gate_proj"), inner, hidden, c.mlp_bias)?),
        up: loader.linear(&at("up_proj"), inner, hidden, c.mlp_bias)?,
        down: loader.linear(&at("down_proj"), hidden, inner, c.mlp_bias)?,
        activation: c.hidden_act.unwrap_or(activation),
    })
}

/// The whole network around its layers.
pub(super) fn decoder(
    c: &Config,
    loader: &mut Loader<'_>,
    layer: impl Fn(&mut Loader<'_>, usize) -> Result<Layer, ModelError>,
    one_more: bool,
) -> Result<Decoder, ModelError> {
    let layers = (0..c.num_hidden_layers).map(|index| layer(loader, index)).collect::<Result<Vec<_>, _>>()?;
    let norm = loader.rms_norm("model.norm", c.hidden_size, c.rms_norm_eps, one_more)?;
    around(c, loader, layers, norm, c.tie_word_embeddings.unwrap_or(false), false)
}

/// Tables and vocabulary around layers.
pub(super) fn around(
    c: &Config,
    loader: &mut Loader<'_>,
    layers: Vec<Layer>,
    norm: Norm,
    tied: bool,
    head_bias: bool,
) -> Result<Decoder, ModelError> {
    let words: Matrix = loader.matrix("model.embed_tokens.weight", c.vocab_size, c.hidden_size)?;
    let mut vocabulary = Vocabulary::tied(&words);
    if !tied {
        vocabulary.head = loader.linear("lm_head", c.vocab_size, c.hidden_size, head_bias)?;
    }
    let device: Device = loader.device.clone();
    Ok(Decoder { words, scale: 1.0, positions: None, layers, norm, vocabulary, hidden: c.hidden_size, device })
}
