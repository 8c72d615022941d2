//! Coefficients of a merge, of any method, found by an optimizer: PCB-Merging with an evolution strategy (Du et al., NeurIPS 2024) and its like.
//!
//! The first offspring is the merge with its first coefficients. A CMA-ES also proposes the middle of its distribution after each batch: with noisy
//! scores it is better than the best single point, and no luck chose it.

use std::collections::BTreeMap;

use rand_chacha::ChaCha8Rng;

use super::{
    Open, Proposal, Start, Strategy, Told,
    merging::{MERGE, MODELS},
    optimizer::{Cma, OnePlusOne, Optimizer},
    space::{SPACE, Space},
};
use crate::search::{
    model::{Individual, SetupError},
    settings::{Default, Entry, Kind, Parameter, Settings},
};

const STEP: Parameter = Parameter {
    name: "step",
    kind: Kind::Number(1e-6, 1.0),
    default: Default::Number(0.2),
    doc: "First step size, as a share of each coefficient's range.",
};
const BATCH: Parameter = Parameter {
    name: "batch",
    kind: Kind::Integer(0, 10_000),
    default: Default::Number(0.0),
    doc: "Offspring before the distribution moves; 0: 4 + 3 ln of the number of coefficients.",
};

pub(super) const CMA_ES: Entry<Open> = Entry {
    name: "cma_es",
    version: 1,
    summary: "coefficients of a merge by CMA-ES",
    source: "Hansen, The CMA Evolution Strategy: A Tutorial, arXiv 1604.00772; PCB + ES: Du et al., NeurIPS 2024",
    parameters: &[MERGE, &[MODELS], SPACE, &[STEP, BATCH]],
    open: |settings, start| {
        Coefficients::open(settings, start, |space| {
            Box::new(Cma::new(space.first(), settings.number("step"), settings.count("batch")))
        })
    },
};

pub(super) const ONE_PLUS_ONE: Entry<Open> = Entry {
    name: "one_plus_one",
    version: 1,
    summary: "coefficients of a merge by the (1+1)-ES with the 1/5 success rule",
    source: "Rechenberg 1973; Kern et al., Learning probability distributions in continuous evolutionary algorithms, 2004",
    parameters: &[MERGE, &[MODELS], SPACE, &[STEP]],
    open: |settings, start| {
        Coefficients::open(settings, start, |space| Box::new(OnePlusOne::new(space.first(), settings.number("step"))))
    },
};

pub(super) const AUTO: Entry<Open> = Entry {
    name: "auto_es",
    version: 1,
    summary: "coefficients of a merge by one_plus_one where the budget is below 12 offspring per coefficient, else by cma_es",
    source: "in the manner of nevergrad's NGOpt, which the official PCB code uses: Meunier et al., Black-Box Optimization Revisited, 2022",
    parameters: &[
        MERGE,
        &[MODELS],
        SPACE,
        &[
            STEP,
            Parameter {
                name: "budget",
                kind: Kind::Integer(1, 1_000_000_000),
                default: Default::Number(100.0),
                doc: "Offspring that are planned; fixed here, so that a search can be extended.",
            },
        ],
    ],
    open: |settings, start| {
        Coefficients::open(settings, start, |space| {
            if settings.integer("budget") < 12 * space.dimension() as u64 {
                Box::new(OnePlusOne::new(space.first(), settings.number("step")))
            } else {
                Box::new(Cma::new(space.first(), settings.number("step"), 0))
            }
        })
    },
};

struct Coefficients {
    space: Space,
    optimizer: Box<dyn Optimizer>,
    /// Points of the offspring under way; without one the offspring is not the optimizer's.
    points: BTreeMap<u64, Vec<f64>>,
    /// How often the optimizer had learnt when its centre was last proposed.
    proposed: u64,
    /// The best merge so far; empty before the first.
    incumbent: Vec<Individual>,
}

impl Coefficients {
    fn open(
        settings: &Settings,
        start: &Start<'_>,
        optimizer: impl FnOnce(&Space) -> Box<dyn Optimizer>,
    ) -> Result<Box<dyn Strategy>, SetupError> {
        let space = Space::new(settings, start)?;
        let optimizer = optimizer(&space);
        Ok(Box::new(Self { space, optimizer, points: BTreeMap::new(), proposed: 0, incumbent: Vec::new() }))
    }
}

impl Strategy for Coefficients {
    fn ask(&mut self, offspring: u64, random: &mut ChaCha8Rng) -> Proposal {
        let point = match self.optimizer.centre() {
            _ if offspring == 0 => self.space.first(),
            Some((learnt, centre)) if learnt > self.proposed => {
                self.proposed = learnt;
                centre
            }
            _ => {
                let point = self.optimizer.ask(random);
                self.points.insert(offspring, point.clone());
                point
            }
        };
        let parents = self.space.models().iter().map(|model| model.id).collect();
        Proposal { recipe: self.space.recipe(&point), parents }
    }

    fn adopt(&mut self, _: u64) {}

    fn rival(&self, _: u64) -> Option<&Individual> {
        self.incumbent.first()
    }

    fn tell(&mut self, offspring: u64, told: &Told<'_>) {
        if let Some(point) = self.points.remove(&offspring) {
            self.optimizer.tell(&point, told.value(), told.accepted);
        }
        if told.accepted && self.incumbent.first().is_none_or(|best| told.individual.dev > best.dev) {
            self.incumbent = vec![told.individual.clone()];
        }
    }

    fn population(&self) -> &[Individual] {
        &self.incumbent
    }

    fn generation(&self) -> u64 {
        self.optimizer.batch()
    }

    fn least(&self) -> u64 {
        1 + self.optimizer.batch()
    }
}
