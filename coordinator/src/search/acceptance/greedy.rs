//! Greedy: a strictly better objective, compared after rounding to 5 decimals, as the official Evolver code does.

use super::{ALL_ITEMS, Bout, Entry, Open, Rule, Verdict};

pub(super) const ENTRY: Entry<Open> = Entry {
    name: "greedy",
    version: 1,
    summary: "a strictly better objective, after rounding to 5 decimals; what is found by luck stays",
    source: "the official Evolver code",
    parameters: &[ALL_ITEMS],
    open: |_| Ok(Box::new(Greedy)),
};

struct Greedy;

impl Rule for Greedy {
    fn judge(&mut self, bout: &Bout<'_>) -> Verdict {
        let [child, rival] = bout.so_far.map(|scores| (bout.objective.value(scores) * 1e5).round());
        if child > rival { Verdict::Pass } else { Verdict::Reject }
    }
}
