//! Vision transformers: ViT (Dosovitskiy et al., 2021) and CLIP's image tower (Radford et al., 2021).

use candle_core::{Device, Tensor};
use serde::Deserialize;
use serde_json::Value;

use super::{
    architecture::{Body, config, even},
    attention::{Attention, Segment},
    encoder::{HeadPlan, Pooling, Use},
    layers::{FeedForward, Linear, Loader},
    matrix::Mode,
    ops::{Activation, Norm},
    transformer::{Layer, Order, prepare},
    weights::ModelError,
};

/// Gives states for images.
pub trait Vision: Send + Sync {
    /// Sides of the images that it takes, in pixels: width and height are the same.
    fn side(&self) -> usize;

    /// Rows that each image gets.
    fn rows(&self) -> usize;

    /// Runs images, each `3 x side x side` normalised values: their rows, one image after the other, and perhaps further ones that mean nothing.
    ///
    /// # Errors
    /// If the tensor library fails.
    fn states(&self, images: &[&[f32]]) -> Result<Tensor, ModelError>;
}

#[derive(Clone, Deserialize)]
struct Config {
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    image_size: usize,
    patch_size: usize,
    #[serde(default = "three")]
    num_channels: usize,
    #[serde(default)]
    hidden_act: Option<Activation>,
    #[serde(default)]
    layer_norm_eps: Option<f32>,
    #[serde(default)]
    qkv_bias: Option<bool>,
}

fn three() -> usize {
    3
}

impl Config {
    fn parse(value: &Value) -> Result<Self, ModelError> {
        let c: Self = config(value.get("vision_config").unwrap_or(value))?;
        even(c.hidden_size, c.num_attention_heads)?;
        if c.num_channels != 3 || c.patch_size == 0 || c.image_size < c.patch_size {
            return Err(ModelError::Config(format!(
                "num_channels is {}, patch_size {} and image_size {}: three channels and at least one patch are needed",
                c.num_channels, c.patch_size, c.image_size
            )));
        }
        Ok(c)
    }

    fn patches(&self) -> usize {
        (self.image_size / self.patch_size).pow(2)
    }
}

/// Rows of an image.
pub(super) fn limit(value: &Value) -> Result<usize, ModelError> {
    Ok(Config::parse(value)?.patches() + 1)
}

pub(super) fn vit_head(value: &Value, _: Use) -> Result<HeadPlan, ModelError> {
    Ok(HeadPlan::linear(Config::parse(value)?.hidden_size, "classifier"))
}

pub(super) fn clip_head(value: &Value, _: Use) -> Result<HeadPlan, ModelError> {
    let mut head = HeadPlan::linear(Config::parse(value)?.hidden_size, "classifier");
    head.pooling = Pooling::MeanWithoutFirst;
    Ok(head)
}

struct Transformer {
    c: Config,
    patches: Linear,
    first: Vec<f32>,
    /// A row for the first state and for each patch.
    positions: Vec<f32>,
    before: Option<Norm>,
    layers: Vec<Layer>,
    after: Option<Norm>,
    device: Device,
}

