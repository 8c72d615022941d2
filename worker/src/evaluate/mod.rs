//! Evaluators: from weights to scores.
//!
//! - [`parameters`]: an evaluator's own keys, declared once, and checked and completed from the declaration.
//! - [`subject`]: the model under evaluation: its network, built once, or a folder of it, written once.
//! - [`columns`], [`tokens`], [`batches`], [`scoring`]: items' fields and templates, tokenizers, batches, metrics with their errors.
//! - [`outcomes`]: what is found for single items, as bytes.
//! - one file for each evaluator; [`outside`] holds those that hand the model to a program of the user's.

mod batches;
mod choice;
mod classification;
mod columns;
mod generation;
mod image;
mod outcomes;
mod outside;
mod parameters;
mod perplexity;
mod scoring;
mod subject;
mod tagging;
mod texts;
mod tokens;

use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use evolver_common::{
    data::{self, DataError, Row},
    definition::{Data, Definition, Resolved, ResolvedTask, Task},
    score::{Parts, Portion, Scores, Split, TaskScore},
    suggest,
};
use serde_json::Value;
use thiserror::Error;

pub use self::{
    classification::Classification,
    parameters::{Kind as ParameterKind, Parameter},
    subject::{Candidate, Subject},
    tokens::TextTokenizer,
};
use crate::models::{self, ModelError};

/// An evaluator, as definitions name it and as `evolver evaluators` shows it.
pub struct Declaration {
    /// Its name.
    pub name: &'static str,
    /// What it does, a sentence.
    pub summary: &'static str,
    /// Where its conventions come from.
    pub source: &'static str,
    /// Metrics with their meaning; the first is the default. Empty: the program outside names them.
    pub metrics: &'static [(&'static str, &'static str)],
    /// Its own keys.
    pub parameters: &'static [Parameter],
    open: Open,
}

type Open = fn(&Setup, &TaskInput) -> Result<Box<dyn Evaluator>, EvaluateError>;

/// Every evaluator.
pub const EVALUATORS: &[&Declaration] = &[
    &classification::DECLARATION,
    &tagging::DECLARATION,
    &perplexity::DECLARATION,
    &choice::DECLARATION,
    &generation::DECLARATION,
    &image::DECLARATION,
    &outside::command::DECLARATION,
    &outside::resident::DECLARATION,
    &outside::lm_eval::DECLARATION,
    &outside::server::OPENAI,
    &outside::server::SGLANG,
    &outside::server::VLLM,
];

/// What evaluators share.
#[derive(Debug)]
pub struct Setup {
    /// Folder with tokenizer and config.
    pub folder: PathBuf,
    /// The model's `config.json`.
    pub config: Value,
    /// Tokens of one batch, at most.
    pub batch_tokens: usize,
    tokenizer: OnceLock<Arc<TextTokenizer>>,
}

impl Setup {
    /// What evaluators of the model in `folder` share.
    #[must_use]
    pub fn new(folder: PathBuf, config: Value, batch_tokens: usize) -> Self {
        Self { folder, config, batch_tokens, tokenizer: OnceLock::new() }
    }

    /// The folder's tokenizer, read once.
    ///
    /// # Errors
    /// If it is missing or cannot be used.
    pub fn tokenizer(&self) -> Result<Arc<TextTokenizer>, EvaluateError> {
        if let Some(tokenizer) = self.tokenizer.get() {
            return Ok(Arc::clone(tokenizer));
        }
        let tokenizer = Arc::new(TextTokenizer::open(&self.folder)?);
        Ok(Arc::clone(self.tokenizer.get_or_init(|| tokenizer)))
    }

    /// The model's architecture, which has to be of this kind.
    fn architecture(&self, kinds: &[models::Kind], evaluator: &str) -> Result<&'static models::Architecture, EvaluateError> {
        let found = models::find(&self.config)?;
        if kinds.contains(&found.kind) {
            return Ok(found);
        }
        let fitting: Vec<_> =
            models::ARCHITECTURES.iter().filter(|known| kinds.contains(&known.kind)).map(|known| known.model_type).collect();
        Err(EvaluateError::Unfit(format!(
            "the evaluator {evaluator} does not run models of type {}: it takes {}",
            found.model_type,
            fitting.join(", ")
        )))
    }
}

/// What models are computed on in this program.
#[must_use]
pub fn device_name() -> &'static str {
    if cfg!(feature = "cuda") {
        "cuda"
    } else if cfg!(feature = "metal") {
        "metal"
    } else {
        "cpu"
    }
}

/// Memory in bytes that can still be had, where the system tells.
#[must_use]
pub fn available_memory() -> Option<u64> {
    batches::available()
}

/// One task with its items.
#[derive(Clone, Debug)]
pub struct TaskInput {
    /// What the definition says of it.
    pub task: Task,
    /// The labels, in the order of the model's outputs.
    pub labels: Vec<String>,
    /// Items that the search selects on.
    pub dev: Vec<Row>,
    /// The sealed items.
    pub test: Vec<Row>,
}

