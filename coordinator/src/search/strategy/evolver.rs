//! Evolver (Du et al., Knowledge Fusion by Evolving Weights of Language Models, ACL Findings 2024): differential evolution over weights.
//!
//! Offspring `o` belongs to generation `o / N` and competes for place `o mod N`: members are replaced as soon as a better one is known, as in the
//! official code. An offspring is `crossover(target, donor, Cr)`, where the donor is the target mutated towards its reference:
//! - `interpolation`, as in the official code: `target + F * (reference - target)`;
//! - `difference`, as in the paper: `target + F * (r1 - r2)`.
//!
//! The reference is another member: `scheduled`, as in the official code, uniformly with probability `0.5 / (G - g) + 0.5`, else the best other one; or
//! `random`, as in the paper. `G` is `planned_generations`; it is fixed beforehand so that a search can be extended.

use evolver_common::recipe::{Granularity, Op, Recipe};
use rand::{RngExt as _, distr::Uniform};
use rand_chacha::ChaCha8Rng;
use rand_distr::Distribution as _;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Draw, Strategy};
use crate::search::{
    acceptance::parameters,
    model::{Individual, SetupError},
};

const KEYS: [&str; 6] = ["scale", "crossover_rate", "per", "mutation", "reference", "planned_generations"];

#[derive(Clone, Copy, Deserialize, PartialEq)]
#[serde(rename_all = "snake_case")]
enum Mutation {
    Interpolation,
    Difference,
}

#[derive(Clone, Copy, Deserialize, PartialEq)]
#[serde(rename_all = "snake_case")]
enum Reference {
    Scheduled,
    Random,
}

#[derive(Deserialize)]
#[serde(default)]
struct Evolver {
    /// Scale factor F, in [0, 2].
    scale: f64,
    /// Crossover rate Cr, in [0, 1].
    crossover_rate: f64,
    per: Granularity,
    mutation: Mutation,
    reference: Reference,
    /// G of the reference's schedule.
    planned_generations: u64,
}

impl Default for Evolver {
    fn default() -> Self {
        Self {
            scale: 0.5,
            crossover_rate: 0.5,
            per: Granularity::Parameter,
            mutation: Mutation::Interpolation,
            reference: Reference::Scheduled,
            planned_generations: 15,
        }
    }
}

pub(super) fn open(table: &Map<String, Value>, population: usize) -> Result<Box<dyn Strategy>, SetupError> {
    let this: Evolver = parameters("search", &KEYS, table)?;
    for (key, value, high) in [("scale (F)", this.scale, 2.0), ("crossover_rate (Cr)", this.crossover_rate, 1.0)] {
        if !(0.0..=high).contains(&value) {
            return Err(SetupError(format!("search.{key} is {value}: it must lie between 0 and {high}")));
        }
    }
    let (needed, why) = match this.mutation {
        Mutation::Interpolation => (2, "interpolation needs another member to move to"),
        Mutation::Difference => (3, "a difference vector needs two other members"),
    };
    if population < needed {
        return Err(SetupError(format!(
            "the start population has {population} members, and at least {needed} are needed: {why}"
        )));
    }
    Ok(Box::new(this))
}

impl Strategy for Evolver {
    fn draw(&self, offspring: u64, population: &[Individual], random: &mut ChaCha8Rng) -> Draw {
        let size = population.len();
        let slot = usize::try_from(offspring % size as u64).unwrap_or(0);
        let target = &population[slot].recipe;
        let first = self.reference(offspring / size as u64, slot, population, random);
        let mut parents = vec![target.clone(), population[first].recipe.clone()];
        let (plus, minus) = match self.mutation {
            Mutation::Interpolation => (parents[1].clone(), target.clone()),
            Mutation::Difference => {
                let second = other(size, &[slot, first], random);
                parents.push(population[second].recipe.clone());
                (parents[1].clone(), parents[2].clone())
            }
        };
        let donor = Recipe::new(Op::Differential { target: target.clone(), plus, minus, scale: self.scale });
        let recipe = Recipe::new(Op::Crossover {
            target: target.clone(),
            donor,
            rate: self.crossover_rate,
            seed: random.random(),
            per: self.per,
        });
        Draw { recipe, parents, slot }
    }
}

impl Evolver {
    fn reference(&self, generation: u64, slot: usize, population: &[Individual], random: &mut ChaCha8Rng) -> usize {
        #[expect(clippy::cast_precision_loss, reason = "a count of generations")]
        let left = self.planned_generations.saturating_sub(generation).max(1) as f64;
        let uniform = self.reference == Reference::Random || random.random::<f64>() < 0.5 / left + 0.5;
        if uniform {
            return other(population.len(), &[slot], random);
        }
        let others = (0..population.len()).filter(|&index| index != slot);
        // The first of equal ones.
        others.reduce(|best, index| if population[index].dev > population[best].dev { index } else { best }).unwrap_or(slot)
    }
}

/// A uniform draw from `0..size` without the `taken`.
fn other(size: usize, taken: &[usize], random: &mut ChaCha8Rng) -> usize {
    let free: Vec<_> = (0..size).filter(|index| !taken.contains(index)).collect();
    Uniform::new(0, free.len()).map_or(0, |uniform| free[uniform.sample(random)])
}
