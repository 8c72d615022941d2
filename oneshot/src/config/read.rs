//! From a file to the typed definition. Every wrong key is named at once.

use std::{
    fs,
    path::{Path, PathBuf},
};

use evolver_common::{
    checkpoint::Dtype,
    recipe::{Parameters, Rule, Value},
    suggest,
};
use serde_json::{Map, Value as Json};

use super::{ConfigError, Content, Entry, MergeConfig, ModelReference, Module, Slice, SliceSource, TokenizerRule, tokens};

const KEYS: [&str; 13] = [
    "merge_method",
    "base_model",
    "models",
    "slices",
    "modules",
    "parameters",
    "dtype",
    "out_dtype",
    "tokenizer_source",
    "tokenizer",
    "chat_template",
    "name",
    "ia3",
];
/// Longest file.
const BYTES_MAX: u64 = 4 << 20;
/// Layers that a slice may name.
const LAYERS_MAX: u64 = 100_000;

impl MergeConfig {
    /// Reads a definition from a `.yaml`, `.yml` or `.toml` file.
    ///
    /// # Errors
    /// A sentence for each key that is wrong.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let error = |problems| ConfigError { path: path.to_owned(), problems };
        let unreadable = |cause: std::io::Error| error(vec![format!("cannot be read: {cause}")]);
        let size = fs::metadata(path).map_err(unreadable)?.len();
        if size > BYTES_MAX {
            return Err(error(vec![format!("has {size} bytes, and at most {BYTES_MAX} are allowed")]));
        }
        let text = fs::read_to_string(path).map_err(unreadable)?;
        Self::parse(&text, path).map_err(error)
    }

    /// As [`MergeConfig::load`], for a text that is already there; `path` gives its format and folder.
    ///
    /// # Errors
    /// A sentence for each key that is wrong.
    pub fn parse(text: &str, path: &Path) -> Result<Self, Vec<String>> {
        let tree: Json = match path.extension().and_then(|extension| extension.to_str()) {
            Some("toml") => toml::from_str(text).map_err(|error| vec![error.to_string()])?,
            Some("yaml" | "yml") => {
                // Some versions of YAML take `y` and `n` for true and false; to mergekit they are texts, and tokens.
                // Aliases may be used, but not to make a small file large.
                let limits = serde_saphyr::alias_limits! { max_total_replayed_events: 20_000 };
                let options = serde_saphyr::options! { strict_booleans: true, alias_limits: limits };
                serde_saphyr::from_str_with_options(text, options).map_err(|error| vec![error.to_string()])?
            }
            _ => return Err(vec!["a merge definition is a .yaml, .yml or .toml file".into()]),
        };
        let folder = path.parent().unwrap_or(Path::new("")).to_owned();
        let mut reader = Reader { problems: Vec::new() };
        let config = reader.config(&tree, folder, text.to_owned());
        match config {
            Some(config) if reader.problems.is_empty() => Ok(config),
            _ => Err(reader.problems),
        }
    }
}

/// Reads pieces and keeps what is wrong with them.
pub(super) struct Reader {
    problems: Vec<String>,
}

impl Reader {
    pub(super) fn say(&mut self, sentence: String) {
        self.problems.push(sentence);
    }

