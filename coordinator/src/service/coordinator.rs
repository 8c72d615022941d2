//! A running coordinator: the one thread that has a [`Core`], and the handle to it.

use std::{
    hash::{BuildHasher as _, RandomState},
    path::PathBuf,
    sync::Arc,
    thread::JoinHandle,
    time::Instant,
};

use evolver_common::definition::{Resolved, ResolvedTask};
use evolver_proto::{request_bytes_max, v1};
use tokio::sync::{mpsc, oneshot, watch};

use super::core::{Command, Core, EndError, StartError, TICK};
use crate::{access::Audit, journal::Journal};

/// Requests that may wait.
const QUEUE: usize = 4096;

/// What a coordinator runs on.
#[derive(Clone, Debug)]
pub struct Options {
    /// The search's folder.
    pub dir: PathBuf,
    /// The definition, bound to the world.
    pub resolved: Resolved,
    /// Whether workers may report what is not so: if not, their scores are never compared. A program that starts its own workers trusts them.
    pub compare: bool,
}

/// A running coordinator.
pub struct Coordinator {
    pub(super) commands: mpsc::Sender<Command>,
    /// Largest request that is read, in bytes.
    pub(super) request_bytes: usize,
    pub(super) audit: Arc<Audit>,
    status: watch::Receiver<v1::Status>,
    stop: oneshot::Sender<()>,
    thread: JoinHandle<Result<(), EndError>>,
}

impl Coordinator {
    /// Opens the folder, folds what it holds, and starts.
    ///
    /// # Errors
    /// See [`StartError`]; nothing was changed then.
    pub fn start(options: &Options) -> Result<Self, StartError> {
        let (journal, records) = Journal::open(&options.dir)?;
        let seed = RandomState::new().hash_one(records.len());
        let mut core = Core::start(journal, &records, &options.resolved, options.compare, seed)?;
        drop(records);
        let audit = Arc::new(Audit::open(&options.dir));
        core.audited_by(Arc::clone(&audit));
        let status = core.watch();
        let (commands, requests) = mpsc::channel(QUEUE);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("coordinator".into())
            .spawn(move || runtime.block_on(run(core, requests, stopped)))?;
        let items = |split: fn(&ResolvedTask) -> usize| -> usize { options.resolved.tasks.iter().map(split).sum() };
        let dev = items(|task| task.dev.items);
        let test = items(|task| task.test.as_ref().map_or(0, |test| test.items));
        let request_bytes = request_bytes_max(dev.max(test));
        Ok(Self { commands, request_bytes, audit, status, stop, thread })
    }

    /// The search's status, now and after every change.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<v1::Status> {
        self.status.clone()
    }

    /// Hands out no more work; what is under way is awaited. Workers leave if they are dismissed, else they wait for the next coordinator.
    pub async fn pause(&self, dismiss: bool) {
        // A coordinator that has ended needs no pause.
        self.commands.send(Command::Pause { dismiss }).await.ok();
    }

    /// Ends the coordinator, whoever is still connected. What was handed in is committed; work under way is lost.
    ///
    /// # Errors
    /// If it ended before its time.
    pub fn join(self) -> Result<(), EndError> {
        drop(self.stop);
        self.thread.join().map_err(|_| EndError::Panicked)?
    }
}

async fn run(
    mut core: Core<Journal>,
    mut requests: mpsc::Receiver<Command>,
    mut stopped: oneshot::Receiver<()>,
) -> Result<(), EndError> {
    let started = Instant::now();
    loop {
        let mut commands = Vec::new();
        let mut last = false;
        tokio::select! {
            count = requests.recv_many(&mut commands, QUEUE) => last = count == 0,
            _ = &mut stopped => {
                requests.close();
                while requests.recv_many(&mut commands, QUEUE).await > 0 {}
                last = true;
            }
            () = tokio::time::sleep(TICK) => {}
        }
        if last {
            return core.end(started.elapsed(), commands);
        }
        core.step(started.elapsed(), commands)?;
    }
}
