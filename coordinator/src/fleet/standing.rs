//! What is known of a worker: whether it is well, and whether it tells the truth.

use std::{collections::BTreeSet, time::Duration};

use rand::{Rng, RngExt as _};

/// Specs that a worker fails on in a row, without doing anything well, before it has to prove itself.
const STREAK: usize = 3;
/// First time without work of a worker that is not well; doubled each time.
const BENCH: Duration = Duration::from_secs(30);
const BENCH_MAX: Duration = Duration::from_secs(600);
/// A new worker's first result that is compared is among so many.
const FIRST_CHECK: u32 = 10;
/// A new worker is given a model of known score among its first so many.
const FIRST_CANARY: u32 = 5;

/// One worker's record.
pub(super) struct Standing {
    /// Results that were committed.
    pub(super) results: u64,
    /// Attempts that failed.
    pub(super) failures: u64,
    /// Scores that were compared with another worker's.
    pub(super) checked: u64,
    /// Of these, those that agreed.
    pub(super) agreed: u64,
    /// Specs that it failed on since it last did something well.
    pub(super) streak: BTreeSet<u64>,
    benched_until: Option<Duration>,
    benches: u32,
    /// What it failed by last.
    pub(super) last_failure: String,
    /// Why it is not trusted.
    pub(super) distrusted: Option<String>,
    /// Results until the next one that is compared.
    next_check: u32,
    /// Leases until the one of known score.
    canary: Option<u32>,
}

impl Standing {
    pub(super) fn new(every: u32, random: &mut impl Rng) -> Self {
        Self {
            results: 0,
            failures: 0,
            checked: 0,
            agreed: 0,
            streak: BTreeSet::new(),
            benched_until: None,
            benches: 0,
            last_failure: String::new(),
            distrusted: None,
            next_check: random.random_range(1..=FIRST_CHECK.min(every.max(1))),
            canary: (every > 0).then(|| random.random_range(1..=FIRST_CANARY)),
        }
    }

    /// Why it gets no work now.
    pub(super) fn withheld(&self, now: Duration) -> Option<String> {
        if let Some(reason) = &self.distrusted {
            return Some(reason.clone());
        }
        let rest = self.benched_until?.checked_sub(now).filter(|rest| !rest.is_zero())?;
        Some(format!("it failed on everything that it was given; tried again in {} s: {}", rest.as_secs() + 1, self.last_failure))
    }

    /// Whether it must do something that is known to be possible before it gets more to fail on.
    pub(super) fn suspect(&self) -> bool {
        self.streak.len() >= STREAK
    }

    /// It is not well: no work for a while. What it failed on.
    pub(super) fn bench(&mut self, now: Duration) -> BTreeSet<u64> {
        let length = BENCH.saturating_mul(1 << self.benches.min(10)).min(BENCH_MAX);
        self.benches += 1;
        self.benched_until = Some(now + length);
        std::mem::take(&mut self.streak)
    }

    /// It did something well. What it had failed on before.
    pub(super) fn well(&mut self) -> BTreeSet<u64> {
        self.benches = 0;
        self.benched_until = None;
        std::mem::take(&mut self.streak)
    }

    /// Whether this result of it is to be compared: one in `every`, at places that nobody can foresee.
    pub(super) fn check_due(&mut self, every: u32, random: &mut impl Rng) -> bool {
        if every == 0 {
            return false;
        }
        self.next_check = self.next_check.saturating_sub(1);
        let due = self.next_check == 0;
        if due {
            self.next_check = random.random_range(1..=every.saturating_mul(2).saturating_sub(1));
        }
        due
    }

    /// Whether the next lease is to be one of known score.
    pub(super) fn canary_due(&self) -> bool {
        self.canary == Some(0)
    }

    /// It was given a lease of the search.
    pub(super) fn leased(&mut self) {
        self.canary = self.canary.map(|left| left.saturating_sub(1));
    }

    /// It was given one.
    pub(super) fn canary_given(&mut self) {
        self.canary = None;
    }
}
