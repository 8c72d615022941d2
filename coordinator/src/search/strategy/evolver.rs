//! Evolver (Du et al., Knowledge Fusion by Evolving Weights of Language Models, ACL Findings 2024): differential evolution over weights.
//!
//! Offspring `o` belongs to generation `o / N` and competes for one place, each place once in a generation. An offspring is `crossover(target, donor,
//! Cr)`, where the donor is the target mutated towards its reference:
//! - `interpolation`, as in the official code: `target + F * (reference - target)`;
//! - `difference`, as in the paper: `target + F * (r1 - r2)`.
//!
//! The reference is another member: `scheduled`, as in the official code, uniformly with probability `0.5 / (G - g) + 0.5`, else the best other one; or
//! `random`, as in the paper. `G` is `planned_generations`; it is fixed beforehand so that a search can be extended.
//!
//! The update is `steady`, as in the official code: a member is replaced as soon as a better one is known; or `generational`, as in the paper's figure:
//! offspring are drawn from the members of the last whole generation.

use std::collections::BTreeMap;

use evolver_common::recipe::{Granularity, Op, Recipe};
use rand::RngExt as _;
use rand_chacha::ChaCha8Rng;

use super::{Open, Proposal, Start, Strategy, Told, at_least, draws, slots::Slots};
use crate::search::{
    model::{Individual, SetupError},
    settings::{Default, Entry, Kind, Parameter, Settings},
};

/// Separates the orders of the generations from other draws.
const ORDER: u64 = 0xe01e_0de5;

/// Scale factor, crossover rate and what the crossover's mask is drawn for.
pub(super) const CROSSOVER: &[Parameter] = &[
    Parameter { name: "scale", kind: Kind::Number(0.0, 2.0), default: Default::Number(0.5), doc: "Scale factor F." },
    Parameter {
        name: "crossover_rate",
        kind: Kind::Number(0.0, 1.0),
        default: Default::Number(0.5),
        doc: "Crossover rate Cr: the probability that the offspring has the donor's value.",
    },
    PER,
];

/// What the crossover's mask is drawn for.
pub(super) const PER: Parameter = Parameter {
    name: "per",
    kind: Kind::Choice(&["parameter", "tensor"]),
    default: Default::Text("parameter"),
    doc: "Whether the crossover decides for each parameter or for each tensor.",
};

/// How generations are run through.
pub(super) const UPDATE: &[Parameter] = &[
    Parameter {
        name: "update",
        kind: Kind::Choice(&["steady", "generational"]),
        default: Default::Open,
        doc: "Whether accepted offspring become parents at once or at the generation's end; by the variant.",
    },
    Parameter {
        name: "order",
        kind: Kind::Choice(&["fixed", "permuted"]),
        default: Default::Text("fixed"),
        doc: "Whether places are gone through in their order or in a new random one each generation.",
    },
];

pub(super) const ENTRY: Entry<Open> = Entry {
    name: "evolver",
    version: 1,
    summary: "crossover of a member with itself mutated towards another member",
    source: "Du et al., Knowledge Fusion by Evolving Weights of Language Models, ACL Findings 2024, and its official code",
    parameters: &[
        &[Parameter {
            name: "variant",
            kind: Kind::Choice(&["official", "paper"]),
            default: Default::Text("official"),
            doc: "official: interpolation, scheduled, steady; paper: difference, random, generational.",
        }],
        CROSSOVER,
        &[
            Parameter {
                name: "mutation",
                kind: Kind::Choice(&["interpolation", "difference"]),
                default: Default::Open,
                doc: "Towards one other member, or by the difference of two others; by the variant.",
            },
            Parameter {
                name: "reference",
                kind: Kind::Choice(&["scheduled", "random"]),
                default: Default::Open,
                doc: "How the other member is chosen: ever more often by chance instead of the best, or always by chance; by the variant.",
            },
            Parameter {
                name: "planned_generations",
                kind: Kind::Integer(1, 1_000_000),
                default: Default::Number(15.0),
                doc: "Generations G of the reference's schedule.",
            },
        ],
        UPDATE,
    ],
    open: |settings, start| Ok(Box::new(Evolver::open(settings, start)?)),
};

struct Evolver {
    scale: f64,
    rate: f64,
    per: Granularity,
    difference: bool,
    scheduled: bool,
    planned: u64,
    rounds: Rounds,
}

/// The value of [`PER`].
pub(super) fn granularity(settings: &Settings) -> Granularity {
    if settings.text("per") == "tensor" { Granularity::Tensor } else { Granularity::Parameter }
}

/// Generations: which place an offspring competes for, and when who was accepted takes it.
pub(super) struct Rounds {
    pub(super) slots: Slots,
    seed: u64,
    generational: bool,
    permuted: bool,
    /// Offspring that have ended of each unfinished generation, and the accepted ones that wait for its end.
    unfinished: BTreeMap<u64, (usize, Vec<(usize, Individual)>)>,
}