    /// A table with no other keys than `known`.
    pub(super) fn table<'t>(&mut self, tree: &'t Json, place: &str, known: &[&str]) -> Option<&'t Map<String, Json>> {
        let Some(table) = tree.as_object() else {
            self.say(format!("{place} is {tree}: a table with the keys {} is expected", known.join(", ")));
            return None;
        };
        for key in table.keys().filter(|key| !known.contains(&key.as_str())) {
            self.say(format!("unknown key {} in {place}", suggest::unknown(key, known.iter().copied())));
        }
        Some(table)
    }

    pub(super) fn model(&mut self, tree: &Json, place: &str) -> Option<ModelReference> {
        ModelReference::from_tree(tree).map_err(|sentence| self.say(format!("{place}: {sentence}"))).ok()
    }

    fn config(&mut self, tree: &Json, folder: PathBuf, text: String) -> Option<MergeConfig> {
        let table = self.table(tree, "the definition", &KEYS)?;
        let method = self.text(table, "merge_method");
        if method.is_none() && !table.contains_key("merge_method") {
            self.say("merge_method is missing".into());
        }
        let vectors = self.vectors(table);
        let base = if vectors { Some(ModelReference::ones()) } else { self.base(table, "base_model") };
        let modules = self.modules(table);
        let parameters = self.parameters(table.get("parameters"), "parameters");
        let dtypes = ["out_dtype", "dtype"].map(|key| self.text(table, key).map(|name| self.dtype(key, &name)));
        let tokenizer = match (present(table, "tokenizer_source"), present(table, "tokenizer")) {
            (Some(_), Some(_)) => {
                self.say("tokenizer_source and tokenizer are both there: one of them is expected".into());
                None
            }
            (Some(source), None) => tokens::source(source, "tokenizer_source", self).map(TokenizerRule::of),
            (None, Some(tree)) => TokenizerRule::read(tree, self),
            (None, None) => None,
        };
        let chat_template = self.text(table, "chat_template");
        let dtype = dtypes.into_iter().flatten().flatten().next();
        Some(MergeConfig { method: method?, base, vectors, modules, parameters, dtype, tokenizer, chat_template, folder, text })
    }

    /// Whether the vectors of (IA)³ adapters are merged, to which keys about whole models do not fit.
    fn vectors(&mut self, table: &Map<String, Json>) -> bool {
        let vectors = match present(table, "ia3") {
            None => false,
            Some(Json::Bool(flag)) => *flag,
            Some(other) => {
                self.say(format!("ia3 is {other}: true or false is expected"));
                false
            }
        };
        let about_models = ["base_model", "slices", "modules", "tokenizer_source", "tokenizer", "chat_template"];
        for key in about_models.into_iter().filter(|key| vectors && present(table, key).is_some()) {
            self.say(format!("{key} does not fit ia3: true, where vectors are merged and ones are their base"));
        }
        vectors
    }

    fn text(&mut self, table: &Map<String, Json>, key: &str) -> Option<String> {
        match present(table, key)? {
            Json::String(text) => Some(text.clone()),
            other => {
                self.say(format!("{key} is {other}: a text is expected"));
                None
            }
        }
    }

    fn base(&mut self, table: &Map<String, Json>, key: &str) -> Option<ModelReference> {
        present(table, key).and_then(|tree| self.model(tree, key))
    }

    fn modules(&mut self, table: &Map<String, Json>) -> Vec<Module> {
        let given: Vec<_> = ["models", "slices", "modules"].into_iter().filter(|key| present(table, key).is_some()).collect();
        let [key] = given.as_slice() else {
            self.say(match given.as_slice() {
                [] => "models is missing: models, slices or modules say what is merged".to_owned(),
                several => format!("{} are there: one of them is expected", several.join(" and ")),
            });
            return Vec::new();
        };
        if *key != "modules" {
            let content = self.content(table, "");
            return content.map(|content| Module { name: None, content, parameters: Parameters::new() }).into_iter().collect();
        }
        let Some(modules) = table["modules"].as_object().filter(|modules| !modules.is_empty()) else {
            self.say("modules is no table of modules by name".into());
            return Vec::new();
        };
        let mut read = Vec::new();
        for (name, tree) in modules {
            let place = format!("modules.{name}");
            let Some(table) = self.table(tree, &place, &["models", "slices", "parameters"]) else { continue };
            if present(table, "models").is_some() == present(table, "slices").is_some() {
                self.say(format!("{place}: either models or slices are expected"));
                continue;
            }
            let parameters = self.parameters(table.get("parameters"), &format!("{place}.parameters"));
            let content = self.content(table, &format!("{place}."));
            read.extend(content.map(|content| Module { name: Some(name.clone()), content, parameters }));
        }
        read
    }

    /// The `models` or `slices` of a table; `place` ends with a dot where it is not empty.
    fn content(&mut self, table: &Map<String, Json>, place: &str) -> Option<Content> {
        if let Some(tree) = present(table, "models") {
            let place = format!("{place}models");
            let list = self.list(tree, &place)?;
            return Some(Content::Models(list.iter().filter_map(|tree| self.entry(tree, &place)).collect()));
        }
        let place = format!("{place}slices");
        let list = self.list(present(table, "slices")?, &place)?;
        let slices = list.iter().enumerate();
        Some(Content::Slices(slices.filter_map(|(index, tree)| self.slice(tree, &format!("{place}[{index}]"))).collect()))
    }

    fn list<'t>(&mut self, tree: &'t Json, place: &str) -> Option<&'t Vec<Json>> {
        let list = tree.as_array().filter(|list| !list.is_empty());
        if list.is_none() {
            self.say(format!("{place} is no list, or an empty one"));
        }
        list
    }

    fn entry(&mut self, tree: &Json, place: &str) -> Option<Entry> {
        let table = self.table(tree, place, &["model", "parameters"])?;
        let parameters = self.parameters(table.get("parameters"), &format!("{place}.parameters"));
        Some(Entry { model: self.required_model(table, place)?, parameters })
    }

    fn required_model(&mut self, table: &Map<String, Json>, place: &str) -> Option<ModelReference> {
        match present(table, "model") {
            Some(tree) => self.model(tree, place),
            None => {
                self.say(format!("{place}: an entry lacks the key model"));
                None
            }
        }
    }

    fn slice(&mut self, tree: &Json, place: &str) -> Option<Slice> {
        let table = self.table(tree, place, &["sources", "base_model", "parameters"])?;
        let sources = self.list(table.get("sources").unwrap_or(&Json::Null), &format!("{place}.sources"))?;
        let sources: Vec<_> = sources.iter().filter_map(|tree| self.source(tree, &format!("{place}.sources"))).collect();
        let counts: Vec<_> = sources.iter().map(|source| source.layers.len()).collect();
        if counts.windows(2).any(|pair| pair[0] != pair[1]) {
            self.say(format!("{place}: its sources have {counts:?} layers, and as many are expected of each"));
        }
        let vectors = self.vectors(table);
        let base = if vectors { Some(ModelReference::ones()) } else { self.base(table, "base_model") };
        let parameters = self.parameters(table.get("parameters"), &format!("{place}.parameters"));
        (!sources.is_empty()).then_some(Slice { sources, base, parameters })
    }

    fn source(&mut self, tree: &Json, place: &str) -> Option<SliceSource> {
        let table = self.table(tree, place, &["model", "layer_range", "parameters"])?;
        let model = self.required_model(table, place);
        let range = table.get("layer_range").unwrap_or(&Json::Null);
        let ends: Option<Vec<u64>> = range.as_array().and_then(|ends| ends.iter().map(Json::as_u64).collect());
        let layers = match ends.as_deref() {
            Some(&[first, end]) if first < end && end <= LAYERS_MAX => usize::try_from(first).ok()?..usize::try_from(end).ok()?,
            _ => {
                self.say(format!("{place}.layer_range is {range}: [first, end] is expected, the end not included"));
                return None;
            }
        };
        let parameters = self.parameters(table.get("parameters"), &format!("{place}.parameters"));
        Some(SliceSource { model: model?, layers, parameters })
    }

    fn dtype(&mut self, key: &str, name: &str) -> Option<Dtype> {
        let dtype = Dtype::from_torch(name);
        if dtype.is_none() {
            let known = ["float32", "float16", "bfloat16", "float64"];
            self.say(format!("{key}: unknown dtype {}", suggest::unknown(name, known)));
        }
        dtype
    }

    fn parameters(&mut self, tree: Option<&Json>, place: &str) -> Parameters {
        let mut parameters = Parameters::new();
        let Some(tree) = tree.filter(|tree| !tree.is_null()) else {
            return parameters;
        };
        let Some(table) = tree.as_object() else {
            self.say(format!("{place} is {tree}: a table is expected"));
            return parameters;
        };
        for (name, tree) in table {
            // How mergekit stores masks while it works: of no effect here.
            if name == "int8_mask" {
                continue;
            }
            match value(&format!("{place}.{name}"), tree) {
                Ok(value) => drop(parameters.insert(name.clone(), value)),
                Err(sentence) => self.say(sentence),
            }
        }
        parameters
    }
}

