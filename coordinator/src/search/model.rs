//! What goes into a search and what comes out of it.

use std::collections::BTreeMap;

use evolver_common::{
    digest::Digest,
    merge,
    recipe::{Op, Parameters, Recipe, Value as Parameter},
    score::{Objective, Portion, Scores, Split},
};
use serde::Serialize;
use serde_json::{Map, Value};
use thiserror::Error;

/// Everything that decides a search.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Seed of every draw.
    pub seed: u64,
    /// Specs drawn before the oldest of them must be back, at least 1.
    pub in_flight: usize,
    /// The order in which results are absorbed.
    pub mode: Mode,
    /// The base model.
    pub base: Recipe,
    /// The tasks, in the order of scores.
    pub tasks: Vec<Task>,
    /// What is maximised.
    pub objective: Objective,
    /// The start population.
    pub individuals: Vec<Named>,
    /// Models scored for the final table only.
    pub references: Vec<Named>,
    /// The statistics that were measured on models, for merge methods that read any.
    pub statistics: Statistics,
    /// How offspring are drawn.
    pub strategy: Plugin,
    /// When an offspring replaces its parent.
    pub acceptance: Plugin,
    /// When the search ends.
    pub stop: Stop,
}

/// Digests of files of statistics, by the checkpoints that they were measured on.
#[derive(Clone, Debug, Default)]
pub struct Statistics(pub BTreeMap<Digest, Digest>);

impl Statistics {
    /// Adds the parameter that names a model's statistics, if the method reads any. An evolved model has those of the first checkpoint that it descends
    /// from, target before donor: they are measured where its evolution began.
    ///
    /// # Errors
    /// If that checkpoint has none.
    pub fn add_to(&self, parameters: &mut Parameters, method: &str, model: &Recipe) -> Result<(), SetupError> {
        let Some(name) = merge::find(method).ok().and_then(merge::statistics_parameter) else {
            return Ok(());
        };
        // Operands come before their users, so the target's line comes first.
        let digest = model.nodes().iter().find_map(|node| match node.op() {
            Op::Checkpoint(digest) => self.0.get(digest).copied(),
            _ => None,
        });
        let missing = || {
            SetupError(format!(
                "{method} reads statistics measured on each model, and one that it merges has none: models.experts.statistics names an expert's file"
            ))
        };
        parameters.insert(name.to_owned(), Parameter::Text(digest.ok_or_else(missing)?.to_string()));
        Ok(())
    }
}

/// The order in which results are absorbed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// In the order of their numbers: the end does not depend on the fleet.
    #[default]
    Ordered,
    /// As they arrive, in the journal's order: no worker waits for a slow one.
    Arrival,
}

/// A task, as far as the search knows it.
#[derive(Clone, Debug)]
pub struct Task {
    /// Its name.
    pub name: String,
    /// Items of the dev split.
    pub dev_items: usize,
    /// Items of the sealed split, 0 if there is none.
    pub test_items: usize,
}

/// A model with a name.
#[derive(Clone, Debug)]
pub struct Named {
    /// Its name.
    pub name: String,
    /// What it is in the final table: `base`, `expert` or `merge`.
    pub kind: &'static str,
    /// How it is built.
    pub recipe: Recipe,
}

/// A strategy or rule with its parameters.
#[derive(Clone, Debug)]
pub struct Plugin {
    /// Its name in the registry.
    pub name: String,
    /// Its own keys.
    pub parameters: Map<String, Value>,
}

/// Limits; whichever is reached first.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    /// Offspring drawn.
    pub offspring: Option<u64>,
    /// Generations.
    pub generations: Option<u64>,
    /// Dev items scored, start population included.
    pub evaluations: Option<u64>,
    /// Offspring in a row of which none was accepted.
    pub patience: Option<u64>,
}

/// A setup that cannot be searched.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct SetupError(pub String);

/// What a spec is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A member of the start population.
    Initial,
    /// A row of the table.
    Reference,
    /// An offspring.
    Offspring,
    /// A best model that was scored in stages, on dev: for the metrics that cannot be put together from stages.
    Dev,
    /// A final candidate, on dev items that no decision has read.
    Fresh,
    /// A final candidate, on the sealed split.
    Test,
}

/// One model to be built and scored.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Its number; specs of final candidates have numbers of their own, from [`super::DEV_BASE`] on.
    pub number: u64,
    /// What it is for.
    pub kind: Kind,
    /// How it is built.
    pub recipe: Recipe,
    /// What it is scored on.
    pub portion: Portion,
}

impl Spec {
    /// What it asks for, whatever its number: a digest of the recipe and the portion.
    #[must_use]
    pub fn work(&self) -> Digest {
        let subset = self.portion.subset.map_or([0; 3], |subset| [subset.seed, subset.from.into(), subset.to.into()]);
        let mut bytes = vec![u8::from(self.portion.split == Split::Test)];
        bytes.extend(subset.iter().flat_map(|number| number.to_le_bytes()));
        Digest::of_parts("evolver spec", [self.recipe.id().as_bytes().as_slice(), &bytes])
    }
}

/// How a spec ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// It has scores.
    Scored(Scores),
    /// It was given up, with the reason.
    Failed(String),
}

/// A model that has been scored.
#[derive(Clone, Debug, Serialize)]
pub struct Individual {
    /// Its recipe's id.
    pub id: Digest,
    /// Name of a start individual or reference, empty for offspring.
    pub name: String,
    /// `base`, `expert`, `merge` or `evolved`.
    pub kind: &'static str,
    /// Ids of the individuals it was made from.
    pub parents: Vec<Digest>,
    /// How it is built.
    #[serde(skip)]
    pub recipe: Recipe,
    /// Number of the spec that it was scored as.
    pub number: u64,
    /// Its scores on the dev items that decisions read, or on those of them that it was scored on before it was given up.
    #[serde(skip)]
    pub scores: Scores,
    /// Its objective there; where it was scored on a part only, the estimate from the difference to its rival on that part.
    pub dev: f64,
}

/// How much has happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Offspring drawn.
    pub issued: u64,
    /// Offspring absorbed.
    pub committed: u64,
    /// Offspring that replaced their parent.
    pub accepted: u64,
    /// Offspring given up.
    pub failed: u64,
}

/// Where the search is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Scoring the start population and the references.
    Start,
    /// Drawing offspring.
    Search,
    /// Scoring the final candidates on the sealed split.
    Test,
    /// Done.
    Finished,
}