/// Something for each split.
#[derive(Clone, Debug)]
pub(crate) struct Splits<T> {
    dev: Vec<T>,
    test: Vec<T>,
}

impl<T> Splits<T> {
    /// Makes each split's from its rows.
    fn new<E>(input: &TaskInput, make: impl Fn(&[Row]) -> Result<Vec<T>, E>) -> Result<Self, E> {
        Ok(Self { dev: make(&input.dev)?, test: make(&input.test)? })
    }

    fn of(&self, split: Split) -> &[T] {
        match split {
            Split::Dev => &self.dev,
            Split::Test => &self.test,
        }
    }
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
    /// Model, task and evaluator do not fit each other.
    #[error("{0}")]
    Unfit(String),
    /// A NaN or infinity among the outputs.
    #[error("the model's output for item {item} of task {task} is NaN or infinite")]
    NonFinite {
        /// The task.
        task: String,
        /// The item, from 0.
        item: usize,
    },
    /// The program outside failed; the text tells its end and its last words.
    #[error("{0}")]
    Outside(String),
    /// It was told to stop.
    #[error("the scoring was stopped")]
    Stopped,
}

impl From<candle_core::Error> for EvaluateError {
    fn from(error: candle_core::Error) -> Self {
        Self::Model(error.into())
    }
}

/// Hears of a task's items, and may know some of them already.
pub trait Watch {
    /// So many items are done; whether to go on.
    fn done(&mut self, items: u64) -> ControlFlow<()>;

    /// What is known of an item.
    fn known(&self, _item: usize) -> Option<&[u8]> {
        None
    }

    /// What was found for an item.
    fn found(&mut self, _item: usize, _outcome: Vec<u8>) {}
}

impl<F: FnMut(u64) -> ControlFlow<()>> Watch for F {
    fn done(&mut self, items: u64) -> ControlFlow<()> {
        self(items)
    }
}

/// Hears of items done, and may end the work.
pub type Progress<'a> = &'a mut dyn Watch;

/// Hears of all tasks: items done, items in all, and the outcomes since it last heard of some.
pub type Course<'a> = &'a mut dyn FnMut(u64, u64, Parts) -> ControlFlow<()>;

/// One task of several.
struct OfTask<'a, 'b> {
    name: &'a str,
    /// Items of the tasks before it.
    before: u64,
    total: u64,
    known: &'a Parts,
    fresh: Parts,
    course: Course<'b>,
}

impl Watch for OfTask<'_, '_> {
    fn done(&mut self, items: u64) -> ControlFlow<()> {
        (self.course)(self.before + items, self.total, std::mem::take(&mut self.fresh))
    }

    fn known(&self, item: usize) -> Option<&[u8]> {
        self.known.get(self.name, item)
    }

    fn found(&mut self, item: usize, outcome: Vec<u8>) {
        self.fresh.insert(self.name, item, outcome);
    }
}

/// Scores models on one task.
pub trait Evaluator: Send {
    /// Names of the tensors that the task may have of its own.
    fn head(&self) -> Vec<String> {
        Vec::new()
    }

    /// Whether the model is wanted as a folder.
    fn outside(&self) -> bool {
        false
    }

    /// Items of a split.
    fn items(&self, split: Split) -> usize;

    /// Scores a model on the chosen items of a split, in their order.
    ///
    /// # Errors
    /// See [`EvaluateError`].
    fn evaluate(
        &mut self,
        subject: &mut Subject<'_>,
        split: Split,
        chosen: &[usize],
        progress: Progress<'_>,
    ) -> Result<TaskScore, EvaluateError>;
}

/// Fills in what the evaluators of a definition leave to their defaults, and finds what they refuse: a sentence for each problem.
///
/// # Errors
/// Every problem: unknown evaluators, metrics and keys, values out of range.
pub fn complete(definition: &mut Definition) -> Result<(), Vec<String>> {
    let mut problems = Vec::new();
    for task in &mut definition.tasks {
        let at = format!("tasks.{}", task.name);
        let Some(declaration) = EVALUATORS.iter().find(|known| known.name == task.evaluator) else {
            let names = EVALUATORS.iter().map(|known| known.name);
            problems.push(format!("{at}.evaluator: unknown evaluator {}", suggest::unknown(&task.evaluator, names)));
            continue;
        };
        let metrics = declaration.metrics.iter().map(|(name, _)| *name);
        match (&task.metric, metrics.clone().next()) {
            (None, Some(first)) => task.metric = Some(first.to_owned()),
            (None, None) => {
                problems.push(format!("{at}.metric is missing: the evaluator {} has none of its own", task.evaluator));
            }
            (Some(metric), Some(_)) if !metrics.clone().any(|known| known == metric) => problems.push(format!(
                "{at}.metric: the evaluator {} has no metric {}",
                task.evaluator,
                suggest::unknown(metric, metrics)
            )),
            _ => {}
        }
        parameters::complete(declaration, &mut task.parameters, &at, &mut problems);
    }
    if problems.is_empty() { Ok(()) } else { Err(problems) }
}

