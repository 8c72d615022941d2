//! A wall clock that jumps, and a disk that is slow to sync: whole processes over a library that is loaded before the system's, which says that it acted.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test's helper fails as its test does")]

mod small;

use std::{fs, path::Path, process::Command};

use serde_json::Value;

use self::small::TINY;

/// Runs a search whose processes all have this in their environment; what is shown at its end, and how often the library acted.
fn searched(variable: (&str, &str)) -> (Value, u64) {
    let folder = tempfile::tempdir().unwrap();
    small::search(folder.path(), &TINY, 60, 8);
    let (library, acted) = (folder.path().join("preload.so"), folder.path().join("acted"));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/preload/preload.c");
    let built = Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source).status().unwrap();
    assert!(built.success());
    let mut run = small::evolver(folder.path(), &["run", "search.toml", "--dir", "search", "--workers", "2"]);
    run.args(["--set", "stop.offspring=24", "--set", "fleet.lease_seconds=20"]);
    let output = run.env("LD_PRELOAD", library).env("ACTED", &acted).env(variable.0, variable.1).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let times = fs::metadata(acted).map_or(0, |file| file.len());
    (small::show(folder.path(), "search"), times)
}

/// Asserts that the search ended as one that nothing disturbed.
fn as_ever(shown: &Value) {
    let (calm, times) = searched(("NOTHING", "1"));
    assert_eq!(times, 0);
    assert_eq!(shown["finished"], true);
    for key in ["state_hash", "offspring"] {
        assert_eq!(shown[key], calm[key]);
    }
    assert_eq!(shown["best"]["digest"], calm["best"]["digest"]);
}

#[test]
fn a_wall_clock_that_jumps_by_days_moves_no_lease_and_no_result() {
    let (shown, times) = searched(("JUMPING_CLOCK", "1"));
    println!("the clock jumped {times} times");
    assert!(times > 20, "the clock jumped {times} times");
    as_ever(&shown);
}

#[test]
fn a_disk_that_is_slow_to_sync_costs_time_and_nothing_else() {
    let (shown, times) = searched(("SLOW_SYNC_MS", "100"));
    println!("the disk was slow {times} times");
    assert!(times > 20, "the disk was slow {times} times");
    as_ever(&shown);
}
