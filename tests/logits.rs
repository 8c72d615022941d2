//! The evaluator on the real model: against `transformers`, and against itself with other threads and batches.
//!
//! `golden/make_logits.py` wrote the golden values.
#![expect(clippy::unwrap_used, reason = "a test's helper fails as its test does")]

mod quickstart;

use std::{collections::BTreeSet, ops::ControlFlow, process::Command, sync::Arc};

use evolver_common::{
    checkpoint::Checkpoint,
    data::Row,
    score::{Order, Portion, Scores, Split, Subset, WHOLE},
};
use evolver_worker::{
    evaluate::{Candidate, Classification, Evaluator as _, Setup, Subject, TaskInput},
    models::ModelWeights,
};
use serde::Deserialize;
use serde_json::json;

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

/// What the evaluators share, an evaluator for each group, and the model that the golden values are of.
fn open(groups: &[Group], batch_tokens: usize) -> (Setup, Vec<Classification>, Arc<Checkpoint>) {
    let model = Arc::new(Checkpoint::open(&quickstart::folder().join("experts/products")).unwrap());
    let setup = Setup::new(model.folder().to_owned(), model.config().unwrap(), batch_tokens);
    let row = |(number, item): (usize, &Golden)| {
        Row::new(number, json!({ "text": item.text, "pair": item.pair, "label": 0 }).as_object().unwrap().clone())
    };
    let open = |group: &Group| {
        let task = json!({
            "name": format!("{} tokens", group.max_length), "dev": "memory", "max_length": group.max_length,
            "text_pair": "pair",
        });
        let input = TaskInput {
            task: serde_json::from_value(task).unwrap(),
            labels: ["a", "b", "c"].map(String::from).to_vec(),
            dev: group.items.iter().enumerate().map(row).collect(),
            test: Vec::new(),
        };
        Classification::open(&setup, &input).unwrap()
    };
    let evaluators = groups.iter().map(open).collect();
    (setup, evaluators, model)
}

fn candidate(model: &Arc<Checkpoint>) -> Candidate {
    Candidate { shared: ModelWeights::of(model), heads: Vec::new() }
}

/// The first of the largest.
fn label(logits: &[f32]) -> usize {
    (1..logits.len()).fold(0, |best, label| if logits[label] > logits[best] { label } else { best })
}

fn go(_: u64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

#[test]
fn tokens_labels_and_logits_are_those_of_transformers() {
    let groups = golden();
    let (setup, evaluators, model) = open(&groups, 4096);
    let mut subject = Subject::new(&setup, candidate(&model));
    let mut largest = 0.0f32;
    for (group, evaluator) in groups.iter().zip(&evaluators) {
        let all: Vec<_> = (0..group.items.len()).collect();
        let logits = evaluator.logits(&mut subject, Split::Dev, &all, &mut go).unwrap();
        for ((item, tokens), logits) in group.items.iter().zip(evaluator.tokens(Split::Dev)).zip(&logits) {
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
    let (setup, mut evaluators, model) = open(&groups, 700);
    let mut subject = Subject::new(&setup, candidate(&model));
    for (group, evaluator) in groups.iter().zip(&mut evaluators) {
        let items = group.items.len();
        let all: Vec<_> = (0..items).collect();
        let whole = evaluator.evaluate(&mut subject, Split::Dev, &all, &mut go).unwrap();
        let name = whole.task.clone();
        let whole = Scores { tasks: vec![whole] };
        for (from, to) in [(0, WHOLE / 3), (WHOLE / 3, WHOLE), (WHOLE / 4, WHOLE / 2)] {
            let subset = Subset::new(5, from, to).unwrap();
            let chosen = Portion { split: Split::Dev, subset: Some(subset) }.items(&name, items);
            let part = evaluator.evaluate(&mut subject, Split::Dev, &chosen, &mut go).unwrap();
            let expected = &whole.restrict(None, subset, &[Order::new(5, &name, items)]).tasks[0];
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
        let (setup, mut evaluators, model) = open(&groups, batch_tokens);
        let mut subject = Subject::new(&setup, candidate(&model));
        let mut hasher = blake3::Hasher::new();
        for (group, evaluator) in groups.iter().zip(&mut evaluators) {
            let all: Vec<_> = (0..group.items.len()).collect();
            for logit in evaluator.logits(&mut subject, Split::Dev, &all, &mut go).unwrap().iter().flatten() {
                hasher.update(&logit.to_le_bytes());
            }
            // A score is made of the same logits: once is enough.
            if batch_tokens == 4096 {
                let score = evaluator.evaluate(&mut subject, Split::Dev, &all, &mut go).unwrap();
                println!("\nscore {}", blake3::hash(serde_json::to_string(&score).unwrap().as_bytes()));
            }
        }
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
        let lines = text.lines().filter(|line| line.starts_with("bits ") || line.starts_with("score "));
        lines.map(|line| format!("{threads} threads: {line}")).collect::<Vec<_>>()
    };
    let lines: Vec<_> = ["1", "2", "3", "8"].into_iter().flat_map(run).collect();
    // 13 runs, and of 4 of them the scores of the 5 groups.
    assert_eq!(lines.len(), 13 + 4 * 5);
    let digests: BTreeSet<_> = lines.iter().filter_map(|line| line.rsplit_once(' ')).map(|(_, digest)| digest).collect();
    assert_eq!(digests.len(), 1 + 5, "{}", lines.join("\n"));
}
