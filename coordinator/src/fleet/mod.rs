//! The fleet: workers, leases and attempts. Pure; time is an input, measured from any fixed moment.
//!
//! A lease is held under a fencing token `(epoch, spec, attempt)`. Only the live token's report counts: a worker that was thought dead and
//! comes back late finds its token superseded.

use std::{collections::BTreeMap, time::Duration};

use crate::search::Spec;

/// Leases lost without blame before a spec is given up all the same: it may be what kills its workers.
const LOSSES_MAX: u32 = 10;

/// The right to work on a spec.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// The coordinator's start that gave it.
    pub epoch: u64,
    /// The spec.
    pub spec: u64,
    /// Which lease of the spec, from 1.
    pub attempt: u32,
}

/// A worker as the fleet sees it.
#[derive(Clone, Debug)]
pub struct Worker {
    /// Host that it runs on.
    pub host: String,
    /// Last sign of life.
    pub seen: Duration,
    /// The spec that it holds.
    pub holds: Option<u64>,
    /// Items done of the attempt under way.
    pub done: u64,
    /// Items of the attempt under way.
    pub total: u64,
    leaving: bool,
}

struct Work {
    spec: Spec,
    attempts: u32,
    lease: Option<Lease>,
    failures: Vec<(String, String)>,
    losses: u32,
}

impl Work {
    fn failed_on(&self, worker: &str) -> bool {
        self.failures.iter().any(|(failed, _)| failed == worker)
    }
}

struct Lease {
    worker: String,
    attempt: u32,
    until: Duration,
}

/// What a failed or lost attempt means for its spec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It will be tried again.
    Retry,
    /// It is given up, with the reason.
    GiveUp(String),
}

/// All workers and all specs that have no result yet.
pub struct Fleet {
    epoch: u64,
    lease: Duration,
    attempts: usize,
    workers: BTreeMap<String, Worker>,
    work: BTreeMap<u64, Work>,
}

impl Fleet {
    /// A fleet under this epoch. `lease` is how long a lease holds without a heartbeat; `attempts` failures give a spec up.
    #[must_use]
    pub fn new(epoch: u64, lease: Duration, attempts: u32) -> Self {
        Self { epoch, lease, attempts: attempts as usize, workers: BTreeMap::new(), work: BTreeMap::new() }
    }

    /// Adds a spec to be worked on.
    pub fn add(&mut self, spec: Spec) {
        self.work.entry(spec.number).or_insert(Work { spec, attempts: 0, lease: None, failures: Vec::new(), losses: 0 });
    }

    /// A spec without a result.
    #[must_use]
    pub fn spec(&self, number: u64) -> Option<&Spec> {
        self.work.get(&number).map(|work| &work.spec)
    }

    /// Introduces a worker. One that has this name already is taken to be gone: its lease is released.
    pub fn register(&mut self, name: &str, host: &str, now: Duration) {
        self.free(name);
        let worker = Worker { host: host.to_owned(), seen: now, holds: None, done: 0, total: 0, leaving: false };
        self.workers.insert(name.to_owned(), worker);
    }

    /// Whether a worker of this name is registered.
    #[must_use]
    pub fn knows(&self, name: &str) -> bool {
        self.workers.contains_key(name)
    }

    /// The workers, in the order of their names.
    pub fn workers(&self) -> impl Iterator<Item = (&String, &Worker)> {
        self.workers.iter()
    }

    /// Gives the worker the spec of the lowest number that is free; one that failed on a spec gets it again only if every other worker has failed
    /// on it too.
    pub fn lease(&mut self, name: &str, now: Duration) -> Option<(Token, Spec)> {
        let worker = self.workers.get_mut(name).filter(|worker| !worker.leaving)?;
        worker.seen = now;
        let workers = &self.workers;
        let untried = |work: &Work| workers.iter().any(|(other, worker)| !worker.leaving && !work.failed_on(other));
        let free = |work: &&mut Work| work.lease.is_none() && (!work.failed_on(name) || !untried(work));
        let work = self.work.values_mut().find(free)?;
        work.attempts += 1;
        work.lease = Some(Lease { worker: name.to_owned(), attempt: work.attempts, until: now + self.lease });
        if let Some(worker) = self.workers.get_mut(name) {
            worker.holds = Some(work.spec.number);
            (worker.done, worker.total) = (0, 0);
        }
        let token = Token { epoch: self.epoch, spec: work.spec.number, attempt: work.attempts };
        Some((token, work.spec.clone()))
    }

    /// Whether a token is the live one of its spec.
    #[must_use]
    pub fn is_live(&self, token: Token) -> bool {
        self.holder(token).is_some()
    }

