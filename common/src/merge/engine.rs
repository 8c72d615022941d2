//! The streaming engine: a whole recipe graph, block by block.
//!
//! Every operation but a merge's statistics acts element by element, so a block of a descendant needs only the same block of the leaves. A
//! leaf is a checkpoint, or anything that stands for a node of the graph: a cached copy of a survivor ends the descent just as well. Where a
//! merge needs whole rows (ranks within them) or whole tensors (an SVD), blocks are multiples of those, and memory is bounded by the largest of them.

use std::{
    collections::HashMap,
    io,
    ops::Range,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use rayon::prelude::*;
use thiserror::Error;

use super::{
    Combine,
    built::{Built, Place},
    find,
    layers::Layers,
    pass::{CHUNK, Job, Pass},
    program::{Program, Step, Workspace},
    settings::{ParameterError, Settings},
    store::Store,
};
use crate::{
    checkpoint::{Checkpoint, Dtype, ReadError, Row, Slot, Space, View},
    digest::Digest,
    recipe::{Granularity, Op, Recipe},
    rng::{self, Stream},
    simd,
};

/// Prepared merges that are kept, with their statistics.
const PREPARED_MAX: usize = 64;

/// Weights that cannot be built.
#[derive(Debug, Error)]
pub enum BuildError {
    /// A checkpoint that the recipe names is not there.
    #[error("the recipe needs checkpoint {0}, which this search does not name")]
    UnknownCheckpoint(Digest),
    /// A leaf cannot be read.
    #[error("{0}")]
    Leaf(String),
    /// A file of statistics is missing, or does not fit.
    #[error("{0}")]
    Statistics(String),
    /// A merge is wrong.
    #[error(transparent)]
    Parameter(#[from] ParameterError),
    /// NaN or infinity came out.
    #[error("tensor {tensor:?} of the built weights is NaN or infinite, first at element {element}")]
    NonFinite {
        /// The tensor.
        tensor: String,
        /// Flat index.
        element: usize,
    },
    /// What was built cannot be written.
    #[error("cannot write what was built: {0}")]
    Write(#[from] io::Error),
}

/// Something whose weights can be read block by block.
pub trait Leaf: Send + Sync {
    /// Reads elements of the tensor with this index in the space.
    ///
    /// # Errors
    /// A sentence.
    fn read(&self, tensor: usize, elements: Range<usize>, out: &mut [f32]) -> Result<(), String>;

    /// The whole tensor without a copy, where that is possible.
    fn borrow(&self, tensor: usize) -> Option<Row<'_>>;
}

/// Where built blocks go; called from several threads with disjoint blocks in any order.
pub trait Sink: Sync {
    /// Takes the values of a tensor from element `offset` on.
    ///
    /// # Errors
    /// If they cannot be written.
    fn write(&self, tensor: usize, offset: usize, values: &[f32]) -> io::Result<()>;
}

/// The evolving tensors of one model, in memory as F32.
pub type InMemory = Vec<Vec<f32>>;

/// A checkpoint as a leaf.
#[derive(Debug)]
pub struct CheckpointLeaf {
    checkpoint: Arc<Checkpoint>,
    space: Arc<Space>,
    /// Of each tensor that is stored as it is.
    slots: Vec<Option<Slot>>,
}

impl CheckpointLeaf {
    /// The evolving tensors of `checkpoint`.
    #[must_use]
    pub fn new(checkpoint: Arc<Checkpoint>, space: Arc<Space>) -> Self {
        let slots = space.tensors.iter().map(|tensor| checkpoint.slot(&tensor.name)).collect();
        Self { checkpoint, space, slots }
    }

    fn view(&self, tensor: usize) -> Result<View<'_>, ReadError> {
        match self.slots[tensor] {
            Some(slot) => Ok(self.checkpoint.at(slot)),
            None => self.checkpoint.view(&self.space.tensors[tensor].name),
        }
    }
}

impl Leaf for CheckpointLeaf {
    fn read(&self, tensor: usize, elements: Range<usize>, out: &mut [f32]) -> Result<(), String> {
        self.view(tensor).and_then(|view| view.read(elements, out)).map_err(|error| error.to_string())
    }

    fn borrow(&self, tensor: usize) -> Option<Row<'_>> {
        self.view(tensor).ok()?.row()
    }
}

/// How the engine works; does not change what it builds.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Elements of one block, rounded up to a multiple of 4096.
    pub block: usize,
}

