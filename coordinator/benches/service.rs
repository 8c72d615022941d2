//! Leases, reports and journal appends per second, beside one bare synced write of the same size in the same run.
//!
//! Reports are those of 400 items. With 64 workers a round is a lease and a report of each.

#![allow(clippy::unwrap_used, missing_docs, reason = "a bench fails by panicking, and nobody reads its groups' docs")]

#[path = "../tests/world/mod.rs"]
mod world;

use std::{
    hint::black_box,
    io::Write as _,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use evolver_common::{
    digest::Digest,
    score::{Scores, classification},
};
use evolver_coordinator::journal::{Journal, Log as _, Record, Timings};
use evolver_proto::{scores_to_wire, v1};
use tokio::runtime::Runtime;

use self::world::{Served, Worker, resolved};

const ITEMS: usize = 400;
const MANY: usize = 64;

fn scores(items: usize) -> Scores {
    let truth: Vec<_> = (0..items).map(|item| item % 3).collect();
    let predicted: Vec<_> = (0..items).map(|item| item % 2).collect();
    Scores { tasks: vec![classification("t", &truth, &predicted, 3)] }
}

fn record() -> Record {
    let (worker, timings) = ("worker-of-some-host-1234".into(), Timings::default());
    Record::Result { number: 1, recipe: Digest::of(b"r"), scores: scores(ITEMS), worker, attempt: 1, timings, elapsed: 1.5 }
}

/// What a record adds to the journal: its body without credits, the credits, and its digest.
fn bytes(record: &Record) -> usize {
    let mut body = record.clone();
    if let Record::Result { scores, .. } = &mut body {
        scores.tasks[0].credits.clear();
    }
    serde_json::to_vec(&body).unwrap().len() + ITEMS * size_of::<f32>() + size_of::<Digest>()
}

fn disk(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("disk");
    let (folder, record) = (tempfile::tempdir().unwrap(), record());
    let mut file = std::fs::File::create(folder.path().join("bare")).unwrap();
    let content = vec![7u8; bytes(&record)];
    group.throughput(Throughput::Elements(1));
    group.bench_function("one bare synced write", |bencher| {
        bencher.iter(|| {
            file.write_all(black_box(&content)).unwrap();
            file.sync_data().unwrap();
        });
    });
    for size in [1, MANY] {
        let (mut journal, _) = Journal::open(&folder.path().join(size.to_string())).unwrap();
        let records = vec![record.clone(); size];
        group.throughput(Throughput::Elements(size as u64));
        group.bench_function(format!("journal append of {size}"), |bencher| bencher.iter(|| journal.append(&records).unwrap()));
    }
    group.finish();
}

async fn start() -> (tempfile::TempDir, Served) {
    let folder = tempfile::tempdir().unwrap();
    let mut resolved = resolved(|definition| {
        definition["search"]["in_flight"] = (2 * MANY).into();
        definition["stop"]["offspring"] = 100_000_000.into();
    });
    resolved.tasks[0].dev.items = ITEMS;
    let served = Served::start(folder.path(), &resolved).await;
    (folder, served)
}

fn service(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("service");
    let runtime = Runtime::new().unwrap();
    let (_folder, served) = runtime.block_on(start());
    let report = v1::report_request::Result::Scores(scores_to_wire(&scores(ITEMS)));
    let mut worker = runtime.block_on(Worker::join(&served.address, "one"));
    group.throughput(Throughput::Elements(1));
    group.bench_function("lease, 1 worker", |bencher| {
        bencher.iter_custom(|rounds| {
            runtime.block_on(async {
                let mut time = Duration::ZERO;
                for _ in 0..rounds {
                    let began = Instant::now();
                    let assignment = worker.lease().await;
                    time += began.elapsed();
                    worker
                        .report(assignment.token, v1::report_request::Result::Released(v1::Released { parts: Vec::new() }))
                        .await;
                }
                time
            })
        });
    });
    group.bench_function("report, 1 worker", |bencher| {
        bencher.iter_custom(|rounds| {
            runtime.block_on(async {
                let mut time = Duration::ZERO;
                for _ in 0..rounds {
                    let assignment = worker.lease().await;
                    let began = Instant::now();
                    worker.report(assignment.token, report.clone()).await;
                    time += began.elapsed();
                }
                time
            })
        });
    });
    let mut workers = Vec::new();
    for index in 0..MANY {
        workers.push(runtime.block_on(Worker::join(&served.address, &format!("many {index}"))));
    }
    group.bench_function(format!("lease and report, {MANY} workers"), |bencher| {
        bencher.iter_custom(|rounds| {
            runtime.block_on(async {
                let left = Arc::new(AtomicI64::new(i64::try_from(rounds).unwrap()));
                let began = Instant::now();
                let tasks = workers.iter().cloned().map(|mut worker| {
                    let (left, report) = (left.clone(), report.clone());
                    tokio::spawn(async move {
                        while left.fetch_sub(1, Ordering::Relaxed) > 0 {
                            let assignment = worker.lease().await;
                            worker.report(assignment.token, report.clone()).await;
                        }
                    })
                });
                for task in tasks.collect::<Vec<_>>() {
                    task.await.unwrap();
                }
                began.elapsed()
            })
        });
    });
    group.finish();
    drop(worker);
    drop(workers);
    runtime.block_on(served.end()).unwrap();
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(3)).sample_size(20);
    targets = disk, service
}
criterion_main!(benches);
