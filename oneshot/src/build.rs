//! A plan carried out: block by block into the shards of a folder that appears whole or not at all.

use std::{
    collections::HashMap,
    io,
    ops::Range,
    path::Path,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use evolver_common::{
    checkpoint::{Checkpoint, DigestCache, Row, write::FolderWriter},
    digest::Digest,
    merge::{BuildError, Engine, Leaf, Options, Sink},
    recipe::Recipe,
};
use thiserror::Error;

use crate::{
    output::{self, Card, Shards, ShardsError},
    plan::{Operand, Part, Plan, Problems, is_remapped},
    vocabulary::{Rows, is_embedding},
};

/// How a merge is written; does not change its values.
#[derive(Clone, Copy, Debug)]
pub struct BuildOptions {
    /// Bytes of a shard, at most, if no single tensor is larger.
    pub shard_bytes: u64,
    /// Let NaN and infinity through instead of refusing models that hold them.
    pub allow_non_finite: bool,
}

/// A merge that cannot be carried out. Nothing of it is left behind.
#[derive(Debug, Error)]
pub enum MergeError {
    /// The folder cannot be written.
    #[error(transparent)]
    Write(#[from] evolver_common::checkpoint::write::WriteError),
    /// The weights cannot be written.
    #[error(transparent)]
    Shards(#[from] ShardsError),
    /// The weights cannot be built.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The models cannot be used.
    #[error(transparent)]
    Models(#[from] Problems),
    /// The disk is too small.
    #[error("{folder} has {free} free, and the result needs {needed}: nothing was written", free = output::bytes(*.free), needed = output::bytes(*.needed))]
    Space {
        /// Where it was to be written.
        folder: String,
        /// Bytes there are.
        free: u64,
        /// Bytes needed.
        needed: u64,
    },
}

/// What was written.
#[derive(Debug)]
pub struct Written {
    /// The recipe of each part, with what it is.
    pub recipes: Vec<(String, Recipe)>,
    /// Digest of the whole: the recipe's id, or of several recipes.
    pub digest: Digest,
    /// Number of weight files.
    pub shards: usize,
}

impl Plan {
    /// Builds the merge into the folder `out`, which must not exist or be empty.
    ///
    /// # Errors
    /// See [`MergeError`]; the folder is then as it was.
    pub fn build(&self, options: &BuildOptions, out: &Path) -> Result<Written, MergeError> {
        let folder = FolderWriter::new(out)?;
        let needed = self.bytes();
        if let Some(free) = output::free_space(folder.path()).filter(|free| *free < needed) {
            let place = out.parent().unwrap_or(out).display().to_string();
            return Err(MergeError::Space { folder: place, free, needed });
        }
        if !options.allow_non_finite {
            self.scan()?;
        }
        let digests = self.digests()?;
        let shards = match self.config.vectors {
            // PEFT knows no shards.
            true => Shards::create(folder.path(), "adapter_model", &self.tensors, u64::MAX)?,
            false => Shards::create(folder.path(), "model", &self.tensors, options.shard_bytes)?,
        };
        let models = self.checkpoints();
        let mut recipes = Vec::new();
        for part in &self.parts {
            recipes.push((part.label.clone(), self.part(part, &models, &digests, options, &shards)?));
        }
        for (output, model, name) in &self.kept {
            shards.copy(*output, &models[*model], name)?;
        }
        let count = shards.finish(&self.tensors)?;
        let ids: Vec<_> = recipes.iter().map(|(_, recipe)| recipe.id()).collect();
        let digest = match ids.as_slice() {
            [id] => *id,
            several => Digest::of_parts("evolver merge v1", several.iter().map(|id| id.as_bytes().as_slice())),
        };
        let card = Card { plan: self, recipes: &recipes, digest, digests: &digests };
        output::write_files(&folder, self, &card)?;
        for model in &models {
            model.unchanged().map_err(|error| Problems(vec![error.to_string()]))?;
        }
        folder.finish()?;
        Ok(Written { recipes, digest, shards: count })
    }

    /// Refuses models that hold NaN or infinity; all of them at once.
    fn scan(&self) -> Result<(), Problems> {
        let found = self.models.iter().filter_map(|model| model.checkpoint.scan_finite().err());
        let problems: Vec<_> = found.map(|error| format!("{error}; --allow-non-finite lets them through")).collect();
        if problems.is_empty() { Ok(()) } else { Err(Problems(problems)) }
    }

    fn digests(&self) -> Result<Vec<Digest>, Problems> {
        let cache = DigestCache::in_memory();
        let digest =
            |model: &crate::plan::Model| model.checkpoint.digest(&cache).map_err(|error| Problems(vec![error.to_string()]));
        self.models.iter().map(digest).collect()
    }

    fn part(
        &self,
        part: &Part,
        models: &[Arc<Checkpoint>],
        digests: &[Digest],
        options: &BuildOptions,
        shards: &Shards,
    ) -> Result<Recipe, MergeError> {
        let digest = |operand: &Operand| self.digest(part, operand, digests);
        let recipe = self.recipe(part, digest).map_err(BuildError::Parameter)?;
        let mut engine = Engine::with_layers(Arc::clone(&part.space), part.layers.clone(), Options::default());
        if options.allow_non_finite {
            engine.allow_non_finite();
        }
        for (digest, file) in &self.statistics {
            engine.insert_statistics(*digest, Arc::clone(file));
        }
        for operand in part.base.iter().chain(part.models.iter().map(|(operand, _)| operand)) {
            engine.insert(Recipe::checkpoint(digest(operand)).id(), Arc::new(self.source(part, operand, models)));
        }
        let target = Target { shards, outputs: &part.outputs, failure: Mutex::default() };
        let built = engine.stream(&recipe, &target);
        match target.failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(failure) => Err(failure.into()),
            None => built.map(|()| recipe).map_err(MergeError::from),
        }
    }

    fn source(&self, part: &Part, operand: &Operand, models: &[Arc<Checkpoint>]) -> Source {
        let checkpoint = &models[operand.model];
        let rows = self.vocabulary.as_ref().and_then(|vocabulary| vocabulary.models[operand.model].clone());
        let origin = |(name, tensor): (&String, &evolver_common::checkpoint::SpaceTensor)| {
            let info = checkpoint.tensors().get(name);
            let remapped = is_remapped(self.vocabulary.as_ref(), operand.model, name, info);
            let rows = rows.clone().filter(|_| remapped && is_embedding(name));
            Origin {
                name: name.clone(),
                width: tensor.shape.get(1..).map_or(1, |sides| sides.iter().product()),
                rows,
                mean: OnceLock::new(),
            }
        };
        let origins = operand.names.iter().zip(&part.space.tensors).map(origin).collect();
        Source { models: models.to_vec(), model: operand.model, origins }
    }

    /// The digest of an operand's values: the model's own, unless they stand under other names or rows than in the model.
    fn digest(&self, part: &Part, operand: &Operand, digests: &[Digest]) -> Digest {
        let own = digests[operand.model];
        let checkpoint = &self.models[operand.model].checkpoint;
        let mut view = Vec::new();
        for (name, tensor) in operand.names.iter().zip(&part.space.tensors) {
            if *name != tensor.name {
                view.push(format!("{} = {name}", tensor.name).into_bytes());
            }
            if is_remapped(self.vocabulary.as_ref(), operand.model, name, checkpoint.tensors().get(name))
                && let Some(rows) = self.vocabulary.as_ref().and_then(|vocabulary| vocabulary.models[operand.model].as_ref())
            {
                view.push(rows.signature());
                // Rows may come from any of the models.
                view.extend(digests.iter().map(|digest| digest.as_bytes().to_vec()));
            }
        }
        if view.is_empty() {
            return own;
        }
        Digest::of_parts("evolver view v1", std::iter::once(own.as_bytes().as_slice()).chain(view.iter().map(Vec::as_slice)))
    }
}

/// A model's tensors under the names and rows of a part.
struct Source {
    models: Vec<Arc<Checkpoint>>,
    model: usize,
    origins: Vec<Origin>,
}

struct Origin {
    name: String,
    /// Elements of a row.
    width: usize,
    rows: Option<Arc<Rows>>,
    mean: OnceLock<Result<Vec<f32>, String>>,
}

impl Leaf for Source {
    fn read(&self, tensor: usize, elements: Range<usize>, out: &mut [f32]) -> Result<(), String> {
        let origin = &self.origins[tensor];
        let Some(rows) = &origin.rows else {
            return self.models[self.model].read(&origin.name, elements, out).map_err(|error| error.to_string());
        };
        let mean =
            origin.mean.get_or_init(|| rows.mean(&self.models, &origin.name, origin.width)).as_ref().map_err(String::clone)?;
        rows.read(&self.models, &origin.name, origin.width, mean, elements, out)
    }

    fn borrow(&self, tensor: usize) -> Option<Row<'_>> {
        let origin = &self.origins[tensor];
        if origin.rows.is_some() {
            return None;
        }
        self.models[self.model].view(&origin.name).ok()?.row()
    }
}

/// Built blocks into their places in the shards.
struct Target<'a> {
    shards: &'a Shards,
    /// Index in the output of each tensor that is built.
    outputs: &'a [usize],
    failure: Mutex<Option<ShardsError>>,
}

impl Sink for Target<'_> {
    fn write(&self, tensor: usize, offset: usize, values: &[f32]) -> io::Result<()> {
        self.shards.values(self.outputs[tensor], offset, values).map_err(|error| {
            self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            io::Error::other("the weights cannot be written")
        })
    }
}

/// Builds a recipe of a search into shards: the tensors of `layout`, evolving ones as the recipe has them, the others as they are.
///
/// # Errors
/// If it cannot be built or written.
pub fn write_recipe(
    engine: &Engine,
    recipe: &Recipe,
    layout: &Checkpoint,
    kept: &[String],
    shards: &Shards,
) -> Result<(), MergeError> {
    let index: HashMap<&str, usize> = kept.iter().map(String::as_str).zip(0..).collect();
    let evolving = &engine.space().tensors;
    let outputs: Vec<_> = evolving.iter().filter_map(|tensor| index.get(tensor.name.as_str()).copied()).collect();
    let target = Target { shards, outputs: &outputs, failure: Mutex::default() };
    let built = engine.stream(recipe, &target);
    if let Some(failure) = target.failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(failure.into());
    }
    built?;
    let built: std::collections::HashSet<usize> = outputs.iter().copied().collect();
    for (at, name) in kept.iter().enumerate().filter(|(at, _)| !built.contains(at)) {
        shards.copy(at, layout, name)?;
    }
    Ok(())
}
