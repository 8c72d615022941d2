//! `export`: a model of a search as a folder that `transformers` opens.
//!
//! Where tasks have heads of their own, no one head would be right for the whole: then there is such a folder for each task, its weights in two
//! shards, of which the body is one file under several names.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use anyhow::Context as _;
use evolver_common::{
    checkpoint::{
        Checkpoint, Dtype, TensorInfo,
        write::{Announced, FolderWriter, WeightsWriter, WriteError},
    },
    definition::ResolvedTask,
    merge::{Engine, Sink},
    recipe::Recipe,
};
use evolver_coordinator::{search::Individual, service::Replay};
use evolver_worker::materialize::Materializer;

use crate::{cli, fail::refuse, show};

/// The shards of a task's folder, by the names that `transformers` gives shards: what all tasks share, and the task's own.
const BODY: &str = "model-00001-of-00002.safetensors";
const HEAD: &str = "model-00002-of-00002.safetensors";

pub(crate) fn export(options: &cli::Export) -> anyhow::Result<()> {
    let replay = show::open(&options.dir)?;
    let individual = chosen(&replay, options.individual.as_deref())?;
    export_individual(&replay, &individual, &options.dir, &options.out)?;
    eprintln!("wrote {}", options.out.display());
    Ok(())
}

/// The individual of this name or beginning of an id, or the best.
pub(crate) fn chosen(replay: &Replay, wanted: Option<&str>) -> anyhow::Result<Individual> {
    match wanted {
        Some(wanted) => find(replay, wanted),
        None => replay.search.best().cloned().ok_or_else(|| refuse("the search has scored nothing yet: there is no best model")),
    }
}

fn find(replay: &Replay, wanted: &str) -> anyhow::Result<Individual> {
    let search = &replay.search;
    let mut found: Vec<_> = search
        .table()
        .into_iter()
        .chain(search.population().iter().chain(search.front()).chain(search.best()).cloned())
        .collect();
    found.retain(|individual| individual.name == wanted || (wanted.len() >= 4 && individual.id.to_string().starts_with(wanted)));
    found.dedup_by_key(|individual| individual.id);
    found.into_iter().next().ok_or_else(|| {
        refuse(format!("no individual has the name or the beginning of an id {wanted:?}: `evolver show --json` lists them"))
    })
}

/// Writes one individual: a checkpoint folder, or, where tasks have heads of their own, a checkpoint folder for each task.
pub(crate) fn export_individual(replay: &Replay, individual: &Individual, dir: &Path, out: &Path) -> anyhow::Result<()> {
    let resolved = &replay.resolved;
    let materializer = Materializer::open(resolved, &dir.join("cache")).map_err(refuse)?;
    let base = materializer.base();
    let recipe = &individual.recipe;
    let card = card(replay, individual);
    let heads = materializer.task_heads();
    if heads.is_empty() {
        let config = config(base, resolved.tasks.first());
        return write_model(base, materializer.engine(), recipe, None, &config, &card, out);
    }
    let folder = FolderWriter::new(out).map_err(refuse)?;
    let mut body: Option<PathBuf> = None;
    for (task, (expert, names)) in resolved.tasks.iter().zip(heads) {
        let of_task = FolderWriter::new(&folder.path().join(&task.name))?;
        match &body {
            // The same file under several names; a file system without hard links holds copies.
            Some(body) => fs::hard_link(body, of_task.path().join(BODY))
                .or_else(|_| fs::copy(body, of_task.path().join(BODY)).map(drop))
                .with_context(|| format!("cannot write {}", out.join(&task.name).join(BODY).display()))?,
            None => write_weights(&of_task, BODY, base, &names, materializer.engine(), recipe, None)?,
        }
        let announced: Vec<_> = names.iter().map(|name| announced(name, &expert.tensors()[name], None)).collect();
        let writer = of_task.weights(HEAD, &announced)?;
        for (index, name) in names.iter().enumerate() {
            writer.copy(index, expert, name)?;
        }
        writer.finish(true)?;
        let shared = base.tensors().keys().filter(|name| !names.contains(name)).map(|name| (name.clone(), BODY));
        let places: BTreeMap<_, _> = shared.chain(names.iter().map(|name| (name.clone(), HEAD))).collect();
        let index = serde_json::json!({ "metadata": {}, "weight_map": places });
        of_task.write("model.safetensors.index.json", serde_json::to_string_pretty(&index)?.as_bytes())?;
        write_side_files(&of_task, base, &config(base, Some(task)))?;
        of_task.finish()?;
        body.get_or_insert(folder.path().join(&task.name).join(BODY));
    }
    folder.write("README.md", card.as_bytes())?;
    folder.finish().map_err(refuse)
}

