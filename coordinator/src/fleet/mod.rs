//! The fleet: workers, leases and attempts. Pure; time is an input, measured from any fixed moment, and so is the seed of what must not be foreseen.
//!
//! - A lease is held under a fencing token `(epoch, spec, attempt)`. Only a live token's report counts: a worker that was thought dead and comes back
//!   late finds its token superseded.
//! - Blame has two sides. What ends badly on a worker speaks against the spec once that worker has done other work well since, and against the worker
//!   if it can do nothing well. Leaving, and being taken away, speaks against nobody.
//! - Scores are compared: see [`checks`].
//!
//! What a worker is given stands in [`give`], what follows from how it ended in [`outcome`], what it had done when it left in [`parts`].

mod checks;
mod give;
mod outcome;
mod pace;
mod parts;
mod standing;
#[cfg(test)]
mod tests;
mod work;

use std::{collections::BTreeMap, time::Duration};

use evolver_common::score::Scores;
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;

use self::{
    checks::Checks,
    pace::Pace,
    standing::Standing,
    work::{Kind, Lease, Work},
};
pub use self::{
    checks::Opinion,
    parts::{WITH, stands_on},
};
use crate::search::Spec;

/// More attempts than a spec has had before its result is repeated from elsewhere than the fleet's own memory.
const EARLIER_ATTEMPTS: u32 = 1 << 20;
/// Standings of workers that are not here any more, kept at most.
const STANDINGS_MAX: usize = 20_000;

/// How a fleet is led.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How long a lease holds without a heartbeat.
    pub lease: Duration,
    /// Workers that must fail on a spec before it is given up.
    pub attempts: u32,
    /// One in so many results of a worker is compared with another worker's; 0: none.
    pub check_every: u32,
    /// Share of items on which two scorings of one model may differ.
    pub tolerance: f64,
    /// Seed of which results are compared: nobody may know it.
    pub seed: u64,
}

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

/// What a lease is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A result that the search waits for.
    Search,
    /// A comparison with a result that is there.
    Check,
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
    /// It can go on from what another handed in.
    goes_on: bool,
}

/// A worker's record, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// Results that were committed.
    pub results: u64,
    /// Attempts that failed.
    pub failures: u64,
    /// Scores that were compared with another worker's.
    pub checked: u64,
    /// Of these, those that agreed.
    pub agreed: u64,
    /// Why it gets no work, empty if it does.
    pub withheld: String,
}

/// What follows from a report.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Consequences {
    /// Specs that are given up, with the reason.
    pub given_up: Vec<(u64, String)>,
    /// What comparing says of results that are there.
    pub opinions: Vec<(u64, Opinion)>,
}

/// All workers and all specs that have no result yet.
pub struct Fleet {
    epoch: u64,
    settings: Settings,
    random: ChaCha8Rng,
    workers: BTreeMap<String, Worker>,
    standings: BTreeMap<String, Standing>,
    /// Voices that are not trusted, with the reason.
    distrusted: BTreeMap<String, String>,
    work: BTreeMap<u64, Work>,
    checks: Checks,
    pace: Pace,
}

impl Fleet {
    /// A fleet under this epoch.
    #[must_use]
    pub fn new(epoch: u64, settings: Settings) -> Self {
        Self {
            epoch,
            random: ChaCha8Rng::seed_from_u64(settings.seed),
            workers: BTreeMap::new(),
            standings: BTreeMap::new(),
            distrusted: BTreeMap::new(),
            work: BTreeMap::new(),
            checks: Checks::new(settings.tolerance),
            pace: Pace::default(),
            settings,
        }
    }

    /// Adds a spec to be worked on.
    pub fn add(&mut self, spec: Spec) {
        // A result that was taken back is nothing to compare with.
        self.checks.open.remove(&spec.number);
        self.work.entry(spec.number).or_insert_with(|| Work::new(spec, 0));
    }

    /// Remembers a result that is there, for workers to prove themselves by; `wanted` asks for a second opinion on it.
    pub fn remember(&mut self, spec: Spec, worker: &str, scores: Scores, wanted: bool) {
        self.checks.remember(spec, EARLIER_ATTEMPTS, worker, scores, wanted);
    }

    /// The spec of a live token, or of one that waits.
    #[must_use]
    pub fn spec(&self, number: u64) -> Option<&Spec> {
        let check = || self.checks.open.get(&number).map(|check| &check.work);
        self.work.get(&number).or_else(check).map(|work| &work.spec)
    }

