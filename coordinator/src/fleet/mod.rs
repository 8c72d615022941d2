//! The fleet: workers, leases and attempts. Pure; time is an input, measured from any fixed moment, and so is the seed of what must not be foreseen.
//!
//! - A lease is held under a fencing token `(epoch, spec, attempt)`. Only a live token's report counts: a worker that was thought dead and comes back
//!   late finds its token superseded.
//! - Blame has two sides. What ends badly on a worker speaks against the spec once that worker has done other work well since, and against the worker
//!   if it can do nothing well. Leaving, and being taken away, speaks against nobody.
//! - Scores are compared: see [`checks`].

mod checks;
mod pace;
mod standing;
mod work;

use std::{collections::BTreeMap, time::Duration};

use evolver_common::score::Scores;
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;

pub use self::checks::Opinion;
use self::{
    checks::Checks,
    pace::Pace,
    standing::Standing,
    work::{Kind, Lease, Work},
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
    work: BTreeMap<u64, Work>,
    checks: Checks,
    pace: Pace,
}

enum Choice {
    Search(u64),
    Check(u64),
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
        let worker = Worker { host: host.to_owned(), seen: now, holds: None, done: 0, total: 0, leaving: false };
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
            withheld: standing.withheld(now).unwrap_or_default(),
        })
    }

    fn is_available(&self, name: &str, worker: &Worker, now: Duration) -> bool {
        !worker.leaving && self.standings.get(name).is_none_or(|standing| standing.withheld(now).is_none())
    }

    /// The workers that could be given work.
    fn available(&self, now: Duration) -> Vec<String> {
        self.workers.iter().filter(|(name, worker)| self.is_available(name, worker, now)).map(|(name, _)| name.clone()).collect()
    }

    /// Gives the worker something to do: a second opinion that is wanted, the free spec of the lowest number that it has not failed on, or, where
    /// there is nothing else, a slow one once more. A worker that has failed again and again is given something that is known to be possible.
    pub fn lease(&mut self, name: &str, now: Duration) -> Option<(Token, Spec)> {
        let worker = self.workers.get_mut(name)?;
        worker.seen = now;
        if !self.workers.get(name).is_some_and(|worker| self.is_available(name, worker, now)) {
            return None;
        }
        match self.choose(name, now)? {
            Choice::Search(number) => {
                if let Some(standing) = self.standings.get_mut(name) {
                    standing.leased();
                }
                self.grant(name, number, now)
            }
            Choice::Check(number) => self.grant(name, number, now),
        }
    }

    /// Gives the worker this very spec, if it is wanted and free and `fits`: it says that it has done it.
    pub fn lease_held(&mut self, name: &str, number: u64, fits: impl Fn(&Spec) -> bool, now: Duration) -> Option<(Token, Spec)> {
        let available = self.workers.get(name).is_some_and(|worker| self.is_available(name, worker, now));
        let free = self.work.get(&number).is_some_and(|work| work.is_free() && fits(&work.spec));
        if available && free { self.grant(name, number, now) } else { None }
    }

    fn choose(&mut self, name: &str, now: Duration) -> Option<Choice> {
        let standing = self.standings.get_mut(name)?;
        let free = |bad: bool| self.work.values().find(move |work| work.is_free() && work.ended_badly_on(name) == bad);
        let untried = free(false).map(number);
        let cornered = untried.is_none() && !standing.streak.is_empty() && free(true).is_some();
        if standing.suspect() || cornered {
            if let Some(probe) = self.checks.probe_for(name) {
                return Some(Choice::Check(probe));
            }
            if untried.is_none() {
                self.bench(name, now);
                return None;
            }
        }
        if standing.canary_due()
            && let Some(canary) = self.checks.canary_for(name)
        {
            standing.canary_given();
            return Some(Choice::Check(canary));
        }
        if let Some(wanted) = self.checks.wanted_of(name) {
            return Some(Choice::Check(wanted));
        }
        if let Some(untried) = untried {
            return Some(Choice::Search(untried));
        }
        // Others may succeed where this one has failed.
        let others: Vec<_> = self.available(now).into_iter().filter(|other| other != name).collect();
        let nobody_else = |work: &&Work| others.iter().all(|other| work.ended_badly_on(other));
        if let Some(again) = self.work.values().filter(|work| work.is_free()).find(nobody_else) {
            return Some(Choice::Search(number(again)));
        }
        let slow = self.pace.slow()?.max(self.settings.lease / 4);
        let doubled = |work: &&Work| {
            let of_another = |lease: &Lease| lease.worker != name && lease.since + slow < now;
            work.may_be_doubled() && !work.ended_badly_on(name) && work.leases.iter().all(of_another)
        };
        self.work.values().find(doubled).map(|work| Choice::Search(number(work)))
    }

    fn grant(&mut self, name: &str, number: u64, now: Duration) -> Option<(Token, Spec)> {
        let length = self.settings.lease;
        let work = match self.work.get_mut(&number) {
            Some(work) => work,
            None => &mut self.checks.open.get_mut(&number)?.work,
        };
        let attempt = work.lease(name, now, length);
        let spec = work.spec.clone();
        if let Some(worker) = self.workers.get_mut(name) {
            worker.seen = now;
            worker.holds = Some(number);
            (worker.done, worker.total) = (0, 0);
        }
        Some((Token { epoch: self.epoch, spec: number, attempt }, spec))
    }

    /// The worker can do nothing well: it rests, and what it failed on says nothing.
    fn bench(&mut self, name: &str, now: Duration) {
        let Some(standing) = self.standings.get_mut(name) else { return };
        for number in standing.bench(now) {
            if let Some(work) = self.work.get_mut(&number) {
                work.strike(name);
            }
            if let Some(check) = self.checks.open.get_mut(&number) {
                check.work.strike(name);
            }
        }
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

    /// Whether this worker's next result is to be compared; to be asked once for each.
    pub fn compares(&mut self, worker: &str) -> bool {
        let standing = self.standings.get_mut(worker);
        standing.is_some_and(|standing| standing.check_due(self.settings.check_every, &mut self.random))
    }

    /// A live token's result has been committed; `wanted` asks for a second opinion on it.
    pub fn commit(&mut self, token: Token, scores: &Scores, wanted: bool, now: Duration) -> Consequences {
        let Some(mut work) = self.work.remove(&token.spec) else {
            return Consequences::default();
        };
        let leases = work.take(|_| true);
        self.unhold(&leases, token.spec);
        let Some(lease) = leases.into_iter().find(|lease| lease.attempt == token.attempt) else {
            return Consequences::default();
        };
        self.pace.add(now.saturating_sub(lease.since));
        if let Some(standing) = self.standings.get_mut(&lease.worker) {
            standing.results += 1;
        }
        self.checks.remember(work.spec, work.attempts, &lease.worker, scores.clone(), wanted);
        self.well(&lease.worker, now)
    }

    /// A live token's second opinion has arrived.
    pub fn answer(&mut self, token: Token, scores: Scores, now: Duration) -> Consequences {
        let Some(check) = self.checks.open.get_mut(&token.spec) else {
            return Consequences::default();
        };
        let leases = check.work.take(|lease| lease.attempt == token.attempt);
        self.unhold(&leases, token.spec);
        let Some(lease) = leases.into_iter().next() else {
            return Consequences::default();
        };
        let opinion = self.checks.answer(token.spec, &lease.worker, scores);
        let mut consequences = self.well(&lease.worker, now);
        match &opinion {
            Opinion::Open => {}
            // A worker that agrees with itself alone was only asked whether it is well.
            Opinion::Agreed(camp) if camp.len() < 2 => return consequences,
            Opinion::Agreed(camp) => camp.iter().for_each(|worker| self.compared(worker, true)),
            Opinion::Lied { honest, liars } => {
                honest.iter().for_each(|worker| self.compared(worker, true));
                liars.iter().for_each(|worker| self.compared(worker, false));
            }
        }
        consequences.opinions.push((token.spec, opinion));
        consequences
    }

    fn compared(&mut self, worker: &str, agreed: bool) {
        if let Some(standing) = self.standings.get_mut(worker) {
            standing.checked += 1;
            standing.agreed += u64::from(agreed);
        }
    }

    /// The worker has done something well: what it failed on before speaks against the specs.
    fn well(&mut self, name: &str, now: Duration) -> Consequences {
        let mut consequences = Consequences::default();
        let Some(standing) = self.standings.get_mut(name) else {
            return consequences;
        };
        let (attempts, everyone) = (self.settings.attempts as usize, standing.well());
        let here = self.available(now);
        for number in everyone {
            if let Some(work) = self.work.get_mut(&number) {
                work.count(name);
                consequences.given_up.extend(work.hopeless(attempts, here.iter().cloned()).map(|reason| (number, reason)));
            } else if let Some(check) = self.checks.open.get_mut(&number) {
                check.work.count(name);
                // Workers that are well cannot score a model that somebody claims to have scored.
                if check.work.hopeless(attempts, std::iter::empty()).is_some() && !check.is_disputed() {
                    let liars = check.authors();
                    check.wanted = false;
                    consequences.opinions.push((number, Opinion::Lied { honest: Vec::new(), liars }));
                }
            }
        }
        consequences
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

    /// A live attempt failed.
    pub fn fail(&mut self, token: Token, reason: &str, now: Duration) {
        self.end_badly(token, reason, Kind::Failed, now);
    }

    /// The process that worked on a live token was killed from outside: less is to be read from it.
    pub fn lose(&mut self, token: Token, reason: &str, now: Duration) {
        self.end_badly(token, reason, Kind::Lost, now);
    }

    fn end_badly(&mut self, token: Token, reason: &str, kind: Kind, now: Duration) {
        let Some((_, purpose)) = self.work_of(token) else { return };
        let work = match self.work.get_mut(&token.spec) {
            Some(work) => work,
            None => match self.checks.open.get_mut(&token.spec) {
                Some(check) => &mut check.work,
                None => return,
            },
        };
        let leases = work.take(|lease| lease.attempt == token.attempt);
        self.unhold(&leases, token.spec);
        let Some(lease) = leases.into_iter().next() else { return };
        let work = match purpose {
            Purpose::Search => self.work.get_mut(&token.spec),
            Purpose::Check => self.checks.open.get_mut(&token.spec).map(|check| &mut check.work),
        };
        if let Some(work) = work {
            work.end(&lease.worker, reason, kind, false);
        }
        let Some(standing) = self.standings.get_mut(&lease.worker) else { return };
        standing.failures += 1;
        reason.clone_into(&mut standing.last_failure);
        let suspect = standing.suspect();
        standing.streak.insert(token.spec);
        // Others failed on these too: they are not this worker's fault alone.
        let explained = |number: &u64| self.work.get(number).is_some_and(|work| work.ended_badly_elsewhere(&lease.worker));
        let blamed = standing.streak.iter().filter(|number| !explained(number)).count();
        if purpose == Purpose::Check && suspect && blamed > 0 {
            self.bench(&lease.worker, now);
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
            self.standings.retain(|name, standing| workers.contains_key(name) || standing.distrusted.is_some());
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

    /// The worker is not trusted: it gets no more, and its word in open comparisons counts for nothing.
    pub fn distrust(&mut self, name: &str, reason: &str) {
        self.free(name);
        self.checks.drop_word(name);
        let standing = self.standings.entry(name.to_owned());
        let standing = standing.or_insert_with(|| Standing::new(self.settings.check_every, &mut self.random));
        standing.distrusted = Some(reason.to_owned());
    }

    /// A worker is given work again, whatever was held against it. Whether it was known.
    pub fn readmit(&mut self, name: &str) -> bool {
        let Some(standing) = self.standings.get_mut(name) else {
            return false;
        };
        standing.distrusted = None;
        standing.well();
        true
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
            let reason = |(name, _): (&String, &Worker)| Some(format!("{name}: {}", self.standings.get(name)?.withheld(now)?));
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

fn number(work: &Work) -> u64 {
    work.spec.number
}
