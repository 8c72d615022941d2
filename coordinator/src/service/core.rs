//! What owns search, fleet and journal: no thread, no clock, and a disk only behind [`Log`], so that a test can be all three.
//!
//! Requests that wait together are handled together, and their reports committed together: one synced transaction, and only then their
//! acknowledgements.

use std::{sync::Arc, time::Duration};

use evolver_common::{
    definition::{ChangeError, Resolved, compatible, offspring_bytes},
    digest::Digest,
    recipe::encode,
};
use evolver_proto::{
    PROTOCOL, PROTOCOL_OF_HANDING, PROTOCOL_OF_PARTS, PROTOCOL_OLDEST, PUSHBACK, parts_to_wire, split_to_wire, subset_to_wire,
    v1, work_of,
};
use thiserror::Error;
use tokio::sync::{oneshot, watch};
use tonic::Status;

use super::{
    replay::{self, Replay, ReplayError, STOP_SECONDS},
    reports::Accepted,
};
use crate::{
    access::Audit,
    fleet::{Fleet, Settings, Token, WITH},
    journal::{JournalError, Log, Record},
    search::{Kind, Outcome, Phase, Spec},
};

/// How often leases are looked at.
pub(super) const TICK: Duration = Duration::from_millis(200);
/// Longest that a lease request waits for work.
const WAIT_MAX: Duration = Duration::from_secs(20);
/// Longest name of a worker or host, in bytes.
const NAME_MAX: usize = 200;
/// Workers that are served at once.
const WORKERS_MAX: usize = 20_000;
/// What a worker is asked to wait while the disk is full.
const FULL_PAUSE: Duration = Duration::from_secs(2);

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
    /// The journal does not fold any more.
    #[error(transparent)]
    Replay(#[from] ReplayError),
    /// A fault of the program; its words are above.
    #[error("the coordinator ended by a fault of its own; nothing that was acknowledged is lost")]
    Panicked,
}

/// Where an answer goes.
pub type Reply<T> = oneshot::Sender<Result<T, Status>>;

/// A request to the owner.
#[expect(missing_docs, reason = "each is a call of the protocol, with its reply")]
pub enum Command {
    Register(v1::RegisterRequest, Reply<v1::RegisterReply>),
    Lease(v1::LeaseRequest, Reply<v1::LeaseReply>),
    Heartbeat(v1::HeartbeatRequest, Reply<v1::HeartbeatReply>),
    Report(Box<v1::ReportRequest>, Reply<v1::ReportReply>),
    Drain(v1::DrainRequest, Reply<v1::DrainReply>),
    Operate(v1::OperateRequest, Reply<v1::OperateReply>),
    /// Hand out no more work, and tell workers that wait for some to leave, or let them wait for the next coordinator.
    Pause {
        dismiss: bool,
    },
}

struct Waiting {
    worker: String,
    since: Duration,
    until: Duration,
    held: Option<v1::Held>,
    reply: Reply<v1::LeaseReply>,
}

/// A coordinator's insides.
pub struct Core<L> {
    pub(super) replay: Replay,
    pub(super) fleet: Fleet,
    pub(super) journal: L,
    pub(super) epoch: u64,
    definition: String,
    /// Bytes that an offspring takes in a worker's memory.
    offspring_bytes: u64,
    pub(super) hash: Digest,
    waiting: Vec<Waiting>,
    /// Records that need no acknowledgement and go with the next commit.
    pub(super) later: Vec<Record>,
    /// Specs that are to be given up, with the reason.
    pub(super) given_up: Vec<(u64, String)>,
    /// Voices whose scores were shown to be false, with the reason.
    pub(super) caught: Vec<(String, String)>,
    pub(super) generation: u64,
    /// Number of the best model.
    pub(super) best: Option<u64>,
    /// Whether workers' scores are compared at all.
    pub(super) compares: bool,
    /// Whether a new best is compared.
    pub(super) check_best: bool,
    /// Seconds of earlier starts.
    seconds_before: f64,
    /// Time since the start, as the last step was told.
    clock: Duration,
    ticked: Duration,
    pub(super) published: Duration,
    pub(super) paused: bool,
    /// Whether workers leave when it is paused.
    dismissed: bool,
    /// An operator lets everyone wait.
    pub(super) held: bool,
    /// The disk has no room: nothing is handed out.
    pub(super) full: bool,
    pub(super) publish: watch::Sender<v1::Status>,
    pub(super) audit: Option<Arc<Audit>>,
}

