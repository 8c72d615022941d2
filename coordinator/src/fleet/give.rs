//! What a worker is given to do.

use std::time::Duration;

use super::{
    Fleet, Token,
    work::{Lease, Work},
};
use crate::search::Spec;

enum Choice {
    Search(u64),
    Check(u64),
}

impl Fleet {
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
                self.grant(name, number, true, now)
            }
            Choice::Check(number) => self.grant(name, number, false, now),
        }
    }

    /// Gives the worker this very spec, if it is wanted and `fits`: it says that it has done it. The machine that holds it may be the dead one whose
    /// results these are, and a result at once is worth more than one under way.
    pub fn lease_held(&mut self, name: &str, number: u64, fits: impl Fn(&Spec) -> bool, now: Duration) -> Option<(Token, Spec)> {
        let available = self.workers.get(name).is_some_and(|worker| self.is_available(name, worker, now));
        let others = |work: &Work| work.leases.iter().all(|lease| lease.worker != name);
        let wanted = self.work.get(&number).is_some_and(|work| others(work) && fits(&work.spec));
        if available && wanted { self.grant(name, number, false, now) } else { None }
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

    fn grant(&mut self, name: &str, number: u64, afresh: bool, now: Duration) -> Option<(Token, Spec)> {
        let length = self.settings.lease;
        let goes_on = afresh && self.workers.get(name).is_some_and(|worker| worker.goes_on);
        let work = match self.work.get_mut(&number) {
            Some(work) => work,
            None => &mut self.checks.open.get_mut(&number)?.work,
        };
        let attempt = work.lease(name, goes_on, now, length);
        let spec = work.spec.clone();
        if let Some(worker) = self.workers.get_mut(name) {
            worker.seen = now;
            worker.holds = Some(number);
            (worker.done, worker.total) = (0, 0);
        }
        Some((Token { epoch: self.epoch, spec: number, attempt }, spec))
    }

    /// The worker can do nothing well: it rests, and what it failed on says nothing.
    pub(super) fn bench(&mut self, name: &str, now: Duration) {
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
}

fn number(work: &Work) -> u64 {
    work.spec.number
}
