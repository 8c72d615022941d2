//! Chaos with real processes: a coordinator, workers behind a network that misbehaves, kills, standstills, preemption notices, a checkpoint that is cut
//! for a while. The search ends in the state and in the bytes of the undisturbed one.
//!
//!     cargo test --release --test chaos                                       # a short form
//!     tests/chaos-sweep                                                       # eight workers, three minutes
//!     EVOLVER_CHAOS_SECONDS=7200 tests/chaos-sweep                            # by the hour
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test's helper fails as its test does")]

mod small;
mod weather;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{Read as _, Write as _},
    net::TcpListener,
    path::Path,
    process::{Child, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, sleep},
    time::{Duration, Instant},
};

use evolver_common::rng::Stream;

use self::{
    small::{
        SLOW,
        processes::{children_of, signal},
    },
    weather::{Proxy, Weather},
};

/// A search that has not ended so long after the storm stands still.
const LIMIT: Duration = Duration::from_secs(600);
const FLEET: [&str; 4] = ["--set", "fleet.lease_seconds=3", "--set", "fleet.heartbeat_seconds=0.5"];

struct Random(Stream, u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.1 += 1;
        self.0.element(self.1) as usize % end
    }
}

fn number(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// The state and the best model's bytes of a search that has ended.
fn end(folder: &Path, dir: &str) -> (String, Vec<u8>) {
    small::succeed(folder, &["verify", dir]);
    let shown = small::show(folder, dir);
    assert_eq!(shown["finished"], true, "{shown}");
    assert!(shown["given_up"].as_array().unwrap().is_empty(), "{shown}");
    let best = fs::read(folder.join(dir).join("best/model.safetensors")).unwrap();
    (shown["state_hash"].as_str().unwrap().to_owned(), best)
}

/// A cloud's metadata service that announces an end as soon as it is told to.
struct Cloud {
    port: u16,
    ending: Arc<AtomicBool>,
}

impl Cloud {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let this = Self { port: listener.local_addr().unwrap().port(), ending: Arc::default() };
        let ending = Arc::clone(&this.ending);
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let mut request = [0; 2048];
                let Ok(count) = stream.read(&mut request) else { continue };
                let request = String::from_utf8_lossy(&request[..count]).to_lowercase();
                let (status, body) = if request.starts_with("put /latest/api/token") {
                    ("200 OK", "token")
                } else if !request.contains("x-aws-ec2-metadata-token: token") {
                    ("401 Unauthorized", "")
                } else if ending.load(Ordering::Relaxed) {
                    ("200 OK", r#"{"action": "terminate", "time": "2026-11-24T08:22:00Z"}"#)
                } else {
                    ("404 Not Found", "")
                };
                let length = body.len();
                write!(stream, "HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}").ok();
            }
        });
        this
    }
}

struct Fleet<'a> {
    folder: &'a Path,
    port: u16,
    offspring: String,
    coordinator: Child,
    workers: Vec<Child>,
    proxies: Vec<Proxy>,
    clouds: Vec<Cloud>,
}

impl<'a> Fleet<'a> {
    fn start(folder: &'a Path, count: usize, offspring: usize) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let offspring = format!("stop.offspring={offspring}");
        let coordinator = Self::coordinator(folder, port, &offspring);
        let proxies: Vec<_> = (0..count).map(|_| Proxy::start(port)).collect();
        let clouds: Vec<_> = (0..count).map(|_| Cloud::start()).collect();
        let mut this = Self { folder, port, offspring, coordinator, workers: Vec::new(), proxies, clouds };
        for index in 0..count {
            let worker = this.worker(index);
            this.workers.push(worker);
        }
        this
    }

