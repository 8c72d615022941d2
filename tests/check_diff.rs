//! `evolver check`, `evolver diff` and `evolver export --mergekit`, as whole processes.
#![expect(clippy::unwrap_used, reason = "a test's helper fails as its test does")]

mod models;
mod small;

use std::fs;

use models::{Bench, HIDDEN, Model};
use serde_json::{Value, json};
use small::TINY;

const WORDS: [&str; 5] = ["<s>", "a", "b", "c", "d"];
const TIES: &str = "merge_method: ties\nbase_model: a\nmodels: [{model: b}]\nparameters: {density: 0.5}\n";

fn stdout(output: &std::process::Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn a_check_tells_what_a_merge_would_cost_and_writes_nothing() {
    let (a, b) = (Model::new(1, 40, &WORDS), Model::new(2, 40, &WORDS));
    let bench = Bench::new(&[("a", &a)]);
    b.write_sharded(&bench.path("b"));
    fs::write(bench.path("merge.yaml"), TIES).unwrap();
    let text = stdout(&bench.run(&["check", "merge.yaml"]));
    for word in ["the merge fits: ties over 2 models", "output", "memory", "time", "disk"] {
        assert!(text.contains(word), "{word:?} is missing in {text}");
    }
    let told: Value = serde_json::from_str(&stdout(&bench.run(&[
        "check",
        "merge.yaml",
        "--json",
        "--dtype",
        "bfloat16",
        "--max-shard-size",
        "1KB",
    ])))
    .unwrap();
    let elements: usize = a.tensors.values().map(|(_, values)| values.len()).sum();
    assert_eq!(told["weight_files"], 1 + b.tensors.len(), "every shard's header is read");
    assert_eq!(
        (&told["parameters"], &told["write_bytes"], &told["read_bytes"]),
        (&json!(elements), &json!(2 * elements), &json!(8 * elements))
    );
    assert!(told["merge_seconds"].as_f64().unwrap() > 0.0 && told["memory_bytes"].as_u64().unwrap() > 0);
    assert!(!bench.path("out").exists());
    // What is told is what is written.
    let out = bench.merge(TIES, "out", &["--dtype", "bfloat16", "--max-shard-size", "1KB"]);
    let shards = fs::read_dir(&out)
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().path().extension().is_some_and(|end| end == "safetensors"));
    assert_eq!(told["shards"], shards.count());
}

#[test]
fn a_check_refuses_all_that_a_merge_would_at_once() {
    let mut b = Model::new(2, 1, &WORDS);
    b.tensors.remove("model.norm.weight");
    b.tensors.get_mut("lm_head.weight").unwrap().0 = vec![HIDDEN, WORDS.len()];
    let bench = Bench::new(&[("a", &Model::new(1, 1, &WORDS)), ("b", &b)]);
    let yaml = format!("{TIES}chat_template: nonsense\n").replace("density: 0.5", "density: 2");
    fs::write(bench.path("merge.yaml"), &yaml).unwrap();
    let sentence = bench.refusal(&["check", "merge.yaml"]);
    for word in ["chat_template", "density is 2", "\"model.norm.weight\" is missing", "has shape [4, 5]"] {
        assert!(sentence.contains(word), "{word:?} is missing in {sentence}");
    }
    assert_eq!(bench.refuses(&yaml, &[]), sentence, "the merge says the same");
}

#[test]
fn a_searchs_definition_is_checked_too() {
    let folder = tempfile::tempdir().unwrap();
    small::search(folder.path(), &TINY, 10, 4);
    assert!(small::succeed(folder.path(), &["check", "search.toml"]).contains("4 experts and 1 tasks fit"));
    let told: Value = serde_json::from_str(&small::succeed(folder.path(), &["check", "search.toml", "--json"])).unwrap();
    assert_eq!((&told["kind"], &told["experts"]), (&json!("search"), &json!(4)));
    let text = fs::read_to_string(folder.path().join("search.toml")).unwrap();
    let text = text.replace("method = \"linear\"", "method = \"lineer\"").replace("experts/b", "experts/x");
    fs::write(folder.path().join("search.toml"), text).unwrap();
    let output = small::run(folder.path(), &["check", "search.toml"]);
    let sentence = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{sentence}");
    assert!(sentence.contains("experts/x"), "{sentence}");
}

