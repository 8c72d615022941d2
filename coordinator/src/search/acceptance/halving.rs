//! Successive halving without waiting: after each stage an offspring goes on if it is among the best `1 / eta` of all that have come so far to that
//! stage. Which rival it has does not matter until the last stage.

use super::{Bout, Default, Entry, Kind, Open, Parameter, RESERVED_ITEMS, Rule, THRESHOLD, Threshold, Verdict, growing};

const HALVING: &[Parameter] = &[
    Parameter {
        name: "first",
        kind: Kind::Number(0.01, 1.0),
        default: Default::Number(0.125),
        doc: "Share of the items of the first stage.",
    },
    Parameter {
        name: "eta",
        kind: Kind::Number(1.1, 100.0),
        default: Default::Number(2.0),
        doc: "Of those at a stage the best 1/eta go on, and each stage has eta times as many items in all as the one before.",
    },
];

pub(super) const ENTRY: Entry<Open> = Entry {
    name: "halving",
    version: 1,
    summary: "after each stage only the best 1/eta of all that came so far go on; accepted by a threshold on all items",
    source: "ASHA: Li et al., A System for Massively Parallel Hyperparameter Tuning, MLSys 2020; its stopping form",
    parameters: &[HALVING, THRESHOLD, RESERVED_ITEMS],
    open: |settings| {
        Ok(Box::new(Halving {
            first: settings.number("first"),
            eta: settings.number("eta"),
            threshold: Threshold::new(settings),
            seen: Vec::new(),
        }))
    },
};

struct Halving {
    first: f64,
    eta: f64,
    threshold: Threshold,
    /// Values at each stage but the last, in order of arrival.
    seen: Vec<Vec<f64>>,
}

impl Rule for Halving {
    fn stages(&self) -> Vec<f64> {
        growing(self.first, self.eta, 1.0)
    }

    fn judge(&mut self, bout: &Bout<'_>) -> Verdict {
        if bout.last {
            return if self.threshold.passed(bout.objective, bout.so_far) { Verdict::Pass } else { Verdict::Reject };
        }
        let value = bout.objective.credit_value(bout.so_far[0]);
        if self.seen.len() <= bout.stage {
            self.seen.resize(bout.stage + 1, Vec::new());
        }
        let seen = &mut self.seen[bout.stage];
        seen.push(value);
        let better = seen.iter().filter(|other| **other > value).count();
        #[expect(clippy::cast_precision_loss, reason = "counts of offspring")]
        let among_the_best = (better as f64) < (seen.len() as f64 / self.eta).max(1.0);
        if among_the_best { Verdict::Pass } else { Verdict::Reject }
    }
}
