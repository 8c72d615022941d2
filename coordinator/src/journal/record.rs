//! What a record says. The body is JSON that a person can query; item outcomes are a blob of little-endian F32 beside it.

use std::collections::BTreeMap;

use evolver_common::{
    digest::Digest,
    score::{Scores, TaskScore},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Where an attempt's time went, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Timings {
    /// Getting the lease, waiting for work not counted.
    pub lease: f64,
    /// Building the weights.
    pub build: f64,
    /// Scoring.
    pub score: f64,
    /// From the end of scoring to sending the report.
    pub report: f64,
}

impl Timings {
    /// Adds another attempt's time.
    pub fn add(&mut self, other: &Self) {
        self.lease += other.lease;
        self.build += other.build;
        self.score += other.score;
        self.report += other.report;
    }

    /// The share that was not scoring, in [0, 1].
    #[must_use]
    pub fn overhead(&self) -> f64 {
        let other = self.lease + self.build + self.report;
        let all = other + self.score;
        if all > 0.0 { other / all } else { 0.0 }
    }
}

/// One record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Record {
    /// The resolved definition: the first record, and again after a change that was allowed.
    Definition {
        /// The definition.
        resolved: Value,
        /// Digest of what decides the search.
        hash: Digest,
    },
    /// A coordinator started.
    Start {
        /// Its epoch, from 1.
        epoch: u64,
        /// Version of the program.
        version: String,
    },
    /// A spec was scored.
    Result {
        /// The spec.
        number: u64,
        /// Its recipe's id.
        recipe: Digest,
        /// The scores; their credits are kept beside the body.
        scores: Scores,
        /// Who scored it.
        worker: String,
        /// Which attempt.
        attempt: u32,
        /// Where the time went.
        timings: Timings,
        /// Seconds since this coordinator started.
        elapsed: f64,
    },
    /// A spec was given up.
    Failure {
        /// The spec.
        number: u64,
        /// Why.
        reason: String,
    },
    /// An attempt failed.
    Attempt {
        /// The spec.
        number: u64,
        /// Who tried.
        worker: String,
        /// Why it failed.
        reason: String,
    },
    /// The search was ended from outside.
    Stop {
        /// No spec with this number or above is drawn.
        number: u64,
        /// Why.
        reason: String,
    },
    /// Limits were raised by an operator. Of each limit the highest that was ever given holds. Since format 3.
    Extend {
        /// The new limits; those that are not named stay.
        limits: BTreeMap<String, Option<f64>>,
    },
    /// A model was handed in by an operator: it is the next offspring that is drawn. Since format 3.
    Enqueue {
        /// Offspring that were drawn before.
        offspring: u64,
        /// Its name.
        name: String,
        /// Its recipe, as text.
        recipe: String,
    },
    /// The result of a spec, which follows, is to be compared with another worker's. Since format 2.
    Compare {
        /// The spec.
        number: u64,
    },
    /// Workers agreed about a spec's scores. Since format 2.
    Check {
        /// The spec.
        number: u64,
        /// Who agreed.
        workers: Vec<String>,
    },
    /// A worker is not trusted any more, and what it reported alone is taken back: those specs have no result from here on, and what was drawn from
    /// them is drawn again. Since format 2.
    Distrust {
        /// Who.
        worker: String,
        /// Why.
        reason: String,
        /// The specs that have no result any more.
        numbers: Vec<u64>,
        /// The epoch from here on; it has risen if anything was taken back.
        epoch: u64,
    },
    /// A worker is trusted again. Since format 2.
    Readmit {
        /// Who.
        worker: String,
    },
    /// The state after a generation, to be met again on replay.
    State {
        /// Results absorbed.
        absorbed: u64,
        /// The state hash.
        hash: Digest,
    },
}

impl Record {
    /// The kind's name in the database.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Definition { .. } => "definition",
            Self::Start { .. } => "start",
            Self::Result { .. } => "result",
            Self::Failure { .. } => "failure",
            Self::Attempt { .. } => "attempt",
            Self::Stop { .. } => "stop",
            Self::Extend { .. } => "extend",
            Self::Enqueue { .. } => "enqueue",
            Self::Compare { .. } => "compare",
            Self::Check { .. } => "check",
            Self::Distrust { .. } => "distrust",
            Self::Readmit { .. } => "readmit",
            Self::State { .. } => "state",
        }
    }

    /// Takes the credits out of the body.
    pub(super) fn split(&self) -> (Self, Vec<u8>) {
        let mut body = self.clone();
        let mut outcomes = Vec::new();
        if let Self::Result { scores, .. } = &mut body {
            for task in &mut scores.tasks {
                let credits = std::mem::take(&mut task.credits);
                outcomes.extend((credits.len() as u64).to_le_bytes());
                outcomes.extend(credits.iter().flat_map(|credit| credit.to_le_bytes()));
            }
        }
        (body, outcomes)
    }

    /// Puts the credits back; `None` if they do not fit.
    pub(super) fn join(mut self, mut outcomes: &[u8]) -> Option<Self> {
        if let Self::Result { scores, .. } = &mut self {
            for TaskScore { credits, .. } in &mut scores.tasks {
                let (count, rest) = outcomes.split_first_chunk::<8>()?;
                let bytes = usize::try_from(u64::from_le_bytes(*count)).ok()?.checked_mul(4)?;
                let (values, rest) = rest.split_at_checked(bytes)?;
                *credits = values.as_chunks::<4>().0.iter().map(|value| f32::from_le_bytes(*value)).collect();
                outcomes = rest;
            }
        }
        outcomes.is_empty().then_some(self)
    }
}
