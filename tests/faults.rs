//! What goes wrong with an attempt becomes a failure record with its reason, and the search goes on; Ctrl-C drains once and stops twice.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test's helper fails as its test does")]

mod small;

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Stdio},
};

use serde_json::Value;

use self::small::{
    SLOW, TINY,
    processes::{scorers_of, signal, wait_for},
};

/// Starts a search with one worker.
fn start(folder: &Path, set: &[&str]) -> Child {
    let sets = set.iter().flat_map(|set| ["--set", set]);
    let arguments: Vec<_> = ["run", "search.toml", "--dir", "search", "--workers", "1"].into_iter().chain(sets).collect();
    small::evolver(folder, &arguments).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits until a result is in the journal, so that what is done next meets work under way.
fn wait_for_results(folder: &Path, results: u64) {
    wait_for("results", || {
        let output = small::run(folder, &["show", "search", "--json"]);
        let shown: Value = serde_json::from_slice(&output.stdout).ok()?;
        (shown["offspring"]["committed"].as_u64()? >= results).then_some(())
    });
}

fn reasons(shown: &Value, list: &str) -> String {
    shown[list].as_array().unwrap().iter().map(|failed| format!("{}\n", failed["reason"].as_str().unwrap())).collect()
}

/// Sends a signal to the scorer of a search under way; gives what is shown at its end.
fn struck(name: &str, set: &[&str]) -> Value {
    let folder = tempfile::tempdir().unwrap();
    small::search(folder.path(), &SLOW, 400, 16);
    let mut run = start(folder.path(), &[&["stop.offspring=12"], set].concat());
    wait_for_results(folder.path(), 1);
    let scorer = wait_for("a scorer", || scorers_of(run.id()).first().copied());
    assert!(signal(scorer, name));
    if ["-BUS", "-SEGV"].contains(&name) {
        // Rust looks at the first of these, finds no fault of its own behind it, and lets the next one through.
        std::thread::sleep(std::time::Duration::from_millis(30));
        signal(scorer, name);
    }
    assert!(run.wait().unwrap().success());
    let shown = small::show(folder.path(), "search");
    assert_eq!((&shown["finished"], &shown["offspring"]["committed"]), (&true.into(), &12.into()), "{shown}");
    shown
}

#[test]
fn a_crash_is_an_attempt_that_failed() {
    let shown = struck("-ABRT", &[]);
    assert!(
        reasons(&shown, "last_failed_attempts").contains("crash: it ended without an answer (signal: 6 (SIGABRT)"),
        "{shown}"
    );
}

#[test]
fn a_kill_by_the_system_is_an_attempt_that_failed() {
    let shown = struck("-KILL", &[]);
    assert!(reasons(&shown, "last_failed_attempts").contains("killed: the child was killed by signal 9"), "{shown}");
}

#[test]
fn a_bus_error_and_a_wrong_access_are_attempts_that_failed() {
    let shown = struck("-BUS", &[]);
    assert!(reasons(&shown, "last_failed_attempts").contains("input: it ended without an answer (signal: 7 (SIGBUS)"), "{shown}");
    let shown = struck("-SEGV", &[]);
    assert!(
        reasons(&shown, "last_failed_attempts").contains("crash: it ended without an answer (signal: 11 (SIGSEGV)"),
        "{shown}"
    );
}

#[test]
fn an_attempt_that_takes_too_long_is_one_that_failed() {
    let folder = tempfile::tempdir().unwrap();
    small::search(folder.path(), &SLOW, 400, 16);
    let mut run = start(
        folder.path(),
        &["stop.offspring=4", "evaluator.attempt_seconds=0.001", "fleet.heartbeat_seconds=0.01", "fleet.lease_seconds=10"],
    );
    let mut said = String::new();
    std::io::Read::read_to_string(&mut run.stderr.take().unwrap(), &mut said).unwrap();
    // Its only worker can do nothing: the search says so, and gives nothing up.
    assert_eq!(run.wait().unwrap().code(), Some(1), "{said}");
    assert!(said.contains("no worker that is here can be given work") && said.contains("no end after 0.001 seconds"), "{said}");
    let shown = small::show(folder.path(), "search");
    assert!(shown["given_up"].as_array().unwrap().is_empty(), "{shown}");
}

#[test]
fn a_child_limits_its_memory_its_files_and_its_core_files() {
    let folder = tempfile::tempdir().unwrap();
    let search = small::search(folder.path(), &TINY, 30, 6);
    let sets = ["evaluator.memory_bytes=500000000", "evaluator.open_files=77"].map(String::from);
    let definition = evolver_common::definition::load(&search, &sets).unwrap();
    let resolved =
        evolver_common::definition::resolve(definition, &evolver_common::checkpoint::DigestCache::in_memory()).unwrap();
    let mut child =
        small::evolver(folder.path(), &["worker-child"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let setup = serde_json::json!({ "Setup": { "resolved": resolved, "cache": folder.path().join("cache") } });
    let mut input = child.stdin.take().unwrap();
    std::io::Write::write_all(&mut input, format!("{setup}\n").as_bytes()).unwrap();
    let mut answer = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut answer).unwrap();
    assert_eq!(answer.trim(), "\"Ready\"");
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", child.id())).unwrap();
    let limit = |name: &str| {
        let line = limits.lines().find(|line| line.starts_with(name)).unwrap();
        line[name.len()..].split_whitespace().next().unwrap().to_owned()
    };
    assert_eq!(limit("Max data size"), "500000000");
    assert_eq!(limit("Max open files"), "77");
    assert_eq!(limit("Max core file size"), "0");
    drop(input);
    child.wait().unwrap();
}

#[test]
fn a_standstill_is_an_attempt_that_failed() {
    let shown = struck("-STOP", &["evaluator.hang_seconds=0.7", "fleet.heartbeat_seconds=0.2"]);
    assert!(reasons(&shown, "last_failed_attempts").contains("hang: no progress for 0.7 seconds"), "{shown}");
}

#[test]
fn dev_data_that_changed_meanwhile_are_refused_by_both_sides_and_the_search_goes_on_when_they_are_back() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    small::search(folder, &TINY, 60, 8);
    small::succeed(folder, &["run", "search.toml", "--dir", "search"]);
    let (before, data) = (small::show(folder, "search"), folder.join("dev.jsonl"));
    let (was, set) = (std::fs::read_to_string(&data).unwrap(), ["--set", "stop.offspring=12"]);
    std::fs::write(&data, was.replacen("label1", "label2", 1)).unwrap();
    let refused = small::run(folder, &[&["run", "search.toml", "--dir", "search"], &set[..]].concat());
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(2), "{words}");
    assert!(words.contains("dev"), "{words}");
    assert_eq!(small::show(folder, "search")["state_hash"], before["state_hash"]);
    // A worker's, under a coordinator that began before the change.
    std::fs::write(&data, &was).unwrap();
    let listen = ["coordinator", "search.toml", "--dir", "search", "--listen", "127.0.0.1:0"];
    let mut coordinator = small::evolver(folder, &[&listen, &set[..]].concat()).stderr(Stdio::piped()).spawn().unwrap();
    let said = BufReader::new(coordinator.stderr.take().unwrap()).lines().map(Result::unwrap);
    let mut said = said.skip_while(|line| !line.contains("--connect"));
    let address = said.next().unwrap().rsplit(' ').next().unwrap().to_owned();
    std::thread::spawn(move || said.for_each(drop));
    std::fs::write(&data, was.replacen("label1", "label2", 1)).unwrap();
    let refused = small::run(folder, &["worker", "--connect", &address]);
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && words.contains("dev.jsonl"), "{words}");
    std::fs::write(&data, &was).unwrap();
    small::succeed(folder, &["worker", "--connect", &address]);
    assert!(coordinator.wait().unwrap().success());
    assert_eq!(small::show(folder, "search")["offspring"]["committed"], 12);
}

