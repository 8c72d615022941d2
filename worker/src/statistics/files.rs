//! From a search's definition to files of statistics, one for each expert.

use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use evolver_common::{
    checkpoint::{
        Dtype,
        write::{Announced, FolderWriter, WriteError},
    },
    definition::Resolved,
    recipe::Recipe,
    suggest,
};
use thiserror::Error;

use super::{Classifier, Kind, Labels, Statistics};
use crate::{
    evaluate::{Candidate, Classification, EvaluateError, Setup, labelled_input},
    materialize::{MaterializeError, Materializer},
    models::{ModelError, ModelWeights},
};

/// Values that are rounded and written at a time.
const BLOCK: usize = 1 << 16;

/// What is to be measured, on what.
#[derive(Clone, Debug)]
pub struct Request {
    /// What.
    pub kind: Kind,
    /// About which labels.
    pub labels: Labels,
    /// Experts by name; all if there are none.
    pub experts: Vec<String>,
    /// Tasks by name, whose items are read; all if there are none.
    pub tasks: Vec<String>,
    /// A file that is read in the place of the one task's dev items, for instance what the expert was trained on.
    pub data: Option<PathBuf>,
    /// Most items of a task, drawn by the same order as `tasks.dev_items`.
    pub items: Option<usize>,
}

/// A file that was written.
#[derive(Clone, Debug)]
pub struct Written {
    /// The expert.
    pub expert: String,
    /// Its file's name.
    pub file: String,
    /// Items that it was measured on.
    pub items: usize,
    /// Tensors in it.
    pub tensors: usize,
}

/// Statistics that cannot be measured.
#[derive(Debug, Error)]
pub enum StatisticsError {
    /// The request names something that is not there, or contradicts itself.
    #[error("{0}")]
    Request(String),
    /// A checkpoint is not what it must be.
    #[error(transparent)]
    Materialize(#[from] MaterializeError),
    /// Items or tokenizer cannot be used.
    #[error(transparent)]
    Evaluate(#[from] EvaluateError),
    /// An expert cannot be run.
    #[error("expert {expert}: {source}")]
    Model {
        /// Whose.
        expert: String,
        /// Why.
        source: ModelError,
    },
    /// The folder cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// Measures the experts of a definition and writes `EXPERT.KIND.safetensors` for each to a new folder. `progress` hears of the expert, items done and items
/// in all, and may end the work.
///
/// # Errors
/// See [`StatisticsError`]; no folder is left then.
pub fn measure(
    resolved: &Resolved,
    cache: &Path,
    request: &Request,
    out: &Path,
    progress: &mut dyn FnMut(&str, usize, usize) -> ControlFlow<()>,
) -> Result<Vec<Written>, StatisticsError> {
    let mut materializer = Materializer::open(resolved, cache)?;
    let experts = chosen("expert", &request.experts, resolved.experts.iter().map(|source| source.name.as_str()))?;
    let tasks = chosen("task", &request.tasks, resolved.definition.tasks.iter().map(|task| task.name.as_str()))?;
    if request.data.is_some() && tasks.len() != 1 {
        return Err(StatisticsError::Request("a file of items belongs to one task: name it by --task".into()));
    }
    let base = materializer.base();
    let config = base.config().map_err(|error| MaterializeError::Input(error.to_string()))?;
    let setup = Setup::new(base.folder().to_owned(), config, resolved.definition.evaluator.batch_tokens);
    let mut texts = Vec::new();
    for &task in &tasks {
        let definition = &resolved.definition.tasks[task];
        if definition.evaluator != "classification" {
            return Err(StatisticsError::Request(format!(
                "task {} is scored by the evaluator {}: statistics are those of classifiers of texts, which classification scores",
                definition.name, definition.evaluator
            )));
        }
        let input = labelled_input(definition, &resolved.tasks[task], request.data.as_deref(), request.items)?;
        texts.push((task, Classification::open(&setup, &input)?));
    }
    let writer = FolderWriter::new(out)?;
    let mut all = Vec::new();
    for expert in experts {
        let source = &resolved.experts[expert];
        let candidate = materializer.build(&Recipe::checkpoint(source.digest), &[])?;
        let model = |error| StatisticsError::Model { expert: source.name.clone(), source: error };
        let mut statistics = Statistics::new(request.kind, request.labels);
        let total = texts.iter().map(|(_, texts)| texts.labelled().len()).sum();
        let mut done = 0;
        for (task, texts) in &texts {
            let classifier = classifier(&setup, &candidate, *task, texts.outputs()).map_err(model)?;
            let labelled = texts.labelled();
            if labelled.is_empty() {
                let name = &resolved.definition.tasks[*task].name;
                return Err(StatisticsError::Request(format!("task {name} has no items with one label each")));
            }
            for (text, label) in labelled {
                statistics.add(&classifier, text, label).map_err(model)?;
                done += 1;
                if progress(&source.name, done, total).is_break() {
                    return Err(EvaluateError::Stopped.into());
                }
            }
        }
        let kind = if request.kind == Kind::Fisher { "fisher" } else { "gram" };
        let file = format!("{}.{kind}.safetensors", source.name);
        let tensors = write(&writer, &file, &statistics)?;
        all.push(Written { expert: source.name.clone(), file, items: total, tensors });
    }
    writer.finish()?;
    Ok(all)
}

/// Indices of the named ones; of all where none is named.
fn chosen<'a>(what: &str, names: &[String], known: impl Iterator<Item = &'a str> + Clone) -> Result<Vec<usize>, StatisticsError> {
    if names.is_empty() {
        return Ok((0..known.count()).collect());
    }
    let find = |name: &String| {
        known.clone().position(|known| known == name).ok_or_else(|| {
            StatisticsError::Request(format!("the definition has no {what} {}", suggest::unknown(name, known.clone())))
        })
    };
    names.iter().map(find).collect()
}

fn classifier(setup: &Setup, candidate: &Candidate, task: usize, outputs: usize) -> Result<Classifier, ModelError> {
    let none = ModelWeights::default();
    Classifier::load(&setup.config, candidate.shared.clone(), candidate.heads.get(task).unwrap_or(&none), outputs)
}

fn write(writer: &FolderWriter, file: &str, statistics: &Statistics) -> Result<usize, WriteError> {
    let announced: Vec<_> = statistics
        .means()
        .map(|(name, shape, _)| Announced { name: name.to_owned(), dtype: Dtype::F32, shape: shape.to_vec() })
        .collect();
    let weights = writer.weights(file, &announced)?;
    let mut block = Vec::with_capacity(BLOCK);
    for (index, (_, _, means)) in statistics.means().enumerate() {
        let (mut means, mut start) = (means.peekable(), 0);
        while means.peek().is_some() {
            block.clear();
            #[expect(clippy::cast_possible_truncation, reason = "the file's type")]
            block.extend(means.by_ref().take(BLOCK).map(|mean| mean as f32));
            weights.values(index, start, &block)?;
            start += block.len();
        }
    }
    weights.finish(true)?;
    Ok(announced.len())
}
