//! Merge methods and the engine that builds a recipe's weights.
//!
//! - [`engine`]: streams a whole recipe graph block by block, each shared node once, in constant working memory.
//! - [`program`]: the graph as a list of steps, evaluated on one block.
//! - [`pass`]: a pass over a merge's inputs, for the methods that need statistics of whole models.
//! - [`built`]: what is built in memory.
//! - [`order`]: exact order statistics by counting over float bits.
//! - [`layers`]: where each tensor stands in the stack of layers, for coefficients that differ between them.
//! - [`lanes`]: blocks walked a fixed number of elements at a time.
//! - [`elementary`]: `exp` with the same bits on every machine.
//! - [`statistics`]: sums and inner products per tensor.
//! - [`store`]: statistics kept for all merges over the same inputs.
//! - [`span`], [`sparse`], [`matrix`]: what families of methods share.
//! - [`measured`]: statistics measured on models' data, read from files.
//! - [`settings`]: declared parameters: their check, defaults and documentation, and their values at each tensor.
//! - [`perturb`]: Gaussian steps.
//! - one file per method, listed in [`METHODS`].

mod arcee_fusion;
mod breadcrumbs;
mod built;
mod consensus;
mod dare;
mod della;
mod drawn;
mod elementary;
mod emr;
mod engine;
mod fisher;
mod iso;
mod karcher;
mod knots;
mod lanes;
mod layers;
mod linear;
mod lines;
mod localize_stitch;
mod magmax;
mod matrix;
mod measured;
mod model_stock;
mod multislerp;
mod nearswap;
mod nuslerp;
mod order;
mod pass;
mod passthrough;
mod pcb;
mod perturb;
mod program;
mod ram;
mod regmean;
mod sce;
mod settings;
mod slerp;
mod span;
mod sparse;
mod statistics;
mod store;
mod task_arithmetic;
mod ties;
mod tsv;
mod wudi;

pub use self::{
    built::Built,
    drawn::REMEMBERED_BYTES,
    engine::{BuildError, CheckpointLeaf, Engine, InMemory, Leaf, Options, Sink},
    layers::{Layers, numbered},
    measured::check as check_statistics,
    pass::{Inputs, Pass, STRIDE},
    settings::{Default, Kind, ParameterError, ParameterSpec, Scope, Settings, join, normalize},
};
use crate::{recipe::Merge, suggest};

/// Every merge method, kin beside kin.
pub const METHODS: &[&dyn Method] = &[
    &linear::Linear,
    &passthrough::Passthrough,
    &slerp::Slerp,
    &nuslerp::Nuslerp,
    &multislerp::Multislerp,
    &karcher::Karcher,
    &task_arithmetic::TaskArithmetic,
    &ties::Ties,
    &dare::DareLinear,
    &dare::DareTies,
    &breadcrumbs::Breadcrumbs,
    &breadcrumbs::BreadcrumbsTies,
    &della::DellaLinear,
    &della::Della,
    &model_stock::ModelStock,
    &nearswap::NearSwap,
    &arcee_fusion::ArceeFusion,
    &sce::Sce,
    &ram::Ram,
    &ram::RamPlus,
    &fisher::Fisher,
    &regmean::RegMean,
    &pcb::Pcb,
    &consensus::Consensus,
    &emr::Emr,
    &magmax::MagMax,
    &lines::Lines,
    &localize_stitch::LocalizeStitch,
    &tsv::Tsv,
    &iso::IsoC,
    &iso::IsoCts,
    &knots::Knots,
    &wudi::Wudi,
];

/// A merge method.
pub trait Method: Sync {
    /// The name in definitions and recipes.
    fn name(&self) -> &'static str;
    /// One sentence: what it computes, and its source.
    fn summary(&self) -> &'static str;
    /// What it does with a base.
    fn base(&self) -> Base;
    /// Its parameters.
    fn parameters(&self) -> &'static [ParameterSpec];
    /// Writes out defaults that depend on other parameters, before all others.
    fn complete(&self, _merge: &mut Merge) {}
    /// Refuses a merge whose inputs or parameters do not fit together, by a sentence.
    ///
    /// # Errors
    /// The sentence.
    fn check(&self, _merge: &Merge) -> Result<(), String> {
        Ok(())
    }
    /// The statistics of a tensor that it reads from models' files: names that they may have, the first that is there being read, each with the shape
    /// that is expected. None for a method that reads no files.
    fn measured(&self, _tensor: &str, _shape: &[usize]) -> Vec<(String, Vec<usize>)> {
        Vec::new()
    }
    /// Takes the statistics that it needs, in as many passes over the inputs as it needs, and gives what combines a block.
    fn prepare(&self, settings: &Settings, pass: &Pass<'_>) -> Box<dyn Combine>;
}

/// Combines blocks of a merge's inputs.
pub trait Combine: Send + Sync {
    /// Writes the merged values of one block: computed in F64, rounded to F32 once.
    fn block(&self, inputs: &Inputs<'_>, out: &mut [f32]);

    /// Takes what it has to know of a whole tensor before a block of it is combined, where that waits until then: a build finds the tensor's values near. Does
    /// nothing where it is known.
    fn settle(&self, _tensor: usize, _pass: &Pass<'_>) {}

    /// Elements of a tensor of this shape that have to stand in one block, since their values depend on each other: blocks are multiples of it. The
    /// memory that a build takes is then bounded by them and not by the block size.
    fn unit(&self, _tensor: usize, _shape: &[usize]) -> usize {
        1
    }
}

/// What a method does with a base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// It has no use for one.
    Unused,
    /// It merges differences to a base if there is one, else the models themselves.
    Optional,
    /// It cannot do without.
    Needed,
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

/// The parameter by which a method names a model's file of statistics, if it reads any.
#[must_use]
pub fn statistics_parameter(method: &dyn Method) -> Option<&'static str> {
    method.parameters().iter().find(|spec| matches!(spec.kind, Kind::Statistics)).map(|spec| spec.name)
}

/// The difference of a model to its base, rounded to F32 as stored task vectors are.
#[inline(always)]
fn task_vector(model: f32, base: f32) -> f32 {
    model - base
}

/// The one rounding of a merged value.
#[expect(clippy::cast_possible_truncation, reason = "the one rounding to F32")]
#[inline(always)]
fn round(value: f64) -> f32 {
    value as f32
}