    fn coordinator(folder: &Path, port: u16, offspring: &str) -> Child {
        let listen = format!("127.0.0.1:{port}");
        let mut command = small::evolver(folder, &["coordinator", "search.toml", "--dir", "storm", "--listen", &listen]);
        command.args(FLEET).args(["--set", offspring]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    /// Connects through its own proxy first, and directly if that does not answer.
    fn worker(&self, index: usize) -> Child {
        let connect = format!("127.0.0.1:{}", self.proxies[index].port);
        let (cache, metadata) = (format!("cache-{index}"), format!("127.0.0.1:{}", self.clouds[index].port));
        self.clouds[index].ending.store(false, Ordering::Relaxed);
        let arguments = ["worker", "--connect", &connect, "--threads", "1", "--cache", &cache];
        let mut command = small::evolver(self.folder, &arguments);
        command.args(["--spot", "aws", "--metadata-address", &metadata, "--patience", "3600"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    /// Starts again what has ended.
    fn revive(&mut self) {
        if self.coordinator.try_wait().unwrap().is_some_and(|status| !status.success()) {
            self.coordinator = Self::coordinator(self.folder, self.port, &self.offspring);
        }
        for index in 0..self.workers.len() {
            if self.workers[index].try_wait().unwrap().is_some() {
                self.workers[index] = self.worker(index);
            }
        }
    }

    fn finished(&mut self) -> bool {
        self.coordinator.try_wait().unwrap().is_some_and(|status| status.success())
    }

    /// One thing goes wrong. Its name.
    fn strike(&mut self, random: &mut Random) -> &'static str {
        let index = random.below(self.workers.len());
        let moment = Duration::from_millis(100 + random.below(3000) as u64);
        let (worker, proxy) = (self.workers[index].id(), &self.proxies[index]);
        match random.below(13) {
            0 => {
                self.coordinator.kill().unwrap();
                self.coordinator.wait().unwrap();
                sleep(moment / 4);
                "coordinator killed"
            }
            1 => {
                let coordinator = self.coordinator.id();
                signal(coordinator, "-STOP");
                sleep(moment / 2);
                signal(coordinator, "-CONT");
                "coordinator stood still"
            }
            2 => {
                self.workers[index].kill().unwrap();
                "worker killed"
            }
            3 => {
                // Beyond its lease, then it goes on as if nothing had happened.
                signal(worker, "-STOP");
                sleep(moment + Duration::from_secs(2));
                signal(worker, "-CONT");
                "worker stood still"
            }
            4 => {
                signal(worker, if random.below(2) == 0 { "-TERM" } else { "-USR1" });
                "worker told to leave"
            }
            5 => {
                self.clouds[index].ending.store(true, Ordering::Relaxed);
                "preemption announced"
            }
            6 => {
                for child in children_of(&[worker]) {
                    signal(child, "-KILL");
                }
                "child killed"
            }
            7 => {
                proxy.reset();
                "connections reset"
            }
            8 => {
                proxy.set(Weather { latency: moment / 10, ..Weather::default() });
                "latency"
            }
            9 => {
                proxy.set(Weather { mute: true, ..Weather::default() });
                "partition from the worker"
            }
            10 => {
                proxy.set(Weather { deaf: true, ..Weather::default() });
                "partition to the worker"
            }
            11 => {
                proxy.set(Weather { mute: true, deaf: true, ..Weather::default() });
                sleep(moment);
                proxy.set(Weather::default());
                "connection half open"
            }
            _ => {
                proxy.set(Weather { slow: true, ..Weather::default() });
                "slow reader"
            }
        }
    }
}

impl Drop for Fleet<'_> {
    fn drop(&mut self) {
        for child in self.workers.iter_mut().chain([&mut self.coordinator]) {
            signal(child.id(), "-CONT");
            child.kill().ok();
            child.wait().ok();
        }
    }
}

/// An expert's file is cut short, and whole again after a moment.
fn cut(folder: &Path, moment: Duration) {
    let path = folder.join("experts/b/model.safetensors");
    let whole = fs::read(&path).unwrap();
    File::options().write(true).open(&path).unwrap().set_len(whole.len() as u64 / 2).unwrap();
    sleep(moment);
    fs::write(&path, whole).unwrap();
}

#[test]
fn a_storm_changes_nothing() {
    let seconds = number("EVOLVER_CHAOS_SECONDS", 12);
    let workers = number("EVOLVER_CHAOS_WORKERS", 4);
    let offspring = number("EVOLVER_CHAOS_OFFSPRING", 60);
    let seed = number("EVOLVER_CHAOS_SEED", 1);
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    small::search(folder, &SLOW, 300, 16);
    let limit = format!("stop.offspring={offspring}");
    small::succeed(folder, &["run", "search.toml", "--dir", "calm", "--workers", "2", "--set", &limit]);

    let mut random = Random(Stream::new(seed as u64, "chaos"), 0);
    let mut fleet = Fleet::start(folder, workers, offspring);
    let mut struck = BTreeMap::<&str, u32>::new();
    let began = Instant::now();
    let storm = Duration::from_secs(seconds as u64);
    let mut cuts = 0;
    while began.elapsed() < storm && !fleet.finished() {
        sleep(Duration::from_millis(50 + random.below(400) as u64));
        fleet.revive();
        *struck.entry(fleet.strike(&mut random)).or_default() += 1;
        if random.below(4) == 0 {
            fleet.proxies.iter().for_each(|proxy| proxy.set(Weather::default()));
        }
        if random.below(25) == 0 {
            cuts += 1;
            cut(folder, Duration::from_millis(300));
        }
    }
    // Nothing goes wrong any more: it must come to its end.
    fleet.proxies.iter().for_each(|proxy| proxy.set(Weather::default()));
    for worker in &fleet.workers {
        signal(worker.id(), "-CONT");
    }
    let calm = Instant::now();
    while !fleet.finished() {
        assert!(calm.elapsed() < LIMIT, "the search stands still after {struck:?}");
        sleep(Duration::from_millis(100));
        fleet.revive();
    }
    let held: u64 = fleet.proxies.iter().map(|proxy| proxy.held.load(Ordering::Relaxed)).sum();
    let made: u64 = fleet.proxies.iter().map(|proxy| proxy.made.load(Ordering::Relaxed)).sum();
    println!(
        "{:.0} s of storm, {cuts} cuts of a checkpoint, {made} connections, {held} pieces held up: {struck:?}",
        storm.as_secs_f64()
    );
    assert_eq!(end(folder, "storm"), end(folder, "calm"));
    assert!(struck.values().sum::<u32>() >= 8 && made > workers as u64, "the storm was too weak: {struck:?}");
}
