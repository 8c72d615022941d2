//! `export`: a model of a search as a folder that `transformers` opens.

use std::{
    io,
    path::Path,
    sync::{Mutex, PoisonError},
};

use anyhow::Context as _;
use evolver_common::{
    checkpoint::{
        Checkpoint, Dtype,
        write::{Announced, FolderWriter, WeightsWriter, WriteError},
    },
    merge::{Engine, Sink},
    recipe::Recipe,
};
use evolver_coordinator::{search::Individual, service::Replay};
use evolver_worker::materialize::Materializer;

use crate::{cli, fail::refuse, show};

pub(crate) fn export(options: &cli::Export) -> anyhow::Result<()> {
    let replay = show::open(&options.dir)?;
    let individual = match &options.individual {
        Some(wanted) => find(&replay, wanted)?,
        None => {
            replay.search.best().cloned().ok_or_else(|| refuse("the search has scored nothing yet: there is no best model"))?
        }
    };
    export_individual(&replay, &individual, &options.dir, &options.out)?;
    eprintln!("wrote {}", options.out.display());
    Ok(())
}

fn find(replay: &Replay, wanted: &str) -> anyhow::Result<Individual> {
    let search = &replay.search;
    let mut found: Vec<_> =
        search.table().into_iter().chain(search.population().iter().cloned()).chain(search.best().cloned()).collect();
    found.retain(|individual| individual.name == wanted || (wanted.len() >= 4 && individual.id.to_string().starts_with(wanted)));
    found.dedup_by_key(|individual| individual.id);
    found.into_iter().next().ok_or_else(|| {
        refuse(format!("no individual has the name or the beginning of an id {wanted:?}: `evolver show --json` lists them"))
    })
}

/// Writes one individual as a checkpoint folder.
pub(crate) fn export_individual(replay: &Replay, individual: &Individual, dir: &Path, out: &Path) -> anyhow::Result<()> {
    let resolved = &replay.resolved;
    let materializer = Materializer::open(resolved, &dir.join("cache")).map_err(refuse)?;
    let base = materializer.base();
    let mut config = base.config().unwrap_or_default();
    if let (Some(table), Some(task)) = (config.as_object_mut(), resolved.tasks.first()) {
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
    let card = card(replay, individual);
    write_model(base, materializer.engine(), &individual.recipe, None, &config, &card, out)
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
    let announced: Vec<_> = layout
        .tensors()
        .iter()
        .map(|(name, info)| Announced {
            name: name.clone(),
            dtype: if info.dtype.is_float() { dtype.unwrap_or(info.dtype) } else { info.dtype },
            shape: info.shape.clone(),
        })
        .collect();
    let writer = folder.weights("model.safetensors", &announced)?;
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
    writer.finish(true).context("while completing the weights").map_err(refuse)?;
    folder.write("config.json", serde_json::to_string_pretty(config)?.as_bytes())?;
    folder.write("README.md", card.as_bytes())?;
    folder.copy_side_files(layout.folder())?;
    folder.finish().map_err(refuse)
}
