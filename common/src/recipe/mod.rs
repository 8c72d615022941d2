//! Recipes: the genome of the search.
//!
//! A recipe is a small expression over immutable checkpoints. Its id is the BLAKE3 of its canonical encoding, in which a checkpoint is
//! named by its content digest and an operand by the operand's own id; so equal ids mean equal weights, on any machine.
//! Shared operands are shared nodes: a lineage is a graph, not a tree.
//!
//! - [`canonical`]: the encoding that travels and is journaled.
//! - [`text`]: the form that a person reads and writes.
//! - [`limits`]: bounds on depth and size, checked on everything that comes from outside.

mod canonical;
mod limits;
mod text;

use std::{collections::BTreeMap, fmt, sync::Arc};

use serde::{Deserialize, Serialize};

pub use self::{
    canonical::{DecodeError, decode, encode},
    limits::{DEPTH_MAX, LimitError, NODES_MAX, OPERANDS_MAX, RANK_MAX},
    text::{ParseError, parse},
};
use crate::digest::Digest;

/// Parameters of a merge, by name. Ordered, so that their encoding is canonical.
pub type Parameters = BTreeMap<String, Value>;

/// A parameter's value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Value {
    /// True or false.
    Flag(bool),
    /// A finite number.
    Number(f64),
    /// A name, for instance a method's variant.
    Text(String),
    /// Several numbers, interpolated over the layers.
    Numbers(Vec<f64>),
    /// Different values for different tensors.
    Rules(Vec<Rule>),
}

/// A value for some tensors. Of several rules the first that matches a tensor's name holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Part of the names of the tensors that it holds for; all of them if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// The value there; never rules again.
    pub value: Value,
}

/// What a random mask is drawn for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Granularity {
    /// Each element of each tensor by itself (Evolver, section 3).
    Parameter,
    /// Each tensor as a whole.
    Tensor,
}

/// Which elements a Gaussian mutation moves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Shape {
    /// Every element by a step of its own.
    Full,
    /// Each element with probability `density`, in [0, 1], by a step of its own.
    Sparse {
        /// The probability.
        density: f64,
    },
    /// A matrix by a product of two Gaussian factors of this rank, scaled to the same deviation per element; a vector as with `Full`.
    LowRank {
        /// The rank, at least 1.
        rank: u32,
    },
}

/// One operation of a recipe.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// The weights of a checkpoint, by content digest.
    Checkpoint(Digest),
    /// Differential mutation: `target + scale * (plus - minus)`, element by element in F32.
    ///
    /// With `plus` another individual and `minus` the target itself, this is the interpolation of the official Evolver code; with two
    /// other individuals it is DE's difference vector.
    Differential {
        /// The individual that is mutated.
        target: Recipe,
        /// Where the difference points to.
        plus: Recipe,
        /// Where the difference starts.
        minus: Recipe,
        /// Scale factor F, in [0, 2].
        scale: f64,
    },
    /// Binomial crossover: each element is `donor`'s with probability `rate`, else `target`'s.
    Crossover {
        /// Gives what the mask leaves.
        target: Recipe,
        /// Gives what the mask takes.
        donor: Recipe,
        /// Crossover rate Cr, in [0, 1].
        rate: f64,
        /// Seed of the mask.
        seed: u64,
        /// What one draw decides.
        per: Granularity,
    },
    /// Gaussian mutation: adds a random step of this standard deviation per touched element.
    Perturb {
        /// The individual that is mutated.
        parent: Recipe,
        /// Standard deviation of the step, at least 0, in the weights' unit.
        deviation: f64,
        /// Seed of the steps.
        seed: u64,
        /// Which elements step, and how they hang together.
        shape: Shape,
    },
    /// Split-point crossover by layers: tensors whose relative depth is below `at` are `first`'s, the others `second`'s. Depth runs from 0 (first layer, or
    /// outside any stack) to 1 (last layer).
    Splice {
        /// Gives the lower layers.
        first: Recipe,
        /// Gives the upper layers.
        second: Recipe,
        /// The split point, in [0, 1].
        at: f64,
    },
    /// A merge method over a base and models.
    Merge(Merge),
}

