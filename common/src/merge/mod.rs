//! Merge methods and the engine that builds a recipe's weights.
//!
//! - [`engine`]: streams a whole recipe graph block by block, each shared node once, in constant working memory.
//! - [`pass`]: a pass over a merge's inputs, for the methods that need statistics of whole models.
//! - [`order`]: exact order statistics by counting over float bits.
//! - [`elementary`]: `exp` with the same bits on every machine.
//! - [`settings`]: declared parameters: their check, defaults and documentation.
//! - [`config`]: mergekit's YAML.
//! - one file per method, listed in [`METHODS`].

pub mod config;
mod elementary;
mod engine;
mod linear;
mod order;
mod pass;
mod pcb;
mod settings;
mod task_arithmetic;
mod ties;

pub use self::{
    engine::{BuildError, CheckpointLeaf, Engine, InMemory, Leaf, Options, Sink},
    pass::{Inputs, Pass},
    settings::{Default, Kind, ParameterError, ParameterSpec, Scope, Settings, normalize},
};
use crate::suggest;

/// Every merge method, in the order of their publication.
pub const METHODS: &[&dyn Method] = &[&linear::Linear, &task_arithmetic::TaskArithmetic, &ties::Ties, &pcb::Pcb];

/// A merge method.
pub trait Method: Sync {
    /// The name in definitions and recipes.
    fn name(&self) -> &'static str;
    /// One sentence: what it computes, and its source.
    fn summary(&self) -> &'static str;
    /// Whether task vectors are taken from a base.
    fn needs_base(&self) -> bool;
    /// Its parameters.
    fn parameters(&self) -> &'static [ParameterSpec];
    /// Takes the statistics that it needs, in as many passes over the inputs as it needs, and gives what combines a block.
    fn prepare(&self, settings: &Settings, pass: &Pass<'_>) -> Box<dyn Combine>;
}

/// Combines blocks of a merge's inputs.
pub trait Combine: Send + Sync {
    /// Writes the merged values of one block; element by element, in F64, rounded to F32 once.
    fn block(&self, inputs: &Inputs<'_>, out: &mut [f32]);
}

/// The method of this name.
///
/// # Errors
/// The nearest known name.
pub fn find(name: &str) -> Result<&'static dyn Method, ParameterError> {
    METHODS.iter().copied().find(|method| method.name() == name).ok_or_else(|| {
        ParameterError(format!("unknown merge method {}", suggest::unknown(name, METHODS.iter().map(|method| method.name()))))
    })
}

/// The difference of a model to its base, rounded to F32 as stored task vectors are.
fn task_vector(model: f32, base: f32) -> f32 {
    model - base
}

/// The one rounding of a merged value.
#[expect(clippy::cast_possible_truncation, reason = "the one rounding to F32")]
fn round(value: f64) -> f32 {
    value as f32
}