impl Rounds {
    pub(super) fn new(settings: &Settings, start: &Start<'_>, update: &str) -> Self {
        Self {
            slots: Slots::new(start.members),
            seed: start.setup.seed,
            generational: settings.text_or("update", update) == "generational",
            permuted: settings.text("order") == "permuted",
            unfinished: BTreeMap::new(),
        }
    }

    fn size(&self) -> u64 {
        self.slots.members().len() as u64
    }

    /// The generation of an offspring.
    pub(super) fn generation(&self, offspring: u64) -> u64 {
        offspring / self.size()
    }

    /// Enters the offspring for its place.
    pub(super) fn enter(&mut self, offspring: u64) -> usize {
        let place = usize::try_from(offspring % self.size()).unwrap_or(0);
        let place = if self.permuted {
            let mut random = draws::shared(self.seed, ORDER, self.generation(offspring));
            draws::permutation(self.slots.members().len(), &mut random)[place]
        } else {
            place
        };
        self.slots.enter(offspring, place);
        place
    }

    /// A model from outside takes the turn of an offspring, and competes for the place of the worst.
    pub(super) fn adopt(&mut self, offspring: u64) {
        self.slots.adopt(offspring);
    }

    /// The offspring has ended; whether a generation has ended with it.
    pub(super) fn settle(&mut self, offspring: u64, told: &Told<'_>) -> bool {
        if !self.generational {
            self.slots.settle(offspring, told);
        }
        let (generation, size) = (self.generation(offspring), self.slots.members().len());
        let (ended, accepted) = self.unfinished.entry(generation).or_default();
        *ended += 1;
        if let Some(place) = self.slots.leave(offspring).filter(|_| told.accepted) {
            accepted.push((place, told.individual.clone()));
        }
        if *ended < size {
            return false;
        }
        for (place, individual) in self.unfinished.remove(&generation).map(|(_, accepted)| accepted).unwrap_or_default() {
            self.slots.put(place, individual);
        }
        true
    }
}

impl Evolver {
    fn open(settings: &Settings, start: &Start<'_>) -> Result<Self, SetupError> {
        let paper = settings.text("variant") == "paper";
        let choose = |key: &str, official, of_paper| settings.text_or(key, if paper { of_paper } else { official }).to_owned();
        let difference = choose("mutation", "interpolation", "difference") == "difference";
        if difference {
            at_least(start, 3, "a difference vector needs two other members")?;
        } else {
            at_least(start, 2, "interpolation needs another member to move to")?;
        }
        Ok(Self {
            scale: settings.number("scale"),
            rate: settings.number("crossover_rate"),
            per: granularity(settings),
            difference,
            scheduled: choose("reference", "scheduled", "random") == "scheduled",
            planned: settings.integer("planned_generations"),
            rounds: Rounds::new(settings, start, if paper { "generational" } else { "steady" }),
        })
    }

    fn reference(&self, generation: u64, place: usize, random: &mut ChaCha8Rng) -> usize {
        #[expect(clippy::cast_precision_loss, reason = "a count of generations")]
        let left = self.planned.saturating_sub(generation).max(1) as f64;
        let uniform = !self.scheduled || random.random::<f64>() < 0.5 / left + 0.5;
        let best = if uniform { None } else { self.rounds.slots.best(&[place]) };
        best.unwrap_or_else(|| draws::other(self.rounds.slots.members().len(), &[place], random))
    }
}

impl Strategy for Evolver {
    fn ask(&mut self, offspring: u64, random: &mut ChaCha8Rng) -> Proposal {
        let place = self.rounds.enter(offspring);
        let first = self.reference(self.rounds.generation(offspring), place, random);
        let members = self.rounds.slots.members();
        let target = &members[place].recipe;
        let mut parents = vec![members[place].id, members[first].id];
        let (plus, minus) = if self.difference {
            let second = draws::other(members.len(), &[place, first], random);
            parents.push(members[second].id);
            (&members[first].recipe, &members[second].recipe)
        } else {
            (&members[first].recipe, target)
        };
        let donor = differential(target, plus, minus, self.scale);
        let recipe = crossover(target, donor, self.rate, self.per, random);
        Proposal { recipe, parents }
    }

    fn adopt(&mut self, offspring: u64) {
        self.rounds.adopt(offspring);
    }

    fn rival(&self, offspring: u64) -> Option<&Individual> {
        self.rounds.slots.rival(offspring)
    }

    fn tell(&mut self, offspring: u64, told: &Told<'_>) {
        self.rounds.settle(offspring, told);
    }

    fn population(&self) -> &[Individual] {
        self.rounds.slots.members()
    }
}

/// `target + scale * (plus - minus)`.
pub(super) fn differential(target: &Recipe, plus: &Recipe, minus: &Recipe, scale: f64) -> Recipe {
    let (target, plus, minus) = (target.clone(), plus.clone(), minus.clone());
    Recipe::new(Op::Differential { target, plus, minus, scale })
}

/// The target with the donor's values at a random `rate` of the places.
pub(super) fn crossover(target: &Recipe, donor: Recipe, rate: f64, per: Granularity, random: &mut ChaCha8Rng) -> Recipe {
    Recipe::new(Op::Crossover { target: target.clone(), donor, rate, seed: random.random(), per })
}
