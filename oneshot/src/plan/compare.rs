//! Whether several models fit: tensors, types, vocabularies; and whether parameters leave anything to merge.

use std::sync::Arc;

use evolver_common::{
    checkpoint::{Dtype, TensorInfo},
    merge::{Layers, Settings, find},
    recipe::Merge,
};

use super::Model;
use crate::vocabulary::{Tokenizer, is_embedding, rows_of};

/// Tokens that a sentence names before it counts the others.
const NAMED: usize = 3;

/// How a model's tensor does not fit the output's, as the end of a sentence about the model.
pub(super) fn tensor(
    name: &str,
    wanted: &TensorInfo,
    other: Option<&TensorInfo>,
    remapped: bool,
    any_dtype: bool,
) -> Option<String> {
    let Some(other) = other else {
        return Some(if is_output(name) {
            format!(
                "tensor {name:?} is missing: its output embeddings seem to be tied to its input embeddings (tie_word_embeddings), and the base's stand apart: save both models in one of the two ways"
            )
        } else {
            format!("tensor {name:?} is missing")
        });
    };
    // Under a tokenizer rule the number of rows is the rule's.
    let (ours, theirs) =
        if remapped { (wanted.shape.get(1..), other.shape.get(1..)) } else { (wanted.shape.get(..), other.shape.get(..)) };
    if ours != theirs {
        let hint = if is_embedding(name) && wanted.shape.get(1..) == other.shape.get(1..) {
            "; the vocabulary differs, and merging needs a rule for it: tokenizer_source, or tokenizer"
        } else {
            ""
        };
        return Some(format!("tensor {name:?} has shape {:?}, and {:?} is expected{hint}", other.shape, wanted.shape));
    }
    if !other.dtype.is_float() {
        return Some(format!("tensor {name:?} holds integers, and {} is expected", wanted.dtype));
    }
    (!any_dtype && other.dtype != wanted.dtype).then(|| {
        format!(
            "tensor {name:?} is {}, and the base's is {}: say by dtype or out_dtype which the result has",
            other.dtype, wanted.dtype
        )
    })
}

/// How a tensor that only one model has is spoken of.
pub(super) fn extra(name: &str) -> String {
    if is_output(name) {
        format!(
            "tensor {name:?} is not in the base: its output embeddings stand apart, and the base's are tied to its input embeddings (tie_word_embeddings): save both models in one of the two ways"
        )
    } else {
        format!("tensor {name:?} is not in the base: the model seems to come from another base")
    }
}

fn is_output(name: &str) -> bool {
    name.ends_with("lm_head.weight") || name.ends_with("embed_out.weight")
}

/// Buffers that old checkpoints hold and new ones compute: never merged, and missing in any model without harm.
pub(super) fn is_buffer(name: &str) -> bool {
    name.ends_with("rotary_emb.inv_freq") || name.ends_with("attn.masked_bias")
}

/// Same number of embeddings is not the same vocabulary: every model's tokens are compared with the layout's.
pub(super) fn vocabularies(models: &[Model], tokenizers: &[Option<Tokenizer>], layout: usize, problems: &mut Vec<String>) {
    let Some(ours) = &tokenizers[layout] else { return };
    let base = &models[layout];
    for (model, theirs) in models.iter().zip(tokenizers) {
        let Some(theirs) = theirs.as_ref().filter(|theirs| theirs.ids() != ours.ids()) else { continue };
        // A token without an embedding is never met.
        let rows = |model: &Model| rows_of(&model.checkpoint).ok().flatten().unwrap_or(usize::MAX);
        let different = |a: &Tokenizer, b: &Tokenizer, rows: usize| -> Vec<String> {
            let differs = |(token, id): &(&String, &usize)| **id < rows && b.ids().get(*token) != Some(id);
            a.ids().iter().filter(differs).map(|(token, id)| format!("{token:?} ({id})")).collect()
        };
        let mut found = different(theirs, ours, rows(model));
        found.extend(different(ours, theirs, rows(base)));
        if !found.is_empty() {
            let more = found.len().saturating_sub(NAMED);
            found.truncate(NAMED);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            problems.push(format!(
                "{}: its tokenizer.json has another vocabulary than that of {}: {}{more}; token ids would mean other words, and a rule is needed: tokenizer_source, or tokenizer",
                model.reference,
                base.reference,
                found.join(", ")
            ));
        }
    }
}

/// A sentence for parameters that leave nothing to merge: densities of 0, and weights that sum to 0 where they are divided by.
pub(super) fn vanishing(merge: &Merge, layers: &Layers, name: impl Fn(usize) -> String) -> Option<String> {
    let declared = find(&merge.method).map(|method| method.parameters()).unwrap_or_default();
    let has = |wanted: &str| declared.iter().any(|spec| spec.name == wanted);
    let settings = Settings::new(merge, Arc::new(layers.clone()));
    if has("density") {
        let densities = settings.per_model("density");
        let empty = |model: &usize| densities.iter().all(|row| row.get(*model) == Some(&0.0));
        if let Some(model) = (0..merge.models.len()).find(empty).filter(|_| !densities.is_empty()) {
            return Some(format!(
                "density of {} is 0 at every tensor: nothing of it would be left, so leave the model out",
                name(model)
            ));
        }
    }
    // With elected signs the divisor is the sum of those that agree, which is no single number.
    let elects = merge.method.ends_with("ties") || ["della", "ram", "ramplus_tl", "sce"].contains(&merge.method.as_str());
    if has("weight") && (has("normalize") || has("normalize_weights")) {
        let flags = settings.flags(if has("normalize") { "normalize" } else { "normalize_weights" });
        for (tensor, (row, flag)) in settings.per_model("weight").iter().zip(flags).enumerate() {
            let nothing = row.iter().all(|weight| *weight == 0.0) || (!elects && row.iter().sum::<f64>() == 0.0);
            if flag && nothing {
                return Some(format!(
                    "the weights at tensor {:?} sum to 0, and normalize divides by the sum: give other weights, or normalize: false",
                    layers.name(tensor)
                ));
            }
        }
    }
    None
}

/// The type that a tensor is written in.
pub(super) fn written(info: &TensorInfo, dtype: Option<Dtype>) -> Dtype {
    dtype.filter(|_| info.dtype.is_float()).unwrap_or(info.dtype)
}
