//! A fleet's processes: one that stands by takes over, one that is told to leave leaves, and what a dead agent finished is handed in by the next.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test's helper fails as its test does")]

mod small;
mod weather;

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use evolver_coordinator::{
    fleet::WITH,
    journal::{self, Record},
};

use self::{
    small::{
        SLOW, Shape,
        processes::{children_of, signal, wait_for},
    },
    weather::{Proxy, Weather},
};

fn port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A process that ends with its test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn spawn(folder: &Path, arguments: &[&str]) -> Process {
    let mut command = small::evolver(folder, arguments);
    Process(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
}

fn coordinator(folder: &Path, port: u16, more: &[&str]) -> Process {
    let listen = format!("127.0.0.1:{port}");
    let first = ["coordinator", "search.toml", "--dir", "search", "--listen", &listen];
    spawn(folder, &[&first, more].concat())
}

fn worker(folder: &Path, connect: &str, cache: &str) -> Process {
    spawn(folder, &["worker", "--connect", connect, "--threads", "1", "--cache", cache])
}

fn records(folder: &Path) -> Vec<Record> {
    journal::read(&folder.join("search")).unwrap_or_default()
}

fn results(folder: &Path) -> usize {
    records(folder).iter().filter(|record| matches!(record, Record::Result { .. })).count()
}

fn state(folder: &Path, dir: &str) -> String {
    let shown = small::show(folder, dir);
    assert_eq!(shown["finished"], true, "{shown}");
    shown["state_hash"].as_str().unwrap().to_owned()
}

fn prepared(shape: &Shape, items: usize) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    small::search(folder.path(), shape, items, 16);
    folder
}

#[test]
fn one_that_stands_by_takes_over_and_the_search_ends_as_if_nothing_had_happened() {
    let folder = prepared(&SLOW, 300);
    let folder = folder.path();
    small::succeed(folder, &["run", "search.toml", "--dir", "calm"]);
    let (one, two) = (port(), port());
    let mut first = coordinator(folder, one, &[]);
    wait_for("the first coordinator", || folder.join("search/journal.sqlite").exists().then_some(()));
    let mut second = coordinator(folder, two, &["--standby"]);
    let connect = format!("127.0.0.1:{one},127.0.0.1:{two}");
    let _workers = [worker(folder, &connect, "cache-1"), worker(folder, &connect, "cache-2")];
    wait_for("results", || (results(folder) >= 3).then_some(()));
    assert!(second.0.try_wait().unwrap().is_none(), "it waits");
    first.0.kill().unwrap();
    assert!(second.0.wait().unwrap().success());
    assert_eq!(state(folder, "search"), state(folder, "calm"));
    let epochs: Vec<_> = records(folder)
        .iter()
        .filter_map(|record| match record {
            Record::Start { epoch, .. } => Some(*epoch),
            _ => None,
        })
        .collect();
    assert_eq!(epochs, [1, 2]);
}

#[test]
fn a_coordinator_that_is_stopped_says_that_it_has_not_ended_and_its_workers_wait_for_the_next() {
    let folder = prepared(&SLOW, 300);
    let folder = folder.path();
    small::succeed(folder, &["run", "search.toml", "--dir", "calm"]);
    let port = port();
    let mut first = coordinator(folder, port, &[]);
    let connect = format!("127.0.0.1:{port}");
    let mut workers = ["cache-1", "cache-2"].map(|cache| worker(folder, &connect, cache));
    wait_for("results", || (results(folder) >= 3).then_some(()));
    assert!(signal(first.0.id(), "-TERM"));
    assert_eq!(first.0.wait().unwrap().code(), Some(1));
    assert!(workers.iter_mut().all(|worker| worker.0.try_wait().unwrap().is_none()), "they stay");
    let mut second = coordinator(folder, port, &[]);
    assert!(second.0.wait().unwrap().success());
    assert_eq!(state(folder, "search"), state(folder, "calm"));
}

#[test]
fn a_worker_that_is_told_to_leave_gives_back_what_it_holds_and_is_gone() {
    let folder = prepared(&SLOW, 4000);
    let folder = folder.path();
    let port = port();
    let _coordinator = coordinator(folder, port, &["--set", "fleet.lease_seconds=3600"]);
    let connect = format!("127.0.0.1:{port}");
    for name in ["-TERM", "-USR1", "-INT"] {
        let mut leaving = worker(folder, &connect, "cache");
        // Its child has work: the lease is an hour long, so that only giving it back lets another have it.
        let child = wait_for("a child", || children_of(&[leaving.0.id()]).first().copied());
        let busy = || {
            let stat = fs::read_to_string(format!("/proc/{child}/stat")).ok()?;
            let ticks: u64 = stat[stat.rfind(')')? + 1..].split_whitespace().nth(11)?.parse().ok()?;
            (ticks > 20).then_some(())
        };
        wait_for("work", busy);
        assert!(signal(leaving.0.id(), name));
        assert!(leaving.0.wait().unwrap().success(), "{name}");
    }
    let before = results(folder);
    let _next = worker(folder, &connect, "cache");
    wait_for("the next worker's result", || (results(folder) > before).then_some(()));
    let of_first_spec = |record: &Record| matches!(record, Record::Result { number: 0, attempt, .. } if *attempt > 1);
    wait_for("the spec that was given back", || records(folder).iter().any(of_first_spec).then_some(()));
}

