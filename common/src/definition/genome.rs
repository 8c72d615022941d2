//! mergekit-evolve's genome, as the keys of a search over the same coefficients.
//!
//! `search.genome` names the file. Its models are experts of the definition, by name or path; its tasks, if it names any, are the definition's. What
//! mergekit-evolve varies is searched by `cma_es` unless `search.strategy` says otherwise: weight, density or t, for each group of `layer_granularity`
//! layers and each filter. A key that cannot be honoured is refused.

use std::{fs, path::Path};

use serde_json::{Map, Value, json};

use super::Definition;
use crate::suggest;

const TOP: [&str; 7] = ["genome", "tasks", "limit", "num_fewshot", "shuffle", "random_init", "apply_chat_template"];
const GENOME: [&str; 9] = [
    "models",
    "merge_method",
    "base_model",
    "tokenizer_source",
    "layer_granularity",
    "normalize",
    "allow_negative_weights",
    "smooth",
    "filters",
];

/// Puts the keys that the genome at `search.genome` stands for in its place. Paths are still as written, relative to `folder`.
pub(super) fn import(definition: &mut Definition, folder: &Path, strategy_is_given: bool) -> Result<(), String> {
    let Some(path) = definition.search.parameters.remove("genome") else {
        return Ok(());
    };
    let path = folder.join(path.as_str().ok_or_else(|| format!("search.genome is {path}: the path of a YAML file is expected"))?);
    let shown = path.display();
    let text = fs::read_to_string(&path).map_err(|error| format!("search.genome: cannot read {shown}: {error}"))?;
    let tree: Value = serde_saphyr::from_str(&text).map_err(|error| format!("{shown}: {error}"))?;
    let keys = translate(&tree, definition, folder).map_err(|what| format!("{shown}: {what}"))?;
    if let Some(key) = keys.keys().find(|key| definition.search.parameters.contains_key(*key)) {
        return Err(format!("search.{key} is given, and by the genome {shown} too: leave one of them out"));
    }
    definition.search.parameters.extend(keys);
    if !strategy_is_given {
        definition.search.strategy = "cma_es".into();
    }
    Ok(())
}

fn table<'t>(tree: &'t Value, place: &str, known: &[&str]) -> Result<&'t Map<String, Value>, String> {
    let table = tree.as_object().ok_or_else(|| format!("{place}: a table of keys is expected"))?;
    match table.keys().find(|key| !known.contains(&key.as_str())) {
        Some(key) => Err(format!("unknown key {} in {place}", suggest::unknown(key, known.iter().copied()))),
        None => Ok(table),
    }
}

