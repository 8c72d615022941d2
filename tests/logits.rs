//! The evaluator on the real model: against `transformers`, and against itself with other threads and batches.
//!
//! `golden/make_logits.py` wrote the golden values.
#![expect(clippy::unwrap_used, reason = "a test's helper fails as its test does")]

mod quickstart;

use std::{collections::BTreeSet, ops::ControlFlow, process::Command, sync::Arc};

use evolver_common::{
    checkpoint::Checkpoint,
    data::Item,
    score::{Portion, Split, Subset, WHOLE},
};
use evolver_worker::{
    evaluate::{
        Candidate, Evaluator as _, Setup, TaskInput,
        classification::{Classification, label},
    },
    models::ModelWeights,
};
use serde::Deserialize;

#[derive(Deserialize)]
struct Group {
    max_length: usize,
    items: Vec<Golden>,
}

#[derive(Deserialize)]
struct Golden {
    text: String,
    pair: Option<String>,
    ids: Vec<u32>,
    types: String,
    logits: Vec<f32>,
}

fn golden() -> Vec<Group> {
    serde_json::from_str(include_str!("golden/logits.json")).unwrap()
}

/// The evaluator with a task per group, and the model that the golden values are of.
fn open(groups: &[Group], batch_tokens: usize) -> (Classification, Arc<Checkpoint>) {
    let model = Arc::new(Checkpoint::open(&quickstart::folder().join("experts/products")).unwrap());
    let setup = Setup { folder: model.folder().to_owned(), config: model.config().unwrap(), batch_tokens };
    let task = |group: &Group| TaskInput {
        name: format!("{} tokens", group.max_length),
        labels: 3,
        max_length: group.max_length,
        dev: group.items.iter().map(|item| Item { text: item.text.clone(), pair: item.pair.clone(), label: 0 }).collect(),
        test: Vec::new(),
    };
    (Classification::open(&setup, groups.iter().map(task).collect()).unwrap(), model)
}

fn candidate(model: &Arc<Checkpoint>) -> Candidate {
    Candidate { shared: ModelWeights::of(model), heads: Vec::new() }
}

fn go(_: u64, _: u64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

#[test]
fn tokens_labels_and_logits_are_those_of_transformers() {
    let groups = golden();
    let (evaluator, model) = open(&groups, 4096);
    let logits = evaluator.logits(candidate(&model), Split::Dev, &mut go).unwrap();
    let mut largest = 0.0f32;
    for (task, (group, logits)) in groups.iter().zip(&logits).enumerate() {
        for ((item, tokens), logits) in group.items.iter().zip(evaluator.tokens(task, Split::Dev)).zip(logits) {
            let (ids, types): (Vec<_>, String) = tokens.iter().map(|(id, kind)| (*id, kind.to_string())).unzip();
            assert_eq!((&ids, &types), (&item.ids, &item.types), "{:?}", item.text);
            assert_eq!(label(logits), label(&item.logits), "{:?}: {logits:?} and {:?}", item.text, item.logits);
            for (found, expected) in logits.iter().zip(&item.logits) {
                largest = largest.max((found - expected).abs());
            }
        }
    }
    println!("largest difference to transformers' logits: {largest:e}");
    assert!(largest <= 1e-4, "{largest:e}");
}

#[test]
fn a_part_of_the_items_is_scored_as_in_the_whole() {
    let groups = golden();
    let (mut evaluator, model) = open(&groups, 700);
    let whole = evaluator.evaluate(candidate(&model), Split::Dev.into(), &mut go).unwrap();
    let items: Vec<_> = whole.tasks.iter().map(|task| task.credits.len()).collect();
    for (from, to) in [(0, WHOLE / 3), (WHOLE / 3, WHOLE), (WHOLE / 4, WHOLE / 2)] {
        let subset = Subset::new(5, from, to).unwrap();
        let portion = Portion { split: Split::Dev, subset: Some(subset) };
        let part = evaluator.evaluate(candidate(&model), portion, &mut go).unwrap();
        for (part, expected) in part.tasks.iter().zip(whole.restrict(Split::Dev.into(), subset, &items).tasks) {
            assert_eq!(part.credits, expected.credits, "{from} to {to}");
            assert_eq!(part.metrics["accuracy"], expected.metrics["accuracy"]);
        }
    }
}

/// The bits of every logit and every credit, a line for each size of batches; run by the test below in processes of their own.
#[test]
#[ignore = "a part of the test below"]
fn bits() {
    let groups = golden();
    // Every text alone, which is slow, is enough once.
    let alone = (std::env::var("RAYON_NUM_THREADS").as_deref() == Ok("2")).then_some(1);
    for batch_tokens in alone.into_iter().chain([700, 4096, 1 << 20]) {
        let (mut evaluator, model) = open(&groups, batch_tokens);
        let logits = evaluator.logits(candidate(&model), Split::Dev, &mut go).unwrap();
        let scores = evaluator.evaluate(candidate(&model), Split::Dev.into(), &mut go).unwrap();
        let mut hasher = blake3::Hasher::new();
        for logit in logits.iter().flatten().flatten() {
            hasher.update(&logit.to_le_bytes());
        }
        hasher.update(serde_json::to_string(&scores).unwrap().as_bytes());
        println!("\nbits {batch_tokens} {}", hasher.finalize());
    }
}

#[test]
fn neither_threads_nor_batches_change_a_bit() {
    quickstart::folder();
    let run = |threads: &str| {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "bits", "--ignored", "--nocapture"])
            .env("RAYON_NUM_THREADS", threads)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        let lines = text.lines().filter_map(|line| line.strip_prefix("bits "));
        lines.map(|line| format!("{threads} threads, batches of {line}")).collect::<Vec<_>>()
    };
    let lines: Vec<_> = ["1", "2", "3", "8"].into_iter().flat_map(run).collect();
    assert_eq!(lines.len(), 13);
    let digests: BTreeSet<_> = lines.iter().filter_map(|line| line.rsplit_once(' ')).map(|(_, digest)| digest).collect();
    assert_eq!(digests.len(), 1, "{}", lines.join("\n"));
}
