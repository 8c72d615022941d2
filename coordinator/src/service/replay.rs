//! From a journal's records to a search: the same fold for a coordinator that resumes and for a reader that shows.

use std::collections::{BTreeMap, HashSet};

use evolver_common::{
    definition::{Resolved, Stop},
    digest::Digest,
    recipe::parse,
    suggest,
};
use thiserror::Error;

use crate::{
    journal::{Record, Timings},
    search::{Named, Outcome, Search, SetupError, TEST_BASE, TellError},
    setup,
};

/// Reason of a stop by the clock's limit, the one limit whose end is a record.
pub(super) const STOP_SECONDS: &str = "stop.seconds";

/// The limits that can be raised.
pub const LIMITS: [&str; 5] = ["offspring", "generations", "evaluations", "seconds", "patience"];

/// Records that do not make a search.
#[derive(Debug, Error)]
pub enum ReplayError {
    /// An operator's decision that this program does not understand.
    #[error("record {record}: {what}")]
    Decision {
        /// The record.
        record: usize,
        /// What is wrong with it.
        what: String,
    },
    /// No definition stands at the beginning.
    #[error("the journal has no definition: nothing was begun in this folder")]
    NoDefinition,
    /// A definition that this program does not understand.
    #[error("record {record}: the definition cannot be read: {source}")]
    Definition {
        /// The record.
        record: usize,
        /// Why.
        source: serde_json::Error,
    },
    /// A definition that this program refuses.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// A result that was never asked for.
    #[error("record {record}: {source}; the journal was written by a program that draws differently")]
    Tell {
        /// The record.
        record: usize,
        /// What is wrong.
        source: TellError,
    },
    /// A result of a model that this program does not draw.
    #[error(
        "record {record}: spec {number} was scored as recipe {written}, and is recipe {found}: the journal was written by a program that draws differently"
    )]
    Recipe {
        /// The record.
        record: usize,
        /// The spec.
        number: u64,
        /// The recipe's id now.
        found: Digest,
        /// The recipe's id then.
        written: Digest,
    },
    /// The state is not what it was.
    #[error(
        "record {record}: after {absorbed} results the state is {found}, and it was {written}: the journal was written by a program that draws differently"
    )]
    State {
        /// The record.
        record: usize,
        /// Results absorbed.
        absorbed: u64,
        /// The hash now.
        found: Digest,
        /// The hash then.
        written: Digest,
    },
}

/// Time and attempts spent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spent {
    /// Seconds of workers, by what they did.
    pub timings: Timings,
    /// Seconds of the coordinator's clock, over all its starts.
    pub seconds: f64,
    /// Attempts that failed.
    pub failed_attempts: u64,
}

/// What a journal holds.
pub struct Replay {
    /// The latest definition.
    pub resolved: Resolved,
    /// The search as it stands.
    pub search: Search,
    /// Specs that have a result.
    pub told: HashSet<u64>,
    /// The latest epoch.
    pub epoch: u64,
    /// Time and attempts.
    pub spent: Spent,
    /// Seconds of the coordinator's clock when each spec's result was committed.
    pub committed_at: BTreeMap<u64, f64>,
}

/// The latest definition that was journaled.
///
/// # Errors
/// If there is none, or it cannot be read.
pub(super) fn definition(records: &[Record]) -> Result<Resolved, ReplayError> {
    let latest = (1..).zip(records).filter_map(|(index, record)| match record {
        Record::Definition { resolved, .. } => Some((index, resolved)),
        _ => None,
    });
    let (record, resolved) = latest.last().ok_or(ReplayError::NoDefinition)?;
    serde_json::from_value(resolved.clone()).map_err(|source| ReplayError::Definition { record, source })
}

