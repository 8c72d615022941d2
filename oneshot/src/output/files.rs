//! The files beside the weights: config, generation config, tokenizer, chat template, card, and the definition itself.

use std::{
    fs,
    path::{Path, PathBuf},
};

use evolver_common::checkpoint::{
    Dtype,
    write::{FolderWriter, TOKENIZER_FILES, WriteError},
};
use serde_json::{Value as Json, json};

use super::{Card, template};
use crate::{plan::Plan, vocabulary::Vocabulary};

/// Ids of special tokens in configs, which belong to a vocabulary.
const TOKEN_IDS: [&str; 7] =
    ["bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id", "cls_token_id", "decoder_start_token_id"];
/// Keys for the number of layers.
const LAYER_COUNTS: [&str; 5] = ["num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth"];
/// Sections of a config that describe a part of the network.
const SECTIONS: [&str; 3] = ["text_config", "vision_config", "llm_config"];

/// Writes everything beside the weights.
///
/// # Errors
/// If the system refuses.
pub fn write_files(folder: &FolderWriter, plan: &Plan, card: &Card<'_>) -> Result<(), WriteError> {
    if plan.config.vectors {
        write_adapter_config(folder, plan)?;
    } else {
        write_model_files(folder, plan)?;
    }
    let extension = if plan.config.text.trim_start().starts_with(['[', '{']) { "json" } else { "yml" };
    folder.write(&format!("mergekit_config.{extension}"), plan.config.text.as_bytes())?;
    folder.write("README.md", card.text().as_bytes())
}

/// The first adapter's config, which says of all of them what the vectors scale.
fn write_adapter_config(folder: &FolderWriter, plan: &Plan) -> Result<(), WriteError> {
    let name = "adapter_config.json";
    let path = plan.layout().folders[0].join(name);
    let content = fs::read(&path).map_err(|error| WriteError::Unreadable(format!("cannot read {}: {error}", path.display())))?;
    folder.write(name, &content)
}

fn write_model_files(folder: &FolderWriter, plan: &Plan) -> Result<(), WriteError> {
    let pretty = |json: &Json| serde_json::to_string_pretty(json).unwrap_or_default();
    let mut config = plan.layout().checkpoint.config().unwrap_or_else(|_| json!({}));
    update_config(&mut config, plan);
    folder.write("config.json", pretty(&config).as_bytes())?;
    let mut generation = read_json(&[plan.layout().checkpoint.folder().to_owned()], "generation_config.json");
    if let (Some(generation), Some(vocabulary)) = (&mut generation, &plan.vocabulary) {
        take_token_ids(generation, plan, vocabulary, "generation_config.json");
    }
    if let Some(generation) = generation {
        folder.write("generation_config.json", pretty(&generation).as_bytes())?;
    }
    write_tokenizer(folder, plan)?;
    for name in ["preprocessor_config.json", "processor_config.json"] {
        if let Ok(content) = fs::read(plan.layout().checkpoint.folder().join(name)) {
            folder.write(name, &content)?;
        }
    }
    Ok(())
}

