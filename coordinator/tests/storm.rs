//! A coordinator that comes back to hundreds of workers at once.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod world;

use std::{path::Path, time::Duration};

use evolver_common::digest::Digest;
use evolver_coordinator::{journal, service::replay};
use evolver_proto::{
    PROTOCOL,
    v1::{self, evolver_client::EvolverClient, lease_reply::Outcome},
};
use tokio::{sync::watch, task::JoinSet};
use tonic::transport::Endpoint;

use self::world::{Served, Worker, resolved, right};

/// Each has a connection of its own, and both ends of it are files of this process: below the usual limit of 1,024.
const WORKERS: usize = 300;
/// Seconds of work even on a quick machine: all workers have to be there before it is done.
const OFFSPRING: usize = 20_000;

/// Works until it is sent away, and comes back at once wherever its coordinator is by then; how often it registered.
async fn stubborn(name: String, place: watch::Receiver<String>) -> usize {
    let mut registered = 0;
    loop {
        tokio::time::sleep(Duration::from_millis(1)).await;
        let address = place.borrow().clone();
        let Ok(channel) = Endpoint::from_shared(address).unwrap().connect().await else { continue };
        let mut worker = Worker { client: EvolverClient::new(channel), name: name.clone(), epoch: 0 };
        let Ok(reply) = worker.register(PROTOCOL).await else { continue };
        worker.epoch = reply.epoch;
        registered += 1;
        loop {
            match worker.ask(Duration::from_secs(5)).await {
                Ok(Outcome::Assignment(assignment)) => {
                    if worker.try_report(assignment.token, right(&assignment)).await.is_err() {
                        break;
                    }
                }
                Ok(Outcome::Idle(_)) => {}
                Ok(Outcome::Leave(_)) => return registered,
                Err(_) => break,
            }
        }
    }
}

/// The state that the journal holds, and how many results led there.
fn state(folder: &Path) -> (Digest, usize) {
    let replay = replay(&journal::read(folder).unwrap(), None).unwrap();
    (replay.search.state_hash(), replay.told.len())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_hundred_workers_that_come_back_at_once_are_all_served() {
    let resolved = resolved(|definition| {
        definition["search"]["in_flight"] = WORKERS.into();
        definition["stop"]["offspring"] = OFFSPRING.into();
    });
    let folder = tempfile::tempdir().unwrap();
    let first = Served::start(folder.path(), &resolved).await;
    let (tell, place) = watch::channel(first.address.clone());
    let mut workers = JoinSet::new();
    for index in 0..WORKERS {
        workers.spawn(stubborn(format!("w{index}"), place.clone()));
    }
    let all_at_work = |status: v1::Status| status.workers.len() == WORKERS && status.committed > 600;
    while !all_at_work(first.status()) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    first.end().await.ok();
    let (_, results) = state(folder.path());
    assert!(results < OFFSPRING, "it was over before the storm");
    let second = Served::start(folder.path(), &resolved).await;
    tell.send_replace(second.address.clone());
    let registered = workers.join_all().await;
    assert!(registered.iter().all(|times| *times >= 2), "{registered:?}");
    // What is told about it may come after what the workers are told.
    let finished = async {
        while !second.status().finished {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), finished).await.unwrap();
    second.end().await.unwrap();
    let calm = tempfile::tempdir().unwrap();
    let served = Served::start(calm.path(), &resolved).await;
    let (_tell, place) = watch::channel(served.address.clone());
    (0..20).map(|index| stubborn(format!("w{index}"), place.clone())).collect::<JoinSet<_>>().join_all().await;
    served.end().await.unwrap();
    assert_eq!(state(folder.path()), state(calm.path()));
}
