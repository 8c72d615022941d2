//! SIGKILL at random moments of coordinator, agent and child, and workers that come and go: the search ends in the state and in the bytes of the
//! undisturbed one.
//!
//!     cargo test --release --test kills                    # a few kills
//!     tests/kill-sweep                                     # twenty of each, with one worker, with four, and with a changing fleet
#![cfg(target_os = "linux")]
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test's helper fails as its test does; the sweep says what it did"
)]

mod small;

use std::{
    fs,
    path::Path,
    process::{Child, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use evolver_common::rng::Stream;

use self::small::{
    SLOW,
    processes::{children_of, scorers_of, signal},
};

/// Leases of lost workers run out soon.
const LEASE: [&str; 4] = ["--set", "fleet.lease_seconds=2", "--set", "fleet.heartbeat_seconds=0.3"];
/// A search that has not ended by then stands still.
const LIMIT: Duration = Duration::from_secs(400);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Victim {
    Coordinator,
    Agent,
    Child,
}

/// Kills that hit a living process.
#[derive(Debug, Default)]
struct Tally([usize; 3]);

impl Tally {
    fn count(&mut self, victim: Victim) {
        self.0[victim as usize] += 1;
    }

    fn of(&self, victim: Victim) -> usize {
        self.0[victim as usize]
    }
}

/// Seeded draws.
struct Random(Stream, u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(Stream::new(seed, "kills"), 0)
    }

    fn below(&mut self, end: usize) -> usize {
        self.1 += 1;
        self.0.element(self.1) as usize % end
    }

    fn pause(&mut self, low: usize, high: usize) {
        sleep(Duration::from_millis((low + self.below(high - low)) as u64));
    }
}

/// What a search ended in: its state, and the bytes of its best model.
#[derive(PartialEq)]
struct End {
    state: String,
    best: Vec<u8>,
}

fn end(folder: &Path, dir: &str) -> End {
    small::succeed(folder, &["verify", dir]);
    let shown = small::show(folder, dir);
    assert_eq!(shown["finished"], true, "{shown}");
    assert_eq!(shown["offspring"]["failed"], 0, "{shown}");
    End {
        state: shown["state_hash"].as_str().unwrap().to_owned(),
        best: fs::read(folder.join(dir).join("best/model.safetensors")).unwrap(),
    }
}

fn start(folder: &Path, offspring: usize, arguments: &[&str]) -> Child {
    let limit = format!("stop.offspring={offspring}");
    let mut command = small::evolver(folder, arguments);
    if arguments[0] != "worker" {
        command.args(LEASE).args(["--set", &limit]);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

fn undisturbed(folder: &Path, offspring: usize) -> End {
    assert!(start(folder, offspring, &["run", "search.toml", "--dir", "calm", "--workers", "1"]).wait().unwrap().success());
    end(folder, "calm")
}

/// Runs a search to its end through `kills` kills of each kind.
fn killed(folder: &Path, dir: &str, workers: usize, kills: usize, offspring: usize, random: &mut Random) -> Tally {
    let mut tally = Tally::default();
    let began = Instant::now();
    loop {
        let mut run = start(folder, offspring, &["run", "search.toml", "--dir", dir, "--workers", &workers.to_string()]);
        loop {
            random.pause(40, 400);
            assert!(began.elapsed() < LIMIT, "the search stands still after {tally:?}");
            if let Some(status) = run.try_wait().unwrap() {
                assert!(status.success(), "{status} after {tally:?}");
                return tally;
            }
            let victims = [Victim::Coordinator, Victim::Agent, Victim::Child];
            let open: Vec<_> = victims.into_iter().filter(|victim| tally.of(*victim) < kills).collect();
            let Some(&victim) = open.get(random.below(open.len().max(1))) else {
                continue;
            };
            if victim == Victim::Coordinator {
                run.kill().unwrap();
                run.wait().unwrap();
                tally.count(victim);
                break;
            }
            let victims = if victim == Victim::Agent { children_of(&[run.id()]) } else { scorers_of(run.id()) };
            if !victims.is_empty() && signal(victims[random.below(victims.len())], "-KILL") {
                tally.count(victim);
            }
        }
    }
}

/// Runs a search served to a fleet in which workers join, leave when told, and are killed, `changes` times in all.
fn changing(folder: &Path, dir: &str, changes: usize, offspring: usize, random: &mut Random) -> [usize; 3] {
    let address = format!("127.0.0.1:{}", std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port());
    let mut coordinator = start(folder, offspring, &["coordinator", "search.toml", "--dir", dir, "--listen", &address]);
    let join = || start(folder, offspring, &["worker", "--connect", &address, "--threads", "1", "--cache", "fleet-cache"]);
    let mut workers = vec![join()];
    let mut counts = [0; 3];
    let began = Instant::now();
    loop {
        assert!(began.elapsed() < LIMIT, "the search stands still after {counts:?}");
        if let Some(status) = coordinator.try_wait().unwrap() {
            assert!(status.success(), "{status} after {counts:?}");
            break;
        }
        random.pause(40, 500);
        workers.retain_mut(|worker| worker.try_wait().unwrap().is_none());
        let change = if workers.is_empty() { 0 } else { random.below(3) };
        if counts.iter().sum::<usize>() >= changes {
            if workers.is_empty() {
                workers.push(join());
            }
            continue;
        }
        match change {
            0 if workers.len() < 4 => workers.push(join()),
            0 => continue,
            1 => assert!(signal(workers[random.below(workers.len())].id(), "-TERM")),
            _ => assert!(signal(workers[random.below(workers.len())].id(), "-KILL")),
        }
        counts[change] += 1;
    }
    for mut worker in workers {
        // Told to leave by the coordinator that has just ended, or by this.
        signal(worker.id(), "-KILL");
        worker.wait().unwrap();
    }
    counts
}

fn sweep(kills: usize, fleets: &[usize], offspring: usize) {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    small::search(folder, &SLOW, 400, 16);
    let calm = undisturbed(folder, offspring);
    let mut random = Random::new(kills as u64);
    for &workers in fleets {
        let dir = format!("killed-{workers}");
        let tally = killed(folder, &dir, workers, kills, offspring, &mut random);
        println!("{workers} workers: {tally:?} coordinators, agents and children killed");
        assert_eq!(tally.0, [kills; 3], "the search ended before all kills: it needs more offspring");
        assert!(end(folder, &dir) == calm, "{workers} workers: another end than the undisturbed run's");
    }
    let counts = changing(folder, "changing", 3 * kills, offspring, &mut random);
    println!("a changing fleet: {counts:?} workers joined, left and were killed");
    assert_eq!(counts.iter().sum::<usize>(), 3 * kills, "the search ended before all changes: it needs more offspring");
    assert!(end(folder, "changing") == calm, "a changing fleet: another end than the undisturbed run's");
}

#[test]
fn a_search_survives_kills_of_every_process() {
    sweep(2, &[2], 40);
}

#[test]
#[ignore = "takes minutes: tests/kill-sweep runs it"]
fn a_search_survives_twenty_kills_of_every_process() {
    sweep(20, &[1, 4], 480);
}
