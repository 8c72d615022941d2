//! Tasks with different labels and heads of their own: scored by the right head, and exported as folders that open.
#![expect(clippy::unwrap_used, reason = "a test's helper fails as its test does")]

mod small;

use std::{fs, ops::ControlFlow, path::Path};

use evolver_common::{
    checkpoint::{Checkpoint, DigestCache},
    definition::{self, Resolved},
    recipe::Recipe,
    score::{Parts, Split},
};
use evolver_worker::child::Workshop;
use serde_json::json;

use self::small::Shape;

const SHAPE: Shape = Shape { vocabulary: 3, positions: 8, hidden: 4, heads: 2, layers: 1, intermediate: 6, labels: 0 };

/// A BERT of zeros whose pooled state is `tanh(pooled)` for any text, and whose classifier's rows are constants.
fn model(folder: &Path, pooled: f32, rows: &[f32]) {
    let shape = Shape { labels: rows.len(), ..SHAPE };
    small::model(folder, &shape, |name, count| match name {
        "bert.pooler.dense.bias" => vec![pooled; count],
        "classifier.weight" => rows.iter().flat_map(|&value| [value; SHAPE.hidden]).collect(),
        _ => vec![0.0; count],
    });
}

/// Three experts with heads of two and three labels over one base, and a task for each; the pooler evolves.
fn prepare(folder: &Path, heads: &str) -> Resolved {
    model(&folder.join("base"), 0.0, &[0.0, 0.0]);
    model(&folder.join("two"), 1.0, &[1.0, 2.0]);
    model(&folder.join("three"), 1.0, &[1.0, 2.0, 3.0]);
    model(&folder.join("other"), 1.0, &[1.0, 5.0, 3.0]);
    let lines =
        |labels: &[&str]| labels.iter().map(|l| json!({ "text": "w1 w2", "label": l }).to_string() + "\n").collect::<String>();
    fs::write(folder.join("two.jsonl"), lines(&["n", "p", "p"])).unwrap();
    fs::write(folder.join("three.jsonl"), lines(&["x", "y", "z", "z"])).unwrap();
    let definition = format!(
        r#"
        [models]
        base = "base"
        heads = {heads}
        experts = [{{ name = "two", path = "two" }}, {{ name = "three", path = "three" }}, {{ name = "other", path = "other" }}]
        [[tasks]]
        name = "yes-no"
        dev = "two.jsonl"
        labels = ["n", "p"]
        head = "two"
        [[tasks]]
        name = "letters"
        dev = "three.jsonl"
        labels = ["x", "y", "z"]
        head = "three"
        [[tasks]]
        name = "letters-again"
        dev = "three.jsonl"
        labels = ["x", "y", "z"]
        head = "other"
        [search]
        strategy = "evolver"
        [acceptance]
        rule = "greedy"
        [stop]
        offspring = 2
        "#
    );
    let path = folder.join("search.toml");
    fs::write(&path, definition).unwrap();
    definition::resolve(definition::load(&path, &[]).unwrap(), &DigestCache::in_memory()).unwrap()
}

#[test]
fn every_task_is_scored_by_its_own_head_over_the_shared_rest() {
    let folder = tempfile::tempdir().unwrap();
    let resolved = prepare(folder.path(), r#"["classifier.*"]"#);
    let mut workshop = Workshop::open(&resolved, &folder.path().join("cache")).unwrap();
    let mut credits = |digest| {
        let candidate = workshop.materializer().build(&Recipe::checkpoint(digest), &[]).unwrap();
        let scores =
            workshop.score(candidate, Split::Dev.into(), &Parts::default(), &mut |_, _, _| ControlFlow::Continue(())).unwrap();
        scores.tasks.into_iter().map(|task| task.credits).collect::<Vec<_>>()
    };
    // The largest classifier row wins: p of two, z of three, y of the other three.
    let expected = [vec![0.0, 1.0, 1.0], vec![0.0, 0.0, 1.0, 1.0], vec![0.0, 1.0, 0.0, 0.0]];
    assert_eq!(credits(resolved.experts[0].digest), expected);
    // The base's pooled state is zero, so that all labels are equal and the first wins: the pooler is the candidate's, not any head's.
    assert_eq!(credits(resolved.base.digest), [vec![1.0, 0.0, 0.0], vec![1.0, 0.0, 0.0, 0.0], vec![1.0, 0.0, 0.0, 0.0]]);
}

#[test]
fn a_pattern_that_reaches_beyond_the_head_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let resolved = prepare(folder.path(), r#"["classifier.*", "bert.encoder.layer.0.output.*"]"#);
    let refusal = Workshop::open(&resolved, &folder.path().join("cache")).err().unwrap();
    assert!(refusal.message.contains(r#"tensor "bert.encoder.layer.0.output.LayerNorm.bias", which cannot be a task's own"#));
}

#[test]
fn an_export_has_a_folder_for_each_task_and_the_body_once() {
    let folder = tempfile::tempdir().unwrap();
    prepare(folder.path(), r#"["classifier.*"]"#);
    let search = folder.path().join("search");
    small::succeed(folder.path(), &["run", "search.toml", "--dir", "search"]);
    let open = |task: &str| Checkpoint::open(&search.join("best").join(task)).unwrap();
    for (task, expert, labels) in [("yes-no", "two", 2), ("letters", "three", 3), ("letters-again", "other", 3)] {
        let (exported, expert) = (open(task), Checkpoint::open(&folder.path().join(expert)).unwrap());
        assert_eq!(exported.tensors(), expert.tensors());
        let head = |checkpoint: &Checkpoint| checkpoint.view("classifier.weight").unwrap().bytes().unwrap().to_vec();
        assert_eq!(head(&exported), head(&expert));
        assert_eq!(exported.config().unwrap()["id2label"].as_object().unwrap().len(), labels);
        // The pooled state that the search found, not the base's zeros.
        let mut pooled = [0.0];
        exported.read("bert.pooler.dense.bias", 0..1, &mut pooled).unwrap();
        assert_ne!(pooled, [0.0]);
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt as _;
        let body = |task: &str| search.join("best").join(task).join("model-00001-of-00002.safetensors").metadata().unwrap().ino();
        assert_eq!(body("yes-no"), body("letters"));
    }
}
