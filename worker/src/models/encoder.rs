//! Encoders: a state for every token, and the heads over them.

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::{
    attention::{ScoreBias, Segment},
    layers::{Linear, Loader, embed},
    matrix::{Matrix, Mode},
    ops::{Activation, Norm},
    product::share,
    transformer::Layer,
    weights::{ModelError, ModelWeights},
};

/// A token's number and its type: 0, or 1 in the second text of a pair.
pub type Token = (u32, u32);

/// Gives a state for every token.
pub trait Encoder: Send + Sync {
    /// Runs packed sequences: a row for each token, one sequence after the other.
    ///
    /// # Errors
    /// If the tensor library fails, or a token is outside the vocabulary.
    fn states(&self, sequences: &[&[Token]]) -> Result<Tensor, ModelError>;
}

/// What the attention of one layer adds to its scores, for architectures that have such a thing.
pub(super) trait LayerBias: Send + Sync {
    /// The bias of one layer, from its queries and keys.
    fn of(&self, layer: usize, queries: &Tensor, keys: &Tensor, segments: &[Segment]) -> Result<Box<dyn ScoreBias>, ModelError>;
}

/// Word, position and type tables under a stack of layers.
pub(super) struct Stack {
    pub(super) words: Matrix,
    /// With the number of the first position.
    pub(super) positions: Option<(Matrix, usize)>,
    pub(super) types: Option<Matrix>,
    pub(super) embedding_norm: Norm,
    pub(super) layers: Vec<Layer>,
    pub(super) bias: Option<Box<dyn LayerBias>>,
    pub(super) last_norm: Option<Norm>,
    pub(super) hidden: usize,
    pub(super) device: Device,
}

impl Encoder for Stack {
    fn states(&self, sequences: &[&[Token]]) -> Result<Tensor, ModelError> {
        if !self.words.is_ready_here() {
            return self.run(sequences);
        }
        // Each thread takes a few texts through all layers by itself: nobody waits for another at every layer's end, and what it works on stays near.
        let share = share(sequences.iter().map(|sequence| sequence.len()).sum());
        let mut rows = 0;
        let groups = sequences.chunk_by(|sequence, _| {
            rows += sequence.len();
            let full = rows >= share;
            rows *= usize::from(!full);
            !full
        });
        let groups: Vec<_> = groups.collect();
        let states = groups.into_par_iter().map(|group| self.run(group)).collect::<Result<Vec<_>, _>>()?;
        Ok(Tensor::cat(&states, 0)?)
    }
}

impl Stack {
    fn run(&self, sequences: &[&[Token]]) -> Result<Tensor, ModelError> {
        let segments = Segment::of(sequences.iter().map(|sequence| sequence.len()));
        let positions = Segment::positions(&segments);
        let mut tables = vec![(&self.words, 1.0)];
        tables.extend(self.types.as_ref().map(|types| (types, 1.0)));
        tables.extend(self.positions.as_ref().map(|(table, _)| (table, 1.0)));
        let rows = sequences.iter().copied().flatten().zip(&positions).map(|(&(token, kind), &position)| {
            let mut row = vec![token as usize];
            row.extend(self.types.as_ref().map(|_| kind as usize));
            row.extend(self.positions.as_ref().map(|(_, first)| first + position));
            row
        });
        let mut x = self.embedding_norm.run(&embed(&tables, &rows.collect::<Vec<_>>(), self.hidden, &self.device)?)?;
        for (index, layer) in self.layers.iter().enumerate() {
            x = layer.run(&x, Mode::Batch, &positions, &mut |attention, qkv| {
                let bias = self.bias.as_ref().map(|bias| bias.of(index, qkv[0], qkv[1], &segments)).transpose()?;
                Ok(attention.run(qkv, &segments, bias.as_deref())?)
            })?;
        }
        Ok(self.last_norm.as_ref().map_or_else(|| Ok(x.clone()), |norm| norm.run(&x))?)
    }
}

/// What a head works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// One output for a text, or an image.
    Whole,
    /// One output for each token.
    Tokens,
}

/// Which states a text's output is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// The first token's.
    First,
    /// The mean of all.
    Mean,
    /// The mean of all but the first.
    MeanWithoutFirst,
}

/// A linear layer of a head, below its last.
#[derive(Clone, Debug)]
pub(super) struct HeadStep {
    pub(super) name: &'static str,
    pub(super) bias: bool,
    pub(super) activation: Activation,
    /// A norm behind it, or, with an empty `name`, in its place.
    pub(super) norm: Option<(&'static str, f32, bool)>,
}

/// How a head is made from its tensors.
#[derive(Clone, Debug)]
pub struct HeadPlan {
    pub(super) hidden: usize,
    pub(super) pooling: Pooling,
    pub(super) steps: Vec<HeadStep>,
    /// Name of the last linear layer.
    pub(super) output: &'static str,
}

impl HeadPlan {
    /// A head of one linear layer, with a bias.
    pub(super) fn linear(hidden: usize, output: &'static str) -> Self {
        Self { hidden, pooling: Pooling::First, steps: Vec::new(), output }
    }

