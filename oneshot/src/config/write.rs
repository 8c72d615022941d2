//! A recipe as mergekit's YAML.
//!
//! A merge of checkpoints is one document. Where the operands of a merge are merges themselves, each is a named document before it, as
//! `mergekit-multi` reads them. What mergekit has no words for is refused by a sentence.

use std::{collections::HashMap, fmt::Write as _};

use evolver_common::{
    digest::Digest,
    merge::{self, Base},
    recipe::{Input, Merge, Op, Parameters, Recipe, Value},
};
use serde_json::{Value as Json, json};
use thiserror::Error;

/// A recipe that mergekit cannot express.
#[derive(Debug, PartialEq, Eq, Error)]
#[error("mergekit cannot express this recipe: {0}")]
pub struct Unwritable(pub String);

/// Methods that mergekit has under the same names.
const METHODS: [&str; 20] = [
    "linear",
    "passthrough",
    "slerp",
    "nuslerp",
    "multislerp",
    "karcher",
    "task_arithmetic",
    "ties",
    "dare_linear",
    "dare_ties",
    "breadcrumbs",
    "breadcrumbs_ties",
    "della",
    "della_linear",
    "model_stock",
    "nearswap",
    "arcee_fusion",
    "sce",
    "ram",
    "ramplus_tl",
];

/// The recipe as YAML; `place` tells where a checkpoint lies, `dtype` is the type to save in, by torch's name.
///
/// # Errors
/// What mergekit has no words for.
pub fn to_mergekit(recipe: &Recipe, dtype: &str, place: impl Fn(&Digest) -> Option<String>) -> Result<String, Unwritable> {
    let mut documents = Vec::new();
    // Names by id of what is named already: a checkpoint's place, or the name of an earlier document.
    let mut names: HashMap<Digest, String> = HashMap::new();
    for node in recipe.nodes() {
        let root = node.id() == recipe.id();
        if let Op::Checkpoint(digest) = node.op() {
            let place =
                place(digest).ok_or_else(|| Unwritable(format!("the place of checkpoint {} is not known", digest.short())))?;
            names.insert(node.id(), place);
            if !root {
                continue;
            }
        }
        let merge = as_merge(&node)?;
        let mut text = String::new();
        if !root {
            let name = format!("n{}", documents.len());
            writeln!(text, "name: {name}").ok();
            names.insert(node.id(), name);
        }
        document(&merge, &names, dtype, &mut text)?;
        documents.push(text);
    }
    Ok(documents.join("---\n"))
}

/// A node as a merge that mergekit knows.
fn as_merge(node: &Recipe) -> Result<Merge, Unwritable> {
    let weighted = |recipe: &Recipe, weight: f64| Input {
        recipe: recipe.clone(),
        parameters: Parameters::from([("weight".to_owned(), Value::Number(weight))]),
    };
    match node.op() {
        Op::Merge(merge) => Ok(merge.clone()),
        Op::Checkpoint(_) => Ok(Merge {
            method: "passthrough".into(),
            base: None,
            models: vec![Input { recipe: node.clone(), parameters: Parameters::new() }],
            parameters: Parameters::new(),
        }),
        // target + scale * (plus - minus) as a weighted sum.
        Op::Differential { target, plus, minus, scale } => {
            let mut models: Vec<Input> = Vec::new();
            for (recipe, weight) in [(target, 1.0), (plus, *scale), (minus, -scale)] {
                match models.iter_mut().find(|input| input.recipe.id() == recipe.id()) {
                    Some(Input { parameters, .. }) => {
                        if let Some(Value::Number(sum)) = parameters.get_mut("weight") {
                            *sum += weight;
                        }
                    }
                    None => models.push(weighted(recipe, weight)),
                }
            }
            let parameters = Parameters::from([("normalize".to_owned(), Value::Flag(false))]);
            Ok(Merge { method: "linear".into(), base: None, models, parameters })
        }
        Op::Crossover { .. } => Err(Unwritable("it takes single parameters at random from two parents (crossover)".into())),
        Op::Perturb { .. } => Err(Unwritable("it adds Gaussian steps (perturb)".into())),
        Op::Splice { .. } => Err(Unwritable("it takes layers from two models (splice)".into())),
    }
}

fn document(merge: &Merge, names: &HashMap<Digest, String>, dtype: &str, text: &mut String) -> Result<(), Unwritable> {
    if !METHODS.contains(&merge.method.as_str()) {
        return Err(Unwritable(format!("it has no method {}", merge.method)));
    }
    writeln!(text, "merge_method: {}", merge.method).ok();
    let name = |recipe: &Recipe| Json::from(names.get(&recipe.id()).map_or("", String::as_str));
    let over_base = merge::find(&merge.method).is_ok_and(|method| method.base() != Base::Unused);
    if let (Some(base), true) = (&merge.base, over_base) {
        writeln!(text, "base_model: {}", name(base)).ok();
    }
    writeln!(text, "models:").ok();
    for input in &merge.models {
        writeln!(text, "  - model: {}", name(&input.recipe)).ok();
        parameters(&input.parameters, "    ", text)?;
    }
    parameters(&merge.parameters, "", text)?;
    writeln!(text, "dtype: float32\nout_dtype: {dtype}").ok();
    Ok(())
}