impl std::default::Default for Options {
    fn default() -> Self {
        Self { block: 1 << 15 }
    }
}

/// Builds recipes over a set of leaves.
pub struct Engine {
    space: Arc<Space>,
    leaves: HashMap<Digest, Arc<dyn Leaf>>,
    /// What was measured on models' data, by content digest.
    statistics: HashMap<Digest, Arc<Checkpoint>>,
    layers: Arc<Layers>,
    /// Elements of one block.
    pub(super) block: usize,
    /// The blocks of recipes in which no values depend on each other.
    pub(super) jobs: Vec<Job>,
    pub(super) elements: Vec<usize>,
    prepared: Mutex<HashMap<Digest, Arc<dyn Combine>>>,
    pub(super) store: Store,
    non_finite: bool,
}

impl Engine {
    /// An engine over the tensors of `space`.
    #[must_use]
    pub fn new(space: Arc<Space>, options: Options) -> Self {
        let layers = Layers::new(&space);
        Self::with_layers(space, layers, options)
    }

    /// An engine over the tensors of `space`, which stand at `layers`.
    #[must_use]
    pub fn with_layers(space: Arc<Space>, layers: Layers, options: Options) -> Self {
        let block = options.block.max(1).next_multiple_of(CHUNK);
        let elements: Vec<_> = space.tensors.iter().map(|tensor| tensor.elements).collect();
        Self {
            jobs: Job::split(&elements, block, |_| 1),
            block,
            layers: Arc::new(layers),
            elements,
            space,
            leaves: HashMap::new(),
            statistics: HashMap::new(),
            prepared: Mutex::default(),
            store: Store::default(),
            non_finite: false,
        }
    }

    /// The tensors that it builds.
    #[must_use]
    pub fn space(&self) -> &Space {
        &self.space
    }

    /// Lets NaN and infinity come out, where they went in.
    pub fn allow_non_finite(&mut self) {
        self.non_finite = true;
    }

    /// Lets `leaf` stand for the recipe node of this id.
    pub fn insert(&mut self, node: Digest, leaf: Arc<dyn Leaf>) {
        self.leaves.insert(node, leaf);
    }

    /// Lets merges read the file of statistics of this content digest, which their parameter `statistics` names.
    pub fn insert_statistics(&mut self, digest: Digest, file: Arc<Checkpoint>) {
        self.statistics.insert(digest, file);
    }

    pub(super) fn statistics(&self, digest: Digest) -> Option<Arc<Checkpoint>> {
        self.statistics.get(&digest).cloned()
    }

    /// Forgets a leaf.
    pub fn remove(&mut self, node: Digest) {
        self.leaves.remove(&node);
    }

    /// Shares the statistics of merges over checkpoints with other processes, and with later ones, through a folder.
    pub fn share_statistics(&mut self, folder: &Path) {
        self.store = Store::shared(folder);
    }

    /// Forgets the statistics of earlier merges, which are otherwise kept for recipes over the same inputs.
    pub fn forget(&self) {
        self.prepared.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.store.forget();
    }

