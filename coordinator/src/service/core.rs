//! The one thread that owns search, fleet and journal.
//!
//! Requests reach it through a bounded channel and are answered through oneshots. Reports that wait together are committed together: one
//! synced transaction, and only then their acknowledgements.

use std::{
    path::PathBuf,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use evolver_common::{
    definition::{ChangeError, Resolved, ResolvedTask, compatible},
    digest::Digest,
    recipe::encode,
    score::{Scores, Split},
};
use evolver_proto::{PROTOCOL, request_bytes_max, scores_from_wire, split_to_wire, subset_to_wire, v1};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot, watch};

use super::replay::{self, Replay, ReplayError, STOP_SECONDS};
use crate::{
    fleet::{Fleet, Token, Verdict},
    journal::{Journal, JournalError, Record, Timings},
    search::{Outcome, Phase},
};

/// Requests that may wait.
const QUEUE: usize = 1024;
/// How often leases are looked at.
const TICK: Duration = Duration::from_millis(200);
/// Longest that a lease request waits for work.
const WAIT_MAX: Duration = Duration::from_secs(20);
/// Longest name of a worker or host, in bytes.
const NAME_MAX: usize = 200;
/// Longest reason of a failure that is journaled, in bytes.
const REASON_MAX: usize = 4000;

/// What a coordinator runs on.
#[derive(Clone, Debug)]
pub struct Options {
    /// The search's folder.
    pub dir: PathBuf,
    /// The definition, bound to the world.
    pub resolved: Resolved,
}

