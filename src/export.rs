//! `export`: a model of a search as a folder that `transformers` opens.
//!
//! Where tasks have heads of their own, no one head would be right for the whole: then there is such a folder for each task, its weights in two
//! shards, of which the body is one file under several names.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use evolver_common::{
    checkpoint::{
        Checkpoint, DigestCache, Dtype, OpenError,
        write::{self, Announced, FolderWriter},
    },
    definition::{ResolvedTask, Source},
    digest::Digest,
    merge::Engine,
    recipe::Recipe,
};
use evolver_coordinator::{search::Individual, service::Replay};
use evolver_oneshot::{
    build::write_recipe,
    config::to_mergekit,
    output::{DEFAULT_SHARD_BYTES, Shards},
};
use evolver_worker::materialize::Materializer;

use crate::{cli, fail::refuse, interrupt, show};

/// The shards of a task's folder, by the names that `transformers` gives shards: what all tasks share, and the task's own.
const BODY: &str = "model-00001-of-00002";
const HEAD: &str = "model-00002-of-00002";

/// How an individual is written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    /// Type to save in; the base's by default.
    pub(crate) dtype: Option<Dtype>,
    /// Largest weight file.
    pub(crate) shard_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { dtype: None, shard_bytes: DEFAULT_SHARD_BYTES }
    }
}

pub(crate) fn export(options: &cli::Export) -> anyhow::Result<()> {
    let replay = show::open(&options.dir)?;
    let individual = chosen(&replay, options.individual.as_deref())?;
    if let Some(file) = &options.mergekit {
        let yaml = mergekit(&replay, &individual, options.written.dtype).map_err(refuse)?;
        write::file(file, yaml.as_bytes()).map_err(|error| refuse(format!("cannot write {}: {error}", file.display())))?;
        eprintln!("wrote {}", file.display());
    }
    if let Some(out) = &options.out {
        interrupt::clean_up();
        let written = Options { dtype: options.written.dtype, shard_bytes: options.written.max_shard_size };
        export_individual(&replay, &individual, &options.dir, out, &written)?;
        eprintln!("wrote {}", out.display());
    }
    Ok(())
}

/// The individual of this name or beginning of an id, or the best.
pub(crate) fn chosen(replay: &Replay, wanted: Option<&str>) -> anyhow::Result<Individual> {
    match wanted {
        Some(wanted) => find(replay, wanted),
        None => replay.search.best().cloned().ok_or_else(|| refuse("the search has scored nothing yet: there is no best model")),
    }
}

