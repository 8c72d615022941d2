//! Base and experts are mapped and never copied: what four workers take for themselves is bounded by one model each.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test's helper fails as its test does")]

mod quickstart;
mod small;

use std::{collections::BTreeMap, fs, process::Stdio, time::Duration};

use self::small::processes::scorers_of;

/// Activations of 512 tokens in the quickstart's network, a few times 512 rows of 384 and of 1,536 numbers, with room.
const ACTIVATIONS: u64 = 32 << 20;

/// The private resident memory of a process, in bytes.
fn private(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("RssAnon:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kilobytes| kilobytes << 10)
}

#[test]
fn a_worker_takes_one_and_a_half_models_and_its_activations_at_most() {
    let prepared = quickstart::folder();
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("search");
    let mut sets = vec!["stop.offspring=12".to_owned(), "search.in_flight=4".into(), "evaluator.batch_tokens=512".into()];
    for task in 0..4 {
        sets.extend(["dev_items", "test_items"].map(|key| format!("tasks.{task}.{key}=12")));
    }
    let mut run = small::evolver(&prepared, &["run", "search.toml", "--workers", "4", "--dir"]);
    run.arg(&dir).args(sets.iter().flat_map(|set| ["--set", set]));
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
    let model = fs::metadata(prepared.join("base/model.safetensors")).unwrap().len();
    println!("model {model} bytes; private memory of the workers' children at most {:?} bytes", peaks.values());
    assert_eq!(peaks.len(), 4, "four workers were seen");
    for peak in peaks.values() {
        // A child holds at least what it builds; less says that nothing was measured.
        assert!((model / 4..model + model / 2 + ACTIVATIONS).contains(peak), "{peak} bytes, and the model has {model}");
    }
}
