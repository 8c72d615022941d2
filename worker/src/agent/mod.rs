//! The agent: it talks to the coordinator and supervises one child process.
//!
//! - [`process`]: the child, its messages, and how it ended.
//! - [`link`]: the coordinator, through restarts, lost answers and other addresses.
//! - [`spool`]: finished reports on disk until they are answered.
//! - [`pause`]: growing pauses with jitter.

mod link;
mod pause;
mod process;
mod spool;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use evolver_common::{definition::Resolved, digest::Digest, score::Parts};
use evolver_proto::{
    PARTS_BYTES_MAX, parts_from_wire, parts_to_wire, portion_from_wire, scores_to_wire,
    v1::{self, lease_reply::Outcome, report_reply::Verdict},
    work_of,
};
use thiserror::Error;
use tokio::sync::watch;

pub use self::process::ChildCommand;
use self::{
    link::{Alive, Link},
    process::{Child, Event},
    spool::{Spool, Stored},
};
use crate::{
    child::{FailureClass, FromChild, ToChild},
    connect::{Target, TargetError},
};

/// How long a lease request waits at the coordinator.
const LEASE_WAIT: Duration = Duration::from_secs(10);
/// Tokens of a batch that a killed child's successor has at least.
const BATCH_TOKENS_MIN: usize = 64;
/// A child gets this long to open its checkpoints.
const SETUP_TIMEOUT: Duration = Duration::from_secs(600);
/// A leaving worker gets this long to hand in what is finished; what it holds is released after it.
const LAST_REPORTS: Duration = Duration::from_millis(900);
/// Tokens under which a finished report is offered, where each is superseded.
const OFFERS_MAX: usize = 5;

/// What an agent runs on.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    /// The coordinators.
    pub target: Target,
    /// Unique name of this worker.
    pub name: String,
    /// Host that it runs on.
    pub host: String,
    /// Scoring threads.
    pub threads: usize,
    /// Folder for caches and finished reports.
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
    /// An address, a certificate or a token cannot be used.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The child cannot be started or set up.
    #[error("the worker's child process: {0}")]
    Child(String),
    /// The definition that the coordinator sent cannot be read.
    #[error("the coordinator's definition cannot be read: {0}")]
    Definition(#[from] serde_json::Error),
}

/// Works for a coordinator until it says leave, or until `drain` becomes true: then what is finished is handed in, the attempt under way is given
/// back with the items that are done, and both within 5 seconds.
///
/// # Errors
/// See [`AgentError`].
pub async fn run(options: AgentOptions, mut drain: watch::Receiver<bool>) -> Result<String, AgentError> {
    let stopped = || Ok("told to stop".into());
    let mut link = tokio::select! {
        link = Link::open(&options) => link?,
        () = told(&mut drain) => return stopped(),
    };
    let resolved: Resolved = serde_json::from_str(link.definition())?;
    let mut agent = Agent {
        hang: Duration::try_from_secs_f64(resolved.definition.evaluator.hang_seconds).unwrap_or(Duration::MAX),
        limit: Duration::try_from_secs_f64(resolved.definition.evaluator.attempt_seconds).unwrap_or(Duration::MAX),
        spool: Spool::open(&options.cache, link.definition_hash()),
        setup: ToChild::Setup { resolved: Box::new(resolved), cache: options.cache.clone() },
        child: None,
        under_way: None,
        options,
    };
    tokio::select! {
        end = agent.work(&mut link) => end,
        () = told(&mut drain) => {
            agent.child = None;
            tokio::time::timeout(LAST_REPORTS, agent.last_reports(&mut link)).await.ok();
            link.drain().await;
            stopped()
        }
    }
}

/// Waits for the word to stop. Where nobody can say it any more, there is nothing to wait for.
async fn told(drain: &mut watch::Receiver<bool>) {
    if drain.wait_for(|drain| *drain).await.is_err() {
        std::future::pending::<()>().await;
    }
}

