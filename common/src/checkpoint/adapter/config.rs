//! `adapter_config.json`: what kind of adapter it is, and whether it can be read as a change of single tensors.

use std::path::Path;

use regex::Regex;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::super::open::{OpenError, read_json};

pub(super) const FILE: &str = "adapter_config.json";

/// Keys that, when they are set, make an adapter more than a change of single tensors, and what they are called.
const BEYOND: [(&str, &str); 12] = [
    ("use_dora", "DoRA"),
    ("use_qalora", "QA-LoRA"),
    ("use_bdlora", "BD-LoRA"),
    ("arrow_config", "Arrow"),
    ("kasa_config", "KaSA"),
    ("monteclora_config", "MonteCLoRA"),
    ("alora_invocation_tokens", "activated LoRA, which depends on the text"),
    ("lora_bias", "LoRA with biases of its own (lora_bias)"),
    ("layer_replication", "LoRA over replicated layers (layer_replication)"),
    ("target_parameters", "LoRA over parameters that are no modules' weights (target_parameters)"),
    ("trainable_token_indices", "LoRA with single trained tokens (trainable_token_indices)"),
    ("megatron_config", "LoRA over Megatron's layers"),
];
/// Ways to begin a training that change the base's weights too.
const CHANGES_BASE: [&str; 5] = ["pissa", "olora", "corda", "loftq", "lora_ga"];

/// The keys that matter here.
#[derive(Debug)]
pub(super) struct Config {
    pub(super) kind: Kind,
    pub(super) fan_in_fan_out: bool,
}

/// A kind of adapter that can be read.
#[derive(Debug)]
pub(super) enum Kind {
    Lora { rank: usize, alpha: f64, stabilised: bool, ranks: Vec<(Regex, f64)>, alphas: Vec<(Regex, f64)> },
    Ia3 { feedforward: Feedforward },
}

/// Modules whose inputs are scaled, not their outputs.
#[derive(Debug)]
pub(super) enum Feedforward {
    Ends(Vec<String>),
    Pattern(Regex),
}

#[derive(Deserialize)]
struct Raw {
    peft_type: String,
    r: Option<usize>,
    lora_alpha: Option<f64>,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    fan_in_fan_out: bool,
    #[serde(default)]
    rank_pattern: Option<Map<String, Value>>,
    #[serde(default)]
    alpha_pattern: Option<Map<String, Value>>,
    #[serde(default)]
    feedforward_modules: Value,
    #[serde(default)]
    init_lora_weights: Value,
}

impl Config {
    pub(super) fn open(folder: &Path) -> Result<Self, OpenError> {
        let path = folder.join(FILE);
        let tree = read_json(&path)?;
        Self::from_tree(tree).map_err(|what| OpenError::Side { path, what })
    }

    pub(super) fn from_tree(tree: Value) -> Result<Self, String> {
        let set =
            |key: &str| tree.get(key).is_some_and(|value| !matches!(value, Value::Null | Value::Bool(false)) && !is_empty(value));
        let beyond = BEYOND.iter().find(|(key, _)| set(key)).map(|(_, name)| *name);
        let raw: Raw = serde_json::from_value(tree).map_err(|error| format!("not a PEFT adapter's config: {error}"))?;
        if let Some(name) = beyond {
            return Err(format!(
                "the adapter is {name}, and only plain LORA and IA3 can be read: merge it into its base with peft"
            ));
        }
        let kind = match raw.peft_type.as_str() {
            "LORA" => raw.lora()?,
            "IA3" => Kind::Ia3 { feedforward: feedforward(&raw.feedforward_modules)? },
            other => return Err(format!("the adapter is {other}, and only LORA and IA3 can be read")),
        };
        Ok(Self { kind, fan_in_fan_out: raw.fan_in_fan_out })
    }
}

impl Raw {
    fn lora(&self) -> Result<Kind, String> {
        if let Some(init) = self.init_lora_weights.as_str().map(str::to_ascii_lowercase)
            && CHANGES_BASE.iter().any(|name| init.starts_with(name))
        {
            return Err(format!(
                "init_lora_weights is {init:?}, which changes the base's weights too: convert the adapter to a plain one with peft"
            ));
        }
        let (Some(rank), Some(alpha)) = (self.r, self.lora_alpha) else {
            return Err("r or lora_alpha is missing".into());
        };
        let ranks = patterns("rank_pattern", self.rank_pattern.as_ref())?;
        let alphas = patterns("alpha_pattern", self.alpha_pattern.as_ref())?;
        if rank == 0 || !alpha.is_finite() {
            return Err(format!("r is {rank} and lora_alpha is {alpha}: a rank above 0 and a number are expected"));
        }
        Ok(Kind::Lora { rank, alpha, stabilised: self.use_rslora, ranks, alphas })
    }
}