impl<L: Log> Core<L> {
    /// Folds what the log holds and writes the start of a new epoch. `records` is what was read from `journal`; `compare` is as in
    /// [`super::Options`]; nobody may foresee `seed`.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn start(mut journal: L, records: &[Record], resolved: &Resolved, compare: bool, seed: u64) -> Result<Self, StartError> {
        let definition = Record::Definition { resolved: serde_json::to_value(resolved)?, hash: resolved.hash() };
        let mut opening = Vec::new();
        if records.is_empty() {
            opening.push(definition);
        } else {
            let old = replay::definition(records)?;
            compatible(&old, resolved)?;
            if old != *resolved {
                opening.push(definition);
            }
        }
        let replay = replay::replay(records, Some(resolved))?;
        let epoch = replay.epoch + 1;
        opening.push(Record::Start { epoch, version: env!("CARGO_PKG_VERSION").into() });
        journal.append(&opening)?;
        let settings = &resolved.definition.fleet;
        let fleet = Fleet::new(
            epoch,
            Settings {
                lease: duration(settings.lease_seconds),
                attempts: settings.attempts,
                check_every: if compare { settings.check_every } else { 0 },
                tolerance: settings.tolerance,
                seed,
            },
        );
        let mut core = Self {
            fleet,
            definition: serde_json::to_string(resolved)?,
            offspring_bytes: offspring_bytes(resolved),
            hash: resolved.hash(),
            generation: replay.search.generation(),
            best: replay.search.best().map(|best| best.number),
            compares: compare,
            check_best: compare && settings.check_best,
            seconds_before: replay.spent.seconds,
            replay,
            journal,
            epoch,
            waiting: Vec::new(),
            later: Vec::new(),
            given_up: Vec::new(),
            caught: Vec::new(),
            clock: Duration::ZERO,
            ticked: Duration::ZERO,
            published: Duration::ZERO,
            paused: false,
            dismissed: false,
            held: false,
            full: false,
            publish: watch::Sender::new(v1::Status::default()),
            audit: None,
        };
        core.recall();
        core.pump();
        core.publish();
        Ok(core)
    }

    /// Sends audit lines there.
    pub(crate) fn audited_by(&mut self, audit: Arc<Audit>) {
        self.audit = Some(audit);
    }

    /// The status, now and after every change.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<v1::Status> {
        self.publish.subscribe()
    }

    /// The search and all that is known of its results.
    #[must_use]
    pub fn replay(&self) -> &Replay {
        &self.replay
    }

    /// Handles what has come in until `now`, the time since the start.
    ///
    /// # Errors
    /// If the log refuses for another reason than a full disk; what is not acknowledged then may not be in it.
    pub fn step(&mut self, now: Duration, commands: Vec<Command>) -> Result<(), EndError> {
        self.clock = now;
        let mut reports = Vec::new();
        for command in commands {
            self.handle(command, &mut reports);
        }
        self.commit(reports)?;
        let tick = now >= self.ticked + TICK;
        self.judge()?;
        if tick {
            self.ticked = now;
            self.tick()?;
        }
        self.pump();
        self.serve(tick);
        self.publish();
        Ok(())
    }

    /// Handles what has come in last, and writes what waits.
    ///
    /// # Errors
    /// As [`Core::step`].
    pub fn end(mut self, now: Duration, commands: Vec<Command>) -> Result<(), EndError> {
        self.clock = now;
        let mut reports = Vec::new();
        for command in commands {
            self.handle(command, &mut reports);
        }
        self.commit(reports)?;
        match self.append(Vec::new()) {
            Err(error) if !error.is_full() => Err(error.into()),
            _ => Ok(()),
        }
    }

    pub(super) fn now(&self) -> Duration {
        self.clock
    }

    fn handle(&mut self, command: Command, reports: &mut Vec<Accepted>) {
        // A caller that has gone away needs no answer: `send` may fail.
        match command {
            Command::Register(request, reply) => {
                reply.send(self.register(&request)).ok();
            }
            Command::Lease(request, reply) => self.ask(request, reply),
            Command::Heartbeat(request, reply) => {
                let token = request.token.map(token);
                let held = token.is_none_or(|token| self.fleet.holder(token) == Some(request.worker.as_str()));
                let progress = (request.items_done, request.items_total);
                let drain = self.fleet.heartbeat(&request.worker, token, progress, self.now());
                reply.send(Ok(v1::HeartbeatReply { valid: held && request.epoch == self.epoch, drain })).ok();
            }
            Command::Report(request, reply) => self.report(*request, reply, reports),
            Command::Drain(request, reply) => {
                if request.epoch == self.epoch {
                    self.fleet.drain(&request.worker);
                }
                reply.send(Ok(v1::DrainReply {})).ok();
            }
            Command::Operate(request, reply) => {
                reply.send(self.operate(request)).ok();
            }
            Command::Pause { dismiss } => (self.paused, self.dismissed) = (true, dismiss),
        }
    }

    fn register(&mut self, request: &v1::RegisterRequest) -> Result<v1::RegisterReply, Status> {
        if !(PROTOCOL_OLDEST..=PROTOCOL).contains(&request.protocol) {
            return Err(Status::failed_precondition(format!(
                "the worker speaks protocol {}, and this coordinator {PROTOCOL_OLDEST} to {PROTOCOL}: use the same version of evolver on both sides",
                request.protocol
            )));
        }
        if request.protocol < PROTOCOL_OF_PARTS && !self.replay.search.is_plain() {
            return Err(Status::failed_precondition(format!(
                "the worker speaks protocol {}, and this search's rule or strategy needs {PROTOCOL_OF_PARTS}: use a newer evolver for the worker",
                request.protocol
            )));
        }
        for (what, name) in [("name", &request.worker), ("host", &request.host)] {
            if name.is_empty() || name.len() > NAME_MAX || name.chars().any(char::is_control) {
                return Err(Status::failed_precondition(format!(
                    "the worker's {what} has {} bytes: it needs 1 to {NAME_MAX}, and no control characters",
                    name.len()
                )));
            }
        }
        if request.worker.contains(WITH) {
            return Err(Status::failed_precondition(format!(
                "a worker's name cannot hold the word {:?}: give it another",
                WITH.trim()
            )));
        }
        // Every spec is scored on all tasks: a worker that lacks one's evaluator can run none.
        let mut tasks = self.replay.resolved.definition.tasks.iter().filter(|_| !request.evaluators.is_empty());
        if let Some(task) = tasks.find(|task| !request.evaluators.contains(&task.evaluator)) {
            return Err(Status::failed_precondition(format!(
                "task {} is scored by the evaluator {}, and this worker has {}",
                task.name,
                task.evaluator,
                request.evaluators.join(", ")
            )));
        }
        let memory = request.memory_bytes;
        if memory > 0 && memory < self.offspring_bytes {
            return Err(Status::failed_precondition(format!(
                "an offspring takes {} MiB, and this worker can have {} MiB: start it where there is more memory, or fewer of them",
                self.offspring_bytes >> 20,
                memory >> 20
            )));
        }
        if !self.fleet.knows(&request.worker) && self.fleet.workers().count() >= WORKERS_MAX {
            return Err(busy(&format!("{WORKERS_MAX} workers are here, and no more can be"), FULL_PAUSE));
        }
        self.fleet.register(&request.worker, &request.host, self.now());
        if request.protocol >= PROTOCOL_OF_HANDING {
            self.fleet.goes_on(&request.worker);
        }
        tracing::info!(
            worker = request.worker,
            host = request.host,
            threads = request.threads,
            device = request.device,
            memory_bytes = request.memory_bytes,
            "worker registered"
        );
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

    fn ask(&mut self, request: v1::LeaseRequest, reply: Reply<v1::LeaseReply>) {
        if request.epoch != self.epoch || !self.fleet.knows(&request.worker) {
            reply.send(Err(unregistered())).ok();
            return;
        }
        // A worker asks once at a time: an older request of its name is one whose answer it no longer waits for.
        self.fleet.free(&request.worker);
        for older in self.waiting.extract_if(.., |waiting| waiting.worker == request.worker) {
            older.reply.send(Ok(idle())).ok();
        }
        let wait = Duration::from_millis(u64::from(request.wait_ms)).min(WAIT_MAX);
        let since = self.now();
        self.waiting.push(Waiting { worker: request.worker, since, until: since + wait, held: request.held, reply });
    }

    /// One synced transaction, then the acknowledgements, then the search. Where the disk is full, nothing is acknowledged, and what is under way
    /// stays with its workers.
    fn commit(&mut self, reports: Vec<Accepted>) -> Result<(), EndError> {
        if reports.is_empty() && self.later.is_empty() {
            return Ok(());
        }
        let records: Vec<_> = reports.iter().flat_map(|report| report.records.iter().cloned()).collect();
        match self.append(records) {
            Ok(()) => {}
            Err(error) if error.is_full() => {
                self.fill(&error);
                for report in reports {
                    report.reply.send(Err(busy("the coordinator's disk is full", FULL_PAUSE))).ok();
                }
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        }
        let now = self.now();
        let mut outcomes = Vec::new();
        for report in reports {
            report.reply.send(Ok(report.verdict)).ok();
            if let Some(scores) = report.scores {
                let consequences = self.fleet.commit(report.token, &report.worker, &scores, report.compared, now);
                self.follow(consequences);
                self.replay.authors.insert(report.token.spec, report.author);
                outcomes.push((report.token.spec, Outcome::Scored(scores)));
            }
        }
        self.tell(outcomes);
        Ok(())
    }

    fn fill(&mut self, error: &JournalError) {
        if !self.full {
            tracing::error!("no work is handed out until there is room: {error}");
        }
        self.full = true;
    }

    /// Appends what waits and then `records`, in one synced transaction.
    pub(super) fn append(&mut self, records: Vec<Record>) -> Result<(), JournalError> {
        let mut all = std::mem::take(&mut self.later);
        let waited = all.len();
        all.extend(records);
        let appended = self.journal.append(&all);
        if appended.is_err() {
            all.truncate(waited);
            self.later = all;
        }
        appended
    }

    /// Hands over what has just been journaled, in the same order.
    fn tell(&mut self, outcomes: Vec<(u64, Outcome)>) {
        for (number, outcome) in outcomes {
            self.fleet.finish(number);
            if let Err(error) = self.replay.tell(number, outcome) {
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
        self.crowned();
    }

    /// Leases that ran out, the clock's limit, and whether there is room.
    fn tick(&mut self) -> Result<(), EndError> {
        if !self.journal.has_room() {
            self.full = true;
        } else if self.full {
            match self.append(Vec::new()) {
                Ok(()) => {
                    tracing::warn!("there is room again: work is handed out");
                    self.full = false;
                    self.fleet.prolong_all(self.now());
                }
                Err(error) if error.is_full() => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        if self.full {
            return Ok(());
        }
        let lost = self.fleet.expire(self.now());
        self.given_up.extend(lost);
        self.judge()?;
        let limit = self.replay.resolved.definition.stop.seconds;
        let seconds = self.seconds_before + self.now().as_secs_f64();
        let running = matches!(self.replay.search.phase(), Phase::Search) && !self.replay.search.is_ending();
        if running && limit.is_some_and(|limit| seconds >= limit) {
            let number = self.replay.search.drawn();
            match self.append(vec![Record::Stop { number, reason: STOP_SECONDS.into() }]) {
                Ok(()) => self.replay.search.stop(number, STOP_SECONDS),
                Err(error) if error.is_full() => self.fill(&error),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Carries out what has been decided: specs are given up, workers are not trusted any more.
    fn judge(&mut self) -> Result<(), EndError> {
        let result = self.give_up().and_then(|()| self.catch());
        match result {
            Err(EndError::Journal(error)) if error.is_full() => {
                self.fill(&error);
                Ok(())
            }
            result => result,
        }
    }

    fn give_up(&mut self) -> Result<(), EndError> {
        if self.given_up.is_empty() {
            return Ok(());
        }
        let mut lost = std::mem::take(&mut self.given_up);
        lost.sort_unstable();
        lost.dedup_by_key(|(number, _)| *number);
        // A slower attempt may have brought its result since.
        lost.retain(|(number, _)| !self.replay.told.contains(number));
        let failure = |(number, reason): &(u64, String)| Record::Failure { number: *number, reason: reason.clone() };
        if let Err(error) = self.append(lost.iter().map(failure).collect()) {
            self.given_up = lost;
            return Err(error.into());
        }
        self.tell(lost.into_iter().map(|(number, reason)| (number, Outcome::Failed(reason))).collect());
        Ok(())
    }

    /// Moves what the search has drawn to the fleet.
    pub(super) fn pump(&mut self) {
        for spec in self.replay.fresh() {
            self.fleet.add(spec);
        }
    }

    /// Whether the search has ended, and nothing that it stands on is in doubt.
    pub(super) fn finished(&self) -> bool {
        self.replay.search.phase() == Phase::Finished && !self.fleet.checks_owed(self.now())
    }

    /// Answers the workers that wait for work. Where none is free, only a `tick` looks for other things to do.
    fn serve(&mut self, tick: bool) {
        if self.waiting.is_empty() {
            return;
        }
        let leave = if self.finished() {
            Some("the search has finished")
        } else if self.dismissed {
            Some("the coordinator is stopping")
        } else {
            None
        };
        let mut free = self.fleet.waiting();
        for waiting in std::mem::take(&mut self.waiting) {
            if waiting.reply.is_closed() {
                continue;
            }
            let leave = leave.or(self.fleet.is_leaving(&waiting.worker).then_some("this worker was told to leave"));
            if let Some(reason) = leave {
                let leave = v1::Leave { reason: reason.into() };
                waiting.reply.send(Ok(lease_reply(v1::lease_reply::Outcome::Leave(leave)))).ok();
                continue;
            }
            let pointless = free == 0 && waiting.held.is_none() && !tick;
            let granted = if self.full || self.held || self.paused || pointless { None } else { self.grant(&waiting) };
            if let Some((token, spec)) = granted {
                free = free.saturating_sub(1);
                let reply = lease_reply(v1::lease_reply::Outcome::Assignment(self.assignment(token, &spec, waiting.since)));
                if waiting.reply.send(Ok(reply)).is_err() {
                    self.fleet.release(token);
                }
            } else if waiting.until <= self.now() {
                waiting.reply.send(Ok(idle())).ok();
            } else {
                self.waiting.push(waiting);
            }
        }
    }

    /// What the worker has in hand, or whatever is next.
    fn grant(&mut self, waiting: &Waiting) -> Option<(Token, Spec)> {
        let now = self.now();
        if let Some(held) = &waiting.held {
            let fits = |spec: &Spec| work_of(&work(spec)).as_bytes().as_slice() == held.work;
            let granted = self.fleet.lease_held(&waiting.worker, held.spec, fits, now);
            if granted.is_some() {
                return granted;
            }
        }
        self.fleet.lease(&waiting.worker, now)
    }

    fn assignment(&self, token: Token, spec: &Spec, since: Duration) -> v1::Assignment {
        // Start models are built again: by their descendants, and for the sealed split.
        let start = matches!(spec.kind, Kind::Initial | Kind::Reference).then(|| spec.recipe.id());
        let members = self.replay.search.population().iter().map(|member| member.id);
        v1::Assignment {
            token: Some(v1::Token { epoch: token.epoch, spec: token.spec, attempt: token.attempt }),
            keep: members.chain(start).map(|id| id.as_bytes().to_vec()).collect(),
            waited: self.now().saturating_sub(since).as_secs_f64(),
            parts: self.fleet.parts(token).map_or_else(Vec::new, parts_to_wire),
            ..work(spec)
        }
    }

    /// Answers everyone who waits under an epoch that is over.
    pub(super) fn dismiss(&mut self) {
        for waiting in std::mem::take(&mut self.waiting) {
            waiting.reply.send(Err(unregistered())).ok();
        }
    }
}

/// An assignment's work, without who does it.
fn work(spec: &Spec) -> v1::Assignment {
    v1::Assignment {
        recipe: encode(&spec.recipe),
        split: split_to_wire(spec.portion.split),
        subset: spec.portion.subset.map(subset_to_wire),
        ..v1::Assignment::default()
    }
}

pub(super) fn token(token: v1::Token) -> Token {
    Token { epoch: token.epoch, spec: token.spec, attempt: token.attempt }
}

/// An answer that asks to come again later.
pub(crate) fn busy(reason: &str, pause: Duration) -> Status {
    let mut status = Status::resource_exhausted(reason);
    status
        .metadata_mut()
        .insert(PUSHBACK, tonic::metadata::MetadataValue::from(u64::try_from(pause.as_millis()).unwrap_or(u64::MAX)));
    status
}

fn unregistered() -> Status {
    Status::unauthenticated("this worker is not registered with this start of the coordinator")
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
