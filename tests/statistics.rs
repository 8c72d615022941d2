//! Fisher information and Gram matrices of classifiers: against PyTorch, against differences of the network's own outputs, and by the command.
//!
//! `golden/make_statistics.py` wrote the golden values.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test's helper fails as its test does, and says what it found")]

mod golden;
mod small;

use std::{collections::BTreeMap, fs, path::Path};

use evolver_common::checkpoint::Checkpoint;
use evolver_worker::{
    models::{ModelWeights, Values},
    statistics::{Classifier, Kind, Labels, Statistics},
};
use serde::Deserialize;
use serde_json::{Value, json};

/// Largest difference that is allowed, in parts of the tensor's largest value.
const TOLERANCE: f64 = 1e-4;
/// What counts as zero: F32 leaves some of it where F64 leaves less.
const ZERO: f64 = 1e-9;

#[derive(Deserialize)]
struct Golden {
    config: Value,
    tensors: BTreeMap<String, Vec<usize>>,
    texts: Vec<Text>,
    log_probabilities: Vec<Vec<f64>>,
    model: BTreeMap<String, Sample>,
    given: BTreeMap<String, Sample>,
    gram: BTreeMap<String, Sample>,
}

#[derive(Deserialize)]
struct Text {
    ids: Vec<u32>,
    types: Vec<u32>,
    label: usize,
}

impl Text {
    fn tokens(&self) -> Vec<(u32, u32)> {
        self.ids.iter().copied().zip(self.types.iter().copied()).collect()
    }
}

#[derive(Deserialize)]
struct Sample {
    sum: f64,
    elements: Vec<(usize, f64)>,
}

fn all() -> BTreeMap<String, Golden> {
    serde_json::from_str(include_str!("golden/statistics.json")).unwrap()
}

fn classifier(golden: &Golden, weights: ModelWeights) -> Classifier {
    Classifier::load(&golden.config, weights, &ModelWeights::default(), 3).unwrap()
}

/// Holds what was measured on the golden texts to `expected`, tensor for tensor.
fn compare(what: &str, golden: &Golden, kind: Kind, labels: Labels, expected: &BTreeMap<String, Sample>) {
    let classifier = classifier(golden, golden::weights(&golden.tensors));
    let mut statistics = Statistics::new(kind, labels);
    for text in &golden.texts {
        statistics.add(&classifier, &text.tokens(), text.label).unwrap();
    }
    let mut found: BTreeMap<_, _> =
        statistics.means().map(|(name, shape, means)| (name, (shape.to_vec(), means.collect::<Vec<_>>()))).collect();
    let mut worst = 0.0f64;
    for (name, sample) in expected {
        let (shape, means) = found.remove(name.as_str()).unwrap_or_else(|| panic!("{what}: {name} was not measured"));
        assert_eq!(means.len(), shape.iter().product::<usize>(), "{what}: {name}");
        let largest = sample.elements.iter().map(|(_, value)| value.abs()).fold(0.0, f64::max);
        for (place, value) in &sample.elements {
            let apart = (means[*place] - value).abs();
            assert!(apart <= TOLERANCE * largest + ZERO, "{what}: {name}[{place}] is {} and should be {value}", means[*place]);
            worst = worst.max(apart / (largest + ZERO));
        }
        let sum: f64 = means.iter().sum();
        let room = TOLERANCE * means.iter().map(|mean| mean.abs()).sum::<f64>() + ZERO;
        assert!((sum - sample.sum).abs() <= room, "{what}: {name} adds up to {sum} and should to {}", sample.sum);
    }
    for (name, (_, means)) in found {
        assert!(means.iter().all(|mean| mean.abs() <= ZERO), "{what}: {name} is zero for PyTorch");
    }
    println!("{what}: {} tensors, at most {worst:e} of the tensor's largest value apart", expected.len());
}

#[test]
fn fisher_information_and_gram_matrices_are_those_of_pytorch() {
    for (name, golden) in all() {
        compare(&format!("{name} fisher, all labels"), &golden, Kind::Fisher, Labels::Model, &golden.model);
        compare(&format!("{name} fisher, given labels"), &golden, Kind::Fisher, Labels::Given, &golden.given);
        compare(&format!("{name} gram"), &golden, Kind::Gram, Labels::Model, &golden.gram);
    }
}

#[test]
fn the_network_that_is_differentiated_gives_the_outputs_of_transformers() {
    for (name, golden) in all() {
        let classifier = classifier(&golden, golden::weights(&golden.tensors));
        for (text, expected) in golden.texts.iter().zip(&golden.log_probabilities) {
            let found = classifier.log_probabilities(&text.tokens()).unwrap();
            for (found, expected) in found.iter().zip(expected) {
                assert!((f64::from(*found) - expected).abs() < 1e-4, "{name}: {found} and {expected}");
            }
        }
    }
}