fn parameters(table: &Parameters, indent: &str, text: &mut String) -> Result<(), Unwritable> {
    let mut lines = Vec::new();
    for (name, value) in table {
        match (name.as_str(), value) {
            // What mergekit always does.
            ("rescale_by", Value::Text(by)) if by == "l1" => {}
            ("rescale_by", _) => return Err(Unwritable("it rescales by the L1 norm only, and not by the density".into())),
            ("seed", _) => lines.push(format!("{indent}  # {name} {}: mergekit's own draws differ", shown(value))),
            _ => lines.push(format!("{indent}  {name}: {}", shown(value))),
        }
    }
    if lines.iter().any(|line| !line.trim_start().starts_with('#')) {
        writeln!(text, "{indent}parameters:\n{}", lines.join("\n")).ok();
    }
    Ok(())
}

/// JSON is YAML.
fn shown(value: &Value) -> Json {
    match value {
        Value::Rules(rules) => rules
            .iter()
            .map(|rule| match &rule.filter {
                Some(filter) => json!({ "filter": filter, "value": shown(&rule.value) }),
                None => json!({ "value": shown(&rule.value) }),
            })
            .collect(),
        value => serde_json::to_value(value).unwrap_or(Json::Null),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use evolver_common::recipe::Shape;

    use super::*;
    use crate::config::{Content, MergeConfig};

    fn leaf(n: u8) -> Recipe {
        Recipe::checkpoint(Digest::of(&[n]))
    }

    fn write(recipe: &Recipe) -> Result<String, Unwritable> {
        let places: HashMap<_, _> = (0..9).map(|n| (Digest::of(&[n]), format!("models/{n}"))).collect();
        to_mergekit(recipe, "bfloat16", |digest| places.get(digest).cloned())
    }

    fn ties(base: Recipe, models: &[Recipe]) -> Recipe {
        let rules = r#"[{"filter": "mlp", "value": [0.2, 0.8]}, {"value": 0.5}]"#;
        let density: Value = serde_json::from_str(rules).unwrap();
        let input = |recipe: &Recipe| Input {
            recipe: recipe.clone(),
            parameters: Parameters::from([("density".into(), density.clone()), ("weight".into(), Value::Number(0.25))]),
        };
        let merge = Merge {
            method: "ties".into(),
            base: Some(base),
            models: models.iter().map(input).collect(),
            parameters: Parameters::new(),
        };
        Recipe::new(Op::Merge(merge::normalize(merge).unwrap()))
    }

    #[test]
    fn a_merge_is_written_as_it_would_be_read() {
        let recipe = ties(leaf(0), &[leaf(1), leaf(2)]);
        let config = MergeConfig::parse(&write(&recipe).unwrap(), Path::new("/d/m.yaml")).unwrap();
        let Op::Merge(merge) = recipe.op() else { panic!("a merge") };
        assert_eq!((config.method.as_str(), config.parameters), ("ties", merge.parameters.clone()));
        let Content::Models(entries) = &config.modules[0].content else { panic!("models") };
        for (n, (entry, input)) in (1..).zip(entries.iter().zip(&merge.models)) {
            assert_eq!((entry.model.to_string(), &entry.parameters), (format!("models/{n}"), &input.parameters));
        }
        assert_eq!(config.base.unwrap().to_string(), "models/0");
    }

    #[test]
    fn nested_merges_are_named_documents() {
        let inner = ties(leaf(0), &[leaf(1), leaf(2)]);
        let outer = Op::Differential { target: leaf(3), plus: inner.clone(), minus: leaf(3), scale: 0.4 };
        let text = write(&Recipe::new(outer)).unwrap();
        let (first, second) = text.split_once("---\n").unwrap();
        assert!(first.starts_with("name: n0\nmerge_method: ties\nbase_model: \"models/0\"\n"), "{first}");
        assert_eq!(
            second,
            "merge_method: linear\nmodels:\n  - model: \"models/3\"\n    parameters:\n      weight: 0.6\n  - model: \"n0\"\n    parameters:\n      weight: 0.4\nparameters:\n  normalize: false\ndtype: float32\nout_dtype: bfloat16\n"
        );
        assert!(write(&leaf(4)).unwrap().starts_with("merge_method: passthrough\nmodels:\n  - model: \"models/4\"\n"));
    }

    #[test]
    fn what_mergekit_lacks_is_refused() {
        let perturbed = Recipe::new(Op::Perturb { parent: leaf(1), deviation: 0.1, seed: 1, shape: Shape::Full });
        assert!(write(&perturbed).unwrap_err().to_string().contains("Gaussian"));
        let merge = |method: &str, parameters: Parameters| {
            let models = vec![
                Input { recipe: leaf(1), parameters: Parameters::new() },
                Input { recipe: leaf(2), parameters: Parameters::new() },
            ];
            let merge = Merge { method: method.into(), base: Some(leaf(0)), models, parameters };
            Recipe::new(Op::Merge(merge::normalize(merge).unwrap()))
        };
        assert!(write(&merge("pcb", Parameters::new())).unwrap_err().to_string().contains("no method pcb"));
        let by_density = Parameters::from([("rescale_by".into(), Value::Text("density".into()))]);
        assert!(write(&merge("dare_ties", by_density)).unwrap_err().to_string().contains("L1 norm only"));
        assert!(write(&merge("dare_ties", Parameters::new())).unwrap().contains("# seed 0"));
        assert!(write(&leaf(77)).unwrap_err().to_string().contains("place of checkpoint"));
    }
}
