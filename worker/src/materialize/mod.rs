//! From a recipe to weights.
//!
//! Base and experts are mapped once and never copied; an offspring's evolving tensors are built in memory and go straight to the evaluator.

mod cache;

use std::{path::Path, sync::Arc};

use evolver_common::{
    checkpoint::{Checkpoint, DigestCache, Dtype, Space, SpaceTensor, fit},
    definition::{Resolved, Source, Task},
    digest::Digest,
    merge::{BuildError, Built, CheckpointLeaf, Engine, Options},
    recipe::Recipe,
};
use thiserror::Error;

use self::cache::Cache;
use crate::{
    evaluate::Candidate,
    models::{ModelWeights, Values},
};

/// Weights that cannot be built.
#[derive(Debug, Error)]
pub enum MaterializeError {
    /// A checkpoint is missing, damaged, changed, or not the one that the search began with.
    #[error("{0}")]
    Input(String),
    /// The recipe cannot be built.
    #[error(transparent)]
    Build(#[from] BuildError),
}

/// Builds the recipes of one search.
pub struct Materializer {
    resolved: Resolved,
    base: Arc<Checkpoint>,
    experts: Vec<Arc<Checkpoint>>,
    engine: Engine,
    cache: Cache,
}

impl Materializer {
    /// Opens the search's checkpoints and makes sure that they are the ones that it began with.
    ///
    /// # Errors
    /// A sentence with the checkpoint's name.
    pub fn open(resolved: &Resolved, cache_folder: &Path) -> Result<Self, MaterializeError> {
        let input = |error: &dyn ToString| MaterializeError::Input(error.to_string());
        let digests = DigestCache::open(cache_folder);
        let check = |source: &Source, checkpoint: &Checkpoint| {
            let found = checkpoint.digest(&digests).map_err(|error| input(&error))?;
            if found != source.digest {
                return Err(MaterializeError::Input(format!(
                    "{} in {} is not the checkpoint that the search began with: its digest is {}, and {} is expected",
                    source.name,
                    source.path.display(),
                    found.short(),
                    source.digest.short()
                )));
            }
            Ok(())
        };
        let base = Arc::new(Checkpoint::open(&resolved.base.path).map_err(|error| input(&error))?);
        check(&resolved.base, &base)?;
        let mut experts = Vec::new();
        for source in &resolved.experts {
            let expert = Checkpoint::open_over(&source.path, &base).map_err(|error| input(&error))?;
            check(source, &expert)?;
            experts.push(Arc::new(expert));
        }
        let named: Vec<_> =
            resolved.experts.iter().zip(&experts).map(|(source, expert)| (source.name.as_str(), &**expert)).collect();
        let space = fit(&base, &named, &resolved.patterns()).map_err(|differences| {
            let sentences: Vec<_> = differences.iter().map(ToString::to_string).collect();
            MaterializeError::Input(sentences.join("\n"))
        })?;
        let space = Arc::new(space);
        let mut engine = Engine::new(Arc::clone(&space), Options::default());
        engine.share_statistics(&cache_folder.join("statistics"));
        for (source, checkpoint) in std::iter::once((&resolved.base, &base)).chain(resolved.experts.iter().zip(&experts)) {
            let leaf = CheckpointLeaf::new(Arc::clone(checkpoint), Arc::clone(&space));
            engine.insert(Recipe::checkpoint(source.digest).id(), Arc::new(leaf));
        }
        for measured in resolved.experts.iter().filter_map(|source| source.statistics.as_ref()) {
            let file = Checkpoint::open(&measured.path).map_err(|error| input(&error))?;
            if file.digest(&digests).map_err(|error| input(&error))? != measured.digest {
                let sentence = format!("{} is not the file of statistics that the search began with", measured.path.display());
                return Err(MaterializeError::Input(sentence));
            }
            engine.insert_statistics(measured.digest, Arc::new(file));
        }
        let limit = resolved.definition.fleet.cache_bytes;
        Ok(Self { cache: Cache::open(cache_folder, limit, space), resolved: resolved.clone(), base, experts, engine })
    }

