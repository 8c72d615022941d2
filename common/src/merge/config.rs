//! mergekit's merge definitions, as YAML or TOML.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde_json::{Map, Value as Json};
use thiserror::Error;

use super::{Base, Kind, ParameterError, find, normalize};
use crate::{
    checkpoint::{Checkpoint, DigestCache, Dtype},
    digest::Digest,
    recipe::{Input, Merge, Parameters, Recipe, Rule, Value},
    suggest,
};

const KEYS: [&str; 6] = ["merge_method", "base_model", "models", "parameters", "dtype", "out_dtype"];

/// A merge definition that cannot be used.
#[derive(Debug, Error)]
#[error("{path}: {what}", path = path.display())]
pub struct ConfigError {
    /// The file.
    pub path: PathBuf,
    /// The sentence.
    pub what: String,
}

/// A merge as its user wrote it; relative model paths start from the file's folder.
#[derive(Clone, Debug, PartialEq)]
pub struct MergeConfig {
    /// The method's name.
    pub method: String,
    /// Folder of the base model.
    pub base: Option<PathBuf>,
    /// Folders of the models, with their parameters.
    pub models: Vec<(PathBuf, Parameters)>,
    /// Parameters of the merge.
    pub parameters: Parameters,
    /// Type that the result is saved in; the first model's if not given.
    pub dtype: Option<Dtype>,
}

impl MergeConfig {
    /// Reads a definition from a `.yaml`, `.yml` or `.toml` file.
    ///
    /// # Errors
    /// A sentence with the key that is wrong.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let bad = |what: String| ConfigError { path: path.to_owned(), what };
        let text = fs::read_to_string(path).map_err(|error| bad(format!("cannot be read: {error}")))?;
        let tree: Json = match path.extension().and_then(|extension| extension.to_str()) {
            Some("toml") => toml::from_str(&text).map_err(|error| bad(error.to_string()))?,
            Some("yaml" | "yml") => serde_saphyr::from_str(&text).map_err(|error| bad(error.to_string()))?,
            _ => return Err(bad("a merge definition is a .yaml, .yml or .toml file".into())),
        };
        Self::from_tree(&tree, path.parent().unwrap_or(Path::new(""))).map_err(bad)
    }

    fn from_tree(tree: &Json, folder: &Path) -> Result<Self, String> {
        let table = tree.as_object().ok_or("a table of keys is expected")?;
        known_keys(table, &KEYS, "at the top level")?;
        let text = |key: &str| match table.get(key) {
            None | Some(Json::Null) => Ok(None),
            Some(Json::String(text)) => Ok(Some(text.as_str())),
            Some(other) => Err(format!("{key} is {other}: a text is expected")),
        };
        let models = table
            .get("models")
            .and_then(Json::as_array)
            .ok_or("models is missing: a list of { model, parameters } is expected")?;
        let dtype = text("out_dtype")?.or(text("dtype")?).map(dtype).transpose()?;
        Ok(Self {
            method: text("merge_method")?.ok_or("merge_method is missing")?.to_owned(),
            base: text("base_model")?.map(|base| folder.join(base)),
            models: models.iter().map(|model| entry(model, folder)).collect::<Result<_, _>>()?,
            parameters: parameters(table.get("parameters"))?,
            dtype,
        })
    }

    /// Opens the files of statistics that the models name, and names them by their digests instead, as recipes do. Relative paths start from the
    /// definition's folder, which `models` have been made to start from as well.
    ///
    /// # Errors
    /// A sentence about the file that cannot be used.
    pub fn open_statistics(&mut self, folder: &Path, digests: &DigestCache) -> Result<Vec<(Digest, Arc<Checkpoint>)>, String> {
        let Ok(method) = find(&self.method) else {
            return Ok(Vec::new());
        };
        let names: Vec<_> =
            method.parameters().iter().filter(|spec| matches!(spec.kind, Kind::Statistics)).map(|spec| spec.name).collect();
        let mut opened = Vec::new();
        let tables = self.models.iter_mut().map(|(_, parameters)| parameters).chain([&mut self.parameters]);
        for value in tables.flat_map(|table| table.iter_mut()).filter(|(name, _)| names.contains(&name.as_str())).map(|(_, value)| value) {
            if let Value::Text(path) = value {
                let file = Checkpoint::open(&folder.join(&*path)).map_err(|error| format!("statistics: {error}"))?;
                let digest = file.digest(digests).map_err(|error| format!("statistics: {error}"))?;
                *path = digest.to_string();
                opened.push((digest, Arc::new(file)));
            }
        }
        Ok(opened)
    }

    /// The merge over the given recipes of its base and models, checked and completed.
    ///
    /// # Errors
    /// As [`normalize`].
    pub fn merge(&self, base: Option<Recipe>, models: Vec<Recipe>) -> Result<Merge, ParameterError> {
        // mergekit's files may list the base among the models: methods over differences to it pass it over.
        let over_base = base.is_some() && find(&self.method)?.base() != Base::Unused;
        let inputs = models
            .into_iter()
            .zip(&self.models)
            .filter(|(recipe, _)| !(over_base && base.as_ref() == Some(recipe)))
            .map(|(recipe, (_, parameters))| Input { recipe, parameters: parameters.clone() })
            .collect();
        normalize(Merge { method: self.method.clone(), base, models: inputs, parameters: self.parameters.clone() })
    }
}

