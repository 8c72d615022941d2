//! RoBERTa (Liu et al., 2019) and XLM-R: BERT's network with other names, positions that start behind the padding's, and another head.

use serde_json::Value;

use super::{
    architecture::Body,
    bert,
    encoder::{HeadPlan, Use},
    gradient::Outline,
    layers::Loader,
    ops::Activation,
    weights::ModelError,
};

/// The number of the first position.
fn first(config: &Value) -> usize {
    let padding = config.get("pad_token_id").and_then(Value::as_u64).unwrap_or(1);
    usize::try_from(padding).unwrap_or(1) + 1
}

pub(super) fn limit(config: &Value) -> Result<usize, ModelError> {
    Ok(bert::limit(config)?.saturating_sub(first(config)))
}

pub(super) fn head(config: &Value, of: Use) -> Result<HeadPlan, ModelError> {
    let hidden = super::architecture::config::<bert::BertConfig>(config)?.hidden_size;
    Ok(match of {
        Use::Whole => HeadPlan::linear(hidden, "classifier.out_proj").after("classifier.dense", Activation::Tanh),
        Use::Tokens => HeadPlan::linear(hidden, "classifier"),
    })
}

/// What the network consists of.
pub(super) fn outline(config: &Value) -> Result<Outline, ModelError> {
    bert::outline_of(config, "roberta", first(config))
}

pub(super) fn load(config: &Value, loader: &mut Loader<'_>) -> Result<Body, ModelError> {
    Ok(Body::Encoder(Box::new(bert::stack(config, loader, "roberta", first(config))?)))
}
