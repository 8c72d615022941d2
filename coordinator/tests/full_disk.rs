//! A disk that is full for a while, in truth: a small file system that is filled to its last byte. Needs the right to mount one, and says so where it
//! has not.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod world;

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use evolver_coordinator::{journal, service::replay};
use evolver_proto::{
    PUSHBACK,
    v1::{self, lease_reply::Outcome, report_reply::Verdict},
};
use tonic::Code;

use self::world::{Served, Worker, resolved, right};

/// A file system of 12 MiB.
struct Small(PathBuf);

impl Small {
    fn mount(folder: &Path) -> Option<Self> {
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", "size=12m", "tmpfs"]).arg(folder).output().ok()?;
        done.status.success().then(|| Self(folder.to_owned()))
    }

    fn fill(&self) {
        let mut file = File::create(self.0.join("ballast")).unwrap();
        let block = vec![0; 4096];
        while file.write_all(&block).is_ok() {}
    }

    fn empty(&self) {
        fs::remove_file(self.0.join("ballast")).unwrap();
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(&self.0).status().ok();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_stops_the_leases_and_the_search_goes_on_when_there_is_room() {
    let folder = tempfile::tempdir().unwrap();
    let Some(disk) = Small::mount(folder.path()) else {
        println!("skipped: a file system cannot be mounted here");
        return;
    };
    let search = folder.path().join("search");
    let served = Served::start(&search, &resolved(|_| ())).await;
    let mut worker = Worker::join(&served.address, "w").await;
    let first = worker.lease().await;
    assert_eq!(worker.finish(&first).await.verdict(), Verdict::Committed);
    let held = worker.lease().await;
    disk.fill();
    // It is not taken, and not lost: the worker is asked to come again.
    let request = v1::ReportRequest { worker: "w".into(), token: held.token, result: Some(right(&held)), timings: None };
    let status = worker.client.report(request.clone()).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    assert!(status.metadata().contains_key(PUSHBACK));
    let mut other = Worker::join(&served.address, "other").await;
    assert!(matches!(other.ask(Duration::from_millis(600)).await.unwrap(), Outcome::Idle(_)), "nothing is handed out");
    assert_eq!(served.status().stuck, "the coordinator's disk is full");
    assert!(worker.heartbeat(held.token).await.valid);
    disk.empty();
    let verdict = loop {
        match worker.client.report(request.clone()).await {
            Ok(reply) => break reply.into_inner().verdict(),
            Err(status) => assert_eq!(status.code(), Code::ResourceExhausted, "{status}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert_eq!(verdict, Verdict::Committed);
    other.work().await;
    served.end().await.unwrap();
    let calm = tempfile::tempdir().unwrap();
    let served = Served::start(calm.path(), &resolved(|_| ())).await;
    Worker::join(&served.address, "w").await.work().await;
    served.end().await.unwrap();
    let state = |folder: &Path| replay(&journal::read(folder).unwrap(), None).unwrap().search.state_hash();
    assert_eq!(state(&search), state(calm.path()));
}
