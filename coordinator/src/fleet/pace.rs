//! How long attempts take, and so which of them are slow.

use std::{collections::VecDeque, time::Duration};

const SAMPLES: usize = 32;
const ENOUGH: usize = 5;

/// Lengths of the latest attempts that came to a result.
#[derive(Default)]
pub(super) struct Pace {
    latest: VecDeque<Duration>,
}

impl Pace {
    pub(super) fn add(&mut self, length: Duration) {
        self.latest.push_back(length);
        if self.latest.len() > SAMPLES {
            self.latest.pop_front();
        }
    }

    /// An attempt that is older than this is slow: twice the median. `None` while too little is known.
    pub(super) fn slow(&self) -> Option<Duration> {
        if self.latest.len() < ENOUGH {
            return None;
        }
        let mut sorted: Vec<_> = self.latest.iter().copied().collect();
        sorted.sort_unstable();
        Some(sorted[sorted.len() / 2] * 2)
    }
}
