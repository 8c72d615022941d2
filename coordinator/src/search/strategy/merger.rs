//! Evolver with a merger (Du et al. 2024): the fitness of an individual is the score of the merge of the whole population with it in its place, and the
//! final model is that merge. The official code picks the final population by its test score; here dev alone decides.

use std::collections::BTreeMap;

use evolver_common::recipe::{Granularity, Recipe};
use rand_chacha::ChaCha8Rng;

use super::{
    Open, Proposal, Start, Strategy, Told, draws,
    evolver::{CROSSOVER, crossover, differential, granularity},
    merging::{METHOD, MODEL_PARAMETERS, MODELS, Merging, PARAMETERS, chosen},
};
use crate::search::{
    model::{Individual, SetupError},
    settings::{Default, Entry, Kind, Parameter, Settings},
};

/// Separates the orders of the generations from other draws.
const ORDER: u64 = 0x3e26_e201;

pub(super) const ENTRY: Entry<Open> = Entry {
    name: "evolver_merger",
    version: 1,
    summary: "evolver whose members are scored by the merge of all of them; the final model is that merge",
    source: "Du et al., Knowledge Fusion by Evolving Weights of Language Models, ACL Findings 2024",
    parameters: &[
        &[
            Parameter { default: Default::Text("linear"), ..METHOD },
            PARAMETERS,
            MODEL_PARAMETERS,
            MODELS,
            Parameter {
                name: "mutation",
                kind: Kind::Choice(&["interpolation", "difference"]),
                default: Default::Text("interpolation"),
                doc: "Towards one other member, as in the official code, or by the difference of two others, as in the paper.",
            },
            Parameter {
                name: "order",
                kind: Kind::Choice(&["permuted", "fixed"]),
                default: Default::Text("permuted"),
                doc: "Whether members are gone through in a new random order each generation or in theirs.",
            },
        ],
        CROSSOVER,
    ],
    open: |settings, start| Ok(Box::new(Merger::open(settings, start)?)),
};

struct Merger {
    merging: Merging,
    seed: u64,
    difference: bool,
    permuted: bool,
    scale: f64,
    rate: f64,
    per: Granularity,
    /// The population whose merge is the current one.
    members: Vec<Individual>,
    current: Option<Individual>,
    /// The populations that the offspring under way are the merges of.
    proposed: BTreeMap<u64, Vec<Individual>>,
}

impl Merger {
    fn open(settings: &Settings, start: &Start<'_>) -> Result<Self, SetupError> {
        let members = chosen(settings, start)?;
        let difference = settings.text("mutation") == "difference";
        let needed = if difference { 3 } else { 2 };
        if members.len() < needed {
            return Err(SetupError(format!(
                "strategy evolver_merger merges and mutates at least {needed} models, and there are {}",
                members.len()
            )));
        }
        let merging = Merging::new(settings, start)?;
        // For its refusals.
        merging.of_all(members.iter().map(|member| &member.recipe))?;
        Ok(Self {
            merging,
            seed: start.setup.seed,
            difference,
            permuted: settings.text("order") == "permuted",
            scale: settings.number("scale"),
            rate: settings.number("crossover_rate"),
            per: granularity(settings),
            members,
            current: None,
            proposed: BTreeMap::new(),
        })
    }

    /// The place of a mutation, counted without the first merge of all.
    fn place(&self, mutation: u64) -> usize {
        let size = self.members.len() as u64;
        let place = usize::try_from(mutation % size).unwrap_or(0);
        if !self.permuted {
            return place;
        }
        draws::permutation(self.members.len(), &mut draws::shared(self.seed, ORDER, mutation / size))[place]
    }

    fn mutant(&self, place: usize, random: &mut ChaCha8Rng) -> Recipe {
        let recipe = |index: usize| &self.members[index].recipe;
        let target = recipe(place);
        let first = draws::other(self.members.len(), &[place], random);
        let donor = if self.difference {
            let second = draws::other(self.members.len(), &[place, first], random);
            differential(target, recipe(first), recipe(second), self.scale)
        } else {
            differential(target, recipe(first), target, self.scale)
        };
        crossover(target, donor, self.rate, self.per, random)
    }
}

impl Strategy for Merger {
    fn ask(&mut self, offspring: u64, random: &mut ChaCha8Rng) -> Proposal {
        let mut population = self.members.clone();
        // The first is the merge of the start models themselves.
        if let Some(mutation) = offspring.checked_sub(1) {
            let place = self.place(mutation);
            let recipe = self.mutant(place, random);
            population[place] = Individual {
                id: recipe.id(),
                name: String::new(),
                kind: "evolved",
                parents: vec![self.members[place].id],
                recipe,
                dev: f64::NAN,
                ..self.members[place].clone()
            };
        }
        let merge = self.merging.of_all(population.iter().map(|member| &member.recipe));
        // The same method over as many models was accepted when the strategy was opened.
        let recipe = merge.unwrap_or_else(|_| self.members[0].recipe.clone());
        let parents = population.iter().map(|member| member.id).collect();
        self.proposed.insert(offspring, population);
        Proposal { recipe, parents }
    }

    fn adopt(&mut self, _: u64) {}

    fn rival(&self, _: u64) -> Option<&Individual> {
        self.current.as_ref()
    }

    fn tell(&mut self, offspring: u64, told: &Told<'_>) {
        let population = self.proposed.remove(&offspring);
        if told.accepted {
            // The merge's score is that of this population, whatever else has been accepted since it was drawn.
            if let Some(population) = population {
                self.members = population;
            }
            self.current = Some(told.individual.clone());
        }
    }

    fn population(&self) -> &[Individual] {
        &self.members
    }

    fn best(&self) -> Option<&Individual> {
        self.current.as_ref()
    }

    fn least(&self) -> u64 {
        1
    }
}
