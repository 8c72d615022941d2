//! Binding a definition to the world: open and digest every checkpoint, read every data file, and refuse every misfit at once.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use thiserror::Error;

use super::model::{Definition, Task};
use crate::{
    checkpoint::{self, Checkpoint, DigestCache, Patterns},
    data,
    digest::Digest,
    merge,
};

/// Separates the definition's hash from other digests.
const HASH_DOMAIN: &str = "evolver definition v1";

/// A definition with everything that it names found, read and digested. It travels to the workers and into the journal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Resolved {
    /// What the user wrote, defaults filled in, paths absolute.
    pub definition: Definition,
    /// The base model.
    pub base: Source,
    /// The experts, in the definition's order.
    pub experts: Vec<Source>,
    /// The tasks' data, in the definition's order.
    pub tasks: Vec<ResolvedTask>,
}

/// A checkpoint with its content digest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Source {
    /// Name of the expert, or `base`.
    pub name: String,
    /// Its folder.
    pub path: PathBuf,
    /// Content digest of its weights.
    pub digest: Digest,
    /// Statistics measured on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub statistics: Option<Measured>,
}

/// A file of statistics with its content digest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// The file.
    pub path: PathBuf,
    /// Digest of its tensors.
    pub digest: Digest,
}

/// A task with its labels and data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResolvedTask {
    /// The task's name.
    pub name: String,
    /// The labels, in the order of the model's outputs.
    pub labels: Vec<String>,
    /// Items that the search selects on.
    pub dev: Data,
    /// The sealed items, if there are any.
    pub test: Option<Data>,
}

/// One data file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Data {
    /// The file.
    pub path: PathBuf,
    /// Digest of its content.
    pub digest: Digest,
    /// Items used of it.
    pub items: usize,
}

/// Everything that keeps the definition from being run, a sentence each.
#[derive(Debug, Error)]
#[error("{}", .problems.join("\n"))]
pub struct ResolveError {
    /// The sentences.
    pub problems: Vec<String>,
}

impl Resolved {
    /// What decides the search: everything but names of files, limits on its length, and how the work is spread.
    #[must_use]
    pub fn deciding(&self) -> Value {
        let digests = |sources: &[Source]| -> Value {
            let one = |source: &Source| {
                let mut one = json!({ "name": source.name, "digest": source.digest });
                if let Some(measured) = &source.statistics {
                    one["statistics"] = json!(measured.digest);
                }
                one
            };
            sources.iter().map(one).collect()
        };
        let data = |data: &Data| json!({ "digest": data.digest, "items": data.items });
        let tasks: Value = self
            .definition
            .tasks
            .iter()
            .zip(&self.tasks)
            .map(|(task, resolved)| {
                json!({
                    "name": task.name, "evaluator": task.evaluator, "metric": task.metric(), "weight": task.weight,
                    "text": task.text, "text_pair": task.text_pair, "label": task.label, "labels": resolved.labels,
                    "head": task.head, "max_length": task.max_length, "parameters": task.parameters,
                    "dev": data(&resolved.dev), "test": resolved.test.as_ref().map(data),
                })
            })
            .collect();
        json!({
            "base": self.base.digest,
            "experts": digests(&self.experts),
            "heads": self.definition.models.heads,
            "frozen": self.definition.models.frozen,
            "tasks": tasks,
            "merges": self.definition.merges,
            "objective": self.definition.objective,
            "search": self.definition.search,
            "acceptance": self.definition.acceptance,
        })
    }

    /// Digest of [`Resolved::deciding`].
    #[must_use]
    pub fn hash(&self) -> Digest {
        Digest::of_parts(HASH_DOMAIN, [self.deciding().to_string().as_bytes()])
    }

    /// The patterns that split tensors into heads, frozen and evolving ones.
    #[must_use]
    pub fn patterns(&self) -> Patterns {
        Patterns { heads: self.definition.models.heads.clone(), frozen: self.definition.models.frozen.clone() }
    }
}

