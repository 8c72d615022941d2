//! How attempts end, and what follows: for the spec, for the worker, and for what others have said.

use std::time::Duration;

use evolver_common::score::Scores;

use super::{Consequences, Fleet, Opinion, Purpose, Token, work::Kind};

impl Fleet {
    /// Whether this worker's next result is to be compared; to be asked once for each.
    pub fn compares(&mut self, worker: &str) -> bool {
        let standing = self.standings.get_mut(worker);
        standing.is_some_and(|standing| standing.check_due(self.settings.check_every, &mut self.random))
    }

    /// A token's result has been committed, which was live when it was reported; `wanted` asks for a second opinion on it.
    pub fn commit(&mut self, token: Token, worker: &str, scores: &Scores, wanted: bool, now: Duration) -> Consequences {
        let author = self.author(token, worker);
        let Some(mut work) = self.work.remove(&token.spec) else {
            return Consequences::default();
        };
        let leases = work.take(|_| true);
        self.unhold(&leases, token.spec);
        if let Some(lease) = leases.iter().find(|lease| lease.attempt == token.attempt) {
            self.pace.add(now.saturating_sub(lease.since));
        }
        if let Some(standing) = self.standings.get_mut(worker) {
            standing.results += 1;
        }
        self.checks.remember(work.spec, work.attempts, &author, scores.clone(), wanted);
        self.well(worker, now)
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
    pub(super) fn well(&mut self, name: &str, now: Duration) -> Consequences {
        let mut consequences = Consequences::default();
        let Some(standing) = self.standings.get_mut(name) else {
            return consequences;
        };
        let (attempts, everyone) = (self.settings.attempts as usize, standing.well());
        // Only where something is held against it: this is asked at every result.
        let here = if everyone.is_empty() { Vec::new() } else { self.available(now) };
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

    /// A live attempt failed.
    pub fn fail(&mut self, token: Token, reason: &str, now: Duration) {
        self.end_badly(token, reason, Kind::Failed, now);
    }

    /// The process that worked on a live token was killed from outside: less is to be read from it.
    pub fn lose(&mut self, token: Token, reason: &str, now: Duration) {
        self.end_badly(token, reason, Kind::Lost, now);
    }

    /// A live attempt ended because a file of its worker was not what it must be: that is never the spec's fault.
    pub fn spoil(&mut self, token: Token, reason: &str, now: Duration) {
        self.end_badly(token, reason, Kind::Spoiled, now);
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
        if !lease.helpers.is_empty() {
            // What it went on from may be what it failed by: that is dropped, and the attempt says nothing.
            self.work.get_mut(&token.spec).map(|work| work.handed.take());
            return;
        }
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
}