/// A merge of several models.
#[derive(Clone, Debug, PartialEq)]
pub struct Merge {
    /// Name of the method in [`crate::merge`]'s registry.
    pub method: String,
    /// The model that task vectors are taken from, for the methods that need one.
    pub base: Option<Recipe>,
    /// The merged models, in order, each with its own parameters.
    pub models: Vec<Input>,
    /// Parameters of the merge as a whole.
    pub parameters: Parameters,
}

/// One model of a merge.
#[derive(Clone, Debug, PartialEq)]
pub struct Input {
    /// The model.
    pub recipe: Recipe,
    /// Its parameters, for instance its weight.
    pub parameters: Parameters,
}

/// A node of a recipe graph: an operation, its id, and its depth. Cheap to clone.
#[derive(Clone)]
pub struct Recipe(Arc<Node>);

struct Node {
    op: Op,
    id: Digest,
    depth: usize,
}

impl Recipe {
    /// Makes a node of an operation over existing nodes.
    #[must_use]
    pub fn new(op: Op) -> Self {
        let id = canonical::id(&op);
        let depth = 1 + op.operands().map(Recipe::depth).max().unwrap_or(0);
        Self(Arc::new(Node { op, id, depth }))
    }

    /// A leaf: the checkpoint of this content digest.
    #[must_use]
    pub fn checkpoint(digest: Digest) -> Self {
        Self::new(Op::Checkpoint(digest))
    }

    /// The operation at the root.
    #[must_use]
    pub fn op(&self) -> &Op {
        &self.0.op
    }

    /// The recipe's id: equal ids are equal weights.
    #[must_use]
    pub fn id(&self) -> Digest {
        self.0.id
    }

    /// Nodes on the longest way from the root to a leaf, both counted.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.0.depth
    }

    /// Every distinct node, operands before the nodes that use them, in the order of first visit; the root is last.
    #[must_use]
    pub fn nodes(&self) -> Vec<Recipe> {
        self.nodes_until(|_| false)
    }

    /// As [`Recipe::nodes`], without what lies below a node that `is_leaf`.
    #[must_use]
    pub fn nodes_until(&self, is_leaf: impl Fn(&Recipe) -> bool) -> Vec<Recipe> {
        let mut seen = std::collections::HashSet::new();
        let mut order = Vec::new();
        let mut stack = vec![(self.clone(), false)];
        while let Some((recipe, operands_done)) = stack.pop() {
            if operands_done {
                order.push(recipe);
            } else if seen.insert(recipe.id()) {
                stack.push((recipe.clone(), true));
                if is_leaf(&recipe) {
                    continue;
                }
                let operands: Vec<_> = recipe.op().operands().cloned().collect();
                stack.extend(operands.into_iter().rev().map(|operand| (operand, false)));
            }
        }
        order
    }
}

impl Op {
    /// The operands, in the order of the canonical encoding.
    pub fn operands(&self) -> impl Iterator<Item = &Recipe> {
        let operands: Vec<&Recipe> = match self {
            Self::Checkpoint(_) => vec![],
            Self::Differential { target, plus, minus, .. } => vec![target, plus, minus],
            Self::Crossover { target, donor, .. } => vec![target, donor],
            Self::Perturb { parent, .. } => vec![parent],
            Self::Splice { first, second, .. } => vec![first, second],
            Self::Merge(merge) => merge.base.iter().chain(merge.models.iter().map(|input| &input.recipe)).collect(),
        };
        operands.into_iter()
    }
}

impl PartialEq for Recipe {
    fn eq(&self, other: &Self) -> bool {
        self.id() == other.id()
    }
}

impl Eq for Recipe {}

impl fmt::Debug for Recipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Recipe({})", self.id().short())
    }
}

impl fmt::Display for Recipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        text::write(self, f)
    }
}