fn translate(tree: &Value, definition: &Definition, folder: &Path) -> Result<Map<String, Value>, String> {
    let top = table(tree, "the file", &TOP)?;
    let set = |value: &&Value| !value.is_null() && **value != Value::Bool(false);
    for (key, why) in [
        ("limit", "tasks.dev_items limits the items here"),
        ("num_fewshot", "tasks are scored by the definition's evaluator, without examples"),
        ("apply_chat_template", "tasks are scored by the definition's evaluator"),
        ("shuffle", "the items' order follows from search.seed"),
        ("random_init", "a search starts from the method's defaults; search.ranges gives other first values"),
    ] {
        if let Some(value) = top.get(key).filter(set) {
            return Err(format!("{key} is {value}, which cannot be honoured: {why}"));
        }
    }
    tasks(top.get("tasks"), definition)?;
    let genome = table(top.get("genome").ok_or("the key genome is missing")?, "genome", &GENOME)?;
    if let Some(source) = genome.get("tokenizer_source").filter(|source| set(source) && **source != json!("base")) {
        return Err(format!("genome.tokenizer_source is {source}, which cannot be honoured: the base's tokenizer is used"));
    }
    let text = |key: &str| genome.get(key).and_then(Value::as_str);
    let flag = |key: &str| genome.get(key).and_then(Value::as_bool);
    if let Some(base) = text("base_model").filter(|base| !same(base, &definition.models.base, folder)) {
        let own = definition.models.base.display();
        return Err(format!("genome.base_model is {base:?}, and the definition's models.base is {own}: they must be the same"));
    }
    let models =
        genome.get("models").and_then(Value::as_array).ok_or("genome.models is missing: a list of models is expected")?;
    let expert = |model: &Value| {
        let written = model.as_str().ok_or_else(|| format!("genome.models: {model} is not a text"))?;
        let experts = &definition.models.experts;
        let found = experts.iter().find(|expert| expert.name == written || same(written, &expert.path, folder));
        let unknown = || suggest::unknown(written, experts.iter().map(|expert| expert.name.as_str()));
        found
            .map(|expert| expert.name.clone())
            .ok_or_else(|| format!("genome.models: {} is no expert of the definition, by name or path", unknown()))
    };
    let models = models.iter().map(expert).collect::<Result<Vec<_>, _>>()?;
    let method = text("merge_method").ok_or("genome.merge_method is missing")?;
    let coefficients = match method {
        "linear" | "task_arithmetic" => vec!["weight"],
        "ties" | "dare_ties" | "dare_linear" | "della" | "della_linear" => vec!["weight", "density"],
        "breadcrumbs" | "breadcrumbs_ties" => vec!["weight", "density", "gamma"],
        "slerp" => vec!["t"],
        other => {
            let known = [
                "linear",
                "task_arithmetic",
                "ties",
                "dare_ties",
                "dare_linear",
                "della",
                "della_linear",
                "breadcrumbs",
                "breadcrumbs_ties",
                "slerp",
            ];
            return Err(format!("genome.merge_method: mergekit-evolve has no genome for {}", suggest::unknown(other, known)));
        }
    };
    let mut keys = Map::from_iter([
        ("method".to_owned(), json!(method)),
        ("models".to_owned(), json!(models)),
        ("coefficients".to_owned(), json!(coefficients)),
    ]);
    let low = if flag("allow_negative_weights") == Some(true) { -1.0 } else { 0.0 };
    let range = |name: &&str| (name.to_string(), if *name == "weight" { json!([low, 1.0, 0.5]) } else { json!([0.0, 1.0, 0.5]) });
    keys.insert("ranges".into(), coefficients.iter().map(range).collect::<Map<_, _>>().into());
    if let Some(normalize) = flag("normalize") {
        keys.insert("parameters".into(), json!({ "normalize": normalize }));
    }
    if let Some(filters) = genome.get("filters").filter(set) {
        keys.insert("patterns".into(), filters.clone());
    }
    let groups = layer_groups(genome.get("layer_granularity").filter(set), &folder.join(&definition.models.base))?;
    if groups > 1 {
        if flag("smooth") != Some(true) {
            return Err(format!(
                "genome.layer_granularity gives {groups} groups of layers with a step between them, which cannot be honoured: \
                 smooth: true interpolates between them, and that can"
            ));
        }
        keys.insert("layer_groups".into(), json!(groups));
    }
    Ok(keys)
}

/// Whether a model as written in the genome is this path: as written, from the definition's folder, or by its last component.
fn same(written: &str, path: &Path, folder: &Path) -> bool {
    let written = Path::new(written);
    written == path
        || folder.join(written) == folder.join(path)
        || (written.components().count() == 1 && path.file_name() == written.file_name())
}

/// mergekit-evolve's tasks have to be the definition's, with their weights.
fn tasks(given: Option<&Value>, definition: &Definition) -> Result<(), String> {
    for task in given.and_then(Value::as_array).into_iter().flatten() {
        let of = table(task, "tasks", &["name", "weight", "metric"])?;
        let name = of.get("name").and_then(Value::as_str).ok_or("tasks: an entry lacks the key name")?;
        let known = || definition.tasks.iter().map(|task| task.name.as_str());
        let found = definition.tasks.iter().find(|task| task.name == name);
        let found = found.ok_or_else(|| format!("tasks: {} is no task of the definition", suggest::unknown(name, known())))?;
        if let Some(weight) = of.get("weight").and_then(Value::as_f64).filter(|weight| *weight != found.weight) {
            return Err(format!(
                "tasks.{name}.weight is {weight}, and the definition's is {}: they must be the same",
                found.weight
            ));
        }
    }
    Ok(())
}