/// Copies the tokenizer's files from the first folder that has each, or writes the joined one; sets the chat template.
fn write_tokenizer(folder: &FolderWriter, plan: &Plan) -> Result<(), WriteError> {
    let folders = plan.tokenizer_folders();
    // Files of a slow tokenizer would still hold the old vocabulary.
    let joined = plan.vocabulary.as_ref().filter(|vocabulary| vocabulary.changed);
    let kept = ["tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "chat_template.json"];
    for name in TOKENIZER_FILES.iter().filter(|name| joined.is_none() || kept.contains(name)) {
        if let Some(content) = folders.iter().find_map(|folder| fs::read(folder.join(name)).ok()) {
            folder.write(name, &content)?;
        }
    }
    let mut config = read_json(folders, "tokenizer_config.json");
    if let Some(vocabulary) = joined {
        folder.write("tokenizer.json", vocabulary.tokenizer.text().as_bytes())?;
        if let Some(table) = config.as_mut().and_then(Json::as_object_mut) {
            // transformers would add its own idea of the added tokens; the tokenizer has them all.
            table.remove("added_tokens_decoder");
        }
    }
    if let Some(template) = template::chosen(plan) {
        folder.write("chat_template.jinja", template.as_bytes())?;
        let table = config.get_or_insert_with(|| json!({}));
        table["chat_template"] = template.into();
    } else if joined.is_none() {
        return Ok(());
    }
    match config {
        Some(config) => {
            folder.write("tokenizer_config.json", serde_json::to_string_pretty(&config).unwrap_or_default().as_bytes())
        }
        None => Ok(()),
    }
}

pub(super) fn read_json(folders: &[PathBuf], name: &str) -> Option<Json> {
    let read = |folder: &PathBuf| serde_json::from_slice(&fs::read(Path::new(folder).join(name)).ok()?).ok();
    folders.iter().find_map(read)
}

/// Sets in a config what the merge changed: type, number of layers, size of the vocabulary, ids of special tokens.
pub fn update_config(config: &mut Json, plan: &Plan) {
    if let Some(dtype) = common_dtype(plan) {
        let key = if config.get("torch_dtype").is_some() { "torch_dtype" } else { "dtype" };
        if config.get(key).is_some() || plan.config.dtype.is_some() {
            config[key] = dtype.torch_name().into();
        }
    }
    for (stack, origins) in &plan.stacks {
        set_layers(config, stack, origins);
    }
    if let Some(vocabulary) = &plan.vocabulary {
        take_token_ids(config, plan, vocabulary, "config.json");
        for table in sections(config) {
            if table.get("vocab_size").is_some() {
                table["vocab_size"] = vocabulary.rows.into();
            }
        }
    }
}

/// The type of all float tensors of the output, if it is one.
fn common_dtype(plan: &Plan) -> Option<Dtype> {
    let mut dtypes = plan.tensors.iter().map(|tensor| tensor.dtype).filter(|dtype| dtype.is_float());
    let first = dtypes.next()?;
    dtypes.all(|dtype| dtype == first).then_some(first)
}

/// The config itself and its sections.
fn sections(config: &mut Json) -> Vec<&mut Json> {
    if config.get("vocab_size").is_some() || !SECTIONS.iter().any(|name| config.get(name).is_some()) {
        return vec![config];
    }
    let Some(table) = config.as_object_mut() else { return Vec::new() };
    table.iter_mut().filter(|(name, _)| SECTIONS.contains(&name.as_str())).map(|(_, section)| section).collect()
}

/// Sets the number of layers of a stack, and takes along lists with an entry for each layer.
fn set_layers(config: &mut Json, stack: &str, origins: &[usize]) {
    let has = |name: &str| stack.split('.').any(|part| part == name);
    let vision = ["vision_tower", "vision_model", "visual"].iter().any(|name| has(name));
    let section = if vision { "vision_config" } else { "text_config" };
    let table = if config.get(section).is_some() { &mut config[section] } else { config };
    // Networks with two stacks name the decoder's number apart.
    let decoder = has("decoder") && (table.get("num_decoder_layers").is_some() || table.get("decoder_layers").is_some());
    let keys: &[&str] = match (decoder, has("encoder")) {
        (true, _) => &["num_decoder_layers", "decoder_layers"],
        (false, true) => &["encoder_layers", "num_layers", "num_hidden_layers"],
        (false, false) => &LAYER_COUNTS,
    };
    let Some(key) = keys.iter().find(|key| table.get(**key).is_some_and(Json::is_u64)) else { return };
    let before = table[*key].as_u64();
    table[*key] = origins.len().into();
    if let Some(table) = table.as_object_mut() {
        for (_, value) in table.iter_mut() {
            if let Some(list) = value.as_array().filter(|list| Some(list.len() as u64) == before && list.len() > 1) {
                let chosen: Option<Vec<Json>> = origins.iter().map(|origin| list.get(*origin).cloned()).collect();
                if let Some(chosen) = chosen {
                    *value = chosen.into();
                }
            }
        }
    }
}

/// Where the tokenizer is another model's than the config, the ids of special tokens are that model's too.
fn take_token_ids(config: &mut Json, plan: &Plan, vocabulary: &Vocabulary, file: &str) {
    if vocabulary.origin == plan.layout {
        return;
    }
    let Some(other) = read_json(&plan.models[vocabulary.origin].folders, file) else { return };
    for key in TOKEN_IDS {
        match (config.get(key).is_some(), other.get(key)) {
            (true, Some(id)) => config[key] = id.clone(),
            (true, None) => config[key] = Json::Null,
            (false, _) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_counted_and_their_lists_taken_along() {
        let mut config = json!({ "num_hidden_layers": 3, "layer_types": ["a", "b", "c"], "eos_token_id": [1, 2] });
        set_layers(&mut config, "model.layers.", &[0, 1, 1, 2]);
        assert_eq!(config, json!({ "num_hidden_layers": 4, "layer_types": ["a", "b", "b", "c"], "eos_token_id": [1, 2] }));
        let mut t5 = json!({ "num_layers": 2, "num_decoder_layers": 2 });
        set_layers(&mut t5, "decoder.block.", &[0, 1, 0]);
        set_layers(&mut t5, "encoder.block.", &[0]);
        assert_eq!(t5, json!({ "num_layers": 1, "num_decoder_layers": 3 }));
        let mut nested = json!({ "text_config": { "num_hidden_layers": 2 }, "vision_config": { "depth": 4 } });
        set_layers(&mut nested, "visual.blocks.", &[0]);
        set_layers(&mut nested, "language_model.model.layers.", &[1]);
        assert_eq!(nested, json!({ "text_config": { "num_hidden_layers": 1 }, "vision_config": { "depth": 1 } }));
    }
}
