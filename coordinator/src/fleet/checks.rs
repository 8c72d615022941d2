//! Second opinions: scores are a pure function of model and items, so two workers that disagree about one model prove that one of them is wrong, and
//! a third shows which.
//!
//! A check looks to a worker like any other spec: it has the number of the spec that it repeats, and a later attempt.

use std::collections::BTreeMap;

use evolver_common::score::{Scores, TaskScore};

use super::{
    parts::{authors, stands_on},
    voice,
    work::Work,
};
use crate::search::Spec;

/// Decided models that are kept to be given out again.
const KNOWN_MAX: usize = 24;

/// What comparing says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opinion {
    /// Not decided: another worker is asked.
    Open,
    /// These agree, and nobody differs.
    Agreed(Vec<String>),
    /// The first agree, the second reported something else.
    Lied {
        /// Workers whose scores stand.
        honest: Vec<String>,
        /// Workers whose scores are false.
        liars: Vec<String>,
    },
}

/// One model's scores by several workers.
pub(super) struct Check {
    pub(super) work: Work,
    answers: Vec<(String, Scores)>,
    /// Another worker's answer is wanted.
    pub(super) wanted: bool,
}

impl Check {
    pub(super) fn asked(&self, worker: &str) -> bool {
        self.answers.iter().flat_map(|(who, _)| authors(who)).any(|who| voice(who) == voice(worker))
    }

    /// Whose scores are there.
    pub(super) fn authors(&self) -> Vec<String> {
        self.answers.iter().map(|(who, _)| who.clone()).collect()
    }

    /// Whether more than one worker stands behind it.
    fn is_confirmed(&self) -> bool {
        self.answers.len() > 1 && !self.wanted
    }

    pub(super) fn is_disputed(&self) -> bool {
        self.wanted && self.answers.len() > 1
    }
}

/// Checks under way and models of known score.
pub(super) struct Checks {
    pub(super) open: BTreeMap<u64, Check>,
    tolerance: f64,
}

impl Checks {
    pub(super) fn new(tolerance: f64) -> Self {
        Self { open: BTreeMap::new(), tolerance }
    }

    /// Remembers a committed result; `wanted` asks for a second opinion on it.
    pub(super) fn remember(&mut self, spec: Spec, attempts: u32, worker: &str, scores: Scores, wanted: bool) {
        if let Some(check) = self.open.get_mut(&spec.number) {
            check.wanted |= wanted && check.answers.len() < 2;
            return;
        }
        let answers = vec![(worker.to_owned(), scores)];
        self.open.insert(spec.number, Check { work: Work::new(spec, attempts), answers, wanted });
        let idle = |check: &Check| !check.wanted && check.work.is_free();
        while self.open.values().filter(|check| idle(check)).count() > KNOWN_MAX {
            // Those that only one worker stands behind go first, then the oldest.
            let worst =
                self.open.iter().filter(|(_, check)| idle(check)).min_by_key(|(number, check)| (check.is_confirmed(), **number));
            let Some(number) = worst.map(|(number, _)| *number) else { break };
            self.open.remove(&number);
        }
    }

    /// The check to give to this worker: a wanted opinion that is not its own.
    pub(super) fn wanted_of(&self, worker: &str) -> Option<u64> {
        let fits =
            |check: &&Check| check.wanted && check.work.is_free() && !check.asked(worker) && !check.work.ended_badly_on(worker);
        self.open.values().find(fits).map(|check| check.work.spec.number)
    }

    /// A confirmed model that this worker has not scored.
    pub(super) fn canary_for(&self, worker: &str) -> Option<u64> {
        let fits = |check: &&Check| check.is_confirmed() && check.work.is_free() && !check.asked(worker);
        self.open.values().rev().find(fits).map(|check| check.work.spec.number)
    }

    /// Something that can be scored, for a worker to prove itself by: best another's, best confirmed.
    pub(super) fn probe_for(&self, worker: &str) -> Option<u64> {
        let idle = self.open.values().filter(|check| check.work.is_free());
        let best = idle.max_by_key(|check| (!check.asked(worker), check.is_confirmed(), check.work.spec.number));
        best.map(|check| check.work.spec.number)
    }

    /// Compares another answer with those that are there.
    pub(super) fn answer(&mut self, number: u64, worker: &str, scores: Scores) -> Opinion {
        let tolerance = self.tolerance;
        let Some(check) = self.open.get_mut(&number) else {
            return Opinion::Open;
        };
        // A worker's second scoring of one model replaces nothing: where it differs from its first, both voices count.
        let again = check.answers.iter().any(|(who, known)| voice(who) == voice(worker) && agree(known, &scores, tolerance));
        if !again {
            check.answers.push((worker.to_owned(), scores));
        }
        let camp = |of: &Scores| -> Vec<String> {
            let same = check.answers.iter().filter(|(_, other)| agree(of, other, tolerance));
            let mut camp: Vec<_> = same.map(|(who, _)| who.clone()).collect();
            camp.sort_unstable();
            // Two workers of one certificate are one voice.
            camp.dedup_by(|one, other| voice(one) == voice(other));
            camp
        };
        let largest = check.answers.iter().map(|(_, scores)| camp(scores)).max_by_key(Vec::len).unwrap_or_default();
        let in_camp = |who: &String| largest.iter().any(|other| voice(other) == voice(who));
        let mut others: Vec<_> = check.answers.iter().map(|(who, _)| who.clone()).filter(|who| !in_camp(who)).collect();
        others.dedup_by(|one, other| voice(one) == voice(other));
        if others.is_empty() {
            check.wanted &= largest.len() < 2;
            return if check.wanted { Opinion::Open } else { Opinion::Agreed(largest) };
        }
        if largest.len() > others.len() && largest.len() > 1 {
            check.wanted = false;
            check.answers.retain(|(who, _)| largest.iter().any(|other| voice(other) == voice(who)));
            return Opinion::Lied { honest: largest, liars: others };
        }
        check.wanted = true;
        Opinion::Open
    }

    /// Takes a voice's word out of every check.
    pub(super) fn drop_word(&mut self, of: &str) {
        self.open.retain(|_, check| {
            check.answers.retain(|(who, _)| !stands_on(who, of));
            !check.answers.is_empty()
        });
    }
}

/// Whether two scorings of one model are the same, but for `tolerance` of each task's items.
#[expect(clippy::cast_precision_loss, reason = "counts of items")]
fn agree(one: &Scores, other: &Scores, tolerance: f64) -> bool {
    let close = |one: f64, other: f64| one.to_bits() == other.to_bits() || (one - other).abs() <= 4.0 * tolerance;
    let same = |(one, other): (&TaskScore, &TaskScore)| {
        let differing = one.credits.iter().zip(&other.credits).filter(|(one, other)| one.to_bits() != other.to_bits()).count();
        let metrics = one.metrics.iter().all(|(name, value)| other.metrics.get(name).is_some_and(|found| close(*value, *found)));
        one.task == other.task
            && one.credits.len() == other.credits.len()
            && differing as f64 <= tolerance * one.credits.len() as f64
            && one.metrics.len() == other.metrics.len()
            && metrics
    };
    one.tasks.len() == other.tasks.len() && one.tasks.iter().zip(&other.tasks).all(same)
}