/// An individual's recipe as mergekit's YAML.
fn mergekit(replay: &Replay, individual: &Individual, dtype: Option<Dtype>) -> Result<String, String> {
    let resolved = &replay.resolved;
    let place = |source: &Source| match Checkpoint::open(&source.path) {
        // mergekit names an adapter together with its base.
        Err(OpenError::AdapterWithoutBase(_)) => format!("{}+{}", resolved.base.path.display(), source.path.display()),
        _ => source.path.display().to_string(),
    };
    let sources = || std::iter::once(&resolved.base).chain(&resolved.experts);
    let base = Checkpoint::open(&resolved.base.path).map_err(|error| error.to_string())?;
    let of_base = base.tensors().values().map(|info| info.dtype).find(|dtype| dtype.is_float());
    let dtype = dtype.or(of_base).unwrap_or(Dtype::F32).torch_name();
    to_mergekit(&individual.recipe, dtype, |digest| sources().find(|source| source.digest == *digest).map(place))
        .map_err(|error| error.to_string())
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
pub(crate) fn export_individual(
    replay: &Replay,
    individual: &Individual,
    dir: &Path,
    out: &Path,
    options: &Options,
) -> anyhow::Result<()> {
    let resolved = &replay.resolved;
    let materializer = Materializer::open(resolved, &dir.join("cache")).map_err(refuse)?;
    let base = materializer.base();
    let recipe = &individual.recipe;
    let card = card(replay, individual);
    let heads = materializer.task_heads();
    let folder = FolderWriter::new(out).map_err(refuse)?;
    if heads.is_empty() {
        write_weights(&folder, "model", base, &[], materializer.engine(), recipe, options)?;
        write_side_files(&folder, base, &config(base, resolved.tasks.first()))?;
        folder.write("README.md", card.as_bytes())?;
        return folder.finish().map_err(refuse);
    }
    // A task's two files are shards already.
    let body_options = Options { shard_bytes: u64::MAX, ..*options };
    let file = |stem: &str| format!("{stem}.safetensors");
    let mut body: Option<PathBuf> = None;
    for (task, (expert, names)) in resolved.tasks.iter().zip(heads) {
        let of_task = FolderWriter::new(&folder.path().join(&task.name))?;
        match &body {
            // The same file under several names; a file system without hard links holds copies.
            Some(body) => fs::hard_link(body, of_task.path().join(file(BODY)))
                .or_else(|_| fs::copy(body, of_task.path().join(file(BODY))).map(drop))
                .with_context(|| format!("cannot write {}", out.join(&task.name).join(file(BODY)).display()))?,
            None => write_weights(&of_task, BODY, base, &names, materializer.engine(), recipe, &body_options)?,
        }
        let own = announced(expert, &[], options.dtype);
        let own: Vec<_> = own.into_iter().filter(|tensor| names.contains(&tensor.name)).collect();
        let head = Shards::create(of_task.path(), HEAD, &own, u64::MAX).map_err(refuse)?;
        for (index, tensor) in own.iter().enumerate() {
            head.copy(index, expert, &tensor.name).map_err(refuse)?;
        }
        head.finish(&own).map_err(refuse)?;
        let shared = base.tensors().keys().filter(|name| !names.contains(name)).map(|name| (name.clone(), file(BODY)));
        let places: BTreeMap<_, _> = shared.chain(names.iter().map(|name| (name.clone(), file(HEAD)))).collect();
        let index = serde_json::json!({ "metadata": {}, "weight_map": places });
        of_task.write("model.safetensors.index.json", serde_json::to_string_pretty(&index)?.as_bytes())?;
        write_side_files(&of_task, base, &config(base, Some(task)))?;
        of_task.finish()?;
        body.get_or_insert(folder.path().join(&task.name).join(file(BODY)));
    }
    folder.write("README.md", card.as_bytes())?;
    folder.finish().map_err(refuse)
}

/// The content digest of an export: its weights', or those of every task's folder in the order of their names.
pub(crate) fn digest(out: &Path) -> anyhow::Result<Digest> {
    let of = |folder: &Path| anyhow::Ok(Checkpoint::open(folder)?.digest(&DigestCache::in_memory())?);
    if out.join("config.json").is_file() {
        return of(out);
    }
    let entries = fs::read_dir(out)?.collect::<Result<Vec<_>, _>>()?;
    let mut folders: Vec<_> = entries.iter().map(fs::DirEntry::path).filter(|path| path.is_dir()).collect();
    folders.sort_unstable();
    let digests = folders.iter().map(|folder| of(folder)).collect::<anyhow::Result<Vec<_>>>()?;
    Ok(Digest::of_parts("evolver export", digests.iter().map(|digest| digest.as_bytes().as_slice())))
}

/// The base's config with the task's labels.
fn config(base: &Checkpoint, task: Option<&ResolvedTask>) -> serde_json::Value {
    let mut config = base.config().unwrap_or_default();
    let mut classes = config["architectures"].as_array().into_iter().flatten().filter_map(serde_json::Value::as_str);
    // A language model has no labels, even where its answers are some.
    let classifies = config["id2label"].is_object() || classes.any(|class| class.ends_with("Classification"));
    if let (Some(table), Some(task)) = (config.as_object_mut(), task.filter(|_| classifies)) {
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

/// Writes a folder's config and tokenizer.
fn write_side_files(folder: &FolderWriter, layout: &Checkpoint, config: &serde_json::Value) -> anyhow::Result<()> {
    folder.write("config.json", serde_json::to_string_pretty(config)?.as_bytes())?;
    Ok(folder.copy_side_files(layout.folder())?)
}

/// The tensors of `layout` but `without`, in the type to save in.
fn announced(layout: &Checkpoint, without: &[String], dtype: Option<Dtype>) -> Vec<Announced> {
    let kept = layout.tensors().iter().filter(|(name, _)| !without.contains(name));
    kept.map(|(name, info)| Announced {
        name: name.clone(),
        dtype: dtype.filter(|_| info.dtype.is_float()).unwrap_or(info.dtype),
        shape: info.shape.clone(),
    })
    .collect()
}

/// Writes the tensors of `layout` but `without`: the evolving ones as the recipe has them, the others as they are.
fn write_weights(
    folder: &FolderWriter,
    stem: &str,
    layout: &Checkpoint,
    without: &[String],
    engine: &Engine,
    recipe: &Recipe,
    options: &Options,
) -> anyhow::Result<()> {
    let tensors = announced(layout, without, options.dtype);
    let names: Vec<_> = tensors.iter().map(|tensor| tensor.name.clone()).collect();
    let shards = Shards::create(folder.path(), stem, &tensors, options.shard_bytes).map_err(refuse)?;
    write_recipe(engine, recipe, layout, &names, &shards).map_err(refuse)?;
    shards.finish(&tensors).map_err(refuse)?;
    Ok(())
}