struct Agent {
    options: AgentOptions,
    setup: ToChild,
    /// Longest silence of the child.
    hang: Duration,
    /// Longest attempt.
    limit: Duration,
    child: Option<Child>,
    under_way: Option<UnderWay>,
    spool: Spool,
}

/// An attempt that has not ended.
struct UnderWay {
    token: Option<v1::Token>,
    /// Whether it goes on from another worker's items: then its result counts under this token only, whose coordinator knows it.
    helped: bool,
    /// The items that are done.
    parts: Parts,
}

/// How an attempt ended for the agent.
enum Ended {
    /// With this, under this token, which may be a later one than the attempt began with.
    Told(Option<v1::Token>, v1::report_request::Result, v1::Timings),
    /// Nobody wants it any more; the coordinator said this instead.
    Unwanted(Option<Outcome>),
}

impl Agent {
    async fn work(&mut self, link: &mut Link) -> Result<String, AgentError> {
        let mut next = None;
        // What an earlier agent of this machine finished and could not hand in.
        for stored in self.spool.entries().to_vec() {
            next = self.offer(stored, link).await?;
        }
        self.ready().await?;
        loop {
            let asked = Instant::now();
            let outcome = match next.take() {
                Some(outcome) => Some(outcome),
                None => link.lease(LEASE_WAIT, None).await?,
            };
            match outcome {
                Some(Outcome::Assignment(assignment)) => {
                    // Waiting for work to exist is not the lease's cost.
                    let lease = (asked.elapsed().as_secs_f64() - assignment.waited).max(0.0);
                    next = self.serve(&assignment, lease, link).await?;
                }
                Some(Outcome::Leave(leave)) => return Ok(leave.reason),
                Some(Outcome::Idle(_)) | None => {}
            }
        }
    }

    /// One assignment from lease to answer. What the coordinator said beyond it, if anything.
    async fn serve(&mut self, assignment: &v1::Assignment, lease: f64, link: &mut Link) -> Result<Option<Outcome>, AgentError> {
        let work = work_of(assignment);
        if let Some(done) = self.spool.find(work) {
            let mut stored = done.clone();
            stored.report.token = assignment.token;
            return self.deliver(stored, link).await;
        }
        let ended = self.attempt(assignment, work, link).await?;
        let helped = self.under_way.take().is_some_and(|attempt| attempt.helped);
        match ended {
            Ended::Unwanted(outcome) => Ok(outcome),
            Ended::Told(token, result, mut timings) => {
                timings.lease = lease;
                let report = v1::ReportRequest { worker: String::new(), token, result: Some(result), timings: Some(timings) };
                if helped {
                    link.report(report).await?;
                    return Ok(None);
                }
                self.deliver(Stored { work, report }, link).await
            }
        }
    }

    /// Hands in a report, kept on disk until it is answered. Scores whose token no longer holds are offered under a new one.
    async fn deliver(&mut self, mut stored: Stored, link: &mut Link) -> Result<Option<Outcome>, AgentError> {
        let scores = matches!(stored.report.result, Some(v1::report_request::Result::Scores(_)));
        if scores {
            self.spool.store(stored.clone());
        }
        let mut said = None;
        for _ in 0..OFFERS_MAX {
            let verdict = link.report(stored.report.clone()).await?;
            if verdict != Verdict::Superseded || !scores {
                break;
            }
            match link.lease(Duration::ZERO, Some(held(&stored))).await? {
                Some(Outcome::Assignment(again)) if work_of(&again) == stored.work => stored.report.token = again.token,
                other => {
                    said = other;
                    break;
                }
            }
        }
        self.spool.remove(stored.work);
        Ok(said)
    }

    /// Offers a report whose token may be long gone.
    async fn offer(&mut self, mut stored: Stored, link: &mut Link) -> Result<Option<Outcome>, AgentError> {
        match link.lease(Duration::ZERO, Some(held(&stored))).await? {
            Some(Outcome::Assignment(again)) if work_of(&again) == stored.work => {
                stored.report.token = again.token;
                self.deliver(stored, link).await
            }
            other => {
                self.spool.remove(stored.work);
                Ok(other)
            }
        }
    }