/// The base's config with the task's labels.
fn config(base: &Checkpoint, task: Option<&ResolvedTask>) -> serde_json::Value {
    let mut config = base.config().unwrap_or_default();
    if let (Some(table), Some(task)) = (config.as_object_mut(), task) {
        let labels = || task.labels.iter().enumerate();
        table.insert(
            "id2label".into(),
            labels().map(|(id, label)| (id.to_string(), label.clone().into())).collect::<serde_json::Map<_, _>>().into(),
        );
        table.insert(
            "label2id".into(),
            labels().map(|(id, label)| (label.clone(), id.into())).collect::<serde_json::Map<_, _>>().into(),
        );
    }
    config
}

fn card(replay: &Replay, individual: &Individual) -> String {
    let search = &replay.search;
    let resolved = &replay.resolved;
    let test = search.test_scores(individual).map(|scores| search.interval(scores));
    let test = test
        .map_or("not scored".to_owned(), |test| format!("{:.4} (95 % interval {:.4} to {:.4})", test.mean, test.low, test.high));
    let sources: String = std::iter::once(&resolved.base)
        .chain(&resolved.experts)
        .map(|source| format!("- {}: `{}`\n", source.name, source.digest))
        .collect();
    format!(
        "---\ntags: [merge, evolver]\n---\n\n# {}\n\nOne model for {} tasks, found by evolutionary search over the weights of {} experts.\n\n- mean on dev, which the search selected by: {:.4}\n- mean on the sealed test split: {test}\n- recipe id: `{}`\n- definition: `{}`\n\n## Checkpoints\n\n{sources}\n## Recipe\n\n```\n{}\n```\n",
        resolved.definition.name,
        resolved.tasks.len(),
        resolved.experts.len(),
        individual.dev,
        individual.id,
        resolved.hash(),
        individual.recipe,
    )
}

/// Blocks of evolving tensors, into their places in a weight file.
struct Target<'a> {
    writer: &'a WeightsWriter,
    /// Index in the file of each evolving tensor.
    places: Vec<usize>,
    failure: Mutex<Option<WriteError>>,
}

impl Sink for Target<'_> {
    fn write(&self, tensor: usize, offset: usize, values: &[f32]) -> io::Result<()> {
        self.writer.values(self.places[tensor], offset, values).map_err(|error| {
            self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            io::Error::other("the weights cannot be written")
        })
    }
}

/// Builds a recipe into a complete folder: weights, config, tokenizer, model card.
pub(crate) fn write_model(
    layout: &Checkpoint,
    engine: &Engine,
    recipe: &Recipe,
    dtype: Option<Dtype>,
    config: &serde_json::Value,
    card: &str,
    out: &Path,
) -> anyhow::Result<()> {
    let folder = FolderWriter::new(out).map_err(refuse)?;
    write_weights(&folder, "model.safetensors", layout, &[], engine, recipe, dtype)?;
    write_side_files(&folder, layout, config)?;
    folder.write("README.md", card.as_bytes())?;
    folder.finish().map_err(refuse)
}

fn write_side_files(folder: &FolderWriter, layout: &Checkpoint, config: &serde_json::Value) -> anyhow::Result<()> {
    folder.write("config.json", serde_json::to_string_pretty(config)?.as_bytes())?;
    Ok(folder.copy_side_files(layout.folder())?)
}

fn announced(name: &str, info: &TensorInfo, dtype: Option<Dtype>) -> Announced {
    let dtype = dtype.filter(|_| info.dtype.is_float()).unwrap_or(info.dtype);
    Announced { name: name.to_owned(), dtype, shape: info.shape.clone() }
}

/// Writes the tensors of `layout` but `without`: the evolving ones as the recipe has them, the others as they are.
fn write_weights(
    folder: &FolderWriter,
    name: &str,
    layout: &Checkpoint,
    without: &[String],
    engine: &Engine,
    recipe: &Recipe,
    dtype: Option<Dtype>,
) -> anyhow::Result<()> {
    let kept = layout.tensors().iter().filter(|(name, _)| !without.contains(name));
    let announced: Vec<_> = kept.map(|(name, info)| announced(name, info, dtype)).collect();
    let writer = folder.weights(name, &announced)?;
    let place = |name: &str| announced.iter().position(|tensor| tensor.name == name);
    let evolving = &engine.space().tensors;
    let target = Target {
        places: evolving.iter().filter_map(|tensor| place(&tensor.name)).collect(),
        writer: &writer,
        failure: Mutex::default(),
    };
    if let Err(error) = engine.stream(recipe, &target) {
        let written = target.failure.into_inner().unwrap_or_else(PoisonError::into_inner);
        return Err(written.map_or_else(|| refuse(error), refuse));
    }
    for (index, tensor) in announced.iter().enumerate() {
        if !evolving.iter().any(|evolving| evolving.name == tensor.name) {
            if tensor.dtype == layout.tensors()[&tensor.name].dtype {
                writer.copy(index, layout, &tensor.name)?;
            } else {
                let mut values = vec![0.0; layout.tensors()[&tensor.name].elements()];
                layout.read(&tensor.name, 0..values.len(), &mut values)?;
                writer.values(index, 0, &values)?;
            }
        }
    }
    writer.finish(true).context("while completing the weights").map_err(refuse)
}