/// Folds records; a definition given as `newer` holds instead of the journaled one.
///
/// # Errors
/// Names the record that does not fit.
pub fn replay(records: &[Record], newer: Option<&Resolved>) -> Result<Replay, ReplayError> {
    let mut resolved = newer.map_or_else(|| definition(records), |newer| Ok(newer.clone()))?;
    for (index, record) in (1..).zip(records) {
        if let Record::Extend { limits } = record {
            extend(&mut resolved.definition.stop, limits).map_err(|what| ReplayError::Decision { record: index, what })?;
        }
    }
    let mut this = Replay {
        search: Search::new(setup::search(&resolved)?)?,
        resolved,
        told: HashSet::new(),
        epoch: 0,
        spent: Spent::default(),
        committed_at: BTreeMap::new(),
    };
    // Seconds of earlier starts, and of this one so far.
    let (mut before, mut current) = (0.0, 0.0);
    // The clock's limit at that time.
    let mut limit = None;
    for (index, record) in (1..).zip(records) {
        match record {
            Record::Definition { resolved, .. } => limit = resolved["definition"]["stop"]["seconds"].as_f64(),
            Record::Start { epoch, .. } => {
                before += current;
                current = 0.0;
                this.epoch = *epoch;
            }
            Record::Result { number, recipe, scores, timings, elapsed, .. } => {
                if let Some(found) = this.search.recipe(*number).filter(|found| found != recipe) {
                    return Err(ReplayError::Recipe { record: index, number: *number, found, written: *recipe });
                }
                current = *elapsed;
                this.committed_at.insert(*number, before + current);
                let spent = &mut this.spent.timings;
                spent.lease += timings.lease;
                spent.build += timings.build;
                spent.score += timings.score;
                spent.report += timings.report;
                this.tell(index, *number, Outcome::Scored(scores.clone()))?;
            }
            Record::Failure { number, reason } => this.tell(index, *number, Outcome::Failed(reason.clone()))?,
            Record::Attempt { .. } => this.spent.failed_attempts += 1,
            // A limit that has been raised since then ends nothing.
            Record::Stop { reason, .. } if reason == STOP_SECONDS && raised(limit, this.resolved.definition.stop.seconds) => {}
            Record::Stop { number, reason } => this.search.stop(*number, reason),
            Record::Extend { limits } => limit = limits.get("seconds").copied().unwrap_or(limit),
            Record::Enqueue { name, recipe } => {
                let recipe = parse(recipe).map_err(|error| ReplayError::Decision { record: index, what: error.to_string() })?;
                this.search.enqueue(Named { name: name.clone(), kind: "evolved", recipe });
            }
            Record::State { absorbed, hash } => {
                let found = this.search.state_hash();
                if *absorbed != this.search.absorbed() || *hash != found {
                    return Err(ReplayError::State { record: index, absorbed: *absorbed, found, written: *hash });
                }
            }
        }
    }
    this.spent.seconds = before + current;
    Ok(this)
}

/// Raises limits; of each the highest that was given holds, and none is the highest.
///
/// # Errors
/// Names a limit that there is not.
pub fn extend(stop: &mut Stop, limits: &BTreeMap<String, Option<f64>>) -> Result<(), String> {
    for (name, limit) in limits {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "limits are whole numbers far below 2^53, or as good as none"
        )]
        let whole = |was: Option<u64>| was.zip(*limit).map(|(was, is)| was.max(is as u64));
        match name.as_str() {
            "offspring" => stop.offspring = whole(stop.offspring),
            "generations" => stop.generations = whole(stop.generations),
            "evaluations" => stop.evaluations = whole(stop.evaluations),
            "patience" => stop.patience = whole(stop.patience),
            "seconds" => stop.seconds = stop.seconds.zip(*limit).map(|(was, is)| was.max(is)),
            other => return Err(format!("unknown limit {}", suggest::unknown(other, LIMITS))),
        }
    }
    Ok(())
}

fn raised(was: Option<f64>, is: Option<f64>) -> bool {
    is.is_none_or(|is| was.is_some_and(|was| is > was))
}

impl Replay {
    fn tell(&mut self, record: usize, number: u64, outcome: Outcome) -> Result<(), ReplayError> {
        self.search.tell(number, outcome).map_err(|source| ReplayError::Tell { record, source })?;
        self.told.insert(number);
        Ok(())
    }

    /// Seconds of the coordinator's clock from its first start until the spec's result was committed.
    #[must_use]
    pub fn seconds_until(&self, number: u64) -> f64 {
        let sealed = self.committed_at.get(&(TEST_BASE + number));
        self.committed_at.get(&number).or(sealed).copied().unwrap_or(0.0)
    }
}