fn layer_groups(granularity: Option<&Value>, base: &Path) -> Result<u64, String> {
    let Some(granularity) = granularity else {
        return Ok(1);
    };
    let size = granularity.as_u64().filter(|size| *size > 0);
    let size =
        size.ok_or_else(|| format!("genome.layer_granularity is {granularity}: a number of layers above 0 is expected"))?;
    let config = base.join("config.json");
    let text = fs::read_to_string(&config).map_err(|error| format!("cannot read {}: {error}", config.display()))?;
    let config_tree: Value = serde_json::from_str(&text).map_err(|error| format!("{}: {error}", config.display()))?;
    let layers = config_tree.get("num_hidden_layers").and_then(Value::as_u64);
    let layers =
        layers.ok_or_else(|| format!("{} has no num_hidden_layers, which genome.layer_granularity needs", config.display()))?;
    if layers % size != 0 {
        return Err(format!("genome.layer_granularity is {size}, and the {layers} layers of the base cannot be divided by it"));
    }
    Ok(layers / size)
}

#[cfg(test)]
mod tests {
    use super::super::{Definition, parse};

    fn load(genome: &str) -> Result<Definition, String> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("base")).unwrap();
        std::fs::write(folder.path().join("base/config.json"), r#"{"num_hidden_layers": 6}"#).unwrap();
        std::fs::write(folder.path().join("genome.yaml"), genome).unwrap();
        let text = "models: {base: base, experts: [{name: a, path: models/first}, {name: b, path: models/second}]}\n\
                    tasks: [{name: t, dev: t.jsonl}]\nsearch: {genome: genome.yaml}\n";
        parse(text, &folder.path().join("search.yaml"), &[]).map_err(|error| error.to_string())
    }

    #[test]
    fn a_genome_becomes_the_keys_of_a_search() {
        let definition = load(
            "genome:\n  models: [models/first, b]\n  merge_method: dare_ties\n  base_model: base\n  layer_granularity: 2\n  smooth: true\n  normalize: false\n  \
             allow_negative_weights: true\n  filters: [self_attn, mlp]\ntasks: [{name: t, weight: 1.0, metric: \"acc,none\"}]\nlimit: null\n",
        )
        .unwrap();
        assert_eq!(definition.search.strategy, "cma_es");
        let expected = serde_json::json!({
            "method": "dare_ties", "models": ["a", "b"], "coefficients": ["weight", "density"],
            "ranges": { "weight": [-1.0, 1.0, 0.5], "density": [0.0, 1.0, 0.5] },
            "parameters": { "normalize": false }, "patterns": ["self_attn", "mlp"], "layer_groups": 3,
        });
        assert_eq!(serde_json::Value::Object(definition.search.parameters), expected);
    }

    #[test]
    fn what_cannot_be_honoured_is_named() {
        let genome = |rest: &str| format!("genome: {{models: [a, b], merge_method: linear{rest}}}\n");
        for (text, expected) in [
            (genome(", layer_granularity: 2"), "smooth: true"),
            (genome(", layer_granularity: 4, smooth: true"), "cannot be divided"),
            (genome(", tokenizer_source: union"), "tokenizer_source"),
            (genome(", base_model: other/base2"), "models.base"),
            (genome(", filtres: [x]"), "did you mean \"filters\""),
            (genome("") + "limit: 100\n", "tasks.dev_items"),
            (genome("") + "tasks: [{name: gsm8k}]\n", "no task of the definition"),
            (genome("") + "tasks: [{name: t, weight: 2}]\n", "weight is 2"),
            ("genome: {models: [c], merge_method: linear}\n".into(), "no expert of the definition"),
            ("genome: {models: [a], merge_method: tyes}\n".into(), "did you mean \"ties\""),
            ("tasks: []\n".into(), "the key genome is missing"),
        ] {
            let error = load(&text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
