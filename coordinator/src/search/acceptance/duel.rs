//! A race, and for its winners a duel on items that no decision about them has read: a winner of the race by luck has no luck left there.

use super::{Bout, Default, Entry, Kind, Open, Parameter, RESERVED_ITEMS, Rule, THRESHOLD, Threshold, Verdict, growing, race};

const DUEL: &[Parameter] = &[
    Parameter {
        name: "fresh",
        kind: Kind::Number(0.05, 0.9),
        default: Default::Number(0.4),
        doc: "Share of the items that are kept for the duel.",
    },
    Parameter {
        name: "duel",
        kind: Kind::Number(-10.0, 10.0),
        default: Default::Number(0.0),
        doc: "Standard errors by which the duel must be won, on its own items alone.",
    },
];

pub(super) const ENTRY: Entry<Open> = Entry {
    name: "duel",
    version: 1,
    summary: "a race, and for who passes its threshold a duel with the rival on items that the race has not read",
    source: "a race as above; the split of the items is Cox 1975's",
    parameters: &[DUEL, race::RACE, THRESHOLD, RESERVED_ITEMS],
    open: |settings| {
        Ok(Box::new(
            Duel {
                course: race::Course::new(settings),
                threshold: Threshold::new(settings),
                fresh: settings.number("fresh"),
                duel: settings.number("duel"),
                stages: 0,
            }
            .counted(),
        ))
    },
};

struct Duel {
    course: race::Course,
    threshold: Threshold,
    fresh: f64,
    duel: f64,
    /// How many stages there are.
    stages: usize,
}

impl Duel {
    fn counted(self) -> Self {
        let stages = self.stages().len();
        Self { stages, ..self }
    }
}

impl Rule for Duel {
    fn stages(&self) -> Vec<f64> {
        let mut stages = growing(self.course.first * (1.0 - self.fresh), self.course.growth, 1.0 - self.fresh);
        stages.push(1.0);
        stages
    }

    fn judge(&mut self, bout: &Bout<'_>) -> Verdict {
        let passed = if bout.last {
            bout.objective.paired_z(bout.fresh[0], bout.fresh[1]) > self.duel
        } else if bout.stage + 2 == self.stages {
            self.threshold.passed(bout.objective, bout.so_far)
        } else {
            self.course.goes_on(bout.objective, bout.so_far)
        };
        if passed { Verdict::Pass } else { Verdict::Reject }
    }
}