    /// Builds a recipe in memory as F32; `out` is given the right size and keeps its allocations.
    ///
    /// # Errors
    /// See [`BuildError`].
    pub fn build(&self, recipe: &Recipe, out: &mut InMemory) -> Result<(), BuildError> {
        out.resize(self.elements.len(), Vec::new());
        let place = |(values, &elements): (&mut Vec<f32>, &usize)| {
            let mut values = std::mem::take(values);
            values.resize(elements, 0.0);
            Built::F32(values)
        };
        let mut built: Vec<_> = out.iter_mut().zip(&self.elements).map(place).collect();
        let result = self.build_into(recipe, &mut built, &[]);
        for (out, built) in out.iter_mut().zip(built) {
            if let Built::F32(values) = built {
                *out = values;
            }
        }
        result
    }

    /// Builds a recipe in memory, into a place for each tensor of the space, of its size. Each tee also gets the values of one node inside the recipe.
    ///
    /// # Errors
    /// See [`BuildError`].
    pub fn build_into(&self, recipe: &Recipe, out: &mut [Built], tees: &[(Recipe, &dyn Sink)]) -> Result<(), BuildError> {
        let program = self.compile(recipe, Settled::All)?;
        let run = Run::new(self, &program, tees);
        let jobs = program.jobs(self, |_| 1);
        let of_tensor = jobs.chunk_by(|a, b| a.tensor == b.tensor);
        let mut tensors: Vec<_> = out.iter_mut().map(Some).collect();
        let places = of_tensor.filter_map(|jobs| Some(tensors.get_mut(jobs[0].tensor)?.take()?.places(jobs)));
        let blocks: Vec<_> = places.flatten().collect();
        blocks.into_par_iter().try_for_each(|(job, mut place)| {
            run.with_workspace(|workspace| {
                if let Place::Short(Dtype::Bf16, out) = &mut place
                    && tees.is_empty()
                    && program.evaluate_short(job, out, workspace)?
                {
                    return Ok(());
                }
                let mut scratch = std::mem::take(&mut workspace.stride);
                let result = place.fill(&mut scratch, |block| run.block(job, block, workspace));
                workspace.stride = scratch;
                result
            })
        })
    }

    /// Builds a recipe into a sink, in constant memory.
    ///
    /// # Errors
    /// See [`BuildError`].
    pub fn stream(&self, recipe: &Recipe, sink: &dyn Sink) -> Result<(), BuildError> {
        self.stream_with(recipe, sink, &[])
    }

    /// As [`Engine::stream`]; each tee also gets the values of one node inside the recipe.
    ///
    /// # Errors
    /// See [`BuildError`].
    pub fn stream_with(&self, recipe: &Recipe, sink: &dyn Sink, tees: &[(Recipe, &dyn Sink)]) -> Result<(), BuildError> {
        let program = self.compile(recipe, Settled::Operands)?;
        let run = Run::new(self, &program, tees);
        let jobs = program.jobs(self, |_| 1);
        let strides = Job::strides(&jobs);
        let tensors: Vec<_> = strides.chunk_by(|a, b| a[0].tensor == b[0].tensor).collect();
        // Writers of one file wait for each other: one thread settles a tensor while another writes.
        tensors.into_par_iter().try_for_each(|strides| {
            self.settle_root(&program, &jobs, strides[0][0].tensor)?;
            strides.par_iter().try_for_each(|stride| run.stride(stride, sink))
        })
    }

    /// Whether a recipe is built a whole tensor at a time, so that its buffers are as large as the largest tensor.
    ///
    /// # Errors
    /// See [`BuildError`].
    pub fn needs_whole_tensors(&self, recipe: &Recipe) -> Result<bool, BuildError> {
        let program = self.compile(recipe, Settled::Operands)?;
        Ok(program.needs_whole_tensors())
    }

    fn check_finite(&self, job: &Job, values: &[f32]) -> Result<(), BuildError> {
        // A fold without an early end, so that it vectorises.
        let finite = simd::dispatch(
            #[inline(always)]
            || values.iter().fold(true, |finite, value| finite & value.is_finite()),
        );
        if self.non_finite || finite {
            return Ok(());
        }
        let first = values.iter().position(|value| !value.is_finite()).unwrap_or(0);
        Err(BuildError::NonFinite { tensor: self.space.tensors[job.tensor].name.clone(), element: job.elements.start + first })
    }