#[test]
fn a_diff_is_a_table_json_and_a_page() {
    let (base, mut a, mut b) = (Model::new(1, 2, &WORDS), Model::new(1, 2, &WORDS), Model::new(1, 2, &WORDS));
    let q = "model.layers.1.self_attn.q_proj.weight";
    let step = |model: &mut Model, steps: [f32; 3]| {
        model.tensors.get_mut(q).unwrap().1.iter_mut().zip(steps).for_each(|(value, step)| *value += step)
    };
    step(&mut a, [3.0, 4.0, 0.0]);
    step(&mut b, [3.0, -4.0, 12.0]);
    b.tensors.insert("extra<script>".into(), (vec![1], vec![0.0]));
    let bench = Bench::new(&[("base", &base), ("a", &a), ("b", &b)]);
    let told: Value = serde_json::from_str(&stdout(&bench.run(&["diff", "a", "b", "--base", "base", "--json"]))).unwrap();
    let tensor = told["tensors"].as_array().unwrap().iter().find(|tensor| tensor["name"] == q).unwrap();
    assert_eq!((&tensor["norm_a"], &tensor["norm_b"]), (&json!(5.0), &json!(13.0)));
    assert_eq!(
        (&tensor["sign_agreement"], &tensor["layer"], &tensor["module"]),
        (&json!(0.5), &json!("model.layers.1"), &json!("self_attn.q_proj"))
    );
    assert!((tensor["cosine"].as_f64().unwrap() + 7.0 / 65.0).abs() < 1e-12);
    assert_eq!((&told["total"]["norm_a"], &told["only_b"]), (&json!(5.0), &json!(["extra<script>"])));
    let unchanged = told["layers"].as_array().unwrap().iter().find(|layer| layer["name"] == "model.layers.0").unwrap();
    assert_eq!((&unchanged["cosine"], &unchanged["equal"]), (&Value::Null, &json!(1.0)));
    let output = bench.run(&["diff", "a", "b", "--html", "diff.html"]);
    let text = stdout(&output);
    for word in ["model.layers.1", "self_attn.q_proj", "extra<script>: only in b", "cosine"] {
        assert!(text.contains(word), "{word:?} is missing in {text}");
    }
    let page = fs::read_to_string(bench.path("diff.html")).unwrap();
    assert!(
        page.starts_with("<!doctype html>") && page.contains("extra&lt;script&gt;") && page.contains(&format!("title=\"{q}"))
    );
    for from_elsewhere in ["http", "src=", "href=", "@import", "url(", "<script"] {
        assert!(!page.contains(from_elsewhere), "{from_elsewhere}");
    }
    assert!(bench.refusal(&["diff", "a", "nowhere"]).contains("model nowhere"));
}

#[test]
fn a_recipe_is_written_as_mergekit_yaml_that_gives_the_same_weights() {
    let folder = tempfile::tempdir().unwrap();
    let definition = small::search(folder.path(), &TINY, 10, 4);
    let text = fs::read_to_string(&definition).unwrap();
    let ties =
        "[[merges]]\nname = \"trimmed\"\nmethod = \"ties\"\nmodels = [\"a\", \"c\"]\nmodel_parameters = { density = 0.4 }\n";
    fs::write(&definition, text.replace("[search]", &format!("{ties}[search]"))).unwrap();
    small::succeed(folder.path(), &["run", "search.toml", "--dir", "found", "--set", "stop.offspring=1"]);
    for name in ["average", "trimmed", "a"] {
        small::succeed(folder.path(), &["export", "found", name, "--out", name, "--mergekit", &format!("{name}.yaml")]);
        small::succeed(folder.path(), &["merge", &format!("{name}.yaml"), "--out", &format!("{name}-again")]);
        let weights = |folder_name: &str| fs::read(folder.path().join(folder_name).join("model.safetensors")).unwrap();
        assert!(weights(name) == weights(&format!("{name}-again")), "{name}");
    }
    let output = small::run(folder.path(), &["export", "found", "pcb", "--mergekit", "pcb.yaml"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("mergekit cannot express this recipe: it has no method pcb"));
    assert!(!folder.path().join("pcb.yaml").exists());
    // Other types and shards of an individual.
    small::succeed(
        folder.path(),
        &["export", "found", "average", "--out", "half", "--dtype", "float16", "--max-shard-size", "4KB"],
    );
    assert!(folder.path().join("half/model.safetensors.index.json").exists());
}