/// Names of one layer's parts.
struct Names {
    qkv: [&'static str; 3],
    out: &'static str,
    feed: [&'static str; 2],
    norms: [&'static str; 2],
}

fn layers(
    c: &Config,
    loader: &mut Loader<'_>,
    prefix: &str,
    names: &Names,
    plain: (Activation, f32),
) -> Result<Vec<Layer>, ModelError> {
    let (hidden, inner) = (c.hidden_size, c.intermediate_size);
    let epsilon = c.layer_norm_eps.unwrap_or(plain.1);
    let layer = |index: usize| {
        let at = |part: &str| format!("{prefix}.{index}.{part}");
        let bias = c.qkv_bias.unwrap_or(true);
        let [q, k, v] = names.qkv.map(|part| loader.linear(&at(part), hidden, hidden, bias));
        let mut qkv = [q?, k?, v?];
        Ok(Layer {
            order: Order::Pre {
                attention: Some(loader.layer_norm(&at(names.norms[0]), hidden, epsilon, true)?),
                feed: loader.layer_norm(&at(names.norms[1]), hidden, epsilon, true)?,
                after: None,
            },
            attention: Attention::plain(c.num_attention_heads, hidden),
            prepare: prepare(&mut qkv),
            qkv,
            out: loader.linear(&at(names.out), hidden, hidden, true)?,
            feed: FeedForward {
                gate: None,
                up: loader.linear(&at(names.feed[0]), inner, hidden, true)?,
                down: loader.linear(&at(names.feed[1]), hidden, inner, true)?,
                activation: c.hidden_act.unwrap_or(plain.0),
            },
        })
    };
    (0..c.num_hidden_layers).map(layer).collect()
}

pub(super) fn load_vit(value: &Value, loader: &mut Loader<'_>) -> Result<Body, ModelError> {
    let c = Config::parse(value)?;
    let names = Names {
        qkv: ["attention.attention.query", "attention.attention.key", "attention.attention.value"],
        out: "attention.output.dense",
        feed: ["intermediate.dense", "output.dense"],
        norms: ["layernorm_before", "layernorm_after"],
    };
    let hidden = c.hidden_size;
    let epsilon = c.layer_norm_eps.unwrap_or(1e-12);
    Ok(Body::Vision(Box::new(Transformer {
        patches: loader.unfolded("vit.embeddings.patch_embeddings.projection", hidden, [3, c.patch_size, c.patch_size], true)?,
        first: loader.weights.vector_of("vit.embeddings.cls_token", &[1, 1, hidden])?,
        positions: loader.weights.vector_of("vit.embeddings.position_embeddings", &[1, c.patches() + 1, hidden])?,
        before: None,
        layers: layers(&c, loader, "vit.encoder.layer", &names, (Activation::Gelu, 1e-12))?,
        after: Some(loader.layer_norm("vit.layernorm", hidden, epsilon, true)?),
        device: loader.device.clone(),
        c,
    })))
}

pub(super) fn load_clip(value: &Value, loader: &mut Loader<'_>) -> Result<Body, ModelError> {
    let c = Config::parse(value)?;
    let names = Names {
        qkv: ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        out: "self_attn.out_proj",
        feed: ["mlp.fc1", "mlp.fc2"],
        norms: ["layer_norm1", "layer_norm2"],
    };
    let hidden = c.hidden_size;
    let epsilon = c.layer_norm_eps.unwrap_or(1e-5);
    Ok(Body::Vision(Box::new(Transformer {
        patches: loader.unfolded("vision_model.embeddings.patch_embedding", hidden, [3, c.patch_size, c.patch_size], false)?,
        first: loader.weights.vector_of("vision_model.embeddings.class_embedding", &[hidden])?,
        positions: loader.weights.vector_of("vision_model.embeddings.position_embedding.weight", &[c.patches() + 1, hidden])?,
        before: Some(loader.layer_norm("vision_model.pre_layrnorm", hidden, epsilon, true)?),
        layers: layers(&c, loader, "vision_model.encoder.layers", &names, (Activation::QuickGelu, 1e-5))?,
        after: None,
        device: loader.device.clone(),
        c,
    })))
}

impl Vision for Transformer {
    fn side(&self) -> usize {
        self.c.image_size
    }

    fn rows(&self) -> usize {
        self.c.patches() + 1
    }

    fn states(&self, images: &[&[f32]]) -> Result<Tensor, ModelError> {
        let (side, patch, hidden) = (self.c.image_size, self.c.patch_size, self.c.hidden_size);
        let across = side / patch;
        // Each patch as a row, its channels one after the other, as the weights of a convolution lie.
        let mut unfolded: Vec<f32> = Vec::with_capacity(images.len() * self.c.patches() * 3 * patch * patch);
        for image in images {
            for (down, right) in (0..across).flat_map(|down| (0..across).map(move |right| (down, right))) {
                for (channel, line) in (0..3).flat_map(|channel| (0..patch).map(move |line| (channel, line))) {
                    let start = (channel * side + down * patch + line) * side + right * patch;
                    unfolded.extend(&image[start..start + patch]);
                }
            }
        }
        let rows = images.len() * self.c.patches();
        let unfolded = Tensor::from_vec(unfolded, (rows, 3 * patch * patch), &self.device)?;
        let patches = self.patches.forward(&unfolded, Activation::None, Mode::Batch)?;
        let patches: Vec<f32> = patches.flatten_all()?.to_vec1()?;
        let total = images.len() * self.rows();
        let mut x = vec![0.0; total * hidden];
        for (index, x) in x.chunks_mut(self.rows() * hidden).take(images.len()).enumerate() {
            x[..hidden].copy_from_slice(&self.first);
            x[hidden..].copy_from_slice(&patches[index * self.c.patches() * hidden..][..self.c.patches() * hidden]);
            x.iter_mut().zip(&self.positions).for_each(|(x, position)| *x += position);
        }
        let mut x = Tensor::from_vec(x, (total, hidden), &self.device)?;
        if let Some(before) = &self.before {
            x = before.run(&x)?;
        }
        let segments = Segment::of(images.iter().map(|_| self.rows()));
        let positions = Segment::positions(&segments);
        for layer in &self.layers {
            x = layer.forward(&x, &segments, &positions, None)?;
        }
        Ok(self.after.as_ref().map_or_else(|| Ok(x.clone()), |norm| norm.run(&x))?)
    }
}
