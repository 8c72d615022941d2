//! Strategies: what is tried next, and what is kept.
//!
//! A strategy draws offspring, names the rival that each has to beat, and hears how each ended. Its state is the fold of what it heard, and its only
//! randomness the stream that it is given for each offspring.
//!
//! - [`slots`]: a population in which an offspring competes for one place.
//! - [`draws`]: random choices with the same bits on every machine.
//! - [`merging`]: the merge of several models as a recipe.
//! - [`space`]: coefficients of a merge as a vector of numbers.
//! - [`optimizer`]: optimizers over such vectors.
//! - one file per strategy, listed in [`STRATEGIES`].

mod coefficients;
mod differential;
mod draws;
mod evolver;
mod map_elites;
mod merger;
mod merging;
mod niches;
mod nsga2;
mod optimizer;
mod perturbation;
mod portfolio;
mod recipes;
mod slots;
mod space;

use evolver_common::{digest::Digest, recipe::Recipe};
use rand_chacha::ChaCha8Rng;

use super::{
    model::{Individual, Plugin, Setup, SetupError},
    settings::{Entry, Settings, find},
};

/// Makes a strategy from its parameters and what it starts from.
pub(super) type Open = fn(&Settings, &Start<'_>) -> Result<Box<dyn Strategy>, SetupError>;

/// Every strategy, kin beside kin.
pub(super) const STRATEGIES: &[Entry<Open>] = &[
    evolver::ENTRY,
    differential::DE,
    differential::JADE,
    differential::SHADE,
    merger::ENTRY,
    coefficients::CMA_ES,
    coefficients::ONE_PLUS_ONE,
    coefficients::AUTO,
    recipes::ENTRY,
    niches::ENTRY,
    map_elites::ENTRY,
    nsga2::ENTRY,
    perturbation::ENTRY,
    portfolio::ENTRY,
];

/// What a strategy starts from.
pub(super) struct Start<'a> {
    pub(super) setup: &'a Setup,
    /// The start models that could be scored; without scores while the setup is being checked.
    pub(super) members: &'a [Individual],
}

/// An offspring as drawn.
pub(super) struct Proposal {
    /// How it is built.
    pub(super) recipe: Recipe,
    /// The individuals that it is made from.
    pub(super) parents: Vec<Digest>,
}

/// How an offspring ended.
pub(super) struct Told<'a> {
    /// With its scores, as far as it was scored.
    pub(super) individual: &'a Individual,
    /// Whether it could be built and scored.
    pub(super) scored: bool,
    /// Whether it was scored at every stage, so that its objective is no estimate.
    pub(super) complete: bool,
    /// Whether it beat its rival.
    pub(super) accepted: bool,
}

impl Told<'_> {
    /// Its objective, or the estimate of it; the worst of all where it could not be scored.
    fn value(&self) -> f64 {
        if self.scored && !self.individual.dev.is_nan() { self.individual.dev } else { f64::NEG_INFINITY }
    }
}

/// Draws offspring and keeps what came of them.
pub(super) trait Strategy: Send {
    /// Draws offspring number `offspring`, from 0. `random` is a stream of this offspring's own.
    fn ask(&mut self, offspring: u64, random: &mut ChaCha8Rng) -> Proposal;

    /// Hears that offspring number `offspring` is a model from outside.
    fn adopt(&mut self, offspring: u64);

    /// Whom the offspring has to beat, now; nobody where it only has to be scored.
    fn rival(&self, offspring: u64) -> Option<&Individual>;

    /// Hears how an offspring ended.
    fn tell(&mut self, offspring: u64, told: &Told<'_>);

    /// What it keeps.
    fn population(&self) -> &[Individual];

    /// Offspring of one generation.
    fn generation(&self) -> u64 {
        self.population().len() as u64
    }

    /// The final model, where that is not simply the best that was ever accepted.
    fn best(&self) -> Option<&Individual> {
        None
    }

    /// Least number of offspring with which it can do anything.
    fn least(&self) -> u64 {
        0
    }
}

pub(super) fn open(plugin: &Plugin, start: &Start<'_>) -> Result<Box<dyn Strategy>, SetupError> {
    let (entry, settings) = find("search", "strategy", STRATEGIES, plugin)?;
    (entry.open)(&settings, start)
}

/// The strategy's name and version.
pub(super) fn identity(plugin: &Plugin) -> Result<(&'static str, u32), SetupError> {
    find("search", "strategy", STRATEGIES, plugin).map(|(entry, _)| (entry.name, entry.version))
}

/// Refuses a start population that is too small.
fn at_least(start: &Start<'_>, needed: usize, why: &str) -> Result<(), SetupError> {
    let found = start.members.len();
    if found < needed {
        return Err(SetupError(format!("the start population has {found} members, and at least {needed} are needed: {why}")));
    }
    Ok(())
}
