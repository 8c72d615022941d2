//! Natural niches (Abrantes, Lange and Tang, Competition and Attraction Improve Model Fusion, GECCO 2025): an archive whose members share the credit of
//! each item among those who get it right, parents that are drawn to partners who are right where they are wrong, and crossover at a split point.

use evolver_common::recipe::{Op, Recipe};
use rand::RngExt as _;
use rand_chacha::ChaCha8Rng;

use super::{Open, Proposal, Start, Strategy, Told, at_least, draws, evolver::differential};
use crate::search::{
    model::{Individual, SetupError},
    settings::{Default, Entry, Kind, Parameter, Settings},
};

pub(super) const ENTRY: Entry<Open> = Entry {
    name: "niches",
    version: 1,
    summary: "split-point crossover in an archive whose members compete for items and are drawn to what complements them",
    source: "Abrantes, Lange and Tang, Competition and Attraction Improve Model Fusion (M2N2), GECCO 2025",
    parameters: &[&[
        Parameter {
            name: "archive",
            kind: Kind::Integer(2, 10_000),
            default: Default::Number(20.0),
            doc: "Members of the archive.",
        },
        Parameter {
            name: "attraction",
            kind: Kind::Number(0.0, 1.0),
            default: Default::Number(1.0),
            doc: "Probability that the second parent is chosen by attraction and not by fitness.",
        },
    ]],
    open: |settings, start| Ok(Box::new(Niches::open(settings, start)?)),
};

struct Niches {
    size: usize,
    attraction: f64,
    members: Vec<Individual>,
}

/// All credits of an individual, one task after the other.
fn credits(individual: &Individual) -> impl Iterator<Item = f64> {
    individual.scores.tasks.iter().flat_map(|task| task.credits.iter().map(|credit| f64::from(*credit)))
}

impl Niches {
    fn open(settings: &Settings, start: &Start<'_>) -> Result<Self, SetupError> {
        at_least(start, 2, "a crossover needs two parents")?;
        let size = settings.count("archive").max(start.members.len());
        Ok(Self { size, attraction: settings.number("attraction"), members: start.members.to_vec() })
    }

    /// What the members get together on each item.
    fn crowd(&self) -> Vec<f64> {
        let mut crowd = vec![0.0; self.members.first().map_or(0, |first| credits(first).count())];
        for member in &self.members {
            crowd.iter_mut().zip(credits(member)).for_each(|(sum, credit)| *sum += credit);
        }
        crowd
    }

    /// Each member's share of the items, where an item is worth one and is shared by all who get it right.
    fn fitness(&self) -> Vec<f64> {
        let crowd = self.crowd();
        let share = |member: &Individual| {
            credits(member).zip(&crowd).filter(|(_, sum)| **sum > 0.0).map(|(credit, sum)| credit / sum).sum()
        };
        self.members.iter().map(share).collect()
    }

    /// How much each member has to give to `to`: items that it gets right and `to` does not, the rarer the more.
    fn attractions(&self, to: usize) -> Vec<f64> {
        let crowd = self.crowd();
        let give = |(index, member): (usize, &Individual)| {
            let gains = credits(member).zip(credits(&self.members[to])).zip(&crowd);
            let gains = gains.map(|((theirs, own), sum)| (theirs - own).max(0.0) / (sum + 1.0));
            if index == to { 0.0 } else { gains.sum() }
        };
        self.members.iter().enumerate().map(give).collect()
    }
}

impl Strategy for Niches {
    fn ask(&mut self, _: u64, random: &mut ChaCha8Rng) -> Proposal {
        let fitness = self.fitness();
        let first = draws::weighted(&fitness, random);
        let mut weights = if random.random::<f64>() < self.attraction { self.attractions(first) } else { fitness };
        weights[first] = 0.0;
        let mut second = draws::weighted(&weights, random);
        if second == first {
            second = draws::other(self.members.len(), &[first], random);
        }
        let (share, at) = (random.random::<f64>(), random.random::<f64>());
        let (a, b) = (&self.members[first], &self.members[second]);
        // Below the split a moves to b by the share, above it b moves to a by as much.
        let toward = |from: &Recipe, to: &Recipe| differential(from, to, from, share);
        let recipe = Recipe::new(Op::Splice { first: toward(&a.recipe, &b.recipe), second: toward(&b.recipe, &a.recipe), at });
        Proposal { recipe, parents: vec![a.id, b.id] }
    }

    fn adopt(&mut self, _: u64) {}

    fn rival(&self, _: u64) -> Option<&Individual> {
        None
    }

    fn tell(&mut self, _: u64, told: &Told<'_>) {
        if !told.complete {
            return;
        }
        self.members.push(told.individual.clone());
        if self.members.len() > self.size {
            let fitness = self.fitness();
            let worst = (0..fitness.len()).min_by(|&a, &b| fitness[a].total_cmp(&fitness[b])).unwrap_or(0);
            self.members.remove(worst);
        }
    }

    fn population(&self) -> &[Individual] {
        &self.members
    }

    fn generation(&self) -> u64 {
        self.size as u64
    }
}