/// What stands under a key, if it is not null.
fn present<'t>(table: &'t Map<String, Json>, key: &str) -> Option<&'t Json> {
    table.get(key).filter(|tree| !tree.is_null())
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
    let table = tree.as_object().ok_or_else(|| format!("{name}: {tree} stands among rules, and is none"))?;
    let known = ["filter", "value"];
    if let Some(key) = table.keys().find(|key| !known.contains(&key.as_str())) {
        return Err(format!("unknown key {} in {name}", suggest::unknown(key, known)));
    }
    let filter = match present(table, "filter") {
        None => None,
        Some(Json::String(filter)) => Some(filter.clone()),
        Some(other) => return Err(format!("{name}: filter is {other}, and a text is expected")),
    };
    let value = table.get("value").ok_or_else(|| format!("{name}: a rule lacks the key value"))?;
    Ok(Rule { filter, value: plain(name, value)? })
}

/// A value that is no rules.
fn plain(name: &str, tree: &Json) -> Result<Value, String> {
    let numbers = |items: &[Json]| items.iter().map(Json::as_f64).collect::<Option<Vec<_>>>();
    match tree {
        Json::Bool(flag) => Ok(Value::Flag(*flag)),
        Json::Number(number) => Ok(Value::Number(number.as_f64().unwrap_or(f64::NAN))),
        Json::String(text) => Ok(match text.to_ascii_lowercase().as_str() {
            "yes" | "on" => Value::Flag(true),
            "no" | "off" => Value::Flag(false),
            _ => Value::Text(text.clone()),
        }),
        Json::Array(items) => numbers(items).map(Value::Numbers).ok_or_else(|| format!("{name} is {tree}: a list holds numbers")),
        other => Err(format!("{name} is {other}: a number, a list of numbers, a text, or true or false is expected")),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::TokenizerSource, *};

    fn read(yaml: &str) -> Result<MergeConfig, String> {
        MergeConfig::parse(yaml, Path::new("/d/merge.yaml")).map_err(|problems| problems.join("\n"))
    }

    fn entries(config: &MergeConfig) -> &[Entry] {
        let Content::Models(entries) = &config.modules[0].content else { panic!("models") };
        entries
    }

    #[test]
    fn mergekit_yaml_is_read() {
        let config = read(
            "merge_method: ties\nbase_model: base\nmodels:\n  - model: a\n    parameters: {weight: 0.5, density: 1}\n  - model: /b+l\nparameters: {normalize: true}\ndtype: bfloat16\nout_dtype: float16\ntokenizer_source: union\n",
        )
        .unwrap();
        assert_eq!(entries(&config)[0].parameters["density"], Value::Number(1.0));
        assert_eq!(config.dtype, Some(Dtype::F16));
        let names: Vec<_> = config.models().iter().map(ToString::to_string).collect();
        assert_eq!(names, ["base", "a", "/b+l"]);
        assert_eq!(config.tokenizer, Some(TokenizerRule::of(TokenizerSource::Union)));
    }

    #[test]
    fn lists_and_rules_are_read() {
        let config = read(
            "merge_method: slerp\nmodels: [{model: a}]\nparameters:\n  int8_mask: true\n  t:\n    - filter: mlp\n      value: [0, 0.5, 1]\n    - value: 0.25\n  u: {value: 3}\n  v: 1e-5\n  w: yes\n",
        )
        .unwrap();
        let rules = vec![
            Rule { filter: Some("mlp".into()), value: Value::Numbers(vec![0.0, 0.5, 1.0]) },
            Rule { filter: None, value: Value::Number(0.25) },
        ];
        let single = Value::Rules(vec![Rule { filter: None, value: Value::Number(3.0) }]);
        let expected = Parameters::from([
            ("t".into(), Value::Rules(rules)),
            ("u".into(), single),
            ("v".into(), Value::Number(1e-5)),
            ("w".into(), Value::Flag(true)),
        ]);
        assert_eq!(config.parameters, expected);
    }

    #[test]
    fn slices_modules_and_tokens_are_read() {
        let config = read(
            "merge_method: passthrough\nslices:\n  - sources:\n      - {model: a, layer_range: [0, 16]}\n  - sources: [{model: b, layer_range: [8, 24], parameters: {scale: 0.5}}]\n    base_model: c\n    parameters: {scale: 2}\ntokenizer:\n  source: a\n  pad_to_multiple_of: 64\n  tokens:\n    <|x|>: {source: {kind: model_token, model: b, token: y}, force: true}\n    <|z|>: {source: {kind: zero}}\n    w: {source: d}\nchat_template: chatml\n",
        )
        .unwrap();
        let Content::Slices(slices) = &config.modules[0].content else { panic!("slices") };
        assert_eq!((slices[0].sources[0].layers.clone(), slices[1].sources[0].layers.clone()), (0..16, 8..24));
        assert_eq!(slices[1].base.as_ref().unwrap().to_string(), "c");
        let rule = config.tokenizer.as_ref().unwrap();
        assert_eq!((rule.pad_to_multiple_of, rule.tokens.len(), rule.tokens[0].1.force), (Some(64), 3, true));
        assert_eq!(config.models().len(), 4);
        let config = read(
            "merge_method: linear\nmodules:\n  encoder: {models: [{model: a}, {model: b}], parameters: {weight: 2}}\n  decoder: {slices: [{sources: [{model: a, layer_range: [0, 2]}]}]}\n",
        )
        .unwrap();
        assert_eq!(config.modules[0].name.as_deref(), Some("encoder"));
        assert!(matches!(config.modules[1].content, Content::Slices(_)));
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        for (yaml, expected) in [
            ("merge_metod: ties\nmodels: [{model: a}]", "did you mean \"merge_method\""),
            ("merge_metod: ties\nmodels: [{model: a}]", "merge_method is missing"),
            ("merge_method: ties", "models is missing"),
            ("merge_method: ties\nmodels: []", "models is no list, or an empty one"),
            ("merge_method: ties\nmodels: [{model: a}]\nslices: [{}]", "models and slices are there"),
            ("merge_method: ties\nmodels: [{model: a, parameters: {weight: [0, x]}}]", "a list holds numbers"),
            ("merge_method: ties\nmodels: [{model: a, parameters: {weight: {filtre: x, value: 1}}}]", "did you mean \"filter\""),
            ("merge_method: ties\nmodels: [{model: a, parameters: {weight: [{value: [{value: 1}]}]}}]", "a list holds numbers"),
            ("merge_method: ties\nmodels: [{modle: a}]", "did you mean \"model\""),
            ("merge_method: ties\nmodels: [{model: a}]\ndtype: float8", "unknown dtype"),
            ("merge_method: ties\nmodels: [{model: a}]\ntokenizer_source: base\ntokenizer: {source: base}", "are both there"),
            ("merge_method: ties\nmodels: [{model: a}]\ntokenizer: {tokens: {x: {force: true}}}", "has to come from somewhere"),
            (
                "merge_method: ties\nmodels: [{model: a}]\ntokenizer: {tokens: {x: {source: {kind: zeros}}}}",
                "did you mean \"zero\"",
            ),
            ("merge_method: ties\nmodels: [{model: a}]\ntokenizer: {pad_to_multiple_of: 0}", "pad_to_multiple_of is 0"),
            ("merge_method: ties\nslices: [{sources: [{model: a, layer_range: [3, 1]}]}]", "layer_range is [3,1]"),
            (
                "merge_method: ties\nslices: [{sources: [{model: a, layer_range: [0, 1]}, {model: a, layer_range: [0, 2]}]}]",
                "[1, 2] layers",
            ),
            ("merge_method: ties\nslices: [{sources: [{model: a, layer_range: [0, 1]}], residual_weight: 1}]", "residual_weight"),
            ("merge_method: ties\nmodules: {a: {models: [{model: a}], slices: []}}", "either models or slices"),
        ] {
            let error = read(yaml).unwrap_err();
            assert!(error.contains(expected), "{yaml}: {error}");
        }
        let error = read("merge_metod: ties\nmodels: [{modle: a}]\ndtype: x").unwrap_err();
        assert_eq!(error.lines().count(), 5, "every problem at once: {error}");
    }
}