/// Items of a task that are on both sides of its split, a sentence for each such task. Nothing is selected by the sealed items, but a score on items
/// that were selected by says less.
///
/// # Errors
/// If the data can no longer be read.
pub fn leaks(resolved: &Resolved) -> Result<Vec<String>, data::DataError> {
    let mut sentences = Vec::new();
    for (task, found) in resolved.definition.tasks.iter().zip(&resolved.tasks) {
        let Some(test) = &found.test else {
            continue;
        };
        let columns = task.key_columns();
        let read = |data: &Data, limit| Ok::<_, data::DataError>(data::limit(data::read(&data.path)?, limit, &columns));
        let (dev, test) = (read(&found.dev, task.dev_items)?, read(test, task.test_items)?);
        if let Some((count, place)) = data::shared(&dev, &test, &columns) {
            sentences.push(format!(
                "tasks.{}: {count} of {} sealed items are dev items too, the first in {place}: the sealed score is better than it should be",
                task.name,
                test.len()
            ));
        }
    }
    Ok(sentences)
}

/// Bytes that an offspring takes in memory, F32 at most, told from the base's headers; 0 if they cannot be read.
#[must_use]
pub fn offspring_bytes(resolved: &Resolved) -> u64 {
    let Ok(base) = Checkpoint::open(&resolved.base.path) else {
        return 0;
    };
    let size = |name: &str| base.tensors().get(name).map_or(0, |info| (info.elements() * info.dtype.size().min(4)) as u64);
    checkpoint::fit(&base, &[], &resolved.patterns())
        .map_or(0, |space| space.tensors.iter().map(|tensor| size(&tensor.name)).sum())
}

/// Opens, checks and digests everything that `definition` names.
///
/// # Errors
/// Every problem at once: what cannot be opened, experts that do not fit the base, NaN or infinite weights, data that cannot be read.
pub fn resolve(definition: Definition, cache: &DigestCache) -> Result<Resolved, ResolveError> {
    let mut problems = Vec::new();
    let models = open_models(&definition, &mut problems);
    let models = models.and_then(|(base, experts)| read_models(base, &experts, &definition, cache, &mut problems));
    let default_labels = models.as_ref().map_or_else(Vec::new, |(base, ..)| labels_of(base));
    let tasks: Vec<_> = definition.tasks.iter().filter_map(|task| resolve_task(task, &default_labels, &mut problems)).collect();
    match models {
        Some((_, base, experts)) if problems.is_empty() => Ok(Resolved { definition, base, experts, tasks }),
        _ => Err(ResolveError { problems }),
    }
}

/// As [`resolve`], by headers and data files alone: weights are neither scanned nor digested, and what it gives has the digests of names in their
/// place, so that it can be checked and must not be run.
///
/// # Errors
/// Every problem at once.
pub fn preflight(definition: Definition) -> Result<Resolved, ResolveError> {
    let mut problems = Vec::new();
    let models = open_models(&definition, &mut problems);
    let default_labels = models.as_ref().map_or_else(Vec::new, |(base, _)| labels_of(base));
    let tasks: Vec<_> = definition.tasks.iter().filter_map(|task| resolve_task(task, &default_labels, &mut problems)).collect();
    let measured = |name: &str| {
        let path = statistics_of(&definition, name)?;
        Some(Measured { path: path.to_owned(), digest: Digest::of(path.as_os_str().as_encoded_bytes()) })
    };
    let source = |name: &str, checkpoint: &Checkpoint| Source {
        name: name.to_owned(),
        path: checkpoint.path().to_owned(),
        digest: Digest::of(name.as_bytes()),
        statistics: measured(name),
    };
    let named = models.map(|(base, experts)| {
        (source("base", &base), experts.iter().map(|(name, checkpoint)| source(name, checkpoint)).collect::<Vec<_>>())
    });
    match named {
        Some((base, experts)) if problems.is_empty() => Ok(Resolved { definition, base, experts, tasks }),
        _ => Err(ResolveError { problems }),
    }
}

/// The base, and the experts with their names.
type Opened<'d> = (Arc<Checkpoint>, Vec<(&'d str, Checkpoint)>);

