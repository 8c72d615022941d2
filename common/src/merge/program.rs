//! A recipe as a list of steps, evaluated on one block at a time.

use std::{borrow::Cow, collections::HashMap, sync::Arc};

use super::{
    Combine,
    engine::{BuildError, Engine, Leaf},
    lanes::{LANES, Stored, zip},
    pass::{Inputs, Job, common_multiple},
    perturb::Steps,
};
use crate::{
    checkpoint::{Row, Space},
    digest::Digest,
    recipe::{Recipe, Shape},
    rng::{self, Stream},
};

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
        /// Of each tensor.
        streams: Vec<Stream>,
    },
    /// Of each tensor one or the other: `second` says of which it is the second's.
    Choice {
        from: [usize; 2],
        second: Vec<bool>,
    },
    Perturb {
        parent: usize,
        deviation: f64,
        seed: u64,
        shape: Shape,
    },
    Merge {
        operands: Vec<usize>,
        has_base: bool,
        combine: Arc<dyn Combine>,
    },
}

impl Step {
    /// The steps whose values it needs of this tensor.
    fn operands(&self, tensor: usize) -> Vec<usize> {
        match self {
            Self::Leaf(_) => vec![],
            Self::Differential { target, plus, minus, .. } => vec![*target, *plus, *minus],
            Self::Crossover { target, donor, .. } => vec![*target, *donor],
            Self::Choice { from, second } => vec![from[usize::from(second[tensor])]],
            Self::Perturb { parent, .. } => vec![*parent],
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

    /// Operands of the step that was added last, whether the first is a base, and what combines them, if it is a merge.
    pub(super) fn root_merge(&self) -> Option<(&[usize], bool, &dyn Combine)> {
        match &self.steps[self.root()] {
            Step::Merge { operands, has_base, combine } => Some((operands, *has_base, &**combine)),
            _ => None,
        }
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
        then: impl FnOnce(&[Row<'_>]) -> Result<(), BuildError>,
    ) -> Result<(), BuildError> {
        let mut needed = vec![false; self.steps.len()];
        wanted.iter().for_each(|&step| needed[step] = true);
        for step in (0..self.steps.len()).rev() {
            if needed[step] {
                self.steps[step].operands(job.tensor).into_iter().for_each(|operand| needed[operand] = true);
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
            let target = Row::F32(target);
            values
                .iter_mut()
                .zip(wanted)
                .filter(|(_, step)| wanted.first() == Some(*step))
                .for_each(|(value, _)| *value = target);
        }
        then(&values)
    }

    /// A step's values on this block, where a leaf lends them.
    fn lent(&self, step: usize, job: &Job) -> Option<Row<'_>> {
        match &self.steps[step] {
            Step::Leaf(leaf) => leaf.borrow(job.tensor).map(|values| values.part(job.elements.clone())),
            _ => None,
        }
    }

    /// A step's values on this block: lent by a leaf, or in its buffer.
    fn value<'v>(&'v self, step: usize, job: &Job, buffers: &'v [Vec<f32>]) -> Row<'v> {
        self.lent(step, job).unwrap_or_else(|| Row::F32(&buffers[step]))
    }

    /// Evaluates the last step on one block in BF16, without a buffer for its values in F32, where it is a blend. Says whether it did: not where a value is
    /// NaN or infinite, which somebody else has to name.
    pub(super) fn evaluate_short(&self, job: &Job, out: &mut [u16], workspace: &mut Workspace) -> Result<bool, BuildError> {
        let root = &self.steps[self.root()];
        let mut done = false;
        if matches!(root, Step::Differential { .. } | Step::Crossover { .. } | Step::Choice { .. }) {
            self.evaluate(job, &root.operands(job.tensor), None, workspace, |rows| {
                done = self.blend(root, job, rows, out);
                Ok(())
            })?;
        }
        Ok(done)
    }

    /// One formula over the rows of a step's operands; see [`zip`].
    fn blend<T: Stored>(&self, step: &Step, job: &Job, rows: &[Row<'_>], out: &mut [T]) -> bool {
        match (step, rows) {
            (Step::Differential { scale, .. }, &[target, plus, minus]) => zip(
                [target, plus, minus],
                out,
                #[inline(always)]
                |_, [target, plus, minus]| std::array::from_fn(|l| target[l] + scale * (plus[l] - minus[l])),
            ),
            (Step::Crossover { threshold, streams, .. }, &[target, donor]) => {
                let stream = streams[job.tensor];
                zip(
                    [target, donor],
                    out,
                    #[inline(always)]
                    |start, [target, donor]| {
                        let draws: [u32; LANES] = stream.draws((job.elements.start + start) as u64);
                        std::array::from_fn(|l| {
                            // By bits, since a choice between two places becomes a gather.
                            let taken = if rng::falls(draws[l], *threshold) { u32::MAX } else { 0 };
                            f32::from_bits(donor[l].to_bits() & taken | target[l].to_bits() & !taken)
                        })
                    },
                )
            }
            (_, &[chosen]) => zip(
                [chosen],
                out,
                #[inline(always)]
                |_, [chosen]| chosen,
            ),
            _ => false,
        }
    }

    fn step(&self, step: &Step, job: &Job, earlier: &[Vec<f32>], out: &mut [f32]) -> Result<(), BuildError> {
        let value = |step: usize| self.value(step, job, earlier);
        match step {
            Step::Leaf(leaf) => match leaf.borrow(job.tensor) {
                Some(values) => values.part(job.elements.clone()).read(out),
                None => leaf.read(job.tensor, job.elements.clone(), out).map_err(BuildError::Leaf)?,
            },
            Step::Differential { .. } | Step::Crossover { .. } => {
                let rows: Vec<_> = step.operands(job.tensor).into_iter().map(value).collect();
                self.blend(step, job, &rows, out);
            }
            Step::Choice { .. } => step.operands(job.tensor).into_iter().for_each(|chosen| value(chosen).read(out)),
            Step::Perturb { parent, deviation, seed, shape } => {
                value(*parent).read(out);
                let tensor = &self.space.tensors[job.tensor];
                let steps = Steps { stream: Stream::new(*seed, &tensor.name), deviation: *deviation, shape: *shape };
                steps.add(&tensor.shape, job.elements.start, out);
            }
            Step::Merge { operands, has_base, combine } => {
                let values: Vec<_> = operands.iter().map(|&operand| value(operand)).collect();
                let (base, models) = if *has_base { (values[0], &values[1..]) } else { (Row::EMPTY, &values[..]) };
                let inputs =
                    Inputs { base, models, tensor: job.tensor, shape: self.shape(job.tensor), offset: job.elements.start };
                combine.block(&inputs, out);
            }
        }
        Ok(())
    }
}
