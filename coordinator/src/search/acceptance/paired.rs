//! Paired: better on the same items by more than a threshold.

use super::{ALL_ITEMS, Bout, Entry, Open, Rule, THRESHOLD, Threshold, Verdict};

pub(super) const ENTRY: Entry<Open> = Entry {
    name: "paired",
    version: 1,
    summary: "better than its rival on the same items by a threshold",
    source: "McNemar 1947; the paired bootstrap of Efron 1979",
    parameters: &[THRESHOLD, ALL_ITEMS],
    open: |settings| Ok(Box::new(Paired(Threshold::new(settings)))),
};

struct Paired(Threshold);

impl Rule for Paired {
    fn judge(&mut self, bout: &Bout<'_>) -> Verdict {
        if self.0.passed(bout.objective, bout.so_far) { Verdict::Pass } else { Verdict::Reject }
    }
}
