//! A recipe as a list of steps, evaluated on one block at a time.

use std::{borrow::Cow, collections::HashMap, sync::Arc};

use super::{
    Combine,
    engine::{BuildError, Engine, Leaf},
    pass::{Inputs, Job, common_multiple},
    perturb::Steps,
};
use crate::{
    checkpoint::Space,
    digest::Digest,
    recipe::{Granularity, Recipe, Shape},
    rng::{self, Stream},
    simd,
};

/// Numbers that are drawn at a time, so that they stay near.
const DRAWS: usize = 64;

/// A recipe as steps, operands before their users.
pub(super) struct Program<'a> {
    space: &'a Space,
    steps: Vec<Step>,
    /// What each step evaluates.
    pub(super) nodes: Vec<Recipe>,
    /// The step of each node.
    pub(super) index: HashMap<Digest, usize>,
}

/// What is done to get the values of a node of the recipe; operands are named by their steps.
pub(super) enum Step {
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
    /// What is written at once.
    pub(super) stride: Vec<f32>,
}

impl<'a> Program<'a> {
    /// A program without steps.
    pub(super) fn new(space: &'a Space) -> Self {
        Self { space, steps: Vec::new(), nodes: Vec::new(), index: HashMap::new() }
    }

    /// Adds the step that evaluates a node, whose operands have theirs.
    pub(super) fn push(&mut self, node: Recipe, step: Step) {
        self.index.insert(node.id(), self.steps.len());
        self.steps.push(step);
        self.nodes.push(node);
    }

    /// The step that was added last.
    pub(super) fn root(&self) -> usize {
        self.steps.len() - 1
    }

    /// The blocks that it is evaluated in, if as many elements of a tensor as `unit` says have to stand together besides.
    pub(super) fn jobs<'e>(&self, engine: &'e Engine, unit: impl Fn(usize) -> usize) -> Cow<'e, [Job]> {
        let of_tensor = |tensor: usize| {
            let units = self.steps.iter().filter_map(|step| match step {
                Step::Merge { combine, .. } => Some(combine.unit(tensor, self.shape(tensor))),
                _ => None,
            });
            units.fold(unit(tensor), common_multiple)
        };
        let units: Vec<_> = (0..self.space.tensors.len()).map(of_tensor).collect();
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

    /// Whether a tensor stands in one block, so that buffers are as large as the largest tensor.
    pub(super) fn needs_whole_tensors(&self) -> bool {
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
        let Workspace { buffers, .. } = workspace;
        buffers.resize(self.steps.len(), Vec::new());
        for (at, step) in self.steps.iter().enumerate().filter(|(at, _)| needed[*at]) {
            let (earlier, rest) = buffers.split_at_mut(at);
            match &mut target {
                Some(target) if wanted.first() == Some(&at) => self.step(step, job, earlier, target)?,
                _ if self.lent(at, job).is_some() => {}
                _ => {
                    rest[0].resize(job.elements.len(), 0.0);
                    self.step(step, job, earlier, &mut rest[0])?;
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

    fn step(&self, step: &Step, job: &Job, earlier: &[Vec<f32>], out: &mut [f32]) -> Result<(), BuildError> {
        let value = |step: usize| self.value(step, job, earlier);
        match step {
            Step::Leaf(leaf) => match leaf.borrow(job.tensor) {
                Some(values) => out.copy_from_slice(&values[job.elements.clone()]),
                None => leaf.read(job.tensor, job.elements.clone(), out).map_err(BuildError::Leaf)?,
            },
            Step::Differential { target, plus, minus, scale } => {
                let (target, plus, minus, scale) = (value(*target), value(*plus), value(*minus), *scale);
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
                        let (threshold, start) = (*threshold, job.elements.start as u64);
                        // Few numbers at a time, drawn while the values of others are on their way from memory.
                        simd::dispatch(
                            #[inline(always)]
                            || {
                                let rows = target.chunks(DRAWS).zip(donor.chunks(DRAWS));
                                for ((first, out), (target, donor)) in
                                    (start..).step_by(DRAWS).zip(out.chunks_mut(DRAWS)).zip(rows)
                                {
                                    let draws: [u32; DRAWS] = stream.draws(first);
                                    for (((out, target), donor), draw) in out.iter_mut().zip(target).zip(donor).zip(&draws) {
                                        // By bits, since a choice between two places becomes a gather.
                                        let taken = if rng::falls(*draw, threshold) { u32::MAX } else { 0 };
                                        *out = f32::from_bits(donor.to_bits() & taken | target.to_bits() & !taken);
                                    }
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
