//! The architectures that can be run, by the `model_type` of their `config.json`.

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{
    bert, deberta, distilbert,
    encoder::{Encoder, HeadPlan, Use},
    gemma, gpt2,
    gradient::{Differentiable, Outline},
    language::LanguageModel,
    layers::Loader,
    llama, modernbert, phi, qwen, roberta, t5,
    vision::{self, Vision},
    weights::{ModelError, ModelWeights},
};

/// What a network gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A state for every token.
    Encoder,
    /// The next token.
    Decoder,
    /// The next token of an answer to a text.
    EncoderDecoder,
    /// States for an image.
    Vision,
}

/// A loaded network.
pub enum Body {
    /// Of [`Kind::Encoder`].
    Encoder(Box<dyn Encoder>),
    /// Of [`Kind::Decoder`] and [`Kind::EncoderDecoder`].
    Language(Box<dyn LanguageModel>),
    /// Of [`Kind::Vision`].
    Vision(Box<dyn Vision>),
}

type Load = fn(&Value, &mut Loader<'_>) -> Result<Body, ModelError>;
type Limit = fn(&Value) -> Result<usize, ModelError>;
type OutlineOf = fn(&Value) -> Result<Outline, ModelError>;
type HeadOf = fn(&Value, Use) -> Result<HeadPlan, ModelError>;

/// An architecture.
pub struct Architecture {
    /// The `model_type` of its config.
    pub model_type: &'static str,
    /// What it gives.
    pub kind: Kind,
    load: Load,
    limit: Limit,
    head: Option<HeadOf>,
    outline: Option<OutlineOf>,
}

const fn encoder(model_type: &'static str, load: Load, limit: Limit, head: HeadOf) -> Architecture {
    Architecture { model_type, kind: Kind::Encoder, load, limit, head: Some(head), outline: None }
}

const fn decoder(model_type: &'static str, load: Load, limit: Limit) -> Architecture {
    Architecture { model_type, kind: Kind::Decoder, load, limit, head: None, outline: None }
}

const fn vision(model_type: &'static str, load: Load, limit: Limit, head: HeadOf) -> Architecture {
    Architecture { model_type, kind: Kind::Vision, load, limit, head: Some(head), outline: None }
}

impl Architecture {
    const fn with_gradients(mut self, outline: OutlineOf) -> Self {
        self.outline = Some(outline);
        self
    }
}

/// Every architecture.
pub const ARCHITECTURES: &[Architecture] = &[
    encoder("bert", bert::load, bert::limit, bert::head).with_gradients(bert::outline),
    encoder("roberta", roberta::load, roberta::limit, roberta::head).with_gradients(roberta::outline),
    encoder("xlm-roberta", roberta::load, roberta::limit, roberta::head).with_gradients(roberta::outline),
    encoder("distilbert", distilbert::load, distilbert::limit, distilbert::head).with_gradients(distilbert::outline),
    encoder("deberta-v2", deberta::load, deberta::limit, deberta::head),
    encoder("modernbert", modernbert::load, modernbert::limit, modernbert::head),
    decoder("llama", llama::load, llama::limit),
    decoder("mistral", llama::load, llama::limit),
    decoder("qwen2", qwen::load, llama::limit),
    decoder("qwen3", qwen::load, llama::limit),
    decoder("gemma", gemma::load, llama::limit),
    decoder("gemma2", gemma::load, llama::limit),
    decoder("gemma3_text", gemma::load, llama::limit),
    decoder("gpt2", gpt2::load, gpt2::limit),
    decoder("phi", phi::load, llama::limit),
    decoder("phi3", phi::load_3, llama::limit),
    Architecture { model_type: "t5", kind: Kind::EncoderDecoder, load: t5::load, limit: t5::limit, head: None, outline: None },
    vision("vit", vision::load_vit, vision::limit, vision::vit_head),
    vision("clip", vision::load_clip, vision::limit, vision::clip_head),
];

/// The architecture of a config.
///
/// # Errors
/// If there is none, with those that are and the ways that remain.
pub fn find(config: &Value) -> Result<&'static Architecture, ModelError> {
    let found = config.get("model_type").and_then(Value::as_str);
    ARCHITECTURES.iter().find(|known| Some(known.model_type) == found).ok_or_else(|| {
        let known: Vec<_> = ARCHITECTURES.iter().map(|known| known.model_type).collect();
        ModelError::Config(format!(
            "model_type is {}, and the architectures that run in this program are {}; the evaluators command, resident, lm_eval and openai score \
             any other by a program of your own",
            found.map_or("missing".to_owned(), |found| format!("{found:?}")),
            known.join(", ")
        ))
    })
}

impl Architecture {
    /// Longest sequence that there are positions for.
    ///
    /// # Errors
    /// If the config cannot be run.
    pub fn limit(&self, config: &Value) -> Result<usize, ModelError> {
        (self.limit)(config)
    }

    /// The plan of a head, if the architecture has heads.
    ///
    /// # Errors
    /// If it has none, or the config cannot be run.
    pub fn head(&self, config: &Value, of: Use) -> Result<HeadPlan, ModelError> {
        let head = self.head.ok_or_else(|| {
            ModelError::Config(format!(
                "a model of type {} has no classification head: the evaluators perplexity, multiple_choice and generation fit it",
                self.model_type
            ))
        })?;
        head(config, of)
    }

    /// Takes the network's tensors out of `weights`.
    ///
    /// # Errors
    /// If one is missing or has another shape than the config says.
    pub fn load(&self, config: &Value, weights: &mut ModelWeights, device: &candle_core::Device) -> Result<Body, ModelError> {
        (self.load)(config, &mut Loader { weights, device })
    }
}

/// A classifier that can be differentiated, with this many outputs, out of `weights`.
///
/// # Errors
/// If the architecture has no derivatives here, or a tensor is missing or of another shape.
pub(crate) fn differentiable(config: &Value, outputs: usize, weights: &mut ModelWeights) -> Result<Differentiable, ModelError> {
    let found = find(config)?;
    let outline = found.outline.ok_or_else(|| {
        let known: Vec<_> = ARCHITECTURES.iter().filter(|known| known.outline.is_some()).map(|known| known.model_type).collect();
        ModelError::Config(format!(
            "statistics of models of type {} are not measured here: {} are",
            found.model_type,
            known.join(", ")
        ))
    })?;
    Differentiable::load(outline(config)?, found.head(config, Use::Whole)?, outputs, weights, &candle_core::Device::Cpu)
}

/// A config's fields.
pub(super) fn config<T: DeserializeOwned>(value: &Value) -> Result<T, ModelError> {
    T::deserialize(value).map_err(|error| ModelError::Config(error.to_string()))
}

/// The refusal of a value.
pub(super) fn refuse(key: &str, found: &str, supported: &str) -> ModelError {
    ModelError::Config(format!("{key} is {found:?}, and only {supported:?} can be scored here"))
}

/// Whether the heads divide the width.
pub(super) fn even(width: usize, heads: usize) -> Result<(), ModelError> {
    if heads == 0 || !width.is_multiple_of(heads) {
        return Err(ModelError::Config(format!("the hidden size {width} is not a multiple of the {heads} attention heads")));
    }
    Ok(())
}
