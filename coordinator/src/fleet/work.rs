//! One spec and the attempts at it.

use std::{collections::BTreeSet, time::Duration};

use super::parts::Handed;
use crate::search::Spec;

/// Workers whose processes vanished over one spec before it is given up all the same: it may be what kills them.
pub(super) const LOSSES_MAX: usize = 10;
/// Leases of one spec at a time: a slow one is doubled once.
const LEASES_MAX: usize = 2;

/// A worker's right to a spec.
pub(super) struct Lease {
    pub(super) worker: String,
    pub(super) attempt: u32,
    /// Whose items it goes on from.
    pub(super) helpers: Vec<String>,
    pub(super) since: Duration,
    pub(super) until: Duration,
}

/// How an attempt ended badly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// It failed by itself.
    Failed,
    /// Its process, or its whole worker, vanished.
    Lost,
    /// A file that it needs was missing, changed or damaged: never the spec's fault.
    Spoiled,
}

/// One bad end.
struct End {
    worker: String,
    reason: String,
    kind: Kind,
    /// Whether it speaks against the spec: the same worker has done other work well since.
    counted: bool,
}

/// A spec and its attempts.
pub(super) struct Work {
    pub(super) spec: Spec,
    pub(super) attempts: u32,
    pub(super) leases: Vec<Lease>,
    /// What those who left had done of it.
    pub(super) handed: Option<Handed>,
    ends: Vec<End>,
}

impl Work {
    pub(super) fn new(spec: Spec, attempts: u32) -> Self {
        Self { spec, attempts, leases: Vec::new(), handed: None, ends: Vec::new() }
    }

    pub(super) fn is_free(&self) -> bool {
        self.leases.is_empty()
    }

    pub(super) fn may_be_doubled(&self) -> bool {
        (1..LEASES_MAX).contains(&self.leases.len())
    }

    /// Whether an attempt of this worker ended badly, whoever is to blame.
    pub(super) fn ended_badly_on(&self, worker: &str) -> bool {
        self.ends.iter().any(|end| end.worker == worker)
    }

    pub(super) fn ended_badly_elsewhere(&self, worker: &str) -> bool {
        self.ends.iter().any(|end| end.worker != worker)
    }

    /// A new attempt, which goes on from what was handed in if it can.
    pub(super) fn lease(&mut self, worker: &str, goes_on: bool, now: Duration, length: Duration) -> u32 {
        self.attempts += 1;
        let helpers = self.handed.as_ref().filter(|_| goes_on).map_or_else(Vec::new, |handed| handed.by.clone());
        let (worker, attempt) = (worker.to_owned(), self.attempts);
        self.leases.push(Lease { worker, attempt, helpers, since: now, until: now + length });
        self.attempts
    }

    pub(super) fn holder(&self, attempt: u32) -> Option<&str> {
        self.leases.iter().find(|lease| lease.attempt == attempt).map(|lease| lease.worker.as_str())
    }

    pub(super) fn prolong(&mut self, attempt: u32, until: Duration) {
        for lease in self.leases.iter_mut().filter(|lease| lease.attempt == attempt) {
            lease.until = until;
        }
    }

    /// Takes the leases that `over` says are over.
    pub(super) fn take(&mut self, over: impl Fn(&Lease) -> bool) -> Vec<Lease> {
        self.leases.extract_if(.., |lease| over(lease)).collect()
    }

    pub(super) fn end(&mut self, worker: &str, reason: &str, kind: Kind, counted: bool) {
        self.ends.push(End { worker: worker.to_owned(), reason: reason.to_owned(), kind, counted });
    }

    /// The worker is well: what ended badly on it speaks against the spec.
    pub(super) fn count(&mut self, worker: &str) {
        self.ends.iter_mut().filter(|end| end.worker == worker).for_each(|end| end.counted = true);
    }

    /// The worker is not well: what ended badly on it says nothing.
    pub(super) fn strike(&mut self, worker: &str) {
        self.ends.retain(|end| end.worker != worker || end.counted);
    }

    /// Why the spec is given up, if it is: `attempts` workers that are well have failed on it, or everyone who is here has, often enough.
    pub(super) fn hopeless(&self, attempts: usize, mut everyone: impl Iterator<Item = String>) -> Option<String> {
        let counted = |kind| self.ends.iter().filter(move |end| end.counted && end.kind == kind);
        let distinct = |kind| counted(kind).map(|end| &end.worker).collect::<BTreeSet<_>>().len();
        let (failures, losses) = (counted(Kind::Failed).count(), counted(Kind::Lost).count());
        let mut nobody_else = || {
            let mut here = everyone.by_ref().peekable();
            here.peek().is_some() && here.all(|worker| self.ended_badly_on(&worker))
        };
        let last = || self.ends.iter().rev().find(|end| end.counted).map_or("", |end| end.reason.as_str());
        if distinct(Kind::Failed) >= attempts || (failures >= attempts && nobody_else()) {
            return Some(format!("{failures} attempts failed, the last one: {}", last()));
        }
        if distinct(Kind::Lost) >= LOSSES_MAX || (losses >= LOSSES_MAX && nobody_else()) {
            return Some(format!("{losses} processes vanished while they worked on it, the last one: {}", last()));
        }
        None
    }
}