/// The evaluators of a search's tasks, in their order.
pub struct Evaluators {
    setup: Setup,
    tasks: Vec<(String, Box<dyn Evaluator>)>,
}

impl Evaluators {
    /// Reads the data and prepares every task, so that what does not fit is found before any model is built.
    ///
    /// # Errors
    /// See [`EvaluateError`]; a sentence names the task.
    pub fn open(resolved: &Resolved, setup: Setup) -> Result<Self, EvaluateError> {
        let mut tasks = Vec::new();
        for (task, found) in resolved.definition.tasks.iter().zip(&resolved.tasks) {
            let input = TaskInput {
                labels: found.labels.clone(),
                dev: rows(&found.dev, task.dev_items, task)?,
                test: found.test.as_ref().map_or(Ok(Vec::new()), |test| rows(test, task.test_items, task))?,
                task: task.clone(),
            };
            tasks.push((task.name.clone(), open(&setup, &input)?));
        }
        Ok(Self { setup, tasks })
    }

    /// The tensors that each task may have of its own, with the task's name.
    pub fn heads(&self) -> impl Iterator<Item = (&str, Vec<String>)> {
        self.tasks.iter().map(|(name, evaluator)| (name.as_str(), evaluator.head()))
    }

    /// Scores a model on the portion of every task; credits stand in the data's order. Items that are `known` are not run again, where the model runs in
    /// this program. `course` hears how far it is, and may end the work.
    ///
    /// # Errors
    /// See [`EvaluateError`].
    pub fn score(
        &mut self,
        candidate: Candidate,
        portion: Portion,
        known: &Parts,
        course: Course<'_>,
    ) -> Result<Scores, EvaluateError> {
        let split = portion.split;
        let chosen: Vec<_> = self.tasks.iter().map(|(name, evaluator)| portion.items(name, evaluator.items(split))).collect();
        let total = chosen.iter().map(|items| items.len() as u64).sum();
        let mut subject = Subject::new(&self.setup, candidate);
        // The network takes the weights; what wants them in a folder comes first.
        let mut order: Vec<usize> = (0..self.tasks.len()).collect();
        order.sort_by_key(|&index| !self.tasks[index].1.outside());
        let mut scores: Vec<Option<TaskScore>> = vec![None; self.tasks.len()];
        let mut before = 0;
        for index in order {
            let (name, evaluator) = &mut self.tasks[index];
            subject.begin(index);
            let mut watch = OfTask { name, before, total, known, fresh: Parts::default(), course };
            let mut score = evaluator.evaluate(&mut subject, split, &chosen[index], &mut watch)?;
            score.task.clone_from(name);
            before += chosen[index].len() as u64;
            scores[index] = Some(score);
        }
        Ok(Scores { tasks: scores.into_iter().flatten().collect() })
    }
}

/// A split's items, which have to be those that the search began with.
fn rows(data: &Data, limit: usize, task: &Task) -> Result<Vec<Row>, EvaluateError> {
    if data::digest(&data.path)? != data.digest {
        let what = "it changed since the search began".to_owned();
        return Err(DataError::File { path: data.path.clone(), what }.into());
    }
    Ok(data::limit(data::read(&data.path)?, limit, &task.key_columns()))
}

/// A task with labelled items alone, as its dev items: its own, or those of another file; at most `items`.
///
/// # Errors
/// If they cannot be read.
pub(crate) fn labelled_input(
    task: &Task,
    found: &ResolvedTask,
    other: Option<&Path>,
    items: Option<usize>,
) -> Result<TaskInput, EvaluateError> {
    let dev = match other {
        Some(path) => data::limit(data::read(path)?, items.unwrap_or(0), &task.key_columns()),
        None => rows(&found.dev, items.unwrap_or(task.dev_items), task)?,
    };
    Ok(TaskInput { task: task.clone(), labels: found.labels.clone(), dev, test: Vec::new() })
}

/// Opens the evaluator of one task.
///
/// # Errors
/// If there is none of this name, or it refuses the task.
pub fn open(setup: &Setup, input: &TaskInput) -> Result<Box<dyn Evaluator>, EvaluateError> {
    let name = &input.task.evaluator;
    let found = EVALUATORS.iter().find(|known| known.name == name);
    let declaration = found.ok_or_else(|| {
        let names = EVALUATORS.iter().map(|known| known.name);
        EvaluateError::Unfit(format!("unknown evaluator {}", suggest::unknown(name, names)))
    })?;
    (declaration.open)(setup, input)
}