fn is_empty(value: &Value) -> bool {
    value.as_array().is_some_and(Vec::is_empty) || value.as_object().is_some_and(Map::is_empty)
}

/// PEFT's patterns, in their order: regular expressions for the whole name of a module or its end after a dot.
fn patterns(key: &str, table: Option<&Map<String, Value>>) -> Result<Vec<(Regex, f64)>, String> {
    let pattern = |(text, value): (&String, &Value)| {
        let regex = expression(key, &format!(r"^(?:.*\.)?(?:{text})$"))?;
        let number = value.as_f64().filter(|number| number.is_finite() && *number > 0.0);
        Ok((regex, number.ok_or_else(|| format!("{key}: {text:?} is {value}, and a number above 0 is expected"))?))
    };
    table.into_iter().flatten().map(pattern).collect()
}

fn expression(key: &str, text: &str) -> Result<Regex, String> {
    Regex::new(text).map_err(|error| format!("{key}: not a pattern that can be read: {error}"))
}

fn feedforward(value: &Value) -> Result<Feedforward, String> {
    match value {
        Value::Null => Ok(Feedforward::Ends(Vec::new())),
        Value::String(text) => Ok(Feedforward::Pattern(expression("feedforward_modules", &format!("^(?:{text})$"))?)),
        Value::Array(names) => {
            let names: Option<Vec<_>> = names.iter().map(|name| name.as_str().map(str::to_owned)).collect();
            names.map(Feedforward::Ends).ok_or_else(|| "feedforward_modules holds something that is no name".into())
        }
        other => Err(format!("feedforward_modules is {other}: a list of names is expected")),
    }
}

impl Feedforward {
    pub(super) fn contains(&self, module: &str) -> bool {
        match self {
            Self::Ends(names) => names.iter().any(|name| module.ends_with(name.as_str())),
            Self::Pattern(regex) => regex.is_match(module),
        }
    }
}

/// The value of the first pattern that names the module.
pub(super) fn find(patterns: &[(Regex, f64)], module: &str) -> Option<f64> {
    patterns.iter().find(|(regex, _)| regex.is_match(module)).map(|(_, value)| *value)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_cannot_be_read_is_refused_by_name() {
        for (tree, expected) in [
            (json!({ "peft_type": "LORA", "r": 4, "lora_alpha": 8, "use_dora": true }), "DoRA"),
            (json!({ "peft_type": "LOHA" }), "the adapter is LOHA"),
            (json!({ "peft_type": "LORA", "r": 4, "lora_alpha": 8, "init_lora_weights": "pissa_niter_4" }), "pissa_niter_4"),
            (json!({ "peft_type": "LORA", "r": 4, "lora_alpha": 8, "trainable_token_indices": [3] }), "trainable_token_indices"),
            (json!({ "peft_type": "LORA", "r": 0, "lora_alpha": 8 }), "r is 0"),
            (json!({ "peft_type": "LORA", "lora_alpha": 8 }), "r or lora_alpha is missing"),
            (json!({ "peft_type": "LORA", "r": 4, "lora_alpha": 8, "rank_pattern": { "(": 4 } }), "rank_pattern"),
            (json!({ "peft_type": "LORA", "r": 4, "lora_alpha": 8, "alpha_pattern": { "q": "x" } }), "alpha_pattern"),
            (json!({ "peft_type": "IA3", "feedforward_modules": 7 }), "feedforward_modules is 7"),
            (json!([]), "not a PEFT adapter's config"),
        ] {
            let error = Config::from_tree(tree.clone()).unwrap_err();
            assert!(error.contains(expected), "{tree}: {error}");
        }
        let plain = json!({ "peft_type": "LORA", "r": 4, "lora_alpha": 8, "use_dora": false, "layer_replication": null, "init_lora_weights": true });
        assert!(Config::from_tree(plain).is_ok());
    }

    #[test]
    fn patterns_match_whole_names_and_ends_in_their_order() {
        let table = json!({ "v": 1, "layers.0.q": 2, "^m.q": 3, "q": 4 });
        let patterns = patterns("rank_pattern", table.as_object()).unwrap();
        for (module, expected) in
            [("m.layers.0.q", Some(2.0)), ("m.q", Some(3.0)), ("m.layers.1.q", Some(4.0)), ("m.k", None), ("mq", None)]
        {
            assert_eq!(find(&patterns, module), expected, "{module}");
        }
    }
}
