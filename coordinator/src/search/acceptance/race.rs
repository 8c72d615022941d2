//! Racing: an offspring is scored on more and more items, and given up as soon as it falls behind its rival on the same items.

use evolver_common::score::{Objective, Scores};

use super::{Bout, Default, Entry, Kind, Open, Parameter, RESERVED_ITEMS, Rule, THRESHOLD, Threshold, Verdict, growing};
use crate::search::settings::Settings;

/// Keys of a race.
pub(super) const RACE: &[Parameter] = &[
    Parameter {
        name: "first",
        kind: Kind::Number(0.01, 1.0),
        default: Default::Number(0.25),
        doc: "Share of the items of the first stage.",
    },
    Parameter {
        name: "growth",
        kind: Kind::Number(1.1, 100.0),
        default: Default::Number(2.0),
        doc: "How many times as many items each stage has in all as the one before.",
    },
    Parameter {
        name: "hopeless",
        kind: Kind::Number(-10.0, 10.0),
        default: Default::Number(0.0),
        doc: "Standard errors of the paired difference at or below which an offspring is given up before its last stage.",
    },
];

pub(super) const ENTRY: Entry<Open> = Entry {
    name: "race",
    version: 1,
    summary: "scored on more and more items, given up when it falls behind its rival on them, accepted by a threshold on all",
    source: "after Maron and Moore 1994 and Birattari et al. 2002 (F-Race)",
    parameters: &[RACE, THRESHOLD, RESERVED_ITEMS],
    open: |settings| Ok(Box::new(Race { course: Course::new(settings), threshold: Threshold::new(settings) })),
};

/// The stages of a race and who is given up on the way.
pub(super) struct Course {
    pub(super) first: f64,
    pub(super) growth: f64,
    hopeless: f64,
}

impl Course {
    pub(super) fn new(settings: &Settings) -> Self {
        Self { first: settings.number("first"), growth: settings.number("growth"), hopeless: settings.number("hopeless") }
    }

    /// Whether an offspring goes on after a stage that is not the last.
    pub(super) fn goes_on(&self, objective: &Objective, [child, rival]: [&Scores; 2]) -> bool {
        objective.paired_z(child, rival) > self.hopeless
    }
}

struct Race {
    course: Course,
    threshold: Threshold,
}

impl Rule for Race {
    fn stages(&self) -> Vec<f64> {
        growing(self.course.first, self.course.growth, 1.0)
    }

    fn judge(&mut self, bout: &Bout<'_>) -> Verdict {
        let passed = if bout.last {
            self.threshold.passed(bout.objective, bout.so_far)
        } else {
            self.course.goes_on(bout.objective, bout.so_far)
        };
        if passed { Verdict::Pass } else { Verdict::Reject }
    }
}