/// Opens base and experts; `None` if the base cannot be used, in which case nothing can be said of the experts' fit.
fn open_models<'d>(definition: &'d Definition, problems: &mut Vec<String>) -> Option<Opened<'d>> {
    let base = match Checkpoint::open(&definition.models.base) {
        Ok(base) => Arc::new(base),
        Err(error) => {
            problems.push(format!("models.base: {error}"));
            return None;
        }
    };
    let mut experts = Vec::new();
    for expert in &definition.models.experts {
        match Checkpoint::open_over(&expert.path, &base) {
            Ok(checkpoint) => experts.push((expert.name.as_str(), checkpoint)),
            Err(error) => problems.push(format!("expert {}: {error}", expert.name)),
        }
    }
    let named: Vec<_> = experts.iter().map(|(name, c)| (*name, c)).collect();
    let patterns = Patterns { heads: definition.models.heads.clone(), frozen: definition.models.frozen.clone() };
    match checkpoint::fit(&base, &named, &patterns) {
        Ok(space) => {
            let statistics = definition.models.experts.iter().filter_map(|expert| Some((expert, expert.statistics.as_ref()?)));
            for (expert, path) in statistics {
                let file = Checkpoint::open(path).map_err(|error| error.to_string());
                if let Err(error) = file.and_then(|file| merge::check_statistics(&file, &space)) {
                    problems.push(format!("expert {}: statistics: {error}", expert.name));
                }
            }
        }
        Err(differences) => problems.extend(differences.iter().map(ToString::to_string)),
    }
    Some((base, experts))
}

/// Reads every weight once: refuses NaN and infinity, and takes the digests.
fn read_models(
    base: Arc<Checkpoint>,
    experts: &[(&str, Checkpoint)],
    definition: &Definition,
    cache: &DigestCache,
    problems: &mut Vec<String>,
) -> Option<(Arc<Checkpoint>, Source, Vec<Source>)> {
    let mut source = |name: &str, checkpoint: &Checkpoint, statistics: Option<&Path>| {
        if let Err(error) = checkpoint.scan_finite() {
            problems.push(format!("{name}: {error}"));
        }
        match checkpoint.digest(cache) {
            Ok(digest) => {
                let measured = statistics.and_then(|path| {
                    let opened = Checkpoint::open(path).map_err(|error| error.to_string());
                    let digest = opened.and_then(|file| file.digest(cache).map_err(|error| error.to_string()));
                    let digest = digest.map_err(|error| problems.push(format!("expert {name}: statistics: {error}"))).ok()?;
                    Some(Measured { path: path.to_owned(), digest })
                });
                Some(Source { name: name.to_owned(), path: checkpoint.path().to_owned(), digest, statistics: measured })
            }
            Err(error) => {
                problems.push(format!("{name}: {error}"));
                None
            }
        }
    };
    let base_source = source("base", &base, None)?;
    let sources: Vec<_> =
        experts.iter().filter_map(|(name, checkpoint)| source(name, checkpoint, statistics_of(definition, name))).collect();
    Some((base, base_source, sources))
}

fn statistics_of<'d>(definition: &'d Definition, expert: &str) -> Option<&'d Path> {
    definition.models.experts.iter().find(|known| known.name == expert)?.statistics.as_deref()
}

/// The labels that the base's config names, in the order of the model's outputs.
fn labels_of(base: &Checkpoint) -> Vec<String> {
    let Ok(config) = base.config() else {
        return Vec::new();
    };
    let Some(id2label) = config.get("id2label").and_then(Value::as_object) else {
        return Vec::new();
    };
    let mut labels: Vec<_> =
        id2label.iter().filter_map(|(id, label)| Some((id.parse::<usize>().ok()?, label.as_str()?.to_owned()))).collect();
    labels.sort_unstable();
    labels.into_iter().map(|(_, label)| label).collect()
}

fn resolve_task(task: &Task, default_labels: &[String], problems: &mut Vec<String>) -> Option<ResolvedTask> {
    let labels = if task.labels.is_empty() { default_labels.to_vec() } else { task.labels.clone() };
    let mut read = |path: &Path, limit: usize| match resolve_data(path, limit) {
        Ok(data) => Some(data),
        Err(error) => {
            problems.push(format!("tasks.{}: {error}", task.name));
            None
        }
    };
    let dev = read(&task.dev, task.dev_items);
    let test = match &task.test {
        Some(test) => Some(read(test, task.test_items)?),
        None => None,
    };
    Some(ResolvedTask { name: task.name.clone(), labels, dev: dev?, test })
}

fn resolve_data(path: &Path, limit: usize) -> Result<Data, data::DataError> {
    let rows = data::read(path)?.len();
    let items = if limit == 0 { rows } else { rows.min(limit) };
    Ok(Data { path: path.to_owned(), digest: data::digest(path)?, items })
}
