//! The streaming engine: a whole recipe graph, block by block.
//!
//! Every operation but a merge's statistics acts element by element, so a block of a descendant needs only the same block of the leaves. A
//! leaf is a checkpoint, or anything that stands for a node of the graph: a cached copy of a survivor ends the descent just as well. Where a
//! merge needs whole rows (ranks within them) or whole tensors (an SVD), blocks are multiples of those, and memory is bounded by the largest of them.

use std::{
    borrow::Cow,
    collections::HashMap,
    io,
    ops::Range,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use rayon::prelude::*;
use thiserror::Error;

use super::{
    Combine, find,
    layers::Layers,
    pass::{CHUNK, Inputs, Job, Pass},
    perturb::Steps,
    settings::{ParameterError, Settings},
    store::Store,
};
use crate::{
    checkpoint::{Checkpoint, ReadError, Slot, Space, View},
    digest::Digest,
    recipe::{Granularity, Op, Recipe, Shape},
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
    fn borrow(&self, tensor: usize) -> Option<&[f32]>;
}

/// Where built blocks go; called from several threads with disjoint blocks in any order.
pub trait Sink: Sync {
    /// Takes the values of a tensor from element `offset` on.
    ///
    /// # Errors
    /// If they cannot be written.
    fn write(&self, tensor: usize, offset: usize, values: &[f32]) -> io::Result<()>;
}

/// The evolving tensors of one model, in memory.
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

    fn borrow(&self, tensor: usize) -> Option<&[f32]> {
        self.view(tensor).ok()?.as_f32()
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
        Self { block: 1 << 14 }
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
    block: usize,
    /// The blocks of recipes in which no values depend on each other.
    jobs: Vec<Job>,
    elements: Vec<usize>,
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

    /// Builds a recipe in memory; `out` is given the right size and keeps its allocations. Each tee also gets the values of one node inside the
    /// recipe.
    ///
    /// # Errors
    /// See [`BuildError`].
    pub fn build(&self, recipe: &Recipe, out: &mut InMemory, tees: &[(Recipe, &dyn Sink)]) -> Result<(), BuildError> {
        out.resize(self.elements.len(), Vec::new());
        for (values, &elements) in out.iter_mut().zip(&self.elements) {
            values.resize(elements, 0.0);
        }
        let (program, root) = self.compile(recipe)?;
        let run = Run::new(self, &program, root, tees);
        let jobs = program.jobs(self, |_| 1);
        let mut blocks = Vec::with_capacity(jobs.len());
        let mut jobs = jobs.iter().peekable();
        for (tensor, values) in out.iter_mut().enumerate() {
            let mut rest = values.as_mut_slice();
            while let Some(job) = jobs.next_if(|job| job.tensor == tensor) {
                let (block, after) = rest.split_at_mut(job.elements.len());
                rest = after;
                blocks.push((job, block));
            }
        }
        blocks.into_par_iter().try_for_each(|(job, block)| run.with_workspace(|workspace| run.block(job, block, workspace)))
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
        let (program, root) = self.compile(recipe)?;
        let run = Run::new(self, &program, root, tees);
        let jobs = program.jobs(self, |_| 1);
        Job::strides(&jobs).into_par_iter().try_for_each(|jobs| {
            run.with_workspace(|workspace| {
                let mut stride = std::mem::take(&mut workspace.stride);
                stride.resize(jobs.iter().map(|job| job.elements.len()).sum(), 0.0);
                let mut rest = stride.as_mut_slice();
                for job in jobs {
                    let (block, after) = rest.split_at_mut(job.elements.len());
                    rest = after;
                    run.block(job, block, workspace)?;
                }
                sink.write(jobs[0].tensor, jobs[0].elements.start, &stride)?;
                workspace.stride = stride;
                Ok(())
            })
        })
    }

    /// Whether a recipe is built a whole tensor at a time, so that its buffers are as large as the largest tensor.
    ///
    /// # Errors
    /// See [`BuildError`].
    pub fn needs_whole_tensors(&self, recipe: &Recipe) -> Result<bool, BuildError> {
        let (program, _) = self.compile(recipe)?;
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
    fn compile(&self, recipe: &Recipe) -> Result<(Program<'_>, usize), BuildError> {
        let mut program = Program { space: &self.space, steps: Vec::new(), nodes: Vec::new(), index: HashMap::new() };
        for node in self.needed(recipe) {
            let step = match self.leaves.get(&node.id()) {
                Some(leaf) => Step::Leaf(Arc::clone(leaf)),
                None => self.step(&node, &program)?,
            };
            program.index.insert(node.id(), program.steps.len());
            program.steps.push(step);
            program.nodes.push(node);
        }
        let root = program.steps.len() - 1;
        Ok((program, root))
    }

    /// The nodes that have to be evaluated, operands first; a leaf ends the descent.
    fn needed(&self, recipe: &Recipe) -> Vec<Recipe> {
        recipe.nodes_until(|node| self.leaves.contains_key(&node.id()))
    }

    fn step(&self, node: &Recipe, program: &Program<'_>) -> Result<Step, BuildError> {
        let at = |recipe: &Recipe| program.index[&recipe.id()];
        Ok(match node.op() {
            Op::Checkpoint(digest) => return Err(BuildError::UnknownCheckpoint(*digest)),
            Op::Differential { target, plus, minus, scale } => {
                Step::Differential { target: at(target), plus: at(plus), minus: at(minus), scale: super::round(*scale) }
            }
            Op::Crossover { target, donor, rate, seed, per } => {
                Step::Crossover { target: at(target), donor: at(donor), threshold: rng::threshold(*rate), seed: *seed, per: *per }
            }
            Op::Perturb { parent, deviation, seed, shape } => {
                Step::Perturb { parent: at(parent), deviation: *deviation, seed: *seed, shape: *shape }
            }
            Op::Splice { first, second, at: split } => {
                let below = (0..self.layers.tensors()).map(|tensor| self.layers.depth(tensor) < *split).collect();
                Step::Splice { first: at(first), second: at(second), below }
            }
            Op::Merge(merge) => {
                let operands: Vec<_> = node.op().operands().map(at).collect();
                let known = |prepared: &HashMap<Digest, Arc<dyn Combine>>| prepared.get(&node.id()).cloned();
                let cached = known(&self.prepared.lock().unwrap_or_else(PoisonError::into_inner));
                let combine = match cached {
                    Some(combine) => combine,
                    None => self.prepare(node.id(), merge, &operands, program)?,
                };
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
        let failure = Mutex::new(None);
        let pass = Pass {
            program,
            operands: operands.to_vec(),
            has_base: merge.base.is_some(),
            engine: self,
            jobs: &program.jobs(self, |_| 1),
            elements: &self.elements,
            failure: &failure,
        };
        let combine: Arc<dyn Combine> = method.prepare(&Settings::new(merge, Arc::clone(&self.layers)), &pass).into();
        if let Some(error) = failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(error);
        }
        let mut prepared = self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        if prepared.len() >= PREPARED_MAX {
            prepared.clear();
        }
        prepared.insert(id, Arc::clone(&combine));
        Ok(combine)
    }
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
    fn new(engine: &'a Engine, program: &'a Program<'a>, root: usize, tees: &[(Recipe, &'a dyn Sink)]) -> Self {
        let found = tees.iter().filter_map(|(node, sink)| Some((*program.index.get(&node.id())?, *sink)));
        let (steps, sinks): (Vec<_>, Vec<_>) = found.unzip();
        let wanted = std::iter::once(root).chain(steps).collect();
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

    /// Builds one block.
    fn block(&self, job: &Job, block: &mut [f32], workspace: &mut Workspace) -> Result<(), BuildError> {
        self.program.evaluate(job, &self.wanted, Some(block), workspace, |values| {
            self.engine.check_finite(job, values[0])?;
            for (sink, values) in self.sinks.iter().zip(&values[1..]) {
                sink.write(job.tensor, job.elements.start, values)?;
            }
            Ok(())
        })
    }
}

/// A recipe as steps, operands before their users.
pub(super) struct Program<'a> {
    space: &'a Space,
    steps: Vec<Step>,
    /// What each step evaluates.
    pub(super) nodes: Vec<Recipe>,
    index: HashMap<Digest, usize>,
}

enum Step {
    Leaf(Arc<dyn Leaf>),
    Differential {
        target: usize,
        plus: usize,
        minus: usize,
        scale: f32,
    },
    Crossover {
        target: usize,
        donor: usize,
        threshold: u64,
        seed: u64,
        per: Granularity,
    },
    Perturb {
        parent: usize,
        deviation: f64,
        seed: u64,
        shape: Shape,
    },
    /// `below` says of each tensor whether it is `first`'s.
    Splice {
        first: usize,
        second: usize,
        below: Vec<bool>,
    },
    Merge {
        operands: Vec<usize>,
        has_base: bool,
        combine: Arc<dyn Combine>,
    },
}

impl Step {
    fn operands(&self) -> Vec<usize> {
        match self {
            Self::Leaf(_) => vec![],
            Self::Differential { target, plus, minus, .. } => vec![*target, *plus, *minus],
            Self::Crossover { target, donor, .. } => vec![*target, *donor],
            Self::Perturb { parent, .. } => vec![*parent],
            Self::Splice { first, second, .. } => vec![*first, *second],
            Self::Merge { operands, .. } => operands.clone(),
        }
    }
}

/// One thread's buffers, allocated once and used again.
#[derive(Default)]
pub(super) struct Workspace {
    buffers: Vec<Vec<f32>>,
    random: Vec<u32>,
    /// What is written at once.
    stride: Vec<f32>,
}

impl Program<'_> {
    /// The blocks that it is evaluated in, if as many elements of a tensor as `unit` says have to stand together besides.
    pub(super) fn jobs<'e>(&self, engine: &'e Engine, unit: impl Fn(usize) -> usize) -> Cow<'e, [Job]> {
        let of_tensor = |tensor: usize| {
            let units = self.steps.iter().filter_map(|step| match step {
                Step::Merge { combine, .. } => Some(combine.unit(tensor, self.shape(tensor))),
                _ => None,
            });
            units.fold(unit(tensor), common_multiple)
        };
        let units: Vec<_> = (0..engine.elements.len()).map(of_tensor).collect();
        if units.iter().all(|unit| engine.block.is_multiple_of(*unit)) {
            Cow::Borrowed(&engine.jobs)
        } else {
            Cow::Owned(Job::split(&engine.elements, engine.block, |tensor| units[tensor]))
        }
    }

    /// Tells the tensors from those of other spaces.
    pub(super) fn space_digest(&self) -> Digest {
        let tensors = self.space.tensors.iter();
        let parts: Vec<_> = tensors.map(|tensor| format!("{:?} {}", tensor.shape, tensor.name).into_bytes()).collect();
        Digest::of_parts("evolver space v1", parts.iter().map(Vec::as_slice))
    }

    fn needs_whole_tensors(&self) -> bool {
        let whole = |step: &Step| match step {
            Step::Merge { combine, .. } => (0..self.space.tensors.len()).any(|tensor| {
                let shape = self.shape(tensor);
                shape.len() > 1 && combine.unit(tensor, shape) == shape.iter().product::<usize>()
            }),
            _ => false,
        };
        self.steps.iter().any(whole)
    }

    /// The sides of a tensor.
    pub(super) fn shape(&self, tensor: usize) -> &[usize] {
        &self.space.tensors[tensor].shape
    }

    /// Evaluates the `wanted` steps on one block and hands their values to `then`; the first one's are written to `target` if there is one.
    pub(super) fn evaluate(
        &self,
        job: &Job,
        wanted: &[usize],
        mut target: Option<&mut [f32]>,
        workspace: &mut Workspace,
        then: impl FnOnce(&[&[f32]]) -> Result<(), BuildError>,
    ) -> Result<(), BuildError> {
        let mut needed = vec![false; self.steps.len()];
        wanted.iter().for_each(|&step| needed[step] = true);
        for step in (0..self.steps.len()).rev() {
            if needed[step] {
                self.steps[step].operands().into_iter().for_each(|operand| needed[operand] = true);
            }
        }
        let Workspace { buffers, random, .. } = workspace;
        buffers.resize(self.steps.len(), Vec::new());
        for (at, step) in self.steps.iter().enumerate().filter(|(at, _)| needed[*at]) {
            let (earlier, rest) = buffers.split_at_mut(at);
            match &mut target {
                Some(target) if wanted.first() == Some(&at) => self.step(step, job, earlier, target, random)?,
                _ if self.lent(at, job).is_some() => {}
                _ => {
                    rest[0].resize(job.elements.len(), 0.0);
                    self.step(step, job, earlier, &mut rest[0], random)?;
                }
            }
        }
        let mut values: Vec<_> = wanted.iter().map(|&step| self.value(step, job, buffers)).collect();
        if let Some(target) = target {
            // The first may be wanted twice, by a build and by a tee.
            let target: &[f32] = target;
            values
                .iter_mut()
                .zip(wanted)
                .filter(|(_, step)| wanted.first() == Some(*step))
                .for_each(|(value, _)| *value = target);
        }
        then(&values)
    }

    /// A step's values on this block, where a leaf lends them.
    fn lent(&self, step: usize, job: &Job) -> Option<&[f32]> {
        match &self.steps[step] {
            Step::Leaf(leaf) => leaf.borrow(job.tensor).map(|values| &values[job.elements.clone()]),
            _ => None,
        }
    }

    /// A step's values on this block: lent by a leaf, or in its buffer.
    fn value<'v>(&'v self, step: usize, job: &Job, buffers: &'v [Vec<f32>]) -> &'v [f32] {
        self.lent(step, job).unwrap_or_else(|| &buffers[step])
    }

    fn step(
        &self,
        step: &Step,
        job: &Job,
        earlier: &[Vec<f32>],
        out: &mut [f32],
        random: &mut Vec<u32>,
    ) -> Result<(), BuildError> {
        let value = |step: usize| self.value(step, job, earlier);
        match step {
            Step::Leaf(leaf) => match leaf.borrow(job.tensor) {
                Some(values) => out.copy_from_slice(&values[job.elements.clone()]),
                None => leaf.read(job.tensor, job.elements.clone(), out).map_err(BuildError::Leaf)?,
            },
            Step::Differential { target, plus, minus, scale } => {
                let (target, plus, minus) = (value(*target), value(*plus), value(*minus));
                simd::dispatch(
                    #[inline(always)]
                    || {
                        for (((out, target), plus), minus) in out.iter_mut().zip(target).zip(plus).zip(minus) {
                            *out = target + scale * (plus - minus);
                        }
                    },
                );
            }
            Step::Crossover { target, donor, threshold, seed, per } => {
                let (target, donor) = (value(*target), value(*donor));
                let stream = Stream::new(*seed, &self.space.tensors[job.tensor].name);
                match per {
                    Granularity::Tensor => {
                        let taken = u64::from(stream.element(0)) < *threshold;
                        out.copy_from_slice(if taken { donor } else { target });
                    }
                    Granularity::Parameter => {
                        random.resize(out.len(), 0);
                        stream.fill(job.elements.start as u64, random);
                        simd::dispatch(
                            #[inline(always)]
                            || {
                                for (((out, target), donor), draw) in out.iter_mut().zip(target).zip(donor).zip(&*random) {
                                    *out = if rng::falls(*draw, *threshold) { *donor } else { *target };
                                }
                            },
                        );
                    }
                }
            }
            Step::Perturb { parent, deviation, seed, shape } => {
                let tensor = &self.space.tensors[job.tensor];
                let steps = Steps { stream: Stream::new(*seed, &tensor.name), deviation: *deviation, shape: *shape };
                steps.add(&tensor.shape, job.elements.start, value(*parent), out);
            }
            Step::Splice { first, second, below } => {
                out.copy_from_slice(value(if below[job.tensor] { *first } else { *second }));
            }
            Step::Merge { operands, has_base, combine } => {
                let values: Vec<_> = operands.iter().map(|&operand| value(operand)).collect();
                let (base, models) = if *has_base { (values[0], &values[1..]) } else { (&[][..], &values[..]) };
                let inputs =
                    Inputs { base, models, tensor: job.tensor, shape: self.shape(job.tensor), offset: job.elements.start };
                combine.block(&inputs, out);
            }
        }
        Ok(())
    }
}

/// The least common multiple, or the largest number where it does not fit.
pub(super) fn common_multiple(a: usize, b: usize) -> usize {
    let (mut divisor, mut rest) = (a.max(1), b.max(1));
    while rest > 0 {
        (divisor, rest) = (rest, divisor % rest);
    }
    (a.max(1) / divisor).saturating_mul(b.max(1))
}
