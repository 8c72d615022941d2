//! Scores with their items: what a worker measured and what the coordinator compares.
//!
//! - [`classification`]: metrics of a classifier from its predictions.
//! - [`compare`]: the objective, its interval, and the paired comparison of two models on the same items.
//! - [`normal`]: the normal distribution.
//! - [`parts`]: outcomes of single items.
//! - [`subset`]: some of the items.

mod classification;
mod compare;
pub mod normal;
mod parts;
mod subset;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use self::{
    classification::{bootstrap_error, classification},
    compare::{Interval, Objective, Scalarisation, Weighted},
    parts::Parts,
    subset::{Order, Portion, Subset, WHOLE},
};

/// What one model scored on one task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskScore {
    /// The task's name in the definition.
    pub task: String,
    /// Metric name to value, and `<metric>_stderr`, the standard error over the items. A metric that a search maximises lies in [0, 1]; others, such as
    /// a perplexity, are shown only.
    pub metrics: BTreeMap<String, f64>,
    /// Credit of every item in the data's order, each in [0, 1] (1: right, 0: wrong).
    pub credits: Vec<f32>,
}

/// What one model scored on every task, in the definition's order.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// One entry per task.
    pub tasks: Vec<TaskScore>,
}

/// Which of a task's data sets a score is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// What the search selects on.
    Dev,
    /// The sealed split that no selection reads.
    Test,
}