fn known_keys(table: &Map<String, Json>, known: &[&str], place: &str) -> Result<(), String> {
    match table.keys().find(|key| !known.contains(&key.as_str())) {
        Some(key) => Err(format!("unknown key {} {place}", suggest::unknown(key, known.iter().copied()))),
        None => Ok(()),
    }
}

fn entry(model: &Json, folder: &Path) -> Result<(PathBuf, Parameters), String> {
    let table = model.as_object().ok_or_else(|| format!("models: {model} is not a table with the key model"))?;
    known_keys(table, &["model", "parameters"], "in models")?;
    let path = table.get("model").and_then(Json::as_str).ok_or("models: an entry lacks the key model")?;
    Ok((folder.join(path), parameters(table.get("parameters"))?))
}

fn parameters(tree: Option<&Json>) -> Result<Parameters, String> {
    let Some(tree) = tree.filter(|tree| !tree.is_null()) else {
        return Ok(Parameters::new());
    };
    let table = tree.as_object().ok_or_else(|| format!("parameters is {tree}: a table is expected"))?;
    let mut parameters = Parameters::new();
    for (name, tree) in table {
        // How mergekit stores masks while it works: of no effect here.
        if name != "int8_mask" {
            parameters.insert(name.clone(), value(name, tree)?);
        }
    }
    Ok(parameters)
}

/// A parameter's value: one, a list over the layers, or `{filter, value}` rules.
fn value(name: &str, tree: &Json) -> Result<Value, String> {
    match tree {
        Json::Array(items) if items.iter().any(Json::is_object) => {
            Ok(Value::Rules(items.iter().map(|item| rule(name, item)).collect::<Result<_, _>>()?))
        }
        Json::Object(_) => Ok(Value::Rules(vec![rule(name, tree)?])),
        _ => plain(name, tree),
    }
}

fn rule(name: &str, tree: &Json) -> Result<Rule, String> {
    let table = tree.as_object().ok_or_else(|| format!("parameters.{name}: {tree} stands among rules, and is none"))?;
    known_keys(table, &["filter", "value"], &format!("in parameters.{name}"))?;
    let filter = match table.get("filter") {
        None | Some(Json::Null) => None,
        Some(Json::String(filter)) => Some(filter.clone()),
        Some(other) => return Err(format!("parameters.{name}: filter is {other}, and a text is expected")),
    };
    let value = table.get("value").ok_or_else(|| format!("parameters.{name}: a rule lacks the key value"))?;
    Ok(Rule { filter, value: plain(name, value)? })
}

