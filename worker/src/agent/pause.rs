//! Growing pauses with full jitter, so that a fleet that lost its coordinator at one moment does not come back at one.

use std::time::{Duration, Instant};

use evolver_proto::PUSHBACK;
use tonic::Status;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(5);

/// Pauses of one repeated call.
pub(super) struct Pause {
    until: Instant,
    ceiling: Duration,
}

impl Pause {
    pub(super) fn new(patience: Duration) -> Self {
        // A patience without end is a year.
        let longest = Duration::from_secs(365 * 24 * 3600);
        Self { until: Instant::now() + patience.min(longest), ceiling: FIRST }
    }

    /// Waits, at least as long as the answer asks for; false if the patience is at its end.
    pub(super) async fn next(&mut self, status: &Status) -> bool {
        if Instant::now() >= self.until {
            return false;
        }
        tokio::time::sleep(asked(status) + jitter(self.ceiling)).await;
        self.ceiling = (self.ceiling * 2).min(LONGEST);
        true
    }
}

/// What the coordinator asks to wait.
fn asked(status: &Status) -> Duration {
    let value = status.metadata().get(PUSHBACK).and_then(|value| value.to_str().ok()).and_then(|text| text.parse().ok());
    value.map_or(Duration::ZERO, Duration::from_millis).min(Duration::from_secs(60))
}

/// Evenly from nothing to `ceiling`, by the system's randomness: processes that start together must not draw alike.
pub(super) fn jitter(ceiling: Duration) -> Duration {
    // A system without randomness waits longest.
    let drawn = getrandom::u32().unwrap_or(u32::MAX);
    ceiling.mul_f64(f64::from(drawn) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_covers_its_range() {
        let second = Duration::from_secs(1);
        let drawn: Vec<_> = (0..400).map(|_| jitter(second)).collect();
        assert!(drawn.iter().all(|pause| *pause <= second));
        for quarter in 0..4 {
            let (from, to) = (second / 4 * quarter, second / 4 * (quarter + 1));
            let count = drawn.iter().filter(|pause| (from..to).contains(*pause)).count();
            assert!((50..150).contains(&count), "{count} of 400 in quarter {quarter}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_end_with_the_patience_and_honour_what_the_coordinator_asks() {
        let mut status = Status::resource_exhausted("busy");
        status.metadata_mut().insert(PUSHBACK, "1500".parse().unwrap());
        let began = tokio::time::Instant::now();
        assert!(Pause::new(Duration::from_secs(60)).next(&status).await);
        assert!((1500..=1600).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
        assert!(!Pause::new(Duration::ZERO).next(&status).await);
    }
}
