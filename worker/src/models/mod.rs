//! Networks, as far as the evaluators need them.
//!
//! - [`weights`]: named tensors, owned or lent from a memory map.
//! - [`architecture`]: what can be run, by the `model_type` of a config; one file for each architecture.
//! - [`encoder`], [`language`], [`vision`]: what the three kinds of network give, and the heads over their states.
//! - [`gradient`]: encoder classifiers once more, in operators that can be differentiated.
//! - [`ops`], [`attention`], [`layers`], [`transformer`], [`decoder`]: what the architectures are made of.

mod architecture;
mod attention;
mod bert;
mod deberta;
mod decoder;
mod distilbert;
mod encoder;
mod gemma;
mod gpt2;
mod gradient;
mod language;
mod layers;
mod llama;
mod matrix;
mod modernbert;
mod ops;
mod phi;
mod product;
mod qwen;
mod roberta;
mod t5;
mod transformer;
mod vision;
mod weights;

pub(crate) use self::{architecture::differentiable, gradient::Differentiable};
pub use self::{
    architecture::{ARCHITECTURES, Architecture, Body, Kind, find},
    encoder::{Encoder, Head, HeadPlan, Pooling, Token, Use},
    language::{LanguageModel, Likelihood, Prompt},
    vision::Vision,
    weights::{ModelError, ModelWeights, Values},
};