#[test]
fn what_a_leaving_worker_has_scored_is_not_scored_again_and_the_search_ends_in_the_same_bits() {
    // So many items that a scoring takes much longer than what is waited for, on a quick machine too.
    let folder = prepared(&SLOW, 16_000);
    let folder = folder.path();
    let set = ["--set", "stop.offspring=0", "--set", "acceptance.rule=greedy"];
    small::succeed(folder, &[&["run", "search.toml", "--dir", "calm"], &set[..]].concat());
    let port = port();
    let _coordinator = coordinator(folder, port, &set);
    let connect = format!("127.0.0.1:{port}");
    let mut leaving = worker(folder, &connect, "cache");
    let done = || {
        let child = children_of(&[leaving.0.id()]).first().copied()?;
        let stat = fs::read_to_string(format!("/proc/{child}/stat")).ok()?;
        let ticks: u64 = stat[stat.rfind(')')? + 1..].split_whitespace().nth(11)?.parse().ok()?;
        (ticks > 60).then_some(())
    };
    wait_for("some items", done);
    assert!(signal(leaving.0.id(), "-TERM"));
    assert!(leaving.0.wait().unwrap().success());
    let _next = worker(folder, &connect, "cache");
    wait_for("the end", || small::show(folder, "search")["finished"].as_bool().filter(|finished| *finished));
    assert_eq!(state(folder, "search"), state(folder, "calm"));
    let two = |record: &&Record| matches!(record, Record::Result { worker, .. } if worker.contains(WITH));
    assert_eq!(records(folder).iter().filter(two).count(), 1, "one went on from the other's items");
}

/// The reports in a cache's spool.
fn spooled(cache: &Path) -> Vec<PathBuf> {
    let list = |folder: &Path| fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect::<Vec<_>>();
    let agents = list(&cache.join("spool")).into_iter().flat_map(|search| list(&search));
    agents.flat_map(|agent| list(&agent)).filter(|path| path.extension().is_some_and(|ending| ending == "report")).collect()
}

#[test]
fn what_a_dead_agent_finished_is_handed_in_by_the_next_and_not_scored_again() {
    let folder = prepared(&SLOW, 4000);
    let folder = folder.path();
    let port = port();
    let _coordinator = coordinator(folder, port, &["--set", "fleet.lease_seconds=2", "--set", "fleet.heartbeat_seconds=0.5"]);
    let proxy = Proxy::start(port);
    let connect = format!("127.0.0.1:{}", proxy.port);
    // Answers arrive, and from some moment on nothing that the worker says: it finishes what it has, and cannot say so.
    let mut dying = worker(folder, &connect, "cache");
    let mut found = Vec::new();
    // What is muted while it asks for work has none, and is heard once more.
    while found.is_empty() {
        proxy.set(Weather::default());
        let before = results(folder);
        wait_for("a result", || (results(folder) > before).then_some(()));
        // The next scoring is under way, most likely.
        std::thread::sleep(Duration::from_millis(200));
        proxy.set(Weather { mute: true, ..Weather::default() });
        let muted = Instant::now();
        while found.is_empty() && muted.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(20));
            found = spooled(&folder.join("cache"));
        }
    }
    assert_eq!(found.len(), 1);
    dying.0.kill().unwrap();
    dying.0.wait().unwrap();
    proxy.reset();
    proxy.set(Weather::default());
    let before = results(folder);
    // The next agent cannot score anything: the experts are gone.
    fs::rename(folder.join("experts"), folder.join("gone")).unwrap();
    let mut next = worker(folder, &connect, "cache");
    wait_for("the report", || (results(folder) == before + 1).then_some(()));
    assert!(!next.0.wait().unwrap().success());
    assert_eq!(spooled(&folder.join("cache")), [] as [PathBuf; 0]);
    let Some(Record::Result { attempt, .. }) =
        records(folder).into_iter().rfind(|record| matches!(record, Record::Result { .. }))
    else {
        panic!("no result");
    };
    assert!(attempt > 1, "under a token of its own");
}
