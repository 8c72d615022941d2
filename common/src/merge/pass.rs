//! Passes over a merge's inputs.
//!
//! A pass evaluates the merge's operands block by block, in parallel. What it gathers must not depend on block size or thread count: counts, minima
//! and maxima may be joined in any order; sums are taken per [`CHUNK`] of a tensor and then added in order.

use std::{
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use rayon::prelude::*;

use super::{
    engine::{BuildError, Engine},
    program::{Program, Workspace},
    store::Table,
};
use crate::{
    checkpoint::{Checkpoint, Row},
    digest::Digest,
    recipe::Op,
};

/// Elements, counted from a tensor's start, that one partial sum covers. Every block is a multiple of it.
pub(super) const CHUNK: usize = 4096;

/// Elements that partial sums are kept of at a time.
const BATCH: usize = 1 << 28;
/// Elements that are written at once, where blocks are smaller.
pub const STRIDE: usize = 1 << 17;

/// One block of a merge's operands.
#[derive(Debug)]
pub struct Inputs<'a> {
    /// The base's values, for methods that need them.
    pub base: Row<'a>,
    /// Each model's values.
    pub models: &'a [Row<'a>],
    /// Index of the tensor in the space.
    pub tensor: usize,
    /// Sides of the whole tensor.
    pub shape: &'a [usize],
    /// Index of the block's first element in its tensor.
    pub offset: usize,
}

/// A block's place.
#[derive(Clone, Debug)]
pub(super) struct Job {
    pub(super) tensor: usize,
    pub(super) elements: Range<usize>,
}

impl Job {
    /// All tensors in blocks of about `block` elements: of a tensor, multiples of what `unit` says of it and of [`CHUNK`], or the whole of it.
    pub(super) fn split(elements: &[usize], block: usize, unit: impl Fn(usize) -> usize) -> Vec<Self> {
        let of_tensor = |(tensor, &elements): (usize, &usize)| {
            let unit = common_multiple(unit(tensor), CHUNK).min(elements.max(1));
            let block = block.max(unit) / unit * unit;
            (0..elements).step_by(block).map(move |start| Self { tensor, elements: start..elements.min(start + block) })
        };
        elements.iter().enumerate().flat_map(of_tensor).collect()
    }

    /// Blocks of one tensor that are written at once: writers of one file wait for each other, so there are few writes, each a large one.
    pub(super) fn strides(jobs: &[Self]) -> Vec<&[Self]> {
        let together = |tensor: &[Self]| {
            let block = tensor.first().map_or(1, |job| job.elements.len().max(1));
            (STRIDE / block).max(1)
        };
        let tensors = jobs.chunk_by(|a, b| a.tensor == b.tensor);
        tensors.flat_map(|tensor| tensor.chunks(together(tensor))).collect()
    }
}

/// Access to a merge's operands, for [`super::Method::prepare`].
pub struct Pass<'a> {
    pub(super) program: &'a Program<'a>,
    pub(super) operands: Vec<usize>,
    pub(super) has_base: bool,
    pub(super) engine: &'a Engine,
    /// The blocks, tensor by tensor.
    pub(super) jobs: &'a [Job],
    pub(super) elements: &'a [usize],
    pub(super) failure: &'a Mutex<Option<BuildError>>,
}

