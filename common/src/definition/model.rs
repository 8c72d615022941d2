//! The typed definition of a search: every key, its meaning and its default.
//!
//! The doc comments here are for programmers; what a user reads stands in [`super::reference`], and a test holds the two together.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Map;

use crate::recipe::Parameters;

/// A search: which models, which tasks, how to search, when to stop.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Definition {
    /// A name for people; part of the model card.
    #[serde(default = "default::name")]
    pub name: String,
    /// The checkpoints.
    pub models: Models,
    /// What the model is to do.
    pub tasks: Vec<Task>,
    /// Merges of the experts, as further individuals or as rows of the table.
    #[serde(default)]
    pub merges: Vec<MergeEntry>,
    /// How scoring runs.
    #[serde(default)]
    pub evaluator: Evaluator,
    /// How the tasks' scores become one number.
    #[serde(default)]
    pub objective: ObjectiveSettings,
    /// How offspring are drawn.
    #[serde(default)]
    pub search: SearchSettings,
    /// When an offspring replaces its parent.
    #[serde(default)]
    pub acceptance: Acceptance,
    /// When the search ends.
    #[serde(default)]
    pub stop: Stop,
    /// Leases and attempts.
    #[serde(default)]
    pub fleet: Fleet,
}

/// The checkpoints of a search.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Models {
    /// Folder of the base model.
    pub base: PathBuf,
    /// The fine-tuned models, at least one.
    pub experts: Vec<Expert>,
    /// Glob patterns of tensors that each task keeps its own of.
    #[serde(default)]
    pub heads: Vec<String>,
    /// Glob patterns of tensors that stay the base's.
    #[serde(default)]
    pub frozen: Vec<String>,
}

/// One fine-tuned checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expert {
    /// Unique name.
    pub name: String,
    /// Folder of a full checkpoint or of a LoRA adapter.
    pub path: PathBuf,
    /// File of statistics measured on it, for merge methods that read any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub statistics: Option<PathBuf>,
}

/// One task with its labelled data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Task {
    /// Unique name.
    pub name: String,
    /// Evaluator that scores it.
    #[serde(default = "default::evaluator")]
    pub evaluator: String,
    /// Items that the search selects on.
    pub dev: PathBuf,
    /// Sealed items, read only for the final candidates.
    #[serde(default)]
    pub test: Option<PathBuf>,
    /// Field of an item's text.
    #[serde(default = "default::text")]
    pub text: String,
    /// Field of a second text, for tasks over pairs.
    #[serde(default)]
    pub text_pair: Option<String>,
    /// Field of an item's label.
    #[serde(default = "default::label")]
    pub label: String,
    /// The labels, in the order of the model's outputs; empty: the base's `id2label`.
    #[serde(default)]
    pub labels: Vec<String>,
    /// Metric that the search maximises; none: the evaluator's first.
    #[serde(default)]
    pub metric: Option<String>,
    /// Weight in the objective, above 0.
    #[serde(default = "default::one")]
    pub weight: f64,
    /// Expert whose head tensors score this task; needed where `models.heads` is set.
    #[serde(default)]
    pub head: Option<String>,
    /// Longest text in tokens; longer ones are cut.
    #[serde(default = "default::max_length")]
    pub max_length: usize,
    /// Dev items used, 0 for all; a fixed choice by content.
    #[serde(default)]
    pub dev_items: usize,
    /// Test items used, 0 for all.
    #[serde(default)]
    pub test_items: usize,
    /// The evaluator's own keys.
    #[serde(flatten)]
    pub parameters: Map<String, serde_json::Value>,
}

impl Task {
    /// The metric that the search maximises.
    #[must_use]
    pub fn metric(&self) -> &str {
        self.metric.as_deref().unwrap_or("accuracy")
    }

    /// The columns that an item is known by.
    #[must_use]
    pub fn key_columns(&self) -> Vec<&str> {
        std::iter::once(self.text.as_str()).chain(self.text_pair.as_deref()).collect()
    }
}

/// What a merge of the experts is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Joins the experts in the starting population.
    Individual,
    /// Is scored for the table and never read by the search.
    Reference,
}

/// A merge of experts over the base.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MergeEntry {
    /// Unique name.
    pub name: String,
    /// Merge method.
    pub method: String,
    /// Part in the search.
    #[serde(default = "default::role")]
    pub role: Role,
    /// Experts merged, by name; empty: all.
    #[serde(default)]
    pub models: Vec<String>,
    /// Parameters of each model, the same for all.
    #[serde(default)]
    pub model_parameters: Parameters,
    /// Parameters of the merge.
    #[serde(default)]
    pub parameters: Parameters,
}