    /// Hands in what is finished, and what is done of the attempt under way, without asking for anything.
    async fn last_reports(&mut self, link: &mut Link) {
        if let Some(UnderWay { token, parts, .. }) = self.under_way.take().filter(|attempt| !attempt.parts.is_empty()) {
            tracing::info!(items = parts.items(), "handing in the items that are done");
            let released = v1::Released { parts: parts_to_wire(&parts.within(PARTS_BYTES_MAX)) };
            let result = Some(v1::report_request::Result::Released(released));
            // What is not taken is scored again by someone else.
            link.report(v1::ReportRequest { worker: String::new(), token, result, timings: None }).await.ok();
        }
        for stored in self.spool.entries().to_vec() {
            if link.report(stored.report).await.is_ok() {
                self.spool.remove(stored.work);
            }
        }
    }

    /// Starts a child if there is none and waits until it is set up.
    async fn ready(&mut self) -> Result<(), AgentError> {
        while self.child.is_none() {
            let start = || -> std::io::Result<Child> { Child::start(&self.options.child, self.options.threads) };
            let mut child = start().map_err(|error| AgentError::Child(format!("it cannot be started: {error}")))?;
            child.send(&self.setup).await;
            match child.event(SETUP_TIMEOUT).await {
                Event::Message(FromChild::Ready) => self.child = Some(child),
                Event::Message(FromChild::Failed { message, .. }) => return Err(AgentError::Child(message)),
                Event::Message(_) => return Err(AgentError::Child("it answered the setup with something else".into())),
                Event::Silent => return Err(AgentError::Child("it did not get ready in time".into())),
                // Killed while it started: the next one may live.
                Event::Ended(FailureClass::Killed, message) => {
                    tracing::warn!("the child was killed while it started: {message}");
                    tokio::time::sleep(pause::jitter(Duration::from_secs(1))).await;
                }
                Event::Ended(_, message) => return Err(AgentError::Child(message)),
            }
        }
        Ok(())
    }

    /// One attempt. A token that no longer holds is asked for again: a coordinator that started anew knows nothing of the old one, and the work is
    /// the same.
    async fn attempt(&mut self, assignment: &v1::Assignment, work: Digest, link: &mut Link) -> Result<Ended, AgentError> {
        self.ready().await?;
        let known = parts_from_wire(assignment.parts.clone());
        let helped = !known.is_empty();
        let under_way = self.under_way.insert(UnderWay { token: assignment.token, helped, parts: known.clone() });
        let told = |token, (result, timings)| Ok(Ended::Told(token, result, timings));
        let Some(child) = &mut self.child else {
            return Ok(Ended::Unwanted(None));
        };
        let portion = match portion_from_wire(assignment) {
            Ok(portion) => portion,
            Err(error) => return told(under_way.token, failure(FailureClass::Error, &error.to_string())),
        };
        let keep = assignment.keep.iter().filter_map(|id| Digest::try_from(id.as_slice()).ok());
        child.send(&ToChild::Work { recipe: assignment.recipe.clone(), portion, keep: keep.collect(), known }).await;
        let mut scoring = Scoring { parts: &mut under_way.parts, progress: (0, 0), alive: Instant::now() };
        let (began, mut beat) = (scoring.alive, scoring.alive);
        let heard = loop {
            let wait = link.heartbeat_interval().saturating_sub(beat.elapsed());
            if let Some(heard) = scoring.hear(child.event(wait).await) {
                break heard;
            }
            let over = [(scoring.alive, self.hang, "no progress for"), (began, self.limit, "no end after")];
            if let Some((_, limit, what)) = over.into_iter().find(|(since, limit, _)| since.elapsed() > *limit) {
                self.child = None;
                return told(under_way.token, failure(FailureClass::Hang, &format!("{what} {} seconds", limit.as_secs_f64())));
            }
            if beat.elapsed() < link.heartbeat_interval() {
                continue;
            }
            beat = Instant::now();
            let progress = scoring.progress;
            match scoring.meanwhile(child, link.heartbeat(under_way.token, progress)).await {
                Ok(Alive::Yes) => continue,
                Ok(Alive::No) => {}
                Err(heard) => break heard,
            }
            if helped {
                self.child = None;
                return Ok(Ended::Unwanted(None));
            }
            let held = v1::Held { spec: under_way.token.map_or(0, |token| token.spec), work: work.as_bytes().to_vec() };
            match scoring.meanwhile(child, link.lease(Duration::ZERO, Some(held))).await {
                Err(heard) => break heard,
                Ok(reply) => match reply? {
                    Some(Outcome::Assignment(again)) if work_of(&again) == work => under_way.token = again.token,
                    other => {
                        // Nobody waits for this any more; a new child is sooner ready than an old one persuaded.
                        self.child = None;
                        return Ok(Ended::Unwanted(other));
                    }
                },
            }
        };
        match heard {
            Heard::Answer(result, timings) => told(under_way.token, (result, timings)),
            Heard::End(class, message) => {
                self.child = None;
                if class == FailureClass::Killed {
                    smaller_batches(&mut self.setup);
                }
                told(under_way.token, failure(class, &message))
            }
        }
    }
}

