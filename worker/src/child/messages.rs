//! What agent and child say to each other, one JSON object a line.

use std::path::PathBuf;

use evolver_common::{
    definition::Resolved,
    digest::Digest,
    score::{Parts, Portion, Scores},
};
use evolver_proto::v1;
use serde::{Deserialize, Serialize};

/// From the agent.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToChild {
    /// The search to work for; first of all.
    Setup {
        /// Its definition.
        resolved: Box<Resolved>,
        /// Folder for caches.
        cache: PathBuf,
    },
    /// One model to build and score.
    Work {
        /// The recipe's canonical encoding.
        recipe: Vec<u8>,
        /// What it is scored on.
        portion: Portion,
        /// Recipes worth keeping.
        keep: Vec<Digest>,
        /// What is known of its items already.
        known: Parts,
    },
}

/// From the child.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromChild {
    /// The setup is done.
    Ready,
    /// Scoring goes on.
    Progress {
        /// Items done.
        done: u64,
        /// Items in all.
        total: u64,
        /// What was found since it last said so.
        found: Parts,
    },
    /// The work is done.
    Scored {
        /// The scores.
        scores: Scores,
        /// Seconds of building.
        build: f64,
        /// Seconds of scoring.
        score: f64,
    },
    /// The work, or the setup, cannot be done.
    Failed {
        /// Its class.
        class: FailureClass,
        /// The sentence.
        message: String,
    },
}

/// Classes of failures, as the protocol has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureClass {
    /// It ended without an answer, or panicked.
    Crash,
    /// It made no progress.
    Hang,
    /// It was killed from outside.
    Killed,
    /// NaN or infinity.
    NonFinite,
    /// A file is missing, changed or damaged.
    Input,
    /// Anything else.
    Error,
}

impl From<FailureClass> for v1::FailureClass {
    fn from(class: FailureClass) -> Self {
        match class {
            FailureClass::Crash => Self::Crash,
            FailureClass::Hang => Self::Hang,
            FailureClass::Killed => Self::Killed,
            FailureClass::NonFinite => Self::NonFinite,
            FailureClass::Input => Self::Input,
            FailureClass::Error => Self::Error,
        }
    }
}
