//! The definition printed with every key, its meaning and its value: what `--print-config` shows.

use std::fmt::Write as _;

use serde_json::Value;

use super::Definition;

/// Meaning of each key. A list's entries share one path; a test holds this table against the typed model.
const MEANINGS: &[(&str, &str)] = &[
    ("name", "A name for people; it stands in the model card."),
    ("models", "The checkpoints: Hugging Face folders with safetensors. Relative paths start from this file's folder."),
    ("models.base", "The base model that all experts were fine-tuned from; its config and tokenizer are used."),
    ("models.experts", "The fine-tuned models: the start population."),
    ("models.experts.name", "Unique name."),
    ("models.experts.path", "Folder of a full checkpoint, or of a PEFT LoRA adapter over the base."),
    (
        "models.experts.statistics",
        "File of statistics measured on it by `evolver statistics`, for merges by methods that read any (fisher, regmean).",
    ),
    ("models.heads", "Glob patterns of tensors that each task keeps its own of, for instance [\"classifier.*\"]."),
    ("models.frozen", "Glob patterns of tensors that stay the base's and do not evolve."),
    ("tasks", "What the one model is to do."),
    ("tasks.name", "Unique name."),
    ("tasks.evaluator", "How it is scored; `evolver evaluators` lists them with their own keys, which stand beside these."),
    ("tasks.dev", "Labelled items that the search selects on: JSON lines, CSV, Parquet, Arrow, or a folder of them."),
    ("tasks.test", "Sealed items, scored for the final candidates only and never selected by."),
    ("tasks.text", "Field of an item's text, or a template over its fields: \"Review: {{ text }}\"."),
    ("tasks.text_pair", "Field or template of a second text, for tasks over pairs."),
    ("tasks.label", "Field or template of what is right: the label, the answer."),
    ("tasks.labels", "The labels in the order of the model's outputs; empty: the base's id2label."),
    ("tasks.metric", "What the search maximises, one of the evaluator's metrics; by default its first."),
    ("tasks.weight", "Weight in the objective, the weighted mean over tasks; above 0."),
    ("tasks.head", "Expert whose head scores this task; needed where models.heads is set."),
    ("tasks.max_length", "Longest text in tokens; longer ones are cut."),
    ("tasks.dev_items", "Dev items used, 0 for all; a fixed choice by content."),
    ("tasks.test_items", "Test items used, 0 for all; a fixed choice by content."),
    ("merges", "Merges of the experts: further individuals of the start population, or rows of the table."),
    ("merges.name", "Unique name."),
    ("merges.method", "Merge method; `evolver methods` lists them."),
    ("merges.role", "individual: joins the start population; reference: scored for the table, never read by the search."),
    ("merges.models", "Experts merged, by name; empty: all."),
    ("merges.model_parameters", "Parameters of every merged model, for instance { weight = 1.0 }."),
    ("merges.parameters", "Parameters of the merge, for instance { ratio = 0.1 }."),
    ("evaluator", "How scoring runs; does not change outcomes."),
    ("evaluator.batch_tokens", "Tokens in one batch, at most; fewer where memory is short."),
    ("evaluator.hang_seconds", "Seconds without progress after which a scoring is given up as hung."),
    ("evaluator.attempt_seconds", "Seconds after which an attempt is given up however far it is."),
    (
        "evaluator.memory_bytes",
        "Memory that a scoring process may take, in bytes, mapped checkpoints not counted; 0: no limit. Beyond it the attempt fails, not the machine.",
    ),
    ("evaluator.open_files", "Files that a scoring process may have open; 0: no limit of evolver's."),
    ("objective", "How the tasks' scores become one number."),
    (
        "objective.scalarisation",
        "mean: the weighted mean; chebyshev: the weighted distance of the weakest task to its reference.",
    ),
    ("objective.reference", "For chebyshev: what each task's metric is measured against, for instance { tweets = 0.6 }; else 0."),
    ("search", "How offspring are drawn. Keys beyond these belong to the strategy."),
    ("search.seed", "Seed of every draw: same seed, same search."),
    ("search.in_flight", "Offspring drawn before the oldest must be back: 1 is the paper's loop, more keeps more workers busy."),
    (
        "search.mode",
        "ordered: results are absorbed by number, and the fleet changes nothing; arrival: as they come, and none waits.",
    ),
    ("search.strategy", "How offspring are drawn; `evolver strategies` lists the strategies with their keys."),
    ("acceptance", "When an offspring replaces its parent. Keys beyond these belong to the rule."),
    ("acceptance.rule", "The rule; `evolver strategies` lists the rules with their keys."),
    ("stop", "When the search ends: whichever of the set limits comes first; with none set, after 100 offspring."),
    ("stop.offspring", "Offspring drawn."),
    ("stop.generations", "Generations: each member of the population was mutated once."),
    ("stop.evaluations", "Dev items scored, start population included."),
    ("stop.seconds", "Seconds of the coordinator's clock, summed over restarts."),
    ("stop.patience", "Offspring in a row of which none was accepted."),
    ("fleet", "Leases and attempts; does not change outcomes."),
    ("fleet.lease_seconds", "Seconds that a lease holds without a heartbeat; then another worker takes the work."),
    ("fleet.heartbeat_seconds", "Seconds between two heartbeats."),
    ("fleet.attempts", "Workers that must fail on an offspring before it is given up."),
    ("fleet.cache_bytes", "Limit of a worker's cache of built weights, in bytes."),
    (
        "fleet.check_every",
        "One in so many results of a worker is scored again by another and compared; 0: none. Local workers are not checked.",
    ),
    ("fleet.check_best", "Whether a result that becomes the best is scored again by another worker."),
    ("fleet.tolerance", "Share of items on which two scorings of one model may differ; 0 where all machines compute alike."),
];