#[test]
fn gradients_are_slopes_of_the_outputs() {
    const STEP: f32 = 1e-2;
    for (kind, golden) in all() {
        let text = golden.texts[1].tokens();
        let weights = golden::weights(&golden.tensors);
        let gradients = classifier(&golden, weights.clone()).gradient(&text, 1).unwrap();
        let largest = gradients.values().flatten().fold(0.0f32, |largest, value| largest.max(value.abs()));
        for (name, gradient) in &gradients {
            // The steepest element of each tensor, so that the difference stands out of the rounding.
            let place = (0..gradient.len()).max_by(|a, b| gradient[*a].abs().total_cmp(&gradient[*b].abs())).unwrap();
            let [up, down] = [STEP, -STEP].map(|step| {
                let mut values = golden::values(name, &golden.tensors[name]);
                values[place] += step;
                let mut moved = weights.clone();
                moved.insert(name, &golden.tensors[name], Values::Owned(values.into()));
                classifier(&golden, moved).log_probabilities(&text).unwrap()[1]
            });
            let slope = (up - down) / (2.0 * STEP);
            let room = 0.02 * gradient[place].abs() + 1e-3 * largest;
            assert!(
                (slope - gradient[place]).abs() <= room,
                "{kind} {name}[{place}]: slope {slope}, gradient {}",
                gradient[place]
            );
        }
    }
}

fn read(path: &Path, name: &str) -> Vec<f32> {
    let checkpoint = Checkpoint::open(path).unwrap();
    let mut values = vec![0.0; checkpoint.tensors()[name].shape.iter().product()];
    checkpoint.read(name, 0..values.len(), &mut values).unwrap();
    values
}

#[test]
fn measured_files_go_into_merges() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path();
    small::search(folder, &small::TINY, 24, 8);
    let measure = |more: &[&str]| small::succeed(folder, &[&["statistics", "search.toml"], more].concat());
    let told = measure(&["--kind", "fisher", "--out", "fisher", "--expert", "a", "--expert", "b"]);
    assert!(told.contains("fisher/a.fisher.safetensors: ") && told.contains("over 24 items of a"), "{told}");
    assert!(!folder.join("fisher/c.fisher.safetensors").exists());
    // The items may come from another file, and fewer of them.
    measure(&["--kind", "gram", "--out", "gram", "--task", "t", "--data", "test.jsonl", "--items", "9"]);

    let merge = |method: &str, kind: &str| {
        let model = |name: &str| {
            format!("  - model: experts/{name}\n    parameters: {{ statistics: {kind}/{name}.{kind}.safetensors }}\n")
        };
        let yaml = format!("merge_method: {method}\nmodels:\n{}{}dtype: float32\n", model("a"), model("b"));
        fs::write(folder.join("merge.yml"), yaml).unwrap();
        let out = format!("by-{method}");
        small::succeed(folder, &["merge", "merge.yml", "--out", &out]);
        folder.join(out)
    };
    let name = "bert.encoder.layer.0.output.dense.weight";
    let [a, b] = ["a", "b"].map(|expert| read(&folder.join("experts").join(expert), name));
    let [fa, fb] = ["a", "b"].map(|expert| read(&folder.join(format!("fisher/{expert}.fisher.safetensors")), name));
    assert!(fa.iter().any(|value| *value > 0.0) && fa.iter().all(|value| *value >= 0.0) && fa != fb);
    for (place, merged) in read(&merge("fisher", "fisher"), name).into_iter().enumerate() {
        let [a, b, fa, fb] = [a[place], b[place], fa[place], fb[place]].map(f64::from);
        // Without `smooth`, where neither has information the mean stands.
        let expected = if fa + fb > 1e-6 { (fa * a + fb * b) / (fa + fb) } else { continue };
        assert!((f64::from(merged) - expected).abs() < 1e-3 * (a.abs() + b.abs() + 1e-3), "[{place}] {merged} and {expected}");
    }
    let regmean = read(&merge("regmean", "gram"), name);
    let apart = |other: &[f32]| regmean.iter().zip(other).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    let mean: Vec<f32> = a.iter().zip(&b).map(|(a, b)| f32::midpoint(*a, *b)).collect();
    assert!(apart(&mean) > 1e-3 && regmean.iter().all(|value| value.is_finite()));
}