    /// Introduces a worker. One that has this name already is taken to be gone: its lease is released.
    pub fn register(&mut self, name: &str, host: &str, now: Duration) {
        self.free(name);
        let worker = Worker { host: host.to_owned(), seen: now, holds: None, done: 0, total: 0, leaving: false, goes_on: false };
        self.workers.insert(name.to_owned(), worker);
        if !self.standings.contains_key(name) {
            self.standings.insert(name.to_owned(), Standing::new(self.settings.check_every, &mut self.random));
        }
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

    /// A worker's record.
    #[must_use]
    pub fn record(&self, name: &str, now: Duration) -> Record {
        self.standings.get(name).map_or_else(Record::default, |standing| Record {
            results: standing.results,
            failures: standing.failures,
            checked: standing.checked,
            agreed: standing.agreed,
            withheld: self.withheld(name, now).unwrap_or_default(),
        })
    }

    /// Why a worker gets no work now.
    fn withheld(&self, name: &str, now: Duration) -> Option<String> {
        let distrusted = self.distrusted.get(voice(name)).cloned();
        distrusted.or_else(|| self.standings.get(name)?.withheld(now))
    }

    fn is_available(&self, name: &str, worker: &Worker, now: Duration) -> bool {
        !worker.leaving && self.withheld(name, now).is_none()
    }

    /// The workers that could be given work.
    fn available(&self, now: Duration) -> Vec<String> {
        self.workers.iter().filter(|(name, worker)| self.is_available(name, worker, now)).map(|(name, _)| name.clone()).collect()
    }

    fn work_of(&self, token: Token) -> Option<(&Work, Purpose)> {
        if token.epoch != self.epoch {
            return None;
        }
        let search = self.work.get(&token.spec).map(|work| (work, Purpose::Search));
        search.or_else(|| self.checks.open.get(&token.spec).map(|check| (&check.work, Purpose::Check)))
    }

    /// Whether a token is live.
    #[must_use]
    pub fn is_live(&self, token: Token) -> bool {
        self.holder(token).is_some()
    }

    /// The worker that holds a live token.
    #[must_use]
    pub fn holder(&self, token: Token) -> Option<&str> {
        self.work_of(token)?.0.holder(token.attempt)
    }

    /// Whether a token was never given to this worker: it was made up, or is another's.
    #[must_use]
    pub fn is_foreign(&self, token: Token, worker: &str) -> bool {
        let other = |(work, _): (&Work, Purpose)| {
            token.attempt > work.attempts || work.holder(token.attempt).is_some_and(|holder| holder != worker)
        };
        token.epoch > self.epoch || self.work_of(token).is_some_and(other)
    }

    /// What a live token is for.
    #[must_use]
    pub fn purpose(&self, token: Token) -> Option<Purpose> {
        let (work, purpose) = self.work_of(token)?;
        work.holder(token.attempt).map(|_| purpose)
    }

    /// Whether a worker was told to leave.
    #[must_use]
    pub fn is_leaving(&self, name: &str) -> bool {
        self.workers.get(name).is_some_and(|worker| worker.leaving)
    }

    /// A sign of life; a live token's lease is prolonged. Whether the worker is to leave.
    pub fn heartbeat(&mut self, name: &str, token: Option<Token>, progress: (u64, u64), now: Duration) -> bool {
        let until = now + self.settings.lease;
        if let Some(token) = token.filter(|token| self.holder(*token) == Some(name)) {
            match self.work.get_mut(&token.spec) {
                Some(work) => work.prolong(token.attempt, until),
                None => {
                    if let Some(check) = self.checks.open.get_mut(&token.spec) {
                        check.work.prolong(token.attempt, until);
                    }
                }
            }
        }
        let Some(worker) = self.workers.get_mut(name) else {
            return false;
        };
        worker.seen = now;
        (worker.done, worker.total) = progress;
        worker.leaving
    }

    /// The spec has ended without a result: its leases and itself are gone.
    pub fn finish(&mut self, spec: u64) {
        if let Some(mut work) = self.work.remove(&spec) {
            let leases = work.take(|_| true);
            self.unhold(&leases, spec);
        }
    }

    fn unhold(&mut self, leases: &[Lease], spec: u64) {
        for lease in leases {
            if let Some(worker) = self.workers.get_mut(&lease.worker).filter(|worker| worker.holds == Some(spec)) {
                worker.holds = None;
            }
        }
    }

    /// The worker gives a spec back, without blame.
    pub fn release(&mut self, token: Token) {
        let Some((_, purpose)) = self.work_of(token) else { return };
        let work = match purpose {
            Purpose::Search => self.work.get_mut(&token.spec),
            Purpose::Check => self.checks.open.get_mut(&token.spec).map(|check| &mut check.work),
        };
        if let Some(work) = work {
            let leases = work.take(|lease| lease.attempt == token.attempt);
            self.unhold(&leases, token.spec);
        }
    }

    fn every_work(&mut self) -> impl Iterator<Item = (&u64, &mut Work)> {
        let checks = self.checks.open.iter_mut().map(|(number, check)| (number, &mut check.work));
        self.work.iter_mut().chain(checks)
    }

    /// The worker has nothing under way: what it held is free at once, without blame. Whoever asks for work says so, and the answer that gave it
    /// the last lease may have been lost.
    pub fn free(&mut self, name: &str) {
        let Some(number) = self.workers.get_mut(name).and_then(|worker| worker.holds.take()) else { return };
        if let Some(work) = self.work.get_mut(&number) {
            work.take(|lease| lease.worker == name);
        }
        if let Some(check) = self.checks.open.get_mut(&number) {
            check.work.take(|lease| lease.worker == name);
        }
    }

    /// Specs that wait for a worker, and second opinions that do.
    #[must_use]
    pub fn waiting(&self) -> usize {
        let opinions = self.checks.open.values().filter(|check| check.wanted && check.work.is_free()).count();
        opinions + self.work.values().filter(|work| work.is_free()).count()
    }

    /// The worker leaves: it gets no more, and what it holds is free at once.
    pub fn drain(&mut self, name: &str) {
        self.free(name);
        if let Some(worker) = self.workers.get_mut(name) {
            worker.leaving = true;
        }
    }

    /// Takes back the leases that ran out, and forgets silent workers. What is given up.
    pub fn expire(&mut self, now: Duration) -> Vec<(u64, String)> {
        let mut over = Vec::new();
        for (number, work) in self.every_work() {
            let leases = work.take(|lease| lease.until <= now);
            for lease in &leases {
                work.end(&lease.worker, "its lease ran out", Kind::Lost, true);
            }
            if !leases.is_empty() {
                over.push((*number, leases));
            }
        }
        for (number, leases) in over {
            self.unhold(&leases, number);
        }
        let silent = 3 * self.settings.lease;
        self.workers.retain(|_, worker| worker.holds.is_some() || worker.seen + silent > now);
        if self.standings.len() > STANDINGS_MAX {
            let workers = &self.workers;
            self.standings.retain(|name, _| workers.contains_key(name));
        }
        let (attempts, here) = (self.settings.attempts as usize, self.available(now));
        let hopeless = |(number, work): (&u64, &Work)| Some((*number, work.hopeless(attempts, here.iter().cloned())?));
        self.work.iter().filter_map(hopeless).collect()
    }

    /// Every lease holds for its whole length from now on: the coordinator could take nothing in for a while.
    pub fn prolong_all(&mut self, now: Duration) {
        let until = now + self.settings.lease;
        for (_, work) in self.every_work() {
            work.leases.iter_mut().for_each(|lease| lease.until = until);
        }
        self.workers.values_mut().for_each(|worker| worker.seen = now);
    }

    /// A voice is not trusted: its workers get no more, and its word in open comparisons counts for nothing.
    pub fn distrust(&mut self, of: &str, reason: &str) {
        let workers: Vec<_> = self.workers.keys().filter(|name| voice(name) == of).cloned().collect();
        workers.iter().for_each(|name| self.free(name));
        self.checks.drop_word(of);
        let handed = |work: &mut Work| work.handed.take_if(|handed| handed.by.iter().any(|helper| voice(helper) == of));
        self.work.values_mut().for_each(|work| drop(handed(work)));
        self.distrusted.insert(of.to_owned(), reason.to_owned());
    }

    /// A worker, and its voice, is given work again, whatever was held against it. Whether it was known.
    pub fn readmit(&mut self, name: &str) -> bool {
        let distrusted = self.distrusted.remove(voice(name)).is_some();
        let standing = self.standings.get_mut(name).map(Standing::well);
        distrusted || standing.is_some()
    }

    /// A new epoch, because some specs may be others now: every token is void, and every worker must register again.
    pub fn begin(&mut self, epoch: u64) {
        self.epoch = epoch;
        self.work.clear();
        self.workers.clear();
        for (_, work) in self.every_work() {
            work.take(|_| true);
        }
    }

    /// Comparisons that are not decided.
    #[must_use]
    pub fn checks_open(&self) -> usize {
        self.checks.open.values().filter(|check| check.wanted).count()
    }

    /// Whether a comparison stands between the search and its end: one that somebody here can decide, or one that shows a lie.
    #[must_use]
    pub fn checks_owed(&self, now: Duration) -> bool {
        let here = self.available(now);
        let possible =
            |check: &checks::Check| here.iter().any(|worker| !check.asked(worker) && !check.work.ended_badly_on(worker));
        self.checks.open.values().any(|check| check.wanted && (check.is_disputed() || !check.work.is_free() || possible(check)))
    }

    /// Why nothing can move, if nothing can.
    #[must_use]
    pub fn stuck(&self, now: Duration) -> Option<String> {
        if self.workers.is_empty() {
            return Some("no worker is here".into());
        }
        let here = self.available(now);
        if here.is_empty() {
            let reason = |(name, _): (&String, &Worker)| Some(format!("{name}: {}", self.withheld(name, now)?));
            return self
                .workers
                .iter()
                .find_map(reason)
                .map(|reason| format!("no worker that is here can be given work; {reason}"));
        }
        let disputed = self
            .checks
            .open
            .iter()
            .find(|(_, check)| check.is_disputed() && check.work.is_free() && here.iter().all(|worker| check.asked(worker)));
        let (number, _) = disputed.filter(|_| self.work.is_empty())?;
        Some(format!("workers disagree about the scores of spec {number}, and no other one is here to decide"))
    }
}

/// Whose word a worker's is: the certificate that it has shown, which stands before the slash of its name, or itself.
///
/// Comparisons count voices and not workers, so that nobody confirms what it said itself under another name. Several authors together are a voice of
/// their own.
#[must_use]
pub fn voice(author: &str) -> &str {
    if author.contains(WITH) { author } else { author.split('/').next().unwrap_or(author) }
}