impl Pass<'_> {
    /// How many models are merged.
    #[must_use]
    pub fn models(&self) -> usize {
        self.operands.len() - usize::from(self.has_base)
    }

    /// The statistics of this kind over the operands, taken now or earlier. They may depend on `parameters` besides, and on nothing else.
    pub(super) fn once(&self, kind: &str, parameters: &[&[f64]], take: impl FnOnce() -> Table) -> Arc<Table> {
        let operands: Vec<_> = self.operands.iter().map(|operand| &self.program.nodes[*operand]).collect();
        let bytes: Vec<Vec<u8>> =
            parameters.iter().map(|row| row.iter().flat_map(|x| x.to_bits().to_le_bytes()).collect()).collect();
        let ids: Vec<_> = operands.iter().map(|operand| operand.id()).collect();
        // The tensors are part of the name: they follow from the operands and from what is frozen.
        let space = self.program.space_digest();
        let names = [space.as_bytes().as_slice(), &[u8::from(self.has_base)]];
        let parts = names.into_iter().chain(ids.iter().map(|id| id.as_bytes().as_slice())).chain(bytes.iter().map(Vec::as_slice));
        let name = Digest::of_parts(&format!("evolver statistics v1 {kind}"), parts);
        let durable = operands.iter().all(|operand| matches!(operand.op(), Op::Checkpoint(_)));
        if let Some(known) = self.engine.store.get(name, durable) {
            return known;
        }
        let table = take();
        if self.failed() { Arc::new(table) } else { self.engine.store.put(name, table, durable) }
    }

    /// The sides of a tensor.
    pub(super) fn shape(&self, tensor: usize) -> &[usize] {
        self.program.shape(tensor)
    }

    /// Whether something went wrong, so that what was gathered is of no use.
    pub(super) fn failed(&self) -> bool {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Says by a sentence why no merge can come of this.
    pub(super) fn fail(&self, sentence: String) {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(BuildError::Statistics(sentence));
    }

    /// The file of statistics of this digest; what is wrong with it is reported.
    pub(super) fn statistics(&self, digest: &str) -> Option<Arc<Checkpoint>> {
        let found = digest.parse().ok().and_then(|digest: Digest| self.engine.statistics(digest));
        if found.is_none() {
            self.fail(format!("the recipe needs the statistics {digest}, which this search or merge does not name"));
        }
        found
    }

    /// Elements of each tensor.
    #[must_use]
    pub fn elements(&self) -> &[usize] {
        self.elements
    }

    /// Blocks that hold multiples of as many elements as `unit` says of a tensor and its shape.
    pub(super) fn jobs_by(&self, unit: impl Fn(usize, &[usize]) -> usize) -> Vec<Job> {
        self.program.jobs(self.engine, |tensor| unit(tensor, self.program.shape(tensor))).into_owned()
    }

    /// The blocks of some tensors.
    pub(super) fn jobs_of(&self, tensors: &[usize]) -> Vec<Job> {
        self.jobs.iter().filter(|job| tensors.contains(&job.tensor)).cloned().collect()
    }

    /// The same pass over one tensor.
    pub(super) fn over(&self, tensor: usize) -> Pass<'_> {
        self.with(self.part(Some(tensor)))
    }

    /// The same pass over these blocks only.
    pub(super) fn with<'p>(&'p self, jobs: &'p [Job]) -> Pass<'p> {
        Pass { jobs, operands: self.operands.clone(), ..*self }
    }

    /// All blocks, some after the others, so that what is gathered of each does not grow with the model.
    pub(super) fn batches(&self) -> impl Iterator<Item = &[Job]> {
        let mut gathered = 0;
        self.jobs.chunk_by(move |job, _| {
            gathered += job.elements.len();
            let goes_on = gathered < BATCH;
            gathered *= usize::from(goes_on);
            goes_on
        })
    }

    /// All blocks, or those of one tensor.
    fn part(&self, tensor: Option<usize>) -> &[Job] {
        let Some(tensor) = tensor else {
            return self.jobs;
        };
        let from = self.jobs.partition_point(|job| job.tensor < tensor);
        &self.jobs[from..self.jobs.partition_point(|job| job.tensor <= tensor)]
    }

    /// One of `step` blocks, of all or of those of one tensor.
    pub(super) fn sample(&self, tensor: Option<usize>, step: usize) -> Vec<Job> {
        self.part(tensor).iter().skip(step / 2).step_by(step).cloned().collect()
    }

    /// Elements of all blocks, or of those of one tensor.
    pub(super) fn count(&self, tensor: Option<usize>) -> usize {
        self.part(tensor).iter().map(|job| job.elements.len()).sum()
    }

    /// Folds over all blocks, or those of one tensor. `join` must not care about order.
    pub fn fold<S: Send>(
        &self,
        tensor: Option<usize>,
        start: impl Fn() -> S + Sync,
        step: impl Fn(&mut S, &Inputs<'_>) + Sync,
        join: impl Fn(S, S) -> S + Sync + Send,
    ) -> S {
        // One state per worker, not per split of the range: states are large.
        let states: Mutex<Vec<(S, Workspace)>> = Mutex::new(Vec::new());
        self.part(tensor).par_iter().for_each(|job| {
            let pooled = states.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let (mut state, mut workspace) = pooled.unwrap_or_else(|| (start(), Workspace::default()));
            let result = self.program.evaluate(job, &self.operands, None, &mut workspace, |values| {
                let (base, models) = if self.has_base { (values[0], &values[1..]) } else { (Row::EMPTY, values) };
                step(
                    &mut state,
                    &Inputs {
                        base,
                        models,
                        tensor: job.tensor,
                        shape: self.program.shape(job.tensor),
                        offset: job.elements.start,
                    },
                );
                Ok(())
            });
            if let Err(error) = result {
                self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            }
            states.lock().unwrap_or_else(PoisonError::into_inner).push((state, workspace));
        });
        let states = states.into_inner().unwrap_or_else(PoisonError::into_inner);
        states.into_iter().map(|(state, _)| state).reduce(join).unwrap_or_else(start)
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