#[test]
fn what_cannot_be_measured_is_said_and_leaves_no_folder() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path();
    small::search(folder, &small::TINY, 12, 6);
    fs::write(folder.join("broken.jsonl"), "{\"text\": \"w1\"}\n").unwrap();
    let cases: [(&[&str], &str); 4] = [
        (&["--expert", "e"], "the definition has no expert"),
        (&["--task", "tt"], "the definition has no task"),
        (&["--data", "absent.jsonl", "--task", "t"], "absent.jsonl"),
        (&["--data", "broken.jsonl", "--task", "t"], "broken.jsonl"),
    ];
    for (arguments, sentence) in cases {
        let output =
            small::run(folder, &[&["statistics", "search.toml", "--kind", "fisher", "--out", "out"], arguments].concat());
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && told.contains(sentence), "{arguments:?}: {told}");
        assert!(!folder.join("out").exists(), "{arguments:?}");
    }
}

#[test]
fn a_search_merges_by_what_was_measured() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path();
    small::search(folder, &small::TINY, 24, 8);
    small::succeed(folder, &["statistics", "search.toml", "--kind", "fisher", "--out", "fisher"]);
    let strategy =
        ["search.strategy=\"evolver_merger\"", "search.method=\"fisher\"", "search.mutation=\"difference\"", "stop.offspring=6"];
    let experts: Vec<_> = (0..)
        .zip(["a", "b", "c", "d"])
        .map(|(at, name)| format!("models.experts.{at}.statistics=\"fisher/{name}.fisher.safetensors\""))
        .collect();
    let run = |dir: &str, sets: &[&str]| {
        let sets: Vec<_> = sets.iter().flat_map(|set| ["--set", set]).collect();
        small::run(folder, &[&["run", "search.toml", "--dir", dir], &sets[..]].concat())
    };
    // Without files there is a sentence, and no search.
    let output = run("none", &strategy);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && told.contains("models.experts.statistics names an expert's file"), "{told}");
    // Nor one by files of another model.
    fs::create_dir(folder.join("other")).unwrap();
    small::search(&folder.join("other"), &small::Shape { hidden: 32, ..small::TINY }, 24, 8);
    small::succeed(&folder.join("other"), &["statistics", "search.toml", "--kind", "fisher", "--out", "fisher"]);
    let output = run("none", &["models.experts.2.statistics=\"other/fisher/a.fisher.safetensors\""]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && told.contains("expert c: statistics:") && told.contains("are expected"), "{told}");
    assert!(!folder.join("none").exists());
    let all: Vec<_> = strategy.into_iter().chain(experts.iter().map(String::as_str)).collect();
    let output = run("search", &all);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let shown: Value = serde_json::from_str(&small::succeed(folder, &["show", "search", "--json"])).unwrap();
    assert_eq!((&shown["offspring"]["committed"], &shown["offspring"]["failed"]), (&json!(6), &json!(0)));
    let recipe = shown["best"]["recipe"].as_str().unwrap();
    assert!(recipe.contains("merge(method=\"fisher\"") && recipe.contains("statistics="), "{recipe}");
    small::succeed(folder, &["verify", "search"]);
    // A start model has the values that `merge` gives.
    let start = "merges=[{ name = \"by-fisher\", method = \"fisher\", role = \"individual\" }]";
    let all: Vec<_> = std::iter::once(start).chain(experts.iter().map(String::as_str)).collect();
    let output = run("start", &all);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    small::succeed(folder, &["export", "start", "by-fisher", "--out", "exported"]);
    let model =
        |name: &str| format!("  - model: experts/{name}\n    parameters: {{ statistics: fisher/{name}.fisher.safetensors }}\n");
    let yaml =
        format!("merge_method: fisher\nbase_model: base\nmodels:\n{}{}{}", model("a"), model("b"), model("c") + &model("d"));
    fs::write(folder.join("merge.yml"), yaml).unwrap();
    small::succeed(folder, &["merge", "merge.yml", "--out", "merged"]);
    let name = "bert.encoder.layer.0.output.dense.weight";
    assert_eq!(read(&folder.join("exported"), name), read(&folder.join("merged"), name));
    // Scoring a checkpoint needs no file, whatever the search merges.
    small::succeed(folder, &["evaluate", "search.toml", "experts/a", "--with", "experts/b", "--set", start]);
    // Another file under the same name is not what the search began with.
    fs::copy(folder.join("fisher/a.fisher.safetensors"), folder.join("fisher/b.fisher.safetensors")).unwrap();
    let output = small::run(folder, &["export", "start", "by-fisher", "--out", "again"]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && told.contains("b.fisher.safetensors is not the file of statistics"), "{told}");
}
