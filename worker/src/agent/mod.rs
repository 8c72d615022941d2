//! The agent: it talks to the coordinator and supervises one child process.
//!
//! - [`process`]: the child, its messages, and how it ended.
//! - [`link`]: the coordinator, through restarts and lost answers.

mod link;
mod process;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use evolver_common::{definition::Resolved, digest::Digest};
use evolver_proto::{portion_from_wire, scores_to_wire, v1};
use thiserror::Error;
use tokio::sync::watch;

pub use self::process::ChildCommand;
use self::{
    link::Link,
    process::{Child, Event},
};
use crate::child::{FailureClass, FromChild, ToChild};

/// How long a lease request waits at the coordinator.
const LEASE_WAIT: Duration = Duration::from_secs(10);
/// A child gets this long to open its checkpoints.
const SETUP_TIMEOUT: Duration = Duration::from_secs(600);

/// What an agent runs on.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    /// The coordinator, as `host:port` or a URL.
    pub connect: String,
    /// Unique name of this worker.
    pub name: String,
    /// Host that it runs on.
    pub host: String,
    /// Scoring threads.
    pub threads: usize,
    /// Folder for caches.
    pub cache: PathBuf,
    /// How the child is started.
    pub child: ChildCommand,
    /// How long a coordinator may be away.
    pub patience: Duration,
}

/// An agent that cannot go on.
#[derive(Debug, Error)]
pub enum AgentError {
    /// The coordinator says no, for instance to the protocol's version.
    #[error("the coordinator at {0}")]
    Refused(String),
    /// The coordinator cannot be reached.
    #[error("no coordinator answers at {0}")]
    Unreachable(String),
    /// The child cannot be started or set up.
    #[error("the worker's child process: {0}")]
    Child(String),
    /// The definition that the coordinator sent cannot be read.
    #[error("the coordinator's definition cannot be read: {0}")]
    Definition(#[from] serde_json::Error),
}

/// Works for a coordinator until it says leave, or until `drain` becomes true: then the attempt under way is given back at once.
///
/// # Errors
/// See [`AgentError`].
pub async fn run(options: AgentOptions, mut drain: watch::Receiver<bool>) -> Result<String, AgentError> {
    let mut link = Link::open(&options).await?;
    let resolved: Resolved = serde_json::from_str(link.definition())?;
    let mut agent = Agent {
        hang: Duration::from_secs_f64(resolved.definition.evaluator.hang_seconds),
        setup: ToChild::Setup { resolved: Box::new(resolved), cache: options.cache.clone() },
        child: None,
        options,
    };
    agent.ready().await?;
    loop {
        let asked = Instant::now();
        let reply = tokio::select! {
            reply = link.lease(LEASE_WAIT) => reply?,
            _ = drain.wait_for(|drain| *drain) => {
                link.drain().await;
                return Ok("told to stop".into());
            }
        };
        match reply {
            Some(v1::lease_reply::Outcome::Assignment(assignment)) => {
                // Waiting for work to exist is not the lease's cost; a lease that was there at once takes a round trip.
                let lease = asked.elapsed().min(Duration::from_millis(50));
                let report = tokio::select! {
                    report = agent.attempt(&assignment, &mut link) => report?,
                    _ = drain.wait_for(|drain| *drain) => {
                        link.drain().await;
                        return Ok("told to stop".into());
                    }
                };
                if let Some((result, mut timings)) = report {
                    timings.lease = lease.as_secs_f64();
                    link.report(assignment.token, result, timings).await?;
                }
            }
            Some(v1::lease_reply::Outcome::Leave(leave)) => return Ok(leave.reason),
            Some(v1::lease_reply::Outcome::Idle(_)) | None => {}
        }
    }
}

struct Agent {
    options: AgentOptions,
    setup: ToChild,
    hang: Duration,
    child: Option<Child>,
}

type Attempt = Option<(v1::report_request::Result, v1::Timings)>;

impl Agent {
    /// Starts a child if there is none and waits until it is set up.
    async fn ready(&mut self) -> Result<(), AgentError> {
        if self.child.is_some() {
            return Ok(());
        }
        let start = || -> std::io::Result<Child> { Child::start(&self.options.child, self.options.threads) };
        let mut child = start().map_err(|error| AgentError::Child(format!("it cannot be started: {error}")))?;
        child.send(&self.setup).await;
        match child.event(SETUP_TIMEOUT).await {
            Event::Message(FromChild::Ready) => {
                self.child = Some(child);
                Ok(())
            }
            Event::Message(FromChild::Failed { message, .. }) => Err(AgentError::Child(message)),
            Event::Message(_) => Err(AgentError::Child("it answered the setup with something else".into())),
            Event::Silent => Err(AgentError::Child("it did not get ready in time".into())),
            // Killed while it started: the next one may live.
            Event::Ended(FailureClass::Killed, message) => {
                tracing::warn!("the child was killed while it started: {message}");
                Box::pin(self.ready()).await
            }
            Event::Ended(_, message) => Err(AgentError::Child(message)),
        }
    }

    /// One attempt; `None` if its token no longer holds.
    async fn attempt(&mut self, assignment: &v1::Assignment, link: &mut Link) -> Result<Attempt, AgentError> {
        self.ready().await?;
        let Some(child) = &mut self.child else {
            return Ok(None);
        };
        let portion = match portion_from_wire(assignment) {
            Ok(portion) => portion,
            Err(error) => return Ok(Some(failure(FailureClass::Error, &error.to_string()))),
        };
        let keep = assignment.keep.iter().filter_map(|id| Digest::try_from(id.as_slice()).ok());
        child.send(&ToChild::Work { recipe: assignment.recipe.clone(), portion, keep: keep.collect() }).await;
        let mut alive = Instant::now();
        let mut progress = (0, 0);
        loop {
            match child.event(link.heartbeat_interval()).await {
                Event::Message(FromChild::Progress { done, total }) => {
                    progress = (done, total);
                    alive = Instant::now();
                }
                Event::Message(FromChild::Scored { scores, build, score }) => {
                    let timings = v1::Timings { build, score, ..v1::Timings::default() };
                    return Ok(Some((v1::report_request::Result::Scores(scores_to_wire(&scores)), timings)));
                }
                Event::Message(FromChild::Failed { class, message }) => return Ok(Some(failure(class, &message))),
                Event::Message(FromChild::Ready) => {}
                Event::Ended(class, message) => {
                    self.child = None;
                    return Ok(Some(failure(class, &message)));
                }
                Event::Silent => {}
            }
            if alive.elapsed() > self.hang {
                self.child = None;
                let seconds = self.hang.as_secs_f64();
                return Ok(Some(failure(FailureClass::Hang, &format!("no progress for {seconds} seconds"))));
            }
            if !link.heartbeat(assignment.token, progress).await {
                // Nobody waits for this any more; a new child is sooner ready than an old one persuaded.
                self.child = None;
                return Ok(None);
            }
        }
    }
}

fn failure(class: FailureClass, message: &str) -> (v1::report_request::Result, v1::Timings) {
    let failure = v1::Failure { class: v1::FailureClass::from(class).into(), message: message.to_owned() };
    (v1::report_request::Result::Failure(failure), v1::Timings::default())
}
