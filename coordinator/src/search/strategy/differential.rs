//! Differential evolution over weights: the mutations of Storn and Price (1997), and scale factor and crossover rate that adapt themselves.
//!
//! With `i` the target, `b` the best, `r1`, `r2`, `r3` other members:
//! - `rand`: `r1 + F (r2 - r3)`;
//! - `best`: `b + F (r1 - r2)`;
//! - `current_to_best`: `i + F (b - i) + F (r1 - r2)`.
//!
//! JADE (Zhang and Sanderson 2009) mutates by `i + F (p - i) + F (r1 - r2)` with `p` one of the best 100 p % and `r2` from the members or an archive of
//! replaced ones. F is drawn from a Cauchy distribution about its mean, Cr from a normal one, and the means move after each generation towards those
//! that succeeded. SHADE (Tanabe and Fukunaga 2013) keeps a memory of H such means, and weights successes by what they gained.

use std::collections::BTreeMap;

use evolver_common::recipe::{Granularity, Recipe};
use rand_chacha::ChaCha8Rng;

use super::{
    Open, Proposal, Start, Strategy, Told, at_least, draws,
    evolver::{CROSSOVER, PER, Rounds, UPDATE, crossover, differential, granularity},
};
use crate::search::{
    model::{Individual, SetupError},
    settings::{Default, Entry, Kind, Parameter, Settings},
};

pub(super) const DE: Entry<Open> = Entry {
    name: "de",
    version: 1,
    summary: "differential evolution with a mutation by name",
    source: "Storn and Price, Differential Evolution, Journal of Global Optimization 1997",
    parameters: &[
        &[Parameter {
            name: "mutation",
            kind: Kind::Choice(&["rand", "best", "current_to_best"]),
            default: Default::Text("rand"),
            doc: "What a difference of two members is added to: a third one, the best, or the target moved towards the best.",
        }],
        CROSSOVER,
        UPDATE,
    ],
    open: |settings, start| {
        let mutation = match settings.text("mutation") {
            "best" => Mutation::Best,
            "current_to_best" => Mutation::CurrentToBest,
            _ => Mutation::Rand,
        };
        let control = Control::Fixed(Rates { scale: settings.number("scale"), crossover: settings.number("crossover_rate") });
        Ok(Box::new(Differential::open(settings, start, mutation, control)?))
    },
};

/// What JADE and SHADE share.
const ADAPTIVE: &[Parameter] = &[
    Parameter {
        name: "greed",
        kind: Kind::Number(0.0, 1.0),
        default: Default::Number(0.2),
        doc: "Share p of the members, at least one, of which one is moved towards.",
    },
    Parameter {
        name: "archive",
        kind: Kind::Flag,
        default: Default::Flag(true),
        doc: "Whether replaced members are kept, as many as there are members, to draw differences from.",
    },
    PER,
];

pub(super) const JADE: Entry<Open> = Entry {
    name: "jade",
    version: 1,
    summary: "differential evolution towards one of the best, with F and Cr that follow what succeeded",
    source: "Zhang and Sanderson, JADE, IEEE Transactions on Evolutionary Computation 2009",
    parameters: &[
        ADAPTIVE,
        &[Parameter {
            name: "learning",
            kind: Kind::Number(0.0, 1.0),
            default: Default::Number(0.1),
            doc: "Rate c at which the means of F and Cr move to those that succeeded.",
        }],
        UPDATE,
    ],
    open: |settings, start| {
        let control = Control::Jade { mean: Rates { scale: 0.5, crossover: 0.5 }, learning: settings.number("learning") };
        Ok(Box::new(Differential::open(settings, start, Mutation::ToGood(settings.number("greed")), control)?))
    },
};

pub(super) const SHADE: Entry<Open> = Entry {
    name: "shade",
    version: 1,
    summary: "as jade, with a memory of what succeeded, weighted by what it gained",
    source: "Tanabe and Fukunaga, Success-History Based Parameter Adaptation for DE, CEC 2013",
    parameters: &[
        ADAPTIVE,
        &[Parameter {
            name: "memory",
            kind: Kind::Integer(1, 1000),
            default: Default::Number(5.0),
            doc: "Means of F and Cr that are remembered.",
        }],
        UPDATE,
    ],
    open: |settings, start| {
        let memory = vec![Rates { scale: 0.5, crossover: 0.5 }; settings.count("memory")];
        let control = Control::Shade { memory, next: 0 };
        Ok(Box::new(Differential::open(settings, start, Mutation::ToGood(settings.number("greed")), control)?))
    },
};

#[derive(Clone, Copy)]
enum Mutation {
    Rand,
    Best,
    CurrentToBest,
    /// Towards one of this share of the best.
    ToGood(f64),
}

#[derive(Clone, Copy)]
struct Rates {
    scale: f64,
    crossover: f64,
}

/// An offspring that was accepted: its rates and what it gained.
struct Success {
    rates: Rates,
    gain: f64,
}

enum Control {
    Fixed(Rates),
    Jade { mean: Rates, learning: f64 },
    Shade { memory: Vec<Rates>, next: usize },
}

impl Control {
    fn draw(&self, random: &mut ChaCha8Rng) -> Rates {
        let mean = match self {
            Self::Fixed(rates) => return *rates,
            Self::Jade { mean, .. } => *mean,
            Self::Shade { memory, .. } => memory[draws::index(memory.len(), random)],
        };
        let crossover = (mean.crossover + 0.1 * draws::normal(random)).clamp(0.0, 1.0);
        loop {
            let scale = draws::cauchy(mean.scale, 0.1, random);
            if scale > 0.0 {
                return Rates { scale: scale.min(1.0), crossover };
            }
        }
    }