#[test]
fn a_model_that_overflows_is_given_up_and_the_others_go_on() {
    let folder = tempfile::tempdir().unwrap();
    small::search(folder.path(), &TINY, 30, 6);
    std::fs::remove_dir_all(folder.path().join("experts/b")).unwrap();
    // Finite weights whose products are not.
    let mut expert = small::expert(2);
    small::model(&folder.path().join("experts/b"), &TINY, |name, count| match name {
        "classifier.weight" => vec![f32::MAX; count],
        _ => expert(name, count),
    });
    assert!(start(folder.path(), &["stop.offspring=6"]).wait().unwrap().success());
    let shown = small::show(folder.path(), "search");
    assert_eq!(shown["finished"], true);
    assert!(reasons(&shown, "given_up").contains("of task t is NaN or infinite"), "{shown}");
    // The expert is out, and so is the merge that holds it; offspring of the others are in.
    assert_eq!(shown["population"].as_array().unwrap().len(), 3, "{shown}");
    assert_eq!(shown["offspring"]["committed"], 6);
}

#[test]
fn the_first_interrupt_drains_and_the_same_command_continues() {
    let folder = tempfile::tempdir().unwrap();
    small::search(folder.path(), &SLOW, 400, 16);
    let set = ["stop.offspring=16"];
    let mut run = start(folder.path(), &set);
    wait_for_results(folder.path(), 2);
    assert!(signal(run.id(), "-INT"));
    let said: Vec<_> = BufReader::new(run.stderr.take().unwrap()).lines().map(Result::unwrap).collect();
    assert!(run.wait().unwrap().success());
    assert!(said.iter().any(|line| line.contains("finishing what is under way; once more to stop at once")), "{said:?}");
    assert!(said.last().unwrap().contains("the same command continues"), "{said:?}");
    let shown = small::show(folder.path(), "search");
    assert_eq!((&shown["finished"], &shown["failed_attempts"]), (&false.into(), &0.into()), "{shown}");
    assert!(start(folder.path(), &set).wait().unwrap().success());
    let after = small::show(folder.path(), "search");
    assert_eq!((&after["finished"], &after["offspring"]["committed"]), (&true.into(), &16.into()), "{after}");
}

#[test]
fn the_second_interrupt_stops_at_once_and_nothing_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    small::search(folder.path(), &SLOW, 400, 16);
    let mut run = start(folder.path(), &["stop.offspring=400"]);
    wait_for_results(folder.path(), 2);
    // What is under way stands still, so that draining alone would not end.
    let scorer = wait_for("a scorer", || scorers_of(run.id()).first().copied());
    assert!(signal(scorer, "-STOP"));
    let mut said = BufReader::new(run.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(signal(run.id(), "-INT"));
    said.find(|line| line.contains("once more to stop at once")).unwrap();
    assert!(signal(run.id(), "-INT"));
    assert_eq!(run.wait().unwrap().code(), Some(1));
    wait_for("the scorer's end", || (!Path::new(&format!("/proc/{scorer}")).exists()).then_some(()));
    assert!(small::show(folder.path(), "search")["offspring"]["committed"].as_u64().unwrap() >= 2);
    small::succeed(folder.path(), &["verify", "search"]);
}
