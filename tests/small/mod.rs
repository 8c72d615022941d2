//! Small BERT classifiers and their data, for whole-system tests that need no download.
#![allow(dead_code, clippy::unwrap_used, reason = "each test file uses its own part; a test's helper fails as its test does")]

#[cfg(target_os = "linux")]
pub(crate) mod processes;

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use evolver_common::{
    checkpoint::{
        Dtype,
        write::{Announced, FolderWriter},
    },
    rng::Stream,
};
use serde_json::{Map, Value, json};

/// The sides of a network.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) vocabulary: usize,
    pub(crate) positions: usize,
    pub(crate) hidden: usize,
    pub(crate) heads: usize,
    pub(crate) layers: usize,
    pub(crate) intermediate: usize,
    pub(crate) labels: usize,
}

/// Scores a hundred short texts in a few milliseconds.
pub(crate) const TINY: Shape =
    Shape { vocabulary: 40, positions: 24, hidden: 16, heads: 2, layers: 1, intermediate: 32, labels: 3 };

/// Scores some hundred texts in some tens of milliseconds, so that what happens at random moments meets every stage of an attempt.
pub(crate) const SLOW: Shape =
    Shape { vocabulary: 200, positions: 24, hidden: 96, heads: 4, layers: 6, intermediate: 192, labels: 3 };

impl Shape {
    /// Name and sides of every tensor, the classifier's last.
    pub(crate) fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (hidden, inner) = (self.hidden, self.intermediate);
        let mut tensors = Vec::new();
        for (name, rows) in
            [("word_embeddings", self.vocabulary), ("position_embeddings", self.positions), ("token_type_embeddings", 2)]
        {
            tensors.push((format!("bert.embeddings.{name}.weight"), vec![rows, hidden]));
        }
        let norm = |name: &str| ["weight", "bias"].map(|part| (format!("{name}.LayerNorm.{part}"), vec![hidden]));
        let linear = |name: &str, out: usize, into: usize| {
            [(format!("{name}.weight"), vec![out, into]), (format!("{name}.bias"), vec![out])]
        };
        tensors.extend(norm("bert.embeddings"));
        for layer in 0..self.layers {
            let at = |part: &str| format!("bert.encoder.layer.{layer}.{part}");
            for part in ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"] {
                tensors.extend(linear(&at(part), hidden, hidden));
            }
            tensors.extend(norm(&at("attention.output")));
            tensors.extend(linear(&at("intermediate.dense"), inner, hidden));
            tensors.extend(linear(&at("output.dense"), hidden, inner));
            tensors.extend(norm(&at("output")));
        }
        tensors.extend(linear("bert.pooler.dense", hidden, hidden));
        tensors.extend(linear("classifier", self.labels, hidden));
        tensors
    }
}

/// The words of a vocabulary; the first one stands for all unknown ones.
fn word(index: usize) -> String {
    if index == 0 { "[UNK]".into() } else { format!("w{index}") }
}

/// Writes a checkpoint folder; `values` gives each tensor's elements.
pub(crate) fn model(folder: &Path, shape: &Shape, mut values: impl FnMut(&str, usize) -> Vec<f32>) {
    let writer = FolderWriter::new(folder).unwrap();
    let tensors = shape.tensors();
    let announced: Vec<_> =
        tensors.iter().map(|(name, sides)| Announced { name: name.clone(), dtype: Dtype::F32, shape: sides.clone() }).collect();
    let weights = writer.weights("model.safetensors", &announced).unwrap();
    for (index, (name, sides)) in tensors.iter().enumerate() {
        weights.values(index, 0, &values(name, sides.iter().product())).unwrap();
    }
    weights.finish(false).unwrap();
    let config = json!({
        "model_type": "bert", "architectures": ["BertForSequenceClassification"], "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads, "intermediate_size": shape.intermediate,
        "vocab_size": shape.vocabulary, "max_position_embeddings": shape.positions,
    });
    writer.write("config.json", config.to_string().as_bytes()).unwrap();
    let vocabulary: Map<String, Value> = (0..shape.vocabulary).map(|index| (word(index), index.into())).collect();
    let tokenizer = json!({
        "version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": { "type": "WhitespaceSplit" },
        "post_processor": null, "decoder": null, "truncation": null, "padding": null,
        "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]" },
    });
    writer.write("tokenizer.json", tokenizer.to_string().as_bytes()).unwrap();
    writer.finish().unwrap();
}