    /// Moves to what succeeded in a generation.
    fn learn(&mut self, successes: &[Success]) {
        if successes.is_empty() {
            return;
        }
        let weighted = |weight: &dyn Fn(&Success) -> f64| {
            let total: f64 = successes.iter().map(weight).sum();
            let moment = |power: i32| successes.iter().map(|one| weight(one) / total * one.rates.scale.powi(power)).sum::<f64>();
            let crossover = successes.iter().map(|one| weight(one) / total * one.rates.crossover).sum::<f64>();
            // The Lehmer mean, for which large factors count more.
            Rates { scale: moment(2) / moment(1), crossover }
        };
        match self {
            Self::Fixed(_) => {}
            Self::Jade { mean, learning } => {
                let good = weighted(&|_| 1.0);
                mean.scale += *learning * (good.scale - mean.scale);
                mean.crossover += *learning * (good.crossover - mean.crossover);
            }
            Self::Shade { memory, next } => {
                memory[*next] = weighted(&|one| one.gain.max(1e-9));
                *next = (*next + 1) % memory.len();
            }
        }
    }
}

struct Differential {
    mutation: Mutation,
    control: Control,
    per: Granularity,
    rounds: Rounds,
    /// Rates of the offspring under way.
    rates: BTreeMap<u64, Rates>,
    successes: Vec<Success>,
    /// Replaced members; as many as there are members at most.
    archive: Option<Vec<Individual>>,
}

impl Differential {
    fn open(settings: &Settings, start: &Start<'_>, mutation: Mutation, control: Control) -> Result<Self, SetupError> {
        match mutation {
            Mutation::Rand => at_least(start, 4, "the target, a third member and the difference of two more")?,
            _ => at_least(start, 3, "the target and the difference of two other members")?,
        }
        Ok(Self {
            mutation,
            control,
            per: granularity(settings),
            rounds: Rounds::new(settings, start, "steady"),
            rates: BTreeMap::new(),
            successes: Vec::new(),
            archive: (matches!(mutation, Mutation::ToGood(_)) && settings.flag("archive")).then(Vec::new),
        })
    }

    /// The mutant and the members that it is made from.
    fn mutant(&self, place: usize, scale: f64, random: &mut ChaCha8Rng) -> (Recipe, Vec<Individual>) {
        let members = self.rounds.slots.members();
        let size = members.len();
        let target = &members[place].recipe;
        let best = self.rounds.slots.best(&[]).unwrap_or(place);
        let toward = |good: usize, first: usize, second: &Individual| {
            let moved = differential(target, &members[good].recipe, target, scale);
            let recipe = differential(&moved, &members[first].recipe, &second.recipe, scale);
            (recipe, vec![members[good].clone(), members[first].clone(), second.clone()])
        };
        match self.mutation {
            Mutation::Rand | Mutation::Best => {
                let start = if matches!(self.mutation, Mutation::Best) { best } else { draws::other(size, &[place], random) };
                let first = draws::other(size, &[place, start], random);
                // With three members the best may be the only one left.
                let second = draws::other(size, &[place, start, first], random);
                let recipe = differential(&members[start].recipe, &members[first].recipe, &members[second].recipe, scale);
                (recipe, [start, first, second].map(|index| members[index].clone()).to_vec())
            }
            Mutation::CurrentToBest => {
                let first = draws::other(size, &[place], random);
                let second = draws::other(size, &[place, first], random);
                toward(best, first, &members[second])
            }
            Mutation::ToGood(greed) => {
                let mut order: Vec<usize> = (0..size).collect();
                order.sort_by(|&a, &b| members[b].dev.total_cmp(&members[a].dev));
                #[expect(
                    clippy::cast_precision_loss,
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "a count of members"
                )]
                let among = ((greed * size as f64).ceil() as usize).clamp(1, size);
                let good = order[draws::index(among, random)];
                let first = draws::other(size, &[place], random);
                let archive = self.archive.as_deref().unwrap_or_default();
                let drawn = draws::other(size + archive.len(), &[place, first], random);
                toward(good, first, members.get(drawn).unwrap_or_else(|| &archive[drawn - size]))
            }
        }
    }
}

impl Strategy for Differential {
    fn ask(&mut self, offspring: u64, random: &mut ChaCha8Rng) -> Proposal {
        let place = self.rounds.enter(offspring);
        let rates = self.control.draw(random);
        self.rates.insert(offspring, rates);
        let (mutant, others) = self.mutant(place, rates.scale, random);
        let target = &self.rounds.slots.members()[place];
        let parents = std::iter::once(target).chain(&others).map(|parent| parent.id).collect();
        Proposal { recipe: crossover(&target.recipe, mutant, rates.crossover, self.per, random), parents }
    }

    fn adopt(&mut self, offspring: u64) {
        self.rounds.adopt(offspring);
    }

    fn rival(&self, offspring: u64) -> Option<&Individual> {
        self.rounds.slots.rival(offspring)
    }

    fn tell(&mut self, offspring: u64, told: &Told<'_>) {
        let rates = self.rates.remove(&offspring);
        if let (true, Some(rival)) = (told.accepted, self.rounds.slots.rival(offspring).cloned()) {
            if let Some(rates) = rates {
                self.successes.push(Success { rates, gain: told.individual.dev - rival.dev });
            }
            if let Some(archive) = &mut self.archive {
                archive.push(rival);
                if archive.len() > self.rounds.slots.members().len() {
                    archive.remove(0);
                }
            }
        }
        if self.rounds.settle(offspring, told) {
            self.control.learn(&std::mem::take(&mut self.successes));
        }
    }

    fn population(&self) -> &[Individual] {
        self.rounds.slots.members()
    }
}
