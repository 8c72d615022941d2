//! Evaluators outside the program: commands, resident programs, servers. Whole processes, and what they do wrong.
//!
//! The servers are a stand-in that speaks the documented interfaces of SGLang, vLLM and OpenAI. The test with the real lm-evaluation-harness needs
//! its package: `EVOLVER_HARNESS=venv/bin/python cargo test --release --test outside -- --ignored` (see tests/real/requirements.txt).
#![expect(clippy::unwrap_used, reason = "a test's helper fails as its test does")]

mod small;

use std::{
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use evolver_common::{
    checkpoint::{Checkpoint, DigestCache},
    definition::{self, Resolved},
    recipe::Recipe,
    score::{Parts, Scores, Split},
};
use evolver_worker::{child::Workshop, evaluate};
use serde_json::{Value, json};

use self::small::Shape;

const SHAPE: Shape = Shape { vocabulary: 3, positions: 8, hidden: 4, heads: 2, layers: 1, intermediate: 6, labels: 2 };

/// A BERT of zeros whose pooled state is `tanh(pooled)` for any text, and whose classifier's rows are constants.
fn model(folder: &Path, pooled: f32, rows: &[f32]) {
    small::model(folder, &SHAPE, |name, count| match name {
        "bert.pooler.dense.bias" => vec![pooled; count],
        "classifier.weight" => rows.iter().flat_map(|&value| [value; SHAPE.hidden]).collect(),
        _ => vec![0.0; count],
    });
}

/// A search of one task with two experts, of which only the second has a positive pooler bias.
struct Search {
    folder: tempfile::TempDir,
    resolved: Resolved,
    workshop: Workshop,
}

fn search(task: &Value) -> Result<Search, String> {
    let folder = tempfile::tempdir().unwrap();
    model(&folder.path().join("base"), 0.0, &[0.0, 0.0]);
    model(&folder.path().join("one"), -1.0, &[1.0, 2.0]);
    model(&folder.path().join("two"), 1.0, &[1.0, 2.0]);
    model(&folder.path().join("loud"), 1.0, &[f32::MAX, 0.0]);
    let items = ["w1", "w2", "w1 w2"].map(|text| json!({ "text": text, "label": "yes" }).to_string() + "\n");
    fs::write(folder.path().join("items.jsonl"), items.concat()).unwrap();
    let mut whole = json!({ "name": "t", "dev": "items.jsonl", "metric": "accuracy" });
    whole.as_object_mut().unwrap().extend(task.as_object().unwrap().clone());
    let definition = json!({
        "models": { "base": "base", "experts": [{ "name": "one", "path": "one" }, { "name": "two", "path": "two" }, { "name": "loud", "path": "loud" }] },
        "tasks": [whole],
    });
    // JSON is YAML.
    let path = folder.path().join("search.yaml");
    fs::write(&path, definition.to_string()).unwrap();
    let mut definition = definition::load(&path, &[]).unwrap();
    evaluate::complete(&mut definition).map_err(|problems| problems.join("\n"))?;
    let resolved = definition::resolve(definition, &DigestCache::in_memory()).unwrap();
    let workshop = Workshop::open(&resolved, &folder.path().join("cache")).map_err(|failure| failure.message)?;
    Ok(Search { folder, resolved, workshop })
}

impl Search {
    fn score(&mut self, expert: usize) -> Result<Scores, String> {
        let recipe = Recipe::checkpoint(self.resolved.experts[expert].digest);
        let candidate = self.workshop.materializer().build(&recipe, &[]).unwrap();
        self.workshop
            .score(candidate, Split::Dev.into(), &Parts::default(), &mut |_, _, _| ControlFlow::Continue(()))
            .map_err(|error| error.to_string())
    }

    fn credits(&mut self, expert: usize) -> Vec<f32> {
        self.score(expert).unwrap().tasks.remove(0).credits
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

fn here(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name).to_string_lossy().into_owned()
}

fn shell(script: &str) -> Value {
    json!({ "evaluator": "command", "command": ["sh", "-c", script] })
}

#[test]
fn a_command_gets_model_and_items_and_its_outcome_counts() {
    let script = r#"
        test -f "$EVOLVER_MODEL/tokenizer.json" && test -f "$EVOLVER_MODEL/config.json" || exit 9
        echo "$EVOLVER_MODEL" >> models.txt; echo "$GREETING {split} {task} $(wc -l < {items})" > seen.txt
        cp "$EVOLVER_MODEL/model.safetensors" last.safetensors
        echo '{"metrics": {"accuracy": 0.5, "words": 12}, "credits": [1, 0, 0.5]}' > {out}
    "#;
    let mut task = shell(script);
    task["environment"] = json!({ "GREETING": "hello" });
    let mut search = search(&task).unwrap();
    let scores = search.score(0).unwrap();
    assert_eq!((scores.tasks[0].metrics["words"], scores.tasks[0].credits.as_slice()), (12.0, [1.0, 0.0, 0.5].as_slice()));
    assert_eq!(fs::read_to_string(search.path("seen.txt")).unwrap().trim(), "hello dev t 3");
    assert_eq!(search.credits(1), [1.0, 0.0, 0.5]);
    let models = fs::read_to_string(search.path("models.txt")).unwrap();
    assert_eq!(models.lines().count(), 2);
    assert!(models.lines().all(|model| !Path::new(model).exists()), "the model's folder is removed afterwards: {models}");
    let (given, expert) = (search.path("last.safetensors"), search.path("two"));
    let (given, expert) = (Checkpoint::open(&given).unwrap(), Checkpoint::open(&expert).unwrap());
    assert_eq!(given.tensors(), expert.tensors());
    for name in expert.tensors().keys() {
        let bytes = |checkpoint: &Checkpoint| checkpoint.view(name).unwrap().bytes().unwrap().to_vec();
        assert_eq!(bytes(&given), bytes(&expert), "{name}");
    }
}

#[test]
fn what_a_command_does_wrong_is_told_with_its_last_words() {
    for (script, more, expected) in [
        ("echo some words >&2; exit 3", json!({}), vec!["exit status: 3", "some words"]),
        ("true", json!({}), vec!["ended well, and its outcome cannot be read"]),
        ("echo garbage > {out}", json!({}), vec!["begins \"garbage"]),
        (r#"echo '{"credits": [1, 1]}' > {out}"#, json!({}), vec!["2 credits, and there are 3 items"]),
        (r#"echo '{"credits": [1, 1, 2]}' > {out}"#, json!({}), vec!["credit of item 2 is 2"]),
        (r#"echo '{"credits": [1, 1, 1], "metrics": {"f1": 1}}' > {out}"#, json!({}), vec!["is not among f1"]),
        ("echo slow >&2; sleep 60", json!({ "seconds": 0.4 }), vec!["did not end within seconds = 0.4", "slow"]),
        (
            r#"exec python3 -c "x = bytearray(200 << 20); import time; time.sleep(60)""#,
            json!({ "memory_mb": 100 }),
            vec!["MiB of private memory, and memory_mb is 100"],
        ),
    ] {
        let mut task = shell(script);
        task.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let error = search(&task).unwrap().score(0).unwrap_err();
        assert!(expected.iter().all(|part| error.contains(part)), "{script}: {error}");
    }
    let error = search(&json!({ "evaluator": "command", "command": ["no-such-program"] })).unwrap().score(0).unwrap_err();
    assert!(error.contains("no-such-program cannot be started"), "{error}");
}

#[test]
fn a_command_takes_all_that_it_started_with_it() {
    let mut task = shell("sleep 61 & echo $! > child.txt; sleep 62");
    task["seconds"] = json!(0.5);
    let mut search = search(&task).unwrap();
    search.score(0).unwrap_err();
    let child = fs::read_to_string(search.path("child.txt")).unwrap();
    // It is told to end; its end may take a moment.
    let gone = || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", child.trim())).unwrap_or_default();
        (stat.is_empty() || stat.contains(" Z ")).then_some(())
    };
    small::processes::wait_for("the child's end", gone);
}

/// A program that speaks the protocol by the helper, and misbehaves as the item's text or a file says.
const RESIDENT: &str = r#"
import os, struct, json, sys, time
import evolver_resident
open("starts.txt", "a").write("x")

def evaluate(request, progress):
    print("a print must not disturb")
    data = open(request.model + "/model.safetensors", "rb").read()
    length = struct.unpack("<Q", data[:8])[0]
    start = json.loads(data[8:8 + length])["bert.pooler.dense.bias"]["data_offsets"][0]
    bias = struct.unpack("<f", data[8 + length + start:][:4])[0]
    fault = open("fault.txt").read() if os.path.exists("fault.txt") else ""
    if fault == "raise": raise ValueError("no luck")
    if fault == "hang": time.sleep(60)
    if fault == "exit": print("dying", file=sys.stderr, flush=True); os._exit(7)
    if fault == "few": return {"credits": [1.0]}
    if fault == "leak": global kept; kept = bytearray(150 << 20)
    progress(1)
    return {"credits": [1.0 if bias > 0 else 0.0] * len(request.items)}

evolver_resident.serve(evaluate)
"#;

#[test]
fn a_resident_program_stays_until_it_hangs_leaks_or_dies() {
    let task = json!({
        "evaluator": "resident", "command": ["python3", "resident.py"], "environment": { "PYTHONPATH": here("python") },
        "silent_seconds": 2.0, "memory_mb": 120,
    });
    let mut search = search(&task).unwrap();
    fs::write(search.path("resident.py"), RESIDENT).unwrap();
    let starts = |search: &Search| fs::read_to_string(search.path("starts.txt")).unwrap().len();
    assert_eq!((search.credits(0), search.credits(1)), (vec![0.0; 3], vec![1.0; 3]));
    assert_eq!(starts(&search), 1, "one process serves several models");
    for (fault, expected, restarts) in [
        ("raise", "ValueError: no luck", 1),
        ("few", "1 credits, and there are 3 items", 1),
        ("exit", "dying", 1),
        ("hang", "said nothing for 2 seconds and was ended", 1),
    ] {
        let before = starts(&search);
        fs::write(search.path("fault.txt"), fault).unwrap();
        let error = search.score(0).unwrap_err();
        assert!(error.contains(expected), "{fault}: {error}");
        fs::remove_file(search.path("fault.txt")).unwrap();
        assert_eq!(search.credits(1), [1.0; 3], "after {fault}");
        assert_eq!(starts(&search), before + restarts, "after {fault}");
    }
    // One that leaks has answered: the answer counts, and the next model finds a new process.
    let before = starts(&search);
    fs::write(search.path("fault.txt"), "leak").unwrap();
    assert_eq!(search.credits(1), [1.0; 3]);
    fs::remove_file(search.path("fault.txt")).unwrap();
    assert_eq!((search.credits(0), starts(&search)), (vec![0.0; 3], before + 1));
}

#[test]
fn a_resident_program_of_another_version_or_without_the_protocol_is_refused() {
    for (script, expected) in [
        (r#"read line; echo '{"type": "ready", "evolver": 2}'; sleep 60"#, "speaks version 2 of the protocol, and 1 is needed"),
        ("echo hello; sleep 60", "said something that is no message"),
        ("echo why >&2; exit 4", "ended with exit status: 4; its last words:\nwhy"),
        ("sleep 60", "said nothing for 1 seconds"),
    ] {
        let task = json!({ "evaluator": "resident", "command": ["sh", "-c", script], "start_seconds": 1.0 });
        let error = search(&task).unwrap().score(0).unwrap_err();
        assert!(error.contains(expected), "{script}: {error}");
    }
}

#[test]
fn servers_are_given_each_models_weights_by_their_own_interfaces() {
    for (evaluator, chat, swaps) in [
        ("sglang", false, vec!["/update_weights_from_disk"]),
        ("vllm", true, vec!["/collective_rpc", "/reset_prefix_cache"]),
        ("openai", false, vec![]),
    ] {
        let task = json!({
            "evaluator": evaluator, "metric": "exact_match", "chat": chat, "start_seconds": 30.0,
            "text": "Is it so? {{ text }}", "command": ["python3", here("tests/outside/stand_in_server.py"), "{model}", "{port}", "requests.txt"],
        });
        let mut search = search(&task).unwrap();
        assert_eq!(search.credits(0), [0.0; 3], "{evaluator}: the weights that it was started with");
        assert_eq!(search.credits(1), [1.0; 3], "{evaluator}: other weights");
        assert_eq!(search.credits(0), [0.0; 3], "{evaluator}: and back");
        let requests = fs::read_to_string(search.path("requests.txt")).unwrap();
        let swapped: Vec<_> = requests.lines().filter(|line| !line.contains("completions")).collect();
        assert_eq!(swapped, [swaps.clone(), swaps].concat(), "{evaluator}");
        assert_eq!(requests.lines().filter(|line| line.contains("completions")).count(), 9);
    }
}

#[test]
fn what_a_server_does_wrong_is_told() {
    let started = |command: Value, text: &str| json!({ "evaluator": "sglang", "metric": "exact_match", "text": text, "start_seconds": 20.0, "command": command });
    let good = json!(["python3", here("tests/outside/stand_in_server.py"), "{model}", "{port}", "requests.txt"]);
    let error = search(&started(good, "break {{ text }}")).unwrap().score(0).unwrap_err();
    assert!(error.contains("of task t") && error.contains("500") && error.contains("the engine died"), "{error}");
    let error = search(&started(json!(["sh", "-c", "echo no GPU >&2; exit 5"]), "text")).unwrap().score(0).unwrap_err();
    assert!(error.contains("ended with exit status: 5 before it was ready") && error.contains("no GPU"), "{error}");
    let nowhere = json!({ "evaluator": "vllm", "metric": "f1", "url": "http://127.0.0.1:9" });
    let error = search(&nowhere).unwrap().score(0).unwrap_err();
    assert!(error.contains("vllm: http://127.0.0.1:9/collective_rpc cannot be asked"), "{error}");
}

#[test]
fn evaluators_keys_and_metrics_are_checked_before_the_search() {
    for (task, expected) in [
        (json!({ "evaluator": "clasification" }), "did you mean \"classification\""),
        (json!({ "evaluator": "command" }), "tasks.t.command is missing"),
        (json!({ "evaluator": "command", "command": "x" }), "a list of texts is expected"),
        (json!({ "evaluator": "command", "command": ["x"], "secnods": 3 }), "did you mean \"seconds\""),
        (json!({ "evaluator": "command", "command": ["x"], "memory_mb": -1 }), "a whole number from 0"),
        (json!({ "metric": "f1" }), "the evaluator classification has no metric \"f1\""),
        (json!({ "lables": ["a", "b"], "metric": "macro_f1" }), "did you mean \"labels\""),
        (json!({ "evaluator": "lm_eval", "harness_task": "t" }), "\"doc_id\""),
        (json!({ "evaluator": "openai", "metric": "f1", "url": "http://x" }), "starts a server for each model"),
        (json!({ "labels": ["yes", "no"], "metric": "pearson" }), "pearson does not fit kind = \"one_label\""),
        (
            json!({ "labels": ["yes", "no"], "evaluator": "perplexity", "metric": "likelihood" }),
            "does not run models of type bert",
        ),
        (json!({ "labels": ["no", "maybe"] }), "unknown label \"yes\""),
        (json!({ "labels": ["yes"] }), "name at least two labels"),
        (
            json!({ "labels": ["yes", "no"], "max_length": 2, "too_long": "refuse", "text": "{{ text }} w1 w2" }),
            "more than 2 tokens",
        ),
        (json!({ "labels": ["yes", "no"], "text": "{{ text" }), "cannot be read"),
    ] {
        let error = search(&task).err().unwrap_or_else(|| panic!("{task} was accepted"));
        assert!(error.contains(expected), "{task}: {error}");
    }
}

#[test]
fn a_model_that_does_not_fit_its_task_is_told_of() {
    let mut three = search(&json!({ "labels": ["yes", "no", "maybe"] })).unwrap();
    let error = three.score(0).unwrap_err();
    assert!(error.contains("\"classifier.weight\" has 2 outputs, and the task needs 3"), "{error}");
    // An expert whose head overflows: the item is named.
    let mut search = search(&json!({ "labels": ["yes", "no"] })).unwrap();
    let error = search.score(2).unwrap_err();
    assert!(error.contains("item 0 of task t is NaN or infinite"), "{error}");
}

/// The real package, a task of its own and a model with made-up weights: no network is needed.
#[test]
#[ignore = "needs lm_eval, torch and transformers: EVOLVER_HARNESS names the Python that has them"]
fn the_real_harness_scores_a_small_model() {
    let python = std::env::var("EVOLVER_HARNESS").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| {
        let output = std::process::Command::new(&python).args(arguments).current_dir(folder.path()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    run(&[&here("tests/outside/make_harness_task.py"), "."]);
    let harness = ["--model", "hf", "--tasks", "tiny", "--include_path", "tasks", "--log_samples"];
    let base = [
        ["-m", "lm_eval", "run"].as_slice(),
        &harness,
        &["--model_args", "pretrained=base,dtype=float32", "--output_path", "out"],
    ]
    .concat();
    run(&base);
    let mut found = vec![folder.path().join("out")];
    let samples = loop {
        let path = found.pop().unwrap();
        if path.is_dir() {
            found.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.file_name().unwrap().to_string_lossy().starts_with("samples_tiny") {
            break path;
        }
    };
    fs::copy(&samples, folder.path().join("items.jsonl")).unwrap();
    let definition = json!({
        "models": { "base": "base", "experts": [{ "name": "one", "path": "one" }, { "name": "two", "path": "two" }] },
        "tasks": [{
            "name": "t", "dev": "items.jsonl", "dev_items": 5, "evaluator": "lm_eval", "metric": "acc", "harness_task": "tiny", "python": python,
            "model_args": "dtype=float32", "arguments": ["--include_path", "tasks"],
        }],
    });
    fs::write(folder.path().join("search.yaml"), definition.to_string()).unwrap();
    let mut definition = definition::load(&folder.path().join("search.yaml"), &[]).unwrap();
    evaluate::complete(&mut definition).unwrap();
    let resolved = definition::resolve(definition, &DigestCache::in_memory()).unwrap();
    let mut workshop = Workshop::open(&resolved, &folder.path().join("cache")).unwrap();
    let mut credits = |recipe: &Recipe| {
        let candidate = workshop.materializer().build(recipe, &[]).unwrap();
        workshop
            .score(candidate, Split::Dev.into(), &Parts::default(), &mut |_, _, _| ControlFlow::Continue(()))
            .unwrap()
            .tasks
            .remove(0)
            .credits
    };
    let found = credits(&Recipe::checkpoint(resolved.base.digest));
    assert_eq!(found.len(), 5);
    // The base's outcomes are those that its own run has written, whatever numbers the documents have in a choice of them.
    let rows = evolver_common::data::limit(evolver_common::data::read(&samples).unwrap(), 5, &["text"]);
    let written: Vec<_> = rows.iter().map(|row| row.get("acc").unwrap().as_f64().unwrap()).collect();
    assert_eq!(found.iter().map(|&credit| f64::from(credit)).collect::<Vec<_>>(), written);
    println!("base {found:?}, one {:?}", credits(&Recipe::checkpoint(resolved.experts[0].digest)));
}
