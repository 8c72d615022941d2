//! Load: many workers in one process against a coordinator in another, over loopback.
//!
//!     cargo run --release -p evolver-coordinator --example load -- 1000 20
//!
//! Each worker has a connection of its own, leases, waits as long as scoring would take, and reports the outcomes of 400 items; the more workers, the
//! longer that takes, so that all of them together offer some 2,800 reports a second. One that is asked to come again does. Printed are the reports
//! committed in a second, the times of a lease and of a report, the answers that asked to come again, the coordinator's greatest memory, and how long it
//! takes to open what was written.

#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs, reason = "a measurement fails by panicking")]

#[path = "../tests/world/mod.rs"]
mod world;

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use evolver_common::{
    definition::Resolved,
    score::{Scores, classification},
};
use evolver_coordinator::service::{Coordinator, Options};
use evolver_proto::{
    PROTOCOL, PUSHBACK, scores_to_wire,
    v1::{self, lease_reply::Outcome},
};
use tonic::Status;

use self::world::{Served, Worker, resolved};

const ITEMS: usize = 400;
/// What scoring takes, for each worker that there is.
const SCORING: Duration = Duration::from_micros(350);

fn definition(workers: usize) -> Resolved {
    let mut resolved = resolved(|definition| {
        definition["search"]["in_flight"] = (workers + workers / 4).into();
        definition["stop"]["offspring"] = 1_000_000_000u64.into();
        definition["fleet"]["check_every"] = 0.into();
    });
    resolved.tasks[0].dev.items = ITEMS;
    resolved
}

fn scores() -> Scores {
    let truth: Vec<_> = (0..ITEMS).map(|item| item % 3).collect();
    let predicted: Vec<_> = (0..ITEMS).map(|item| item % 2).collect();
    Scores { tasks: vec![classification("t", &truth, &predicted, 3)] }
}

/// The coordinator's process: says where it is, and ends when its input does.
fn serve(dir: &Path, workers: usize) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let served = Served::start(dir, &definition(workers)).await;
        println!("{}", served.address);
        std::io::stdout().flush().unwrap();
        tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new())).await.unwrap().unwrap();
        served.end().await.unwrap();
    });
}

#[derive(Default)]
struct Times {
    leases: Vec<f64>,
    reports: Vec<f64>,
    busy: usize,
}

fn quantile(times: &mut [f64], share: f64) -> f64 {
    times.sort_unstable_by(f64::total_cmp);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "an index")]
    let at = ((times.len() - 1) as f64 * share) as usize;
    1000.0 * times[at]
}

/// Waits as long as the coordinator asks to, and counts it; any other refusal is the end.
async fn come_again(busy: &AtomicUsize, status: Status) {
    let pause = status.metadata().get(PUSHBACK).unwrap_or_else(|| panic!("{status}")).to_str().unwrap().parse().unwrap();
    busy.fetch_add(1, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_millis(pause)).await;
}

async fn load(address: String, workers: usize, seconds: u64) -> Times {
    let (times, busy, over) =
        (Arc::new(Mutex::new(Times::default())), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let report = v1::report_request::Result::Scores(scores_to_wire(&scores()));
    let scoring = SCORING * u32::try_from(workers).unwrap();
    let coming = (3 * scoring).min(Duration::from_secs(2));
    let mut tasks = Vec::new();
    for index in 0..workers {
        let (address, times, busy, over, report) =
            (address.clone(), Arc::clone(&times), Arc::clone(&busy), Arc::clone(&over), report.clone());
        tasks.push(tokio::spawn(async move {
            // A storm of connections would be one of this program's own making: workers come over a second or two.
            tokio::time::sleep(coming.mul_f64(index as f64 / workers as f64)).await;
            let mut worker = Worker::connect(&address, &format!("w{index}")).await;
            worker.epoch = loop {
                match worker.register(PROTOCOL).await {
                    Ok(reply) => break reply.epoch,
                    Err(status) => come_again(&busy, status).await,
                }
            };
            let mut own = Times::default();
            while !over.load(Ordering::Relaxed) {
                let began = Instant::now();
                let answer = loop {
                    match worker.ask(Duration::from_secs(10)).await {
                        Ok(answer) => break answer,
                        Err(status) => come_again(&busy, status).await,
                    }
                };
                let Outcome::Assignment(assignment) = answer else { continue };
                own.leases.push(began.elapsed().as_secs_f64() - assignment.waited);
                tokio::time::sleep(scoring).await;
                let began = Instant::now();
                while let Err(status) = worker.try_report(assignment.token, report.clone()).await {
                    come_again(&busy, status).await;
                }
                own.reports.push(began.elapsed().as_secs_f64());
            }
            let mut times = times.lock().unwrap();
            times.leases.extend(own.leases);
            times.reports.extend(own.reports);
        }));
    }
    tokio::time::sleep(coming + scoring + Duration::from_secs(seconds)).await;
    over.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.unwrap();
    }
    let times = std::mem::take(&mut *times.lock().unwrap());
    Times { busy: busy.load(Ordering::Relaxed), ..times }
}

fn main() {
    let arguments: Vec<_> = std::env::args().collect();
    if arguments.get(1).is_some_and(|word| word == "serve") {
        return serve(Path::new(&arguments[2]), arguments[3].parse().unwrap());
    }
    let workers: usize = arguments.get(1).map_or(1000, |word| word.parse().unwrap());
    let seconds: u64 = arguments.get(2).map_or(20, |word| word.parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(&arguments[0]);
    command.arg("serve").arg(dir.path()).arg(workers.to_string()).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut coordinator = command.spawn().unwrap();
    let mut address = String::new();
    BufReader::new(coordinator.stdout.take().unwrap()).read_line(&mut address).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let began = Instant::now();
    let mut times = runtime.block_on(load(address.trim().to_owned(), workers, seconds));
    let (count, took) = (times.reports.len(), began.elapsed().as_secs_f64());
    let status = std::fs::read_to_string(format!("/proc/{}/status", coordinator.id())).unwrap_or_default();
    let memory = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).map_or("unknown", str::trim).to_owned();
    drop(coordinator.stdin.take());
    coordinator.wait().unwrap();
    #[expect(clippy::cast_precision_loss, reason = "a count for people")]
    let rate = count as f64 / took;
    println!("{workers} workers, {took:.1} s: {count} reports committed, {rate:.0} a second");
    for (what, times) in [("lease", &mut times.leases), ("report", &mut times.reports)] {
        let [median, late] = [0.5, 0.99].map(|share| quantile(times, share));
        println!("{what}: median {median:.1} ms, 99 % within {late:.1} ms");
    }
    println!("asked to come again: {} times; the coordinator's memory: {memory}", times.busy);
    let began = Instant::now();
    let coordinator =
        Coordinator::start(&Options { dir: dir.path().into(), resolved: definition(workers), compare: false }).unwrap();
    println!("{count} results opened in {:.2} s", began.elapsed().as_secs_f64());
    coordinator.join().unwrap();
}
