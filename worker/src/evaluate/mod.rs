//! Evaluators: from weights to scores.

pub mod classification;

use std::{ops::ControlFlow, path::PathBuf};

use evolver_common::{
    data::{DataError, Item},
    score::{Portion, Scores},
    suggest,
};
use serde_json::Value;
use thiserror::Error;

use crate::models::{ModelError, ModelWeights};

/// Every evaluator by its name in definitions.
pub const EVALUATORS: &[(&str, Open)] = &[("classification", classification::open)];

/// Prepares an evaluator for its tasks.
pub type Open = fn(&Setup, Vec<TaskInput>) -> Result<Box<dyn Evaluator>, EvaluateError>;

/// What evaluators share.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Folder with tokenizer and config.
    pub folder: PathBuf,
    /// The model's `config.json`.
    pub config: Value,
    /// Tokens of one batch, at most.
    pub batch_tokens: usize,
}

/// One task with its items.
#[derive(Clone, Debug)]
pub struct TaskInput {
    /// The task's name.
    pub name: String,
    /// Labels, in the order of the model's outputs.
    pub labels: usize,
    /// Longest text in tokens.
    pub max_length: usize,
    /// Items that the search selects on.
    pub dev: Vec<Item>,
    /// The sealed items.
    pub test: Vec<Item>,
}

/// Why a model has no scores.
#[derive(Debug, Error)]
pub enum EvaluateError {
    /// The model cannot be run.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The data cannot be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The tokenizer cannot be used.
    #[error("{path}: {what}", path = path.display())]
    Tokenizer {
        /// Its file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A NaN or infinity among the outputs.
    #[error("the model's output for item {item} of task {task} is NaN or infinite")]
    NonFinite {
        /// The task.
        task: String,
        /// The item, from 0.
        item: usize,
    },
    /// Tasks of different label counts share one head.
    #[error(
        "task {first} has {labels} labels and task {second} has {others}, and they share one head: \
         models.heads and a head for each task keep heads apart"
    )]
    Labels {
        /// A task.
        first: String,
        /// Its labels.
        labels: usize,
        /// Another task.
        second: String,
        /// Its labels.
        others: usize,
    },
    /// There is no such evaluator.
    #[error("unknown evaluator {0}")]
    Unknown(String),
    /// It was told to stop.
    #[error("the scoring was stopped")]
    Stopped,
}

/// A model's tensors, and what each task has of its own.
#[derive(Debug)]
pub struct Candidate {
    /// Tensors that all tasks share.
    pub shared: ModelWeights,
    /// What each task has of its own; empty where all tasks share everything. What a task lacks there it shares.
    pub heads: Vec<ModelWeights>,
}

/// Scores models on a fixed set of tasks.
pub trait Evaluator: Send {
    /// Names of the tensors that a task may have of its own.
    fn head(&self) -> &[&str];

    /// Scores a model on the portion of every task, in their order; credits stand in the data's order. `progress` hears of items done and items in all, and may end the work.
    ///
    /// # Errors
    /// See [`EvaluateError`].
    fn evaluate(
        &mut self,
        candidate: Candidate,
        portion: Portion,
        progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Result<Scores, EvaluateError>;
}

/// Opens the evaluator of this name.
///
/// # Errors
/// If there is none, or it refuses its tasks.
pub fn open(name: &str, setup: &Setup, tasks: Vec<TaskInput>) -> Result<Box<dyn Evaluator>, EvaluateError> {
    let found = EVALUATORS.iter().find(|(known, _)| *known == name);
    let (_, open) =
        found.ok_or_else(|| EvaluateError::Unknown(suggest::unknown(name, EVALUATORS.iter().map(|(known, _)| *known))))?;
    open(setup, tasks)
}