/// A value that is no rules.
fn plain(name: &str, tree: &Json) -> Result<Value, String> {
    let numbers = |items: &[Json]| items.iter().map(Json::as_f64).collect::<Option<Vec<_>>>();
    match tree {
        Json::Bool(flag) => Ok(Value::Flag(*flag)),
        Json::Number(number) => Ok(Value::Number(number.as_f64().unwrap_or(f64::NAN))),
        Json::String(text) => Ok(Value::Text(text.clone())),
        Json::Array(items) => {
            numbers(items).map(Value::Numbers).ok_or_else(|| format!("parameters.{name} is {tree}: a list holds numbers"))
        }
        other => Err(format!("parameters.{name} is {other}: a number, a list of numbers, a text, or true or false is expected")),
    }
}

fn dtype(name: &str) -> Result<Dtype, String> {
    match name {
        "float32" => Ok(Dtype::F32),
        "float16" => Ok(Dtype::F16),
        "bfloat16" => Ok(Dtype::Bf16),
        other => Err(format!("unknown dtype {}", suggest::unknown(other, ["float32", "float16", "bfloat16"]))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(yaml: &str) -> Result<MergeConfig, String> {
        let tree: Json = serde_saphyr::from_str(yaml).unwrap();
        MergeConfig::from_tree(&tree, Path::new("/d"))
    }

    #[test]
    fn mergekit_yaml_is_read() {
        let config = read(
            "merge_method: ties\nbase_model: base\nmodels:\n  - model: a\n    parameters: {weight: 0.5, density: 1}\n  - model: /b\nparameters: {normalize: true}\ndtype: bfloat16\n",
        )
        .unwrap();
        assert_eq!(config.models[0].0, Path::new("/d/a"));
        assert_eq!(config.models[0].1["density"], Value::Number(1.0));
        assert_eq!(config.dtype, Some(Dtype::Bf16));
        let leaf = |n: u8| Recipe::checkpoint(crate::digest::Digest::of(&[n]));
        let merge = config.merge(Some(leaf(0)), vec![leaf(1), leaf(2)]).unwrap();
        assert_eq!(merge.models[1].parameters["weight"], Value::Number(1.0));
        assert_eq!(merge.parameters["lambda"], Value::Number(1.0));
    }

    #[test]
    fn lists_and_rules_are_read() {
        let config = read(
            "merge_method: slerp\nmodels: []\nparameters:\n  int8_mask: true\n  t:\n    - filter: mlp\n      value: [0, 0.5, 1]\n    - value: 0.25\n  u: {value: 3}\n",
        )
        .unwrap();
        let rules = vec![
            Rule { filter: Some("mlp".into()), value: Value::Numbers(vec![0.0, 0.5, 1.0]) },
            Rule { filter: None, value: Value::Number(0.25) },
        ];
        let single = Value::Rules(vec![Rule { filter: None, value: Value::Number(3.0) }]);
        assert_eq!(config.parameters, Parameters::from([("t".into(), Value::Rules(rules)), ("u".into(), single)]));
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        for (yaml, expected) in [
            ("merge_metod: ties\nmodels: []", "did you mean \"merge_method\""),
            ("merge_method: ties\nmodels: []\nslices: []", "unknown key \"slices\""),
            ("merge_method: ties\nmodels: [{model: a, parameters: {weight: [0, x]}}]", "a list holds numbers"),
            ("merge_method: ties\nmodels: [{model: a, parameters: {weight: {filtre: x, value: 1}}}]", "did you mean \"filter\""),
            ("merge_method: ties\nmodels: [{model: a, parameters: {weight: [{value: [{value: 1}]}]}}]", "a list holds numbers"),
            ("merge_method: ties\nmodels: [{modle: a}]", "did you mean \"model\""),
            ("merge_method: ties\nmodels: []\ndtype: float8", "unknown dtype"),
        ] {
            let error = read(yaml).unwrap_err();
            assert!(error.contains(expected), "{yaml}: {error}");
        }
    }
}