    /// The folder with config and tokenizer.
    #[must_use]
    pub fn base(&self) -> &Checkpoint {
        &self.base
    }

    /// The engine over the search's checkpoints.
    #[must_use]
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The tensors that evolve.
    #[must_use]
    pub fn space(&self) -> &Space {
        self.engine.space()
    }

    /// Builds a recipe. What is worth keeping (`keep`) of it and of the nodes inside it is cached on the way, so that descendants start from there.
    ///
    /// # Errors
    /// If it cannot be built.
    pub fn build(&mut self, recipe: &Recipe, keep: &[Digest]) -> Result<Candidate, MaterializeError> {
        let nodes: Vec<_> = recipe.nodes().into_iter().filter(|node| node.depth() > 1).collect();
        for node in &nodes {
            if let Some(leaf) = self.cache.get(node.id()) {
                self.engine.insert(node.id(), leaf);
            } else {
                self.engine.remove(node.id());
            }
        }
        let missing = nodes.iter().filter(|node| keep.contains(&node.id()) && !self.cache.contains(node.id()));
        // A cache that cannot be written costs time, never a result.
        let writers: Vec<_> = missing.filter_map(|node| Some((node.clone(), self.cache.begin(node.id())?))).collect();
        let tees: Vec<_> = writers.iter().map(|(node, writer)| (node.clone(), writer.sink())).collect();
        // In the types that the base has them in: what is scored are the values that an export will have.
        let dtype = |name: &str| self.base.tensors().get(name).map_or(Dtype::F32, |info| info.dtype);
        let place = |tensor: &SpaceTensor| Built::zeros(dtype(&tensor.name), tensor.elements);
        let mut built: Vec<_> = self.space().tensors.iter().map(place).collect();
        self.engine.build_into(recipe, &mut built, &tees)?;
        for (_, writer) in writers {
            self.cache.finish(writer);
        }
        self.cache.evict(keep);
        Ok(self.candidate(built))
    }

    fn candidate(&self, built: Vec<Built>) -> Candidate {
        let mut shared = ModelWeights::of(&self.base);
        for (tensor, built) in self.space().tensors.iter().zip(built) {
            let values = match built {
                Built::F32(values) => Values::Owned(values.into()),
                Built::Bf16(values) => Values::Brain(values.into()),
                Built::F16(values) => Values::Half(values.into()),
            };
            shared.insert(&tensor.name, &tensor.shape, values);
        }
        Candidate { heads: self.heads(), shared }
    }

    /// Each task's own tensors, where heads are kept apart.
    fn heads(&self) -> Vec<ModelWeights> {
        let weights = |(expert, names): (&Arc<Checkpoint>, Vec<String>)| {
            let mut weights = ModelWeights::default();
            for name in names {
                weights.insert(&name, &expert.tensors()[&name].shape, Values::Mapped(Arc::clone(expert), name.clone()));
            }
            weights
        };
        self.task_heads().into_iter().map(weights).collect()
    }

    /// The expert whose head each task has, with the names of the head's tensors; empty where all tasks share everything.
    #[must_use]
    pub fn task_heads(&self) -> Vec<(&Arc<Checkpoint>, Vec<String>)> {
        let patterns = self.resolved.patterns();
        if patterns.heads.is_empty() {
            return Vec::new();
        }
        let head = |task: &Task| {
            let owner = self.resolved.experts.iter().position(|source| Some(&source.name) == task.head.as_ref());
            let expert = owner.map_or(&self.base, |index| &self.experts[index]);
            (expert, patterns.heads_of(expert))
        };
        self.resolved.definition.tasks.iter().map(head).collect()
    }

    /// Whether every checkpoint is still the one that was opened.
    ///
    /// # Errors
    /// Names the file that is not.
    pub fn unchanged(&self) -> Result<(), MaterializeError> {
        for checkpoint in std::iter::once(&self.base).chain(&self.experts) {
            checkpoint.unchanged().map_err(|error| MaterializeError::Input(error.to_string()))?;
        }
        Ok(())
    }
}
