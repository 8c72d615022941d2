//! MAP-Elites over tasks (Mouret and Clune 2015): one elite for each pair of the task that a model is strongest in and the one that it is weakest in, both
//! against the start models' mean. Parents are drawn from all cells alike, so that models which are good at different tasks stay to be crossed.

use std::collections::BTreeMap;

use evolver_common::{
    recipe::{Granularity, Op, Recipe},
    score::Objective,
};
use rand::RngExt as _;
use rand_chacha::ChaCha8Rng;

use super::{
    Open, Proposal, Start, Strategy, Told, at_least, draws,
    evolver::{CROSSOVER, crossover, differential, granularity},
};
use crate::search::{
    model::{Individual, SetupError},
    settings::{Default, Entry, Kind, Parameter, Settings},
};

pub(super) const ENTRY: Entry<Open> = Entry {
    name: "map_elites",
    version: 1,
    summary: "an elite for each strongest and weakest task, crossed with one another",
    source: "Mouret and Clune, Illuminating search spaces by mapping elites, arXiv 1504.04909; by task as in CycleQD, Kuroki et al., ICLR 2025",
    parameters: &[
        CROSSOVER,
        &[Parameter {
            name: "splice",
            kind: Kind::Number(0.0, 1.0),
            default: Default::Number(0.3),
            doc: "Probability of a crossover at a split point of the layers instead of evolver's.",
        }],
    ],
    open: |settings, start| Ok(Box::new(MapElites::open(settings, start)?)),
};

/// The strongest and the weakest task.
type Cell = (usize, usize);

struct MapElites {
    objective: Objective,
    /// The start models' mean of each task.
    means: Vec<f64>,
    scale: f64,
    rate: f64,
    per: Granularity,
    splice: f64,
    members: Vec<Individual>,
    cells: BTreeMap<Cell, usize>,
}

impl MapElites {
    fn open(settings: &Settings, start: &Start<'_>) -> Result<Self, SetupError> {
        at_least(start, 2, "a crossover needs two parents")?;
        let objective = start.setup.objective.clone();
        let values: Vec<_> = start.members.iter().map(|member| objective.values(&member.scores)).collect();
        #[expect(clippy::cast_precision_loss, reason = "a count of models")]
        let mean = |task: usize| values.iter().filter_map(|values| values.get(task)).sum::<f64>() / values.len() as f64;
        let mut this = Self {
            means: (0..start.setup.tasks.len()).map(mean).collect(),
            objective,
            scale: settings.number("scale"),
            rate: settings.number("crossover_rate"),
            per: granularity(settings),
            splice: settings.number("splice"),
            members: Vec::new(),
            cells: BTreeMap::new(),
        };
        start.members.iter().for_each(|member| this.place(member));
        Ok(this)
    }

    fn place(&mut self, individual: &Individual) {
        let values = self.objective.values(&individual.scores);
        let standing: Vec<f64> = values.iter().zip(&self.means).map(|(value, mean)| value - mean).collect();
        let order = |a: &usize, b: &usize| standing[*a].total_cmp(&standing[*b]);
        let strongest = (0..standing.len()).rev().max_by(order).unwrap_or(0);
        let weakest = (0..standing.len()).min_by(order).unwrap_or(0);
        match self.cells.get(&(strongest, weakest)) {
            Some(&elite) if individual.dev > self.members[elite].dev => self.members[elite] = individual.clone(),
            Some(_) => {}
            None => {
                self.cells.insert((strongest, weakest), self.members.len());
                self.members.push(individual.clone());
            }
        }
    }
}

impl Strategy for MapElites {
    fn ask(&mut self, _: u64, random: &mut ChaCha8Rng) -> Proposal {
        let first = draws::index(self.members.len(), random);
        let second = draws::other(self.members.len(), &[first], random);
        let (a, b) = (&self.members[first], &self.members[second]);
        let recipe = if random.random::<f64>() < self.splice {
            Recipe::new(Op::Splice { first: a.recipe.clone(), second: b.recipe.clone(), at: random.random() })
        } else {
            let donor = differential(&a.recipe, &b.recipe, &a.recipe, self.scale);
            crossover(&a.recipe, donor, self.rate, self.per, random)
        };
        Proposal { recipe, parents: vec![a.id, b.id] }
    }

    fn adopt(&mut self, _: u64) {}

    fn rival(&self, _: u64) -> Option<&Individual> {
        None
    }

    fn tell(&mut self, _: u64, told: &Told<'_>) {
        if told.complete {
            self.place(told.individual);
        }
    }

    fn population(&self) -> &[Individual] {
        &self.members
    }
}