/// What a child has said of its attempt so far.
struct Scoring<'a> {
    parts: &'a mut Parts,
    progress: (u64, u64),
    alive: Instant,
}

/// The last that is heard of an attempt.
enum Heard {
    Answer(v1::report_request::Result, v1::Timings),
    End(FailureClass, String),
}

impl Scoring<'_> {
    fn hear(&mut self, event: Event) -> Option<Heard> {
        match event {
            Event::Message(FromChild::Progress { done, total, found }) => {
                self.progress = (done, total);
                self.parts.extend(found);
                self.alive = Instant::now();
                None
            }
            Event::Message(FromChild::Scored { scores, build, score }) => {
                let timings = v1::Timings { build, score, ..v1::Timings::default() };
                Some(Heard::Answer(v1::report_request::Result::Scores(scores_to_wire(&scores)), timings))
            }
            Event::Message(FromChild::Failed { class, message }) => {
                let (result, timings) = failure(class, &message);
                Some(Heard::Answer(result, timings))
            }
            Event::Ended(class, message) => Some(Heard::End(class, message)),
            Event::Message(FromChild::Ready) | Event::Silent => None,
        }
    }

    /// Awaits an answer from elsewhere, and listens to the child meanwhile: a full pipe would hold it up for as long as the coordinator is away.
    async fn meanwhile<T>(&mut self, child: &mut Child, answer: impl Future<Output = T>) -> Result<T, Heard> {
        tokio::pin!(answer);
        loop {
            tokio::select! {
                biased;
                answer = &mut answer => return Ok(answer),
                event = child.event(Duration::from_secs(60)) => if let Some(heard) = self.hear(event) {
                    return Err(heard);
                }
            }
        }
    }
}

/// What kills a child from outside is mostly the kernel, short of memory: the next one takes half of it for its batches, which no outcome shows.
fn smaller_batches(setup: &mut ToChild) {
    if let ToChild::Setup { resolved, .. } = setup {
        let tokens = &mut resolved.definition.evaluator.batch_tokens;
        *tokens = (*tokens / 2).max(BATCH_TOKENS_MIN).min(*tokens);
    }
}

fn held(stored: &Stored) -> v1::Held {
    v1::Held { spec: stored.spec(), work: stored.work.as_bytes().to_vec() }
}

fn failure(class: FailureClass, message: &str) -> (v1::report_request::Result, v1::Timings) {
    let failure = v1::Failure { class: v1::FailureClass::from(class).into(), message: message.to_owned() };
    (v1::report_request::Result::Failure(failure), v1::Timings::default())
}
