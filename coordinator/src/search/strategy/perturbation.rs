//! Perturbation: Gaussian steps from the best member, of low rank, sparse, or of every parameter, with the 1/5 success rule for their size.

use evolver_common::recipe::{Op, Recipe, Shape};
use rand::RngExt as _;
use rand_chacha::ChaCha8Rng;

use super::{Open, Proposal, Start, Strategy, Told, at_least, optimizer};
use crate::search::{
    model::{Individual, SetupError},
    settings::{Default, Entry, Kind, Parameter, Settings},
};

pub(super) const ENTRY: Entry<Open> = Entry {
    name: "perturbation",
    version: 1,
    summary: "Gaussian steps from the best model, with a step size that adapts",
    source: "Rechenberg 1973; low-rank steps after Sarkar et al., Evolution Strategies at the Hyperscale (EGGROLL), 2025",
    parameters: &[&[
        Parameter {
            name: "shape",
            kind: Kind::Choice(&["low_rank", "sparse", "full"]),
            default: Default::Text("low_rank"),
            doc: "low_rank: matrices step by products of two factors; sparse: some parameters step; full: all do, each by itself.",
        },
        Parameter { name: "rank", kind: Kind::Integer(1, 1024), default: Default::Number(1.0), doc: "Rank of a low-rank step." },
        Parameter {
            name: "density",
            kind: Kind::Number(0.0, 1.0),
            default: Default::Number(0.1),
            doc: "Share of the parameters that a sparse step touches.",
        },
        Parameter {
            name: "deviation",
            kind: Kind::Number(0.0, 1000.0),
            default: Default::Number(0.001),
            doc: "First standard deviation of a touched parameter's step, in the weights' unit.",
        },
    ]],
    open: |settings, start| Ok(Box::new(Perturbation::open(settings, start)?)),
};

/// Numbers that the step size adapts as if there were.
const DIMENSION: usize = 3;

struct Perturbation {
    shape: Shape,
    deviation: f64,
    parent: Vec<Individual>,
}

impl Perturbation {
    fn open(settings: &Settings, start: &Start<'_>) -> Result<Self, SetupError> {
        at_least(start, 1, "there has to be something to step from")?;
        let shape = match settings.text("shape") {
            "sparse" => Shape::Sparse { density: settings.number("density") },
            "full" => Shape::Full,
            _ => Shape::LowRank { rank: u32::try_from(settings.integer("rank")).unwrap_or(1) },
        };
        let best = start.members.iter().reduce(|best, member| if member.dev > best.dev { member } else { best });
        Ok(Self { shape, deviation: settings.number("deviation"), parent: best.into_iter().cloned().collect() })
    }
}

impl Strategy for Perturbation {
    fn ask(&mut self, _: u64, random: &mut ChaCha8Rng) -> Proposal {
        let parent = &self.parent[0];
        let (deviation, seed, shape) = (self.deviation, random.random(), self.shape);
        let recipe = Recipe::new(Op::Perturb { parent: parent.recipe.clone(), deviation, seed, shape });
        Proposal { recipe, parents: vec![parent.id] }
    }

    fn adopt(&mut self, _: u64) {}

    fn rival(&self, _: u64) -> Option<&Individual> {
        self.parent.first()
    }

    fn tell(&mut self, _: u64, told: &Told<'_>) {
        self.deviation = optimizer::adapted(self.deviation, told.accepted, DIMENSION);
        if told.accepted {
            self.parent = vec![told.individual.clone()];
        }
    }

    fn population(&self) -> &[Individual] {
        &self.parent
    }
}
