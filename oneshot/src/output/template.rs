//! The chat template: one of a few well-known formats by its name, the one that most models have, or a text.

use std::{collections::HashMap, fs};

use serde_json::Value as Json;

use super::files::read_json;
use crate::plan::{Model, Plan};

/// Well-known formats, by mergekit's names for them.
pub const TEMPLATES: [(&str, &str); 5] = [
    ("chatml", include_str!("templates/chatml.jinja")),
    ("llama3", include_str!("templates/llama3.jinja")),
    ("mistral", include_str!("templates/mistral.jinja")),
    ("alpaca", include_str!("templates/alpaca.jinja")),
    ("exaone", include_str!("templates/exaone.jinja")),
];

/// Whether a definition's `chat_template` can be used.
///
/// # Errors
/// A sentence.
pub fn check_template(wanted: &str) -> Result<(), String> {
    let known = || TEMPLATES.iter().map(|(name, _)| *name).chain(["auto"]);
    if known().any(|name| name == wanted) || wanted.contains("{{") || wanted.contains("{%") {
        return Ok(());
    }
    let known: Vec<_> = known().collect();
    Err(format!(
        "chat_template: {} is neither a format's name nor a Jinja template",
        evolver_common::suggest::unknown(wanted, known)
    ))
}

/// The template that the definition asks for, if it does.
pub(super) fn chosen(plan: &Plan) -> Option<String> {
    let wanted = plan.config.chat_template.as_deref()?;
    if wanted == "auto" {
        return most_common(&plan.models);
    }
    let named = TEMPLATES.iter().find(|(name, _)| *name == wanted).map(|(_, template)| template.trim_end());
    Some(named.unwrap_or(wanted).to_owned())
}

/// The template that most models have; of several the one that comes first.
fn most_common(models: &[Model]) -> Option<String> {
    let mut counts: HashMap<String, usize> = HashMap::new();
    let templates: Vec<String> = models.iter().filter_map(own).collect();
    for template in &templates {
        *counts.entry(template.clone()).or_default() += 1;
    }
    let most = counts.values().max().copied()?;
    templates.into_iter().find(|template| counts[template] == most)
}

fn own(model: &Model) -> Option<String> {
    let file = || model.folders.iter().find_map(|folder| fs::read_to_string(folder.join("chat_template.jinja")).ok());
    let in_config = || match read_json(&model.folders, "tokenizer_config.json")?.get("chat_template")? {
        Json::String(template) => Some(template.clone()),
        // Several by name.
        Json::Array(several) => {
            let default = several.iter().find(|entry| entry.get("name").and_then(Json::as_str) == Some("default"))?;
            default.get("template").and_then(Json::as_str).map(str::to_owned)
        }
        _ => None,
    };
    file().or_else(in_config).map(|template| template.trim().to_owned())
}
