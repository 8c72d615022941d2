//! From a journal's records to a search: the same fold for a coordinator that resumes and for a reader that shows.

use std::collections::{BTreeMap, HashSet};

use evolver_common::{definition::Resolved, digest::Digest};
use serde::Serialize;
use thiserror::Error;

use crate::{
    journal::{Record, Timings},
    search::{Outcome, Search, SetupError, TEST_BASE, TellError},
    setup,
};

/// Reason of a stop by the clock's limit, the one limit whose end is a record.
pub(super) const STOP_SECONDS: &str = "stop.seconds";

/// Records that do not make a search.
#[derive(Debug, Error)]
pub enum ReplayError {
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

/// Time spent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spent {
    /// Seconds of workers, by what they did.
    pub timings: Timings,
    /// Of these, what offspring took: the search itself, without the start models and the sealed split.
    pub offspring: Timings,
    /// Seconds of the coordinator's clock, over all its starts.
    pub seconds: f64,
}

/// An attempt that failed, or the end of a spec that was given up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failed {
    /// The spec.
    pub number: u64,
    /// Who tried; empty where the spec was given up.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub worker: String,
    /// Why.
    pub reason: String,
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
    /// Time.
    pub spent: Spent,
    /// Attempts that failed, in the order of their records.
    pub failed_attempts: Vec<Failed>,
    /// Specs that were given up.
    pub given_up: Vec<Failed>,
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
    let resolved = newer.map_or_else(|| definition(records), |newer| Ok(newer.clone()))?;
    let mut this = Replay {
        search: Search::new(setup::search(&resolved)?)?,
        resolved,
        told: HashSet::new(),
        epoch: 0,
        spent: Spent::default(),
        failed_attempts: Vec::new(),
        given_up: Vec::new(),
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
                this.spent.timings.add(timings);
                if this.is_offspring(*number) {
                    this.spent.offspring.add(timings);
                }
                this.tell(index, *number, Outcome::Scored(scores.clone()))?;
            }
            Record::Failure { number, reason } => {
                this.given_up.push(Failed { number: *number, worker: String::new(), reason: reason.clone() });
                this.tell(index, *number, Outcome::Failed(reason.clone()))?;
            }
            Record::Attempt { number, worker, reason } => {
                this.failed_attempts.push(Failed { number: *number, worker: worker.clone(), reason: reason.clone() });
            }
            // A limit that has been raised since then ends nothing.
            Record::Stop { reason, .. } if reason == STOP_SECONDS && raised(limit, this.resolved.definition.stop.seconds) => {}
            Record::Stop { number, reason } => this.search.stop(*number, reason),
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

fn raised(was: Option<f64>, is: Option<f64>) -> bool {
    is.is_none_or(|is| was.is_some_and(|was| is > was))
}

impl Replay {
    fn is_offspring(&self, number: u64) -> bool {
        let setup = self.search.setup();
        let start = setup.individuals.len() + setup.references.len();
        (start as u64..TEST_BASE).contains(&number)
    }

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
