//! NSGA-II (Deb et al., IEEE Transactions on Evolutionary Computation 2002) over tasks, and over how few checkpoints a model is made of if that is asked
//! for: parents by rank and crowding, evolver's crossover towards the other parent, and of parents and offspring together the least dominated survive.

use evolver_common::{
    recipe::{Granularity, Op},
    score::Objective,
};
use rand_chacha::ChaCha8Rng;

use super::{
    Open, Proposal, Start, Strategy, Told, at_least, draws,
    evolver::{CROSSOVER, crossover, differential, granularity},
};
use crate::search::{
    front::{crowding, dominates},
    model::{Individual, SetupError},
    settings::{Default, Entry, Kind, Parameter, Settings},
};

pub(super) const ENTRY: Entry<Open> = Entry {
    name: "nsga2",
    version: 1,
    summary: "many objectives: the least dominated models over tasks survive",
    source: "Deb et al., A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II, 2002",
    parameters: &[
        CROSSOVER,
        &[
            Parameter {
                name: "size",
                kind: Kind::Integer(0, 10_000),
                default: Default::Number(0.0),
                doc: "Members that survive a generation, and offspring of one; 0: as many as there are start models.",
            },
            Parameter {
                name: "fewer_checkpoints",
                kind: Kind::Flag,
                default: Default::Flag(false),
                doc: "Whether being made of fewer checkpoints is an objective beside the tasks.",
            },
        ],
    ],
    open: |settings, start| Ok(Box::new(Nsga2::open(settings, start)?)),
};

struct Nsga2 {
    objective: Objective,
    fewer: bool,
    scale: f64,
    rate: f64,
    per: Granularity,
    size: usize,
    members: Vec<Individual>,
    /// Front of each member, from 0, and its crowding.
    ranks: Vec<(usize, f64)>,
    /// Offspring of the generation that is being told.
    offspring: Vec<Individual>,
    ended: usize,
}

impl Nsga2 {
    fn open(settings: &Settings, start: &Start<'_>) -> Result<Self, SetupError> {
        at_least(start, 2, "a crossover needs two parents")?;
        let size = settings.count("size");
        let mut this = Self {
            objective: start.setup.objective.clone(),
            fewer: settings.flag("fewer_checkpoints"),
            scale: settings.number("scale"),
            rate: settings.number("crossover_rate"),
            per: granularity(settings),
            size: if size == 0 { start.members.len() } else { size },
            members: start.members.to_vec(),
            ranks: Vec::new(),
            offspring: Vec::new(),
            ended: 0,
        };
        this.survive();
        Ok(this)
    }

    fn values(&self, individual: &Individual) -> Vec<f64> {
        let mut values = self.objective.values(&individual.scores);
        if self.fewer {
            let nodes = individual.recipe.nodes();
            let checkpoints = nodes.iter().filter(|node| matches!(node.op(), Op::Checkpoint(_))).count();
            #[expect(clippy::cast_precision_loss, reason = "a count of checkpoints")]
            values.push(-(checkpoints as f64));
        }
        values
    }

    /// Ranks members and offspring together and keeps as many as there is room for.
    fn survive(&mut self) {
        let mut all = std::mem::take(&mut self.members);
        all.append(&mut self.offspring);
        let values: Vec<_> = all.iter().map(|individual| self.values(individual)).collect();
        let mut left: Vec<usize> = (0..all.len()).collect();
        let mut chosen: Vec<(usize, (usize, f64))> = Vec::new();
        for rank in 0.. {
            if left.is_empty() || chosen.len() >= self.size {
                break;
            }
            let (front, rest): (Vec<_>, Vec<_>) =
                left.iter().partition(|&&one| !left.iter().any(|&other| dominates(&values[other], &values[one])));
            let points: Vec<_> = front.iter().map(|&one: &usize| values[one].clone()).collect();
            let mut front: Vec<_> =
                front.into_iter().zip(crowding(&points)).map(|(one, crowding)| (one, (rank, crowding))).collect();
            front.sort_by(|a, b| b.1.1.total_cmp(&a.1.1));
            chosen.extend(front);
            left = rest;
        }
        chosen.truncate(self.size);
        self.ranks = chosen.iter().map(|(_, rank)| *rank).collect();
        self.members = chosen.into_iter().map(|(one, _)| all[one].clone()).collect();
    }

    /// The better of two by front, then by crowding.
    fn parent(&self, random: &mut ChaCha8Rng) -> usize {
        let [a, b] = [0; 2].map(|_| draws::index(self.members.len(), random));
        let ((rank_a, crowding_a), (rank_b, crowding_b)) = (self.ranks[a], self.ranks[b]);
        if rank_b < rank_a || (rank_b == rank_a && crowding_b > crowding_a) { b } else { a }
    }
}

impl Strategy for Nsga2 {
    fn ask(&mut self, _: u64, random: &mut ChaCha8Rng) -> Proposal {
        let first = self.parent(random);
        let mut second = self.parent(random);
        if second == first {
            second = draws::other(self.members.len(), &[first], random);
        }
        let (a, b) = (&self.members[first], &self.members[second]);
        let donor = differential(&a.recipe, &b.recipe, &a.recipe, self.scale);
        Proposal { recipe: crossover(&a.recipe, donor, self.rate, self.per, random), parents: vec![a.id, b.id] }
    }

    fn adopt(&mut self, _: u64) {}

    fn rival(&self, _: u64) -> Option<&Individual> {
        None
    }

    fn tell(&mut self, _: u64, told: &Told<'_>) {
        if told.complete {
            self.offspring.push(told.individual.clone());
        }
        self.ended += 1;
        if self.ended == self.size {
            self.ended = 0;
            self.survive();
        }
    }

    fn population(&self) -> &[Individual] {
        &self.members
    }

    fn generation(&self) -> u64 {
        self.size as u64
    }

    fn least(&self) -> u64 {
        self.size as u64
    }
}