    /// With a step below the last layer.
    pub(super) fn after(mut self, name: &'static str, activation: Activation) -> Self {
        self.steps.push(HeadStep { name, bias: true, activation, norm: None });
        self
    }

    /// Names of the head's tensors.
    #[must_use]
    pub fn tensors(&self) -> Vec<String> {
        let mut names = Vec::new();
        for step in &self.steps {
            if !step.name.is_empty() {
                names.push(format!("{}.weight", step.name));
                if step.bias {
                    names.push(format!("{}.bias", step.name));
                }
            }
            if let Some((norm, _, shift)) = step.norm {
                names.push(format!("{norm}.weight"));
                if shift {
                    names.push(format!("{norm}.bias"));
                }
            }
        }
        names.extend(["weight", "bias"].map(|part| format!("{}.{part}", self.output)));
        names
    }

    /// The tensor whose first side is the number of outputs.
    #[must_use]
    pub fn output(&self) -> String {
        format!("{}.weight", self.output)
    }
}

/// A head over an encoder's states.
pub struct Head {
    pooling: Pooling,
    steps: Vec<(Option<Linear>, Activation, Option<Norm>)>,
    output: Linear,
}

impl Head {
    /// Takes a head with this many outputs out of `weights`.
    ///
    /// # Errors
    /// If a tensor is missing or of another shape.
    pub fn load(plan: &HeadPlan, weights: &mut ModelWeights, outputs: usize, device: &Device) -> Result<Self, ModelError> {
        let mut loader = Loader { weights, device };
        let mut steps = Vec::new();
        for step in &plan.steps {
            let linear = match step.name {
                "" => None,
                name => Some(loader.linear(name, plan.hidden, plan.hidden, step.bias)?),
            };
            let norm =
                step.norm.map(|(name, epsilon, shift)| loader.layer_norm(name, plan.hidden, epsilon, shift)).transpose()?;
            steps.push((linear, step.activation, norm));
        }
        Ok(Self { pooling: plan.pooling, steps, output: loader.linear(plan.output, outputs, plan.hidden, true)? })
    }

    /// Outputs of each sequence: `sequences x outputs`.
    ///
    /// # Errors
    /// If the tensor library fails.
    pub fn of_texts(&self, states: &Tensor, lengths: &[usize]) -> Result<Vec<Vec<f32>>, ModelError> {
        self.outputs(&pool(states, lengths, self.pooling)?)
    }

    /// Outputs of each row.
    ///
    /// # Errors
    /// If the tensor library fails.
    pub fn outputs(&self, rows: &Tensor) -> Result<Vec<Vec<f32>>, ModelError> {
        let mut x = rows.clone();
        for (linear, activation, norm) in &self.steps {
            if let Some(linear) = linear {
                x = linear.forward(&x, *activation, Mode::Batch)?;
            }
            if let Some(norm) = norm {
                x = norm.run(&x)?;
            }
        }
        Ok(self.output.forward(&x, Activation::None, Mode::Batch)?.to_vec2()?)
    }
}

/// A row for each sequence.
fn pool(states: &Tensor, lengths: &[usize], pooling: Pooling) -> Result<Tensor, ModelError> {
    let width = states.dim(1)?;
    let segments = Segment::of(lengths.iter().copied());
    if pooling == Pooling::First {
        let first: Vec<_> = segments.iter().map(|segment| u32::try_from(segment.rows.start).unwrap_or(u32::MAX)).collect();
        return Ok(states.index_select(&Tensor::new(first, states.device())?, 0)?);
    }
    let skip = usize::from(pooling == Pooling::MeanWithoutFirst);
    let values: Vec<f32> = states.flatten_all()?.to_vec1()?;
    let mut pooled = vec![0.0f32; segments.len() * width];
    for (segment, pooled) in segments.iter().zip(pooled.chunks_mut(width)) {
        let rows = segment.rows.start + skip..segment.rows.end;
        for row in values[rows.start * width..rows.end * width].chunks(width) {
            pooled.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
        }
        #[expect(clippy::cast_precision_loss, reason = "a length")]
        let count = rows.len().max(1) as f32;
        pooled.iter_mut().for_each(|sum| *sum /= count);
    }
    Ok(Tensor::from_vec(pooled, (segments.len(), width), states.device())?)
}
