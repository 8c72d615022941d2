//! Passes over a merge's inputs.
//!
//! A pass evaluates the merge's operands block by block, in parallel. What it gathers must not depend on block size or thread count: counts, minima
//! and maxima may be joined in any order; sums are taken per [`CHUNK`] of a tensor and then added in order.

use std::{
    ops::Range,
    sync::{Mutex, PoisonError},
};

use rayon::prelude::*;

use super::engine::{BuildError, Program, Workspace};

/// Elements, counted from a tensor's start, that one partial sum covers. Every block is a multiple of it.
pub(super) const CHUNK: usize = 4096;

/// One block of a merge's operands.
#[derive(Debug)]
pub struct Inputs<'a> {
    /// The base's values, for methods that need them.
    pub base: &'a [f32],
    /// Each model's values.
    pub models: &'a [&'a [f32]],
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

/// Access to a merge's operands, for [`super::Method::prepare`].
pub struct Pass<'a> {
    pub(super) program: &'a Program<'a>,
    pub(super) operands: Vec<usize>,
    pub(super) has_base: bool,
    pub(super) jobs: &'a [Job],
    /// One job a tensor.
    pub(super) whole: &'a [Job],
    pub(super) elements: &'a [usize],
    pub(super) failure: &'a Mutex<Option<BuildError>>,
}

impl Pass<'_> {
    /// How many models are merged.
    #[must_use]
    pub fn models(&self) -> usize {
        self.operands.len() - usize::from(self.has_base)
    }

    /// Elements of each tensor.
    #[must_use]
    pub fn elements(&self) -> &[usize] {
        self.elements
    }

    /// The same pass, a whole tensor at a time.
    pub(super) fn by_tensor(&self) -> Pass<'_> {
        self.with(self.whole)
    }

    /// The blocks of some tensors.
    pub(super) fn jobs_of(&self, tensors: &[usize]) -> Vec<Job> {
        self.jobs.iter().filter(|job| tensors.contains(&job.tensor)).cloned().collect()
    }

    /// The same pass over these blocks only.
    pub(super) fn with<'p>(&'p self, jobs: &'p [Job]) -> Pass<'p> {
        Pass { jobs, operands: self.operands.clone(), ..*self }
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
        self.jobs.par_iter().filter(|job| tensor.is_none_or(|tensor| job.tensor == tensor)).for_each(|job| {
            let pooled = states.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let (mut state, mut workspace) = pooled.unwrap_or_else(|| (start(), Workspace::default()));
            let result = self.program.evaluate(job, &self.operands, &mut workspace, |values| {
                let (base, models) = if self.has_base { (values[0], &values[1..]) } else { (&[][..], values) };
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

    /// `width` sums over all elements, added in the same order whatever the blocks and threads. `part` adds one chunk's terms (a
    /// range of the block's elements) to its sums.
    pub fn sums(&self, width: usize, part: impl Fn(&Inputs<'_>, Range<usize>, &mut [f64]) + Sync) -> Vec<f64> {
        let mut parts = self.fold(
            None,
            Vec::new,
            |parts: &mut Vec<((usize, usize), Vec<f64>)>, inputs| {
                let length = inputs.models.first().map_or(0, |model| model.len());
                for start in (0..length).step_by(CHUNK) {
                    let mut sums = vec![0.0; width];
                    part(inputs, start..length.min(start + CHUNK), &mut sums);
                    parts.push(((inputs.tensor, inputs.offset + start), sums));
                }
            },
            |mut a, mut b| {
                a.append(&mut b);
                a
            },
        );
        parts.sort_unstable_by_key(|(place, _)| *place);
        let mut totals = vec![0.0; width];
        for (_, sums) in parts {
            for (total, sum) in totals.iter_mut().zip(sums) {
                *total += sum;
            }
        }
        totals
    }
}