/// The whole definition as TOML, each key preceded by its meaning; a key without a value is shown as a comment.
#[must_use]
pub fn print(definition: &Definition) -> String {
    let mut out = String::new();
    if let Ok(Value::Object(tree)) = serde_json::to_value(definition) {
        table(&tree, "", &mut out);
    }
    out
}

fn table(tree: &serde_json::Map<String, Value>, path: &str, out: &mut String) {
    let (sections, keys): (Vec<_>, Vec<_>) = tree.iter().partition(|(key, value)| is_section(&join(path, key), value));
    for (key, value) in keys {
        let path = join(path, key);
        meaning(&path, out);
        match value {
            Value::Null => writeln!(out, "# {key} =").ok(),
            value => writeln!(out, "{} = {}", bare(key), inline(value)).ok(),
        };
    }
    for (key, value) in sections {
        let path = join(path, key);
        out.push('\n');
        meaning(&path, out);
        match value {
            Value::Array(items) if items.is_empty() => {
                writeln!(out, "# [[{path}]]").ok();
            }
            Value::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    if index > 0 {
                        out.push('\n');
                    }
                    writeln!(out, "[[{path}]]").ok();
                    if let Value::Object(item) = item {
                        table(item, &path, out);
                    }
                }
            }
            Value::Object(tree) => {
                writeln!(out, "[{path}]").ok();
                table(tree, &path, out);
            }
            _ => {}
        }
    }
}

/// Tables of their own: the sections of the model, but not the free-form parameters of a merge.
fn is_section(path: &str, value: &Value) -> bool {
    match value {
        Value::Object(_) => !path.ends_with("parameters"),
        Value::Array(items) => {
            items.iter().any(Value::is_object) || (items.is_empty() && ["merges", "tasks", "models.experts"].contains(&path))
        }
        _ => false,
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

fn meaning(path: &str, out: &mut String) {
    if let Some((_, meaning)) = MEANINGS.iter().find(|(known, _)| *known == path) {
        writeln!(out, "# {meaning}").ok();
    }
}

fn bare(key: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if !key.is_empty() && key.chars().all(plain) { key.to_owned() } else { Value::String(key.to_owned()).to_string() }
}

/// A value on one line. JSON's numbers, texts and lists are TOML's too; tables are not.
fn inline(value: &Value) -> String {
    match value {
        Value::Object(tree) if tree.is_empty() => "{}".into(),
        Value::Object(tree) => {
            let pairs: Vec<_> = tree.iter().map(|(key, value)| format!("{} = {}", bare(key), inline(value))).collect();
            format!("{{ {} }}", pairs.join(", "))
        }
        Value::Array(items) => {
            let items: Vec<_> = items.iter().map(inline).collect();
            format!("[{}]", items.join(", "))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::definition::parse;

    const FULL: &str = r#"
        models = { base = "/b", experts = [{ name = "a", path = "/a", statistics = "/s" }], frozen = ["x*"] }
        [[tasks]]
        name = "t"
        dev = "/t.jsonl"
        [[merges]]
        name = "m"
        method = "pcb"
        parameters = { ratio = 0.1, variant = "paper" }
        [search]
        scale = 0.25
    "#;

    #[test]
    fn the_printed_definition_reads_back_as_itself() {
        let definition = parse(FULL, Path::new("/d/s.toml"), &[]).unwrap();
        let printed = print(&definition);
        let again = parse(&printed, Path::new("/d/s.toml"), &[]).unwrap();
        assert_eq!(definition, again, "{printed}");
    }

    #[test]
    fn every_key_has_a_meaning_and_every_meaning_a_key() {
        let definition = parse(FULL, Path::new("/d/s.toml"), &[]).unwrap();
        let mut keys = Vec::new();
        collect(&serde_json::to_value(definition).unwrap(), "", &mut keys);
        for key in &keys {
            if key != "search.scale" && !key.contains("parameters.") {
                assert!(MEANINGS.iter().any(|(known, _)| known == key), "{key}");
            }
        }
        for (known, _) in MEANINGS {
            assert!(keys.iter().any(|key| key == known), "{known}");
        }
    }

    fn collect(value: &Value, path: &str, keys: &mut Vec<String>) {
        match value {
            Value::Object(tree) => {
                for (key, value) in tree {
                    let path = join(path, key);
                    keys.push(path.clone());
                    collect(value, &path, keys);
                }
            }
            Value::Array(items) => items.iter().for_each(|item| collect(item, path, keys)),
            _ => {}
        }
    }
}