    /// The worker that holds a live token.
    #[must_use]
    pub fn holder(&self, token: Token) -> Option<&str> {
        let lease = self.work.get(&token.spec)?.lease.as_ref()?;
        (token.epoch == self.epoch && lease.attempt == token.attempt).then_some(lease.worker.as_str())
    }

    /// Whether a worker was told to leave.
    #[must_use]
    pub fn is_leaving(&self, name: &str) -> bool {
        self.workers.get(name).is_some_and(|worker| worker.leaving)
    }

    /// A sign of life; a live token's lease is prolonged. Whether the worker is to leave.
    pub fn heartbeat(&mut self, name: &str, token: Option<Token>, progress: (u64, u64), now: Duration) -> bool {
        if let Some(token) = token.filter(|token| self.is_live(*token))
            && let Some(lease) = self.work.get_mut(&token.spec).and_then(|work| work.lease.as_mut())
        {
            lease.until = now + self.lease;
        }
        let Some(worker) = self.workers.get_mut(name) else {
            return false;
        };
        worker.seen = now;
        (worker.done, worker.total) = progress;
        worker.leaving
    }

    /// The spec has a result: its lease and itself are gone.
    pub fn finish(&mut self, spec: u64) {
        if let Some(work) = self.work.remove(&spec) {
            self.unhold(work.lease);
        }
    }

    fn unhold(&mut self, lease: Option<Lease>) {
        if let Some(worker) = lease.and_then(|lease| self.workers.get_mut(&lease.worker)) {
            worker.holds = None;
        }
    }

    /// A live attempt failed. The spec is given up after as many failures as are allowed.
    pub fn fail(&mut self, token: Token, reason: &str) -> Verdict {
        let Some(work) = self.work.get_mut(&token.spec) else {
            return Verdict::Retry;
        };
        let lease = work.lease.take();
        if let Some(lease) = &lease {
            work.failures.push((lease.worker.clone(), reason.to_owned()));
        }
        let verdict = if work.failures.len() >= self.attempts {
            Verdict::GiveUp(format!("{} attempts failed, the last one: {reason}", work.failures.len()))
        } else {
            Verdict::Retry
        };
        self.unhold(lease);
        verdict
    }

    /// The process that worked on a live token was killed from outside: nobody's fault, unless it happens again and again.
    pub fn lose(&mut self, token: Token) -> Verdict {
        let Some(work) = self.work.get_mut(&token.spec) else {
            return Verdict::Retry;
        };
        let lease = work.lease.take();
        work.losses += 1;
        let lost = work.losses >= LOSSES_MAX;
        self.unhold(lease);
        if lost {
            return Verdict::GiveUp(format!("{LOSSES_MAX} processes were killed while they worked on it"));
        }
        Verdict::Retry
    }

    /// The worker gives a spec back, without blame.
    pub fn release(&mut self, token: Token) {
        if self.is_live(token)
            && let Some(work) = self.work.get_mut(&token.spec)
        {
            let lease = work.lease.take();
            self.unhold(lease);
        }
    }

    /// The worker has nothing under way: what it held is free at once, without blame. Whoever asks for work says so, and the answer that gave it
    /// the last lease may have been lost.
    pub fn free(&mut self, name: &str) {
        for work in self.work.values_mut() {
            work.lease.take_if(|lease| lease.worker == name);
        }
        if let Some(worker) = self.workers.get_mut(name) {
            worker.holds = None;
        }
    }

    /// The worker leaves: it gets no more, and what it holds is free at once.
    pub fn drain(&mut self, name: &str) {
        self.free(name);
        if let Some(worker) = self.workers.get_mut(name) {
            worker.leaving = true;
        }
    }

    /// Takes back the leases that ran out, and forgets silent workers. Specs that lost too many workers are given up.
    pub fn expire(&mut self, now: Duration) -> Vec<(u64, String)> {
        let mut given_up = Vec::new();
        let mut lost = Vec::new();
        for (number, work) in &mut self.work {
            if work.lease.as_ref().is_some_and(|lease| lease.until <= now) {
                lost.push(work.lease.take());
                work.losses += 1;
                if work.losses >= LOSSES_MAX {
                    given_up.push((*number, format!("{LOSSES_MAX} workers were lost while they worked on it")));
                }
            }
        }
        lost.into_iter().for_each(|lease| self.unhold(lease));
        let silent = 3 * self.lease;
        self.workers.retain(|_, worker| worker.holds.is_some() || worker.seen + silent > now);
        given_up
    }
}