    /// Turns a recipe into steps, taking the statistics of its merges on the way, innermost first.
    fn compile(&self, recipe: &Recipe, settled: Settled) -> Result<Program<'_>, BuildError> {
        let mut program = Program::new(&self.space);
        for node in self.needed(recipe) {
            let step = match self.leaves.get(&node.id()) {
                Some(leaf) => Step::Leaf(Arc::clone(leaf)),
                None => self.step(&node, &program, settled == Settled::All || node != *recipe)?,
            };
            program.push(node, step);
        }
        Ok(program)
    }

    /// The nodes that have to be evaluated, operands first; a leaf ends the descent.
    fn needed(&self, recipe: &Recipe) -> Vec<Recipe> {
        recipe.nodes_until(|node| self.leaves.contains_key(&node.id()))
    }

    fn step(&self, node: &Recipe, program: &Program<'_>, settled: bool) -> Result<Step, BuildError> {
        let at = |recipe: &Recipe| program.index[&recipe.id()];
        Ok(match node.op() {
            Op::Checkpoint(digest) => return Err(BuildError::UnknownCheckpoint(*digest)),
            Op::Differential { target, plus, minus, scale } => {
                Step::Differential { target: at(target), plus: at(plus), minus: at(minus), scale: super::round(*scale) }
            }
            Op::Crossover { target, donor, rate, seed, per } => {
                let (target, donor, threshold) = (at(target), at(donor), rng::threshold(*rate));
                let streams = self.space.tensors.iter().map(|tensor| Stream::new(*seed, &tensor.name));
                match per {
                    Granularity::Parameter => Step::Crossover { target, donor, threshold, streams: streams.collect() },
                    Granularity::Tensor => {
                        let second = streams.map(|stream| rng::falls(stream.element(0), threshold)).collect();
                        Step::Choice { from: [target, donor], second }
                    }
                }
            }
            Op::Perturb { parent, deviation, seed, shape } => {
                Step::Perturb { parent: at(parent), deviation: *deviation, seed: *seed, shape: *shape }
            }
            Op::Splice { first, second, at: split } => {
                let above = (0..self.layers.tensors()).map(|tensor| self.layers.depth(tensor) >= *split).collect();
                Step::Choice { from: [at(first), at(second)], second: above }
            }
            Op::Merge(merge) => {
                let operands: Vec<_> = node.op().operands().map(at).collect();
                let known = |prepared: &HashMap<Digest, Arc<dyn Combine>>| prepared.get(&node.id()).cloned();
                let cached = known(&self.prepared.lock().unwrap_or_else(PoisonError::into_inner));
                let combine = match cached {
                    Some(combine) => combine,
                    None => self.prepare(node.id(), merge, &operands, program)?,
                };
                if settled {
                    self.with_pass(program, &operands, merge.base.is_some(), &program.jobs(self, |_| 1), |pass| {
                        (0..self.elements.len()).into_par_iter().for_each(|tensor| combine.settle(tensor, pass));
                    })?;
                }
                Step::Merge { operands, has_base: merge.base.is_some(), combine }
            }
        })
    }

    fn prepare(
        &self,
        id: Digest,
        merge: &crate::recipe::Merge,
        operands: &[usize],
        program: &Program<'_>,
    ) -> Result<Arc<dyn Combine>, BuildError> {
        let method = find(&merge.method)?;
        let settings = Settings::new(merge, Arc::clone(&self.layers));
        let jobs = program.jobs(self, |_| 1);
        let combine = self.with_pass(program, operands, merge.base.is_some(), &jobs, |pass| method.prepare(&settings, pass))?;
        let combine: Arc<dyn Combine> = combine.into();
        let mut prepared = self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        if prepared.len() >= PREPARED_MAX {
            prepared.clear();
        }
        prepared.insert(id, Arc::clone(&combine));
        Ok(combine)
    }

    /// Settles a tensor of the merge that is built, if it is one.
    fn settle_root(&self, program: &Program<'_>, jobs: &[Job], tensor: usize) -> Result<(), BuildError> {
        let Some((operands, has_base, combine)) = program.root_merge() else { return Ok(()) };
        self.with_pass(program, operands, has_base, jobs, |pass| combine.settle(tensor, pass))
    }

    /// Lets `take` go over a merge's operands; what went wrong on the way comes back.
    fn with_pass<T>(
        &self,
        program: &Program<'_>,
        operands: &[usize],
        has_base: bool,
        jobs: &[Job],
        take: impl FnOnce(&Pass<'_>) -> T,
    ) -> Result<T, BuildError> {
        let failure = Mutex::new(None);
        let pass = Pass {
            program,
            operands: operands.to_vec(),
            has_base,
            engine: self,
            jobs,
            elements: &self.elements,
            failure: &failure,
        };
        let taken = take(&pass);
        failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(taken), Err)
    }
}

