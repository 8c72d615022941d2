//! Base and experts are mapped and never copied: what a worker takes for itself is little more than one model.
#![cfg(target_os = "linux")]
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test's helper fails as its test does, and prints what it measured"
)]

mod quickstart;
mod small;

use std::{collections::BTreeMap, env, fs, path::Path, process::Stdio, time::Duration};

use self::small::processes::scorers_of;

/// Activations of 512 tokens in the quickstart's network, a few times 512 rows of 384 and of 1,536 numbers, and what every process has, with room.
const ACTIVATIONS: u64 = 24 << 20;

/// The private resident memory of a process, in bytes.
fn private(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("RssAnon:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kilobytes| kilobytes << 10)
}

/// Runs a search with this many workers, and holds the private memory of each one's child against 1.3 times the model.
fn assert_bounded(definition: &Path, workers: usize, sets: &[String]) {
    let scratch = tempfile::tempdir().unwrap();
    let folder = definition.parent().unwrap();
    let mut run = small::evolver(folder, &["run"]);
    run.arg(definition).args(["--workers", &workers.to_string(), "--dir"]).arg(scratch.path().join("search"));
    run.args(sets.iter().flat_map(|set| ["--set", set]));
    let mut run = run.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let mut peaks: BTreeMap<u32, u64> = BTreeMap::new();
    let status = loop {
        for pid in scorers_of(run.id()) {
            let peak = peaks.entry(pid).or_default();
            *peak = private(pid).unwrap_or(0).max(*peak);
        }
        if let Some(status) = run.try_wait().unwrap() {
            break status;
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    assert!(status.success());
    let model = fs::metadata(folder.join("base/model.safetensors")).unwrap().len();
    println!("model {model} bytes; private memory of the workers' children at most {:?} bytes", peaks.values());
    assert_eq!(peaks.len(), workers, "every worker was seen");
    for peak in peaks.values() {
        // A child holds at least what it builds; less says that nothing was measured.
        assert!((model / 4..model * 13 / 10 + ACTIVATIONS).contains(peak), "{peak} bytes, and the model has {model}");
    }
}

/// So few items of each task, and so few tokens at a time, that activations count for little.
fn few(tasks: usize, items: usize, tokens: usize) -> Vec<String> {
    let counts = (0..tasks).flat_map(|task| ["dev_items", "test_items"].map(|key| format!("tasks.{task}.{key}={items}")));
    let sets = ["stop.offspring=12".to_owned(), format!("evaluator.batch_tokens={tokens}")];
    sets.into_iter().chain(counts).collect()
}

#[test]
fn a_worker_takes_little_more_than_its_model_and_its_activations() {
    let mut sets = few(4, 12, 512);
    sets.push("search.in_flight=4".into());
    assert_bounded(&quickstart::folder().join("search.toml"), 4, &sets);
}

/// `EVOLVER_SMOLLM2` names the folder that `tests/real/tune_smollm2.py` wrote: a decoder in BF16.
#[test]
#[ignore = "takes a real decoder"]
fn a_decoder_of_16_bits_takes_little_more_than_its_16_bits() {
    let folder = env::var_os("EVOLVER_SMOLLM2").expect("EVOLVER_SMOLLM2 names a folder");
    assert_bounded(&Path::new(&folder).canonicalize().unwrap().join("search.toml"), 1, &few(4, 12, 128));
}