/// The seeded elements of an expert: the base's, and a step of its own.
pub(crate) fn expert(seed: u64) -> impl FnMut(&str, usize) -> Vec<f32> {
    move |name, count| {
        let uniform = |seed: u64, element: u64| f64::from(Stream::new(seed, name).element(element)) / f64::from(u32::MAX) - 0.5;
        let norm = if name.ends_with("LayerNorm.weight") { 1.0 } else { 0.0 };
        let step = if seed == 0 { 0.0 } else { 0.3 };
        #[expect(clippy::cast_possible_truncation, reason = "weights are F32")]
        (0..count as u64).map(|element| (norm + 0.4 * uniform(0, element) + step * uniform(seed, element)) as f32).collect()
    }
}

/// Lines of labelled texts of random words.
pub(crate) fn lines(shape: &Shape, seed: u64, items: usize, words: usize) -> String {
    let stream = Stream::new(seed, "texts");
    let draw = |element: usize, below: usize| stream.element(element as u64) as usize % below;
    let mut text = String::new();
    for item in 0..items {
        let at = item * (words + 1);
        let words: Vec<_> = (0..words).map(|place| word(1 + draw(at + place, shape.vocabulary - 1))).collect();
        let label = format!("label{}", draw(at + words.len(), shape.labels));
        writeln!(text, "{}", json!({ "text": words.join(" "), "label": label })).unwrap();
    }
    text
}

/// A folder with `base`, `experts/a` to `experts/d`, `dev.jsonl`, `test.jsonl`, and a `search.toml` over them.
pub(crate) fn search(folder: &Path, shape: &Shape, items: usize, words: usize) -> PathBuf {
    model(&folder.join("base"), shape, expert(0));
    let mut experts = String::new();
    for (seed, name) in (1..).zip(["a", "b", "c", "d"]) {
        model(&folder.join("experts").join(name), shape, expert(seed));
        writeln!(experts, "[[models.experts]]\nname = \"{name}\"\npath = \"experts/{name}\"").unwrap();
    }
    fs::write(folder.join("dev.jsonl"), lines(shape, 1, items, words)).unwrap();
    fs::write(folder.join("test.jsonl"), lines(shape, 2, items / 2, words)).unwrap();
    let labels: Vec<_> = (0..shape.labels).map(|label| format!("\"label{label}\"")).collect();
    let definition = format!(
        r#"
name = "small"
[models]
base = "base"
{experts}
[[tasks]]
name = "t"
dev = "dev.jsonl"
test = "test.jsonl"
labels = [{}]
[[merges]]
name = "pcb"
method = "pcb"
role = "individual"
[[merges]]
name = "average"
method = "linear"
[search]
strategy = "evolver"
in_flight = 4
[acceptance]
rule = "greedy"
[stop]
offspring = 8
"#,
        labels.join(", ")
    );
    let path = folder.join("search.toml");
    fs::write(&path, definition).unwrap();
    path
}

/// The program, in a folder.
pub(crate) fn evolver(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_evolver"));
    command.args(arguments).current_dir(folder);
    command
}

/// Runs the program to its end.
pub(crate) fn run(folder: &Path, arguments: &[&str]) -> Output {
    evolver(folder, arguments).output().unwrap()
}

/// Runs the program, which must succeed, and gives what it printed.
pub(crate) fn succeed(folder: &Path, arguments: &[&str]) -> String {
    let output = run(folder, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What `show --json` says of a search.
pub(crate) fn show(folder: &Path, dir: &str) -> Value {
    serde_json::from_str(&succeed(folder, &["show", dir, "--json"])).unwrap()
}