/// Which merges of a program know of all tensors what they have to know; of those that do not, each tensor is settled before it is built.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Settled {
    All,
    /// All but the one that is built.
    Operands,
}

/// One build of a program: the step that is built, and those whose values go elsewhere besides.
struct Run<'a> {
    engine: &'a Engine,
    program: &'a Program<'a>,
    /// The root comes first, then one for each sink.
    wanted: Vec<usize>,
    sinks: Vec<&'a dyn Sink>,
    workspaces: Mutex<Vec<Workspace>>,
}

impl<'a> Run<'a> {
    fn new(engine: &'a Engine, program: &'a Program<'a>, tees: &[(Recipe, &'a dyn Sink)]) -> Self {
        let found = tees.iter().filter_map(|(node, sink)| Some((*program.index.get(&node.id())?, *sink)));
        let (steps, sinks): (Vec<_>, Vec<_>) = found.unzip();
        let wanted = std::iter::once(program.root()).chain(steps).collect();
        Self { engine, program, wanted, sinks, workspaces: Mutex::default() }
    }

    /// Lends one thread's buffers.
    fn with_workspace<T>(&self, work: impl FnOnce(&mut Workspace) -> T) -> T {
        let pooled = self.workspaces.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut workspace = pooled.unwrap_or_default();
        let result = work(&mut workspace);
        self.workspaces.lock().unwrap_or_else(PoisonError::into_inner).push(workspace);
        result
    }

    /// Builds blocks that are written at once.
    fn stride(&self, jobs: &[Job], sink: &dyn Sink) -> Result<(), BuildError> {
        self.with_workspace(|workspace| {
            let mut stride = std::mem::take(&mut workspace.stride);
            stride.resize(jobs.iter().map(|job| job.elements.len()).sum(), 0.0);
            let mut rest = stride.as_mut_slice();
            for job in jobs {
                let (block, after) = rest.split_at_mut(job.elements.len());
                rest = after;
                self.block(job, block, workspace)?;
            }
            sink.write(jobs[0].tensor, jobs[0].elements.start, &stride)?;
            workspace.stride = stride;
            Ok(())
        })
    }

    /// Builds one block.
    fn block(&self, job: &Job, block: &mut [f32], workspace: &mut Workspace) -> Result<(), BuildError> {
        self.program.evaluate(job, &self.wanted, Some(block), workspace, |values| {
            let mut buffer = Vec::new();
            self.engine.check_finite(job, values[0].floats(&mut buffer))?;
            for (sink, values) in self.sinks.iter().zip(&values[1..]) {
                sink.write(job.tensor, job.elements.start, values.floats(&mut buffer))?;
            }
            Ok(())
        })
    }
}