/// A coordinator that cannot start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The journal cannot be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Its records do not make a search.
    #[error(transparent)]
    Replay(#[from] ReplayError),
    /// The definition changed.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// The system refuses.
    #[error("cannot start the coordinator: {0}")]
    System(#[from] std::io::Error),
    /// The definition cannot be written.
    #[error("cannot write the definition: {0}")]
    Encode(#[from] serde_json::Error),
}

/// A coordinator that ended before its time.
#[derive(Debug, Error)]
pub enum EndError {
    /// The journal could not be written; what was not acknowledged will be asked for again.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A fault of the program; its words are above.
    #[error("the coordinator ended by a fault of its own; nothing that was acknowledged is lost")]
    Panicked,
}

pub(super) type Reply<T> = oneshot::Sender<T>;

/// A request to the owner thread.
pub(super) enum Command {
    Register(v1::RegisterRequest, Reply<Result<v1::RegisterReply, String>>),
    Lease(v1::LeaseRequest, Reply<Result<v1::LeaseReply, String>>),
    Heartbeat(v1::HeartbeatRequest, Reply<v1::HeartbeatReply>),
    Report(Box<v1::ReportRequest>, Reply<Result<v1::ReportReply, String>>),
    Drain(v1::DrainRequest, Reply<v1::DrainReply>),
    /// Hand out no more work.
    Pause,
}

/// A running coordinator.
pub struct Coordinator {
    pub(super) commands: mpsc::Sender<Command>,
    /// Largest request that is read, in bytes.
    pub(super) request_bytes: usize,
    status: watch::Receiver<v1::Status>,
    stop: oneshot::Sender<()>,
    thread: JoinHandle<Result<(), JournalError>>,
}

impl Coordinator {
    /// Opens the folder, folds what it holds, and starts.
    ///
    /// # Errors
    /// See [`StartError`]; nothing was changed then.
    pub fn start(options: &Options) -> Result<Self, StartError> {
        let (mut journal, records) = Journal::open(&options.dir)?;
        let definition = Record::Definition { resolved: serde_json::to_value(&options.resolved)?, hash: options.resolved.hash() };
        let mut opening = Vec::new();
        if records.is_empty() {
            opening.push(definition);
        } else {
            let old = replay::definition(&records)?;
            compatible(&old, &options.resolved)?;
            if old != options.resolved {
                opening.push(definition);
            }
        }
        let replay = replay::replay(&records, Some(&options.resolved))?;
        let epoch = replay.epoch + 1;
        opening.push(Record::Start { epoch, version: env!("CARGO_PKG_VERSION").into() });
        journal.append(&opening)?;
        let (commands, requests) = mpsc::channel(QUEUE);
        let (publish, status) = watch::channel(v1::Status::default());
        let fleet = &options.resolved.definition.fleet;
        let mut core = Core {
            fleet: Fleet::new(epoch, duration(fleet.lease_seconds), fleet.attempts),
            definition: serde_json::to_string(&options.resolved)?,
            hash: options.resolved.hash(),
            generation: replay.search.generation(),
            replay,
            journal,
            epoch,
            waiting: Vec::new(),
            later: Vec::new(),
            started: Instant::now(),
            paused: false,
            publish,
        };
        core.pump();
        core.publish();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("coordinator".into())
            .spawn(move || runtime.block_on(core.run(requests, stopped)))?;
        let items = |split: fn(&ResolvedTask) -> usize| -> usize { options.resolved.tasks.iter().map(split).sum() };
        let dev = items(|task| task.dev.items);
        let test = items(|task| task.test.as_ref().map_or(0, |test| test.items));
        Ok(Self { commands, request_bytes: request_bytes_max(dev.max(test)), status, stop, thread })
    }

    /// The search's status, now and after every change.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<v1::Status> {
        self.status.clone()
    }

    /// Hands out no more work; what is under way is awaited.
    pub async fn pause(&self) {
        // A coordinator that has ended needs no pause.
        self.commands.send(Command::Pause).await.ok();
    }

    /// Ends the coordinator, whoever is still connected. What was handed in is committed; work under way is lost.
    ///
    /// # Errors
    /// If it ended before its time.
    pub fn join(self) -> Result<(), EndError> {
        drop(self.stop);
        self.thread.join().map_err(|_| EndError::Panicked)?.map_err(EndError::Journal)
    }
}

struct Waiting {
    worker: String,
    until: Instant,
    reply: Reply<Result<v1::LeaseReply, String>>,
}

struct Core {
    replay: Replay,
    fleet: Fleet,
    journal: Journal,
    epoch: u64,
    definition: String,
    hash: Digest,
    waiting: Vec<Waiting>,
    /// Records that need no acknowledgement and go with the next commit.
    later: Vec<Record>,
    generation: u64,
    started: Instant,
    paused: bool,
    publish: watch::Sender<v1::Status>,
}

/// A report that has passed its checks and waits for the commit.
struct Accepted {
    token: Token,
    record: Record,
    outcome: Option<Outcome>,
    reply: Reply<Result<v1::ReportReply, String>>,
    verdict: v1::ReportReply,
}

impl Core {
    async fn run(
        mut self,
        mut requests: mpsc::Receiver<Command>,
        mut stopped: oneshot::Receiver<()>,
    ) -> Result<(), JournalError> {
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
            let mut reports = Vec::new();
            for command in commands {
                self.handle(command, &mut reports);
            }
            self.commit(reports)?;
            if last {
                return self.append(Vec::new());
            }
            self.tick()?;
            self.pump();
            self.serve();
            self.publish();
        }
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn handle(&mut self, command: Command, reports: &mut Vec<Accepted>) {
        // A caller that has gone away needs no answer: `send` may fail.
        match command {
            Command::Register(request, reply) => {
                reply.send(self.register(&request)).ok();
            }
            Command::Lease(request, reply) => {
                if request.epoch != self.epoch || !self.fleet.knows(&request.worker) {
                    reply.send(Err("this worker is not registered with this start of the coordinator".into())).ok();
                } else {
                    // A worker asks once at a time: an older request of its name is one whose answer it no longer waits for.
                    self.fleet.free(&request.worker);
                    for older in self.waiting.extract_if(.., |waiting| waiting.worker == request.worker) {
                        older.reply.send(Ok(idle())).ok();
                    }
                    let wait = Duration::from_millis(u64::from(request.wait_ms)).min(WAIT_MAX);
                    self.waiting.push(Waiting { worker: request.worker, until: Instant::now() + wait, reply });
                }
            }
            Command::Heartbeat(request, reply) => {
                let token = request.token.map(token);
                let valid = token.is_none_or(|token| self.fleet.is_live(token)) && request.epoch == self.epoch;
                let progress = (request.items_done, request.items_total);
                let drain = self.fleet.heartbeat(&request.worker, token, progress, self.now());
                reply.send(v1::HeartbeatReply { valid, drain }).ok();
            }
            Command::Report(request, reply) => self.report(*request, reply, reports),
            Command::Drain(request, reply) => {
                if request.epoch == self.epoch {
                    self.fleet.drain(&request.worker);
                }
                reply.send(v1::DrainReply {}).ok();
            }
            Command::Pause => self.paused = true,
        }
    }

    fn register(&mut self, request: &v1::RegisterRequest) -> Result<v1::RegisterReply, String> {
        if request.protocol != PROTOCOL {
            return Err(format!(
                "the worker speaks protocol {}, and this coordinator protocol {PROTOCOL}: use the same version of evolver on both sides",
                request.protocol
            ));
        }
        for (what, name) in [("name", &request.worker), ("host", &request.host)] {
            if name.is_empty() || name.len() > NAME_MAX {
                return Err(format!("the worker's {what} has {} bytes: it needs 1 to {NAME_MAX}", name.len()));
            }
        }
        self.fleet.register(&request.worker, &request.host, self.now());
        tracing::info!(worker = request.worker, host = request.host, "worker registered");
        let fleet = &self.replay.resolved.definition.fleet;
        let milliseconds = |seconds: f64| u32::try_from(duration(seconds).as_millis()).unwrap_or(u32::MAX);
        Ok(v1::RegisterReply {
            epoch: self.epoch,
            definition: self.definition.clone(),
            definition_hash: self.hash.as_bytes().to_vec(),
            heartbeat_ms: milliseconds(fleet.heartbeat_seconds),
            lease_ms: milliseconds(fleet.lease_seconds),
        })
    }

    fn report(&mut self, request: v1::ReportRequest, reply: Reply<Result<v1::ReportReply, String>>, reports: &mut Vec<Accepted>) {
        let Some(token) = request.token.map(token) else {
            reply.send(Err("the report has no token".into())).ok();
            return;
        };
        let holder = self.fleet.holder(token).map(str::to_owned);
        let twice = reports.iter().any(|other| other.token == token);
        let Some(worker) = holder.filter(|_| !twice) else {
            reply
                .send(Ok(answer(v1::report_reply::Verdict::Superseded, "another attempt holds this spec, or it has a result")))
                .ok();
            return;
        };
        let scores = match request.result {
            Some(v1::report_request::Result::Scores(scores)) => scores,
            Some(v1::report_request::Result::Failure(failure)) => {
                let class = v1::FailureClass::try_from(failure.class).unwrap_or_default();
                let killed = class == v1::FailureClass::Killed;
                let class = class.as_str_name().trim_start_matches("FAILURE_CLASS_").to_lowercase();
                let message = &failure.message[..failure.message.floor_char_boundary(REASON_MAX)];
                return self.failed(token, &worker, &format!("{class}: {message}"), killed, None, reply, reports);
            }
            Some(v1::report_request::Result::Released(_)) | None => {
                self.fleet.release(token);
                reply.send(Ok(answer(v1::report_reply::Verdict::Committed, ""))).ok();
                return;
            }
        };
        match scores_from_wire(scores).map_err(|error| error.to_string()).and_then(|scores| self.check(token.spec, scores)) {
            Ok(scores) => {
                let timings = request.timings.unwrap_or_default();
                reports.push(Accepted {
                    token,
                    record: Record::Result {
                        number: token.spec,
                        recipe: self.recipe_id(token.spec),
                        scores: scores.clone(),
                        worker,
                        attempt: token.attempt,
                        timings: Timings {
                            lease: seconds(timings.lease),
                            build: seconds(timings.build),
                            score: seconds(timings.score),
                            report: seconds(timings.report),
                        },
                        elapsed: self.now().as_secs_f64(),
                    },
                    outcome: Some(Outcome::Scored(scores)),
                    reply,
                    verdict: answer(v1::report_reply::Verdict::Committed, ""),
                });
            }
            Err(reason) => {
                let refused = answer(v1::report_reply::Verdict::Refused, &reason);
                self.failed(token, &worker, &reason, false, Some(refused), reply, reports);
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "one attempt's end with all that is known of it")]
    fn failed(
        &mut self,
        token: Token,
        worker: &str,
        reason: &str,
        killed: bool,
        verdict: Option<v1::ReportReply>,
        reply: Reply<Result<v1::ReportReply, String>>,
        reports: &mut Vec<Accepted>,
    ) {
        tracing::warn!(worker, spec = token.spec, reason, "attempt failed");
        let attempt = Record::Attempt { number: token.spec, worker: worker.to_owned(), reason: reason.to_owned() };
        let verdict = verdict.unwrap_or_else(|| answer(v1::report_reply::Verdict::Committed, ""));
        let (record, outcome) = match if killed { self.fleet.lose(token) } else { self.fleet.fail(token, reason) } {
            Verdict::Retry => (attempt, None),
            Verdict::GiveUp(reason) => {
                self.later.push(attempt);
                let record = Record::Failure { number: token.spec, reason: reason.clone() };
                (record, Some(Outcome::Failed(reason)))
            }
        };
        reports.push(Accepted { token, record, outcome, reply, verdict });
    }

    /// The scores must cover each task's items, and say the accuracy that their items say.
    fn check(&self, spec: u64, scores: Scores) -> Result<Scores, String> {
        let portion = self.fleet.spec(spec).map_or(Split::Dev.into(), |spec| spec.portion);
        let tasks = &self.replay.search.setup().tasks;
        if tasks.len() != scores.tasks.len() {
            return Err(format!("{} tasks were scored, and there are {}", scores.tasks.len(), tasks.len()));
        }
        for ((task, score), weighted) in tasks.iter().zip(&scores.tasks).zip(&self.replay.search.setup().objective.tasks) {
            let items = portion.count(if portion.split == Split::Test { task.test_items } else { task.dev_items });
            if task.name != score.task || score.credits.len() != items {
                return Err(format!(
                    "task {} has {items} items to be scored, and {} of task {} were reported",
                    task.name,
                    score.credits.len(),
                    score.task
                ));
            }
            if items > 0 && !score.metrics.contains_key(&weighted.metric) {
                return Err(format!("task {}: the metric {} is missing", task.name, weighted.metric));
            }
            #[expect(clippy::cast_precision_loss, reason = "a count of items")]
            let mean = score.credits.iter().map(|&credit| f64::from(credit)).sum::<f64>() / items as f64;
            if score.metrics.get("accuracy").is_some_and(|accuracy| (accuracy - mean).abs() > 1e-9) {
                return Err(format!("task {}: the accuracy is not the mean of its items, {mean}", task.name));
            }
        }
        Ok(scores)
    }

    fn recipe_id(&self, spec: u64) -> Digest {
        self.fleet.spec(spec).map_or(self.hash, |spec| spec.recipe.id())
    }

    /// One synced transaction, then the acknowledgements, then the search.
    fn commit(&mut self, reports: Vec<Accepted>) -> Result<(), JournalError> {
        self.append(reports.iter().map(|report| report.record.clone()).collect())?;
        let mut outcomes = Vec::new();
        for report in reports {
            report.reply.send(Ok(report.verdict)).ok();
            outcomes.extend(report.outcome.map(|outcome| (report.token.spec, outcome)));
        }
        self.tell(outcomes);
        Ok(())
    }

    /// Appends what waits and then `records`, in one synced transaction.
    fn append(&mut self, records: Vec<Record>) -> Result<(), JournalError> {
        let mut all = std::mem::take(&mut self.later);
        all.extend(records);
        self.journal.append(&all)
    }

    /// Hands over what has just been journaled, in the same order.
    fn tell(&mut self, outcomes: Vec<(u64, Outcome)>) {
        for (number, outcome) in outcomes {
            self.fleet.finish(number);
            self.replay.told.insert(number);
            if let Err(error) = self.replay.search.tell(number, outcome) {
                // The fleet only holds specs that the search drew, each until it has its one result.
                tracing::error!("a result did not fit the search: {error}");
            }
        }
        let generation = self.replay.search.generation();
        if generation > self.generation {
            self.generation = generation;
            // The state after all of them: that is where the record will stand.
            self.later.push(Record::State { absorbed: self.replay.search.absorbed(), hash: self.replay.search.state_hash() });
        }
    }

    /// Leases that ran out, and the clock's limit.
    fn tick(&mut self) -> Result<(), JournalError> {
        let lost = self.fleet.expire(self.now());
        if !lost.is_empty() {
            let failure = |(number, reason): &(u64, String)| Record::Failure { number: *number, reason: reason.clone() };
            self.append(lost.iter().map(failure).collect())?;
            self.tell(lost.into_iter().map(|(number, reason)| (number, Outcome::Failed(reason))).collect());
        }
        let limit = self.replay.resolved.definition.stop.seconds;
        let seconds = self.replay.spent.seconds + self.now().as_secs_f64();
        let running = matches!(self.replay.search.phase(), Phase::Search) && !self.replay.search.is_ending();
        if running && limit.is_some_and(|limit| seconds >= limit) {
            let number = self.replay.search.drawn();
            self.append(vec![Record::Stop { number, reason: STOP_SECONDS.into() }])?;
            self.replay.search.stop(number, STOP_SECONDS);
        }
        Ok(())
    }

    /// Moves what the search has drawn to the fleet.
    fn pump(&mut self) {
        while let Some(spec) = self.replay.search.ask() {
            if !self.replay.told.contains(&spec.number) {
                self.fleet.add(spec);
            }
        }
        for spec in self.replay.search.tests() {
            self.fleet.add(spec);
        }
    }

    /// Answers the workers that wait for work.
    fn serve(&mut self) {
        let leave = if self.replay.search.phase() == Phase::Finished {
            Some("the search has finished")
        } else if self.paused {
            Some("the coordinator is stopping")
        } else {
            None
        };
        for waiting in std::mem::take(&mut self.waiting) {
            if waiting.reply.is_closed() {
                continue;
            }
            let leave = leave.or(self.fleet.is_leaving(&waiting.worker).then_some("this worker was told to leave"));
            if let Some(reason) = leave {
                let leave = v1::Leave { reason: reason.into() };
                waiting.reply.send(Ok(lease_reply(v1::lease_reply::Outcome::Leave(leave)))).ok();
            } else if let Some((token, spec)) = self.fleet.lease(&waiting.worker, self.now()) {
                let keep = self.replay.search.population().iter().map(|member| member.id.as_bytes().to_vec());
                let assignment = v1::Assignment {
                    token: Some(v1::Token { epoch: token.epoch, spec: token.spec, attempt: token.attempt }),
                    recipe: encode(&spec.recipe),
                    split: split_to_wire(spec.portion.split),
                    keep: keep.collect(),
                    subset: spec.portion.subset.map(subset_to_wire),
                };
                let reply = lease_reply(v1::lease_reply::Outcome::Assignment(assignment));
                if waiting.reply.send(Ok(reply)).is_err() {
                    self.fleet.release(token);
                }
            } else if waiting.until <= Instant::now() {
                waiting.reply.send(Ok(idle())).ok();
            } else {
                self.waiting.push(waiting);
            }
        }
    }

    fn publish(&self) {
        let search = &self.replay.search;
        let counters = search.counters();
        let busy = self.fleet.workers().any(|(_, worker)| worker.holds.is_some());
        let phase = match search.phase() {
            _ if self.paused && !busy => "paused",
            Phase::Start => "start",
            Phase::Search => "search",
            Phase::Test => "test",
            Phase::Finished => "finished",
        };
        let worker = |(name, worker): (&String, &crate::fleet::Worker)| v1::WorkerStatus {
            worker: name.clone(),
            host: worker.host.clone(),
            spec: worker.holds,
            items_done: worker.done,
            items_total: worker.total,
        };
        let best = search.best().map(|best| {
            let interval = search.interval(&best.scores);
            v1::Best { id: best.id.to_string(), dev: best.dev, dev_low: interval.low, dev_high: interval.high }
        });
        let status = v1::Status {
            epoch: self.epoch,
            phase: phase.into(),
            generation: search.generation(),
            issued: counters.issued,
            committed: counters.committed,
            accepted: counters.accepted,
            failed: counters.failed,
            offspring_limit: search.planned(),
            best,
            workers: self.fleet.workers().map(worker).collect(),
            finished: search.phase() == Phase::Finished,
            stopped_by: search.stopped_by().into(),
            items_scored: search.items(),
        };
        self.publish.send_if_modified(|current| {
            let changed = *current != status;
            *current = status;
            changed
        });
    }
}

fn token(token: v1::Token) -> Token {
    Token { epoch: token.epoch, spec: token.spec, attempt: token.attempt }
}

fn answer(verdict: v1::report_reply::Verdict, reason: &str) -> v1::ReportReply {
    v1::ReportReply { verdict: verdict.into(), reason: reason.into() }
}

fn lease_reply(outcome: v1::lease_reply::Outcome) -> v1::LeaseReply {
    v1::LeaseReply { outcome: Some(outcome) }
}

fn idle() -> v1::LeaseReply {
    lease_reply(v1::lease_reply::Outcome::Idle(v1::Idle {}))
}

/// A definition's seconds, a year at most: longer ones are as good, and overflow the clock.
fn duration(seconds: f64) -> Duration {
    const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);
    Duration::try_from_secs_f64(seconds).map_or(LONGEST, |duration| duration.min(LONGEST))
}

/// Seconds as a worker tells them; what cannot be a time counts as none. The journal's JSON has no NaN.
fn seconds(told: f64) -> f64 {
    if told.is_finite() { told.max(0.0) } else { 0.0 }
}
