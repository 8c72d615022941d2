//! Strategies: how an offspring is drawn from the population.

mod evolver;

use evolver_common::{recipe::Recipe, suggest};
use rand_chacha::ChaCha8Rng;
use serde_json::{Map, Value};

use super::model::{Individual, Plugin, SetupError};

/// Makes a strategy from its parameters and the size of the population.
pub(super) type Open = fn(&Map<String, Value>, usize) -> Result<Box<dyn Strategy>, SetupError>;

/// Every strategy by its name in definitions.
pub(super) const STRATEGIES: &[(&str, Open)] = &[("evolver", evolver::open)];

/// An offspring as drawn.
pub(super) struct Draw {
    /// How it is built.
    pub(super) recipe: Recipe,
    /// The individuals it is made from.
    pub(super) parents: Vec<Recipe>,
    /// Place in the population that it competes for.
    pub(super) slot: usize,
}

/// Draws offspring.
pub(super) trait Strategy: Send {
    /// Offspring number `offspring` (from 0) of the current population. `random` is a stream of this offspring's own.
    fn draw(&self, offspring: u64, population: &[Individual], random: &mut ChaCha8Rng) -> Draw;
}

pub(super) fn open(plugin: &Plugin, population: usize) -> Result<Box<dyn Strategy>, SetupError> {
    let names = || STRATEGIES.iter().map(|(name, _)| *name).collect::<Vec<_>>();
    let found = STRATEGIES.iter().find(|(name, _)| *name == plugin.name);
    let (_, open) = found
        .ok_or_else(|| SetupError(format!("search.strategy: unknown strategy {}", suggest::unknown(&plugin.name, names()))))?;
    open(&plugin.parameters, population)
}