/// How scoring runs; does not change outcomes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Evaluator {
    /// Tokens in one batch, at most; fewer where memory is short.
    pub batch_tokens: usize,
    /// Seconds without progress after which a scoring is given up as hung.
    pub hang_seconds: f64,
    /// Seconds after which an attempt is given up however far it is.
    pub attempt_seconds: f64,
    /// Memory that a scoring process may take for itself, in bytes, mapped checkpoints not counted; 0: no limit.
    pub memory_bytes: u64,
    /// Files that a scoring process may have open; 0: no limit of ours.
    pub open_files: u64,
}

/// How the tasks' scores become one number.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ObjectiveSettings {
    /// The function of the tasks' metrics that is maximised.
    pub scalarisation: Scalarisation,
    /// What each task's metric is measured against, by the task's name; 0 where none is given. For `chebyshev` alone.
    pub reference: Map<String, serde_json::Value>,
}

/// A function of the tasks' metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scalarisation {
    /// The weighted mean.
    #[default]
    Mean,
    /// The weighted distance of the weakest task to its reference.
    Chebyshev,
}

/// The order in which results are absorbed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// In the order of their numbers.
    #[default]
    Ordered,
    /// As they arrive.
    Arrival,
}

/// How offspring are drawn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SearchSettings {
    /// Seed of every draw.
    #[serde(default)]
    pub seed: u64,
    /// Offspring drawn before the oldest of them must be back.
    #[serde(default = "default::in_flight")]
    pub in_flight: usize,
    /// Order in which results are absorbed.
    #[serde(default)]
    pub mode: Mode,
    /// Strategy that draws them.
    #[serde(default = "default::strategy")]
    pub strategy: String,
    /// The strategy's own keys.
    #[serde(flatten)]
    pub parameters: Map<String, serde_json::Value>,
}

/// When an offspring replaces its parent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Acceptance {
    /// The rule.
    #[serde(default = "default::rule")]
    pub rule: String,
    /// The rule's own keys.
    #[serde(flatten)]
    pub parameters: Map<String, serde_json::Value>,
}

/// When the search ends: whichever comes first.
///
/// Where none is set, the search ends after 100 offspring.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Stop {
    /// Offspring drawn.
    pub offspring: Option<u64>,
    /// Generations: each member of the population was mutated once.
    pub generations: Option<u64>,
    /// Dev items scored, start population included.
    pub evaluations: Option<u64>,
    /// Seconds of the coordinator's clock, summed over restarts.
    pub seconds: Option<f64>,
    /// Offspring in a row of which none was accepted.
    pub patience: Option<u64>,
}

/// Leases and attempts; does not change outcomes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Fleet {
    /// Seconds that a lease holds without a heartbeat.
    pub lease_seconds: f64,
    /// Seconds between two heartbeats.
    pub heartbeat_seconds: f64,
    /// Failed attempts after which a spec is given up.
    pub attempts: u32,
    /// Limit of a worker's cache of built weights, in bytes.
    pub cache_bytes: u64,
    /// One in so many results of a worker is scored again by another and compared; 0: none. A new worker's are compared more often.
    pub check_every: u32,
    /// Whether a result that becomes the best is scored again by another worker.
    pub check_best: bool,
    /// Share of items on which two scorings of one model may differ: 0 where all machines compute alike.
    pub tolerance: f64,
}

impl Default for Evaluator {
    fn default() -> Self {
        Self { batch_tokens: 4096, hang_seconds: 120.0, attempt_seconds: 86_400.0, memory_bytes: 0, open_files: 4096 }
    }
}

impl Default for SearchSettings {
    fn default() -> Self {
        Self {
            seed: 0,
            in_flight: default::in_flight(),
            mode: Mode::default(),
            strategy: default::strategy(),
            parameters: Map::new(),
        }
    }
}

impl Default for Acceptance {
    fn default() -> Self {
        Self { rule: default::rule(), parameters: Map::new() }
    }
}

impl Default for Fleet {
    fn default() -> Self {
        Self {
            lease_seconds: 60.0,
            heartbeat_seconds: 10.0,
            attempts: 3,
            cache_bytes: 8 << 30,
            check_every: 50,
            check_best: true,
            tolerance: 0.0,
        }
    }
}

mod default {
    use super::Role;

    pub(super) fn name() -> String {
        "search".into()
    }
    pub(super) fn evaluator() -> String {
        "classification".into()
    }
    pub(super) fn text() -> String {
        "text".into()
    }
    pub(super) fn label() -> String {
        "label".into()
    }
    pub(super) fn one() -> f64 {
        1.0
    }
    pub(super) fn max_length() -> usize {
        128
    }
    pub(super) fn role() -> Role {
        Role::Reference
    }
    pub(super) fn in_flight() -> usize {
        1
    }
    pub(super) fn strategy() -> String {
        "portfolio".into()
    }
    pub(super) fn rule() -> String {
        "race".into()
    }
}
