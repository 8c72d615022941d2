//! Acceptance rules: when an offspring replaces its rival, and on how many items that is found out.
//!
//! A rule has stages, ascending shares of the dev items. An offspring is scored stage by stage, each item once, until the rule rejects it or, at the
//! last stage, accepts it. Some items may be kept out of all stages, so that the final candidates are scored on items that no decision has read.

mod duel;
mod greedy;
mod halving;
mod paired;
mod race;

use evolver_common::{
    score::{Objective, Scores, normal},
    suggest,
};
use serde_json::{Map, Value};

use super::{
    model::{Plugin, SetupError, Task},
    settings::{Default, Entry, Kind, Parameter, Settings, find},
};

/// Makes a rule from its parameters.
pub(super) type Open = fn(&Settings) -> Result<Box<dyn Rule>, SetupError>;

/// Every rule.
pub(super) const RULES: &[Entry<Open>] = &[greedy::ENTRY, paired::ENTRY, race::ENTRY, duel::ENTRY, halving::ENTRY];

/// Keys that every rule has, with this default of the reserve.
macro_rules! common {
    ($reserve:expr) => {
        &[
            Parameter {
                name: "reserve",
                kind: Kind::Number(0.0, 0.9),
                default: Default::Number($reserve),
                doc: "Share of the dev items that no decision reads; the final candidates are scored on them.",
            },
            Parameter {
                name: "floors",
                kind: Kind::Table,
                default: Default::Open,
                doc: "Least value of a task's metric, for instance { tweets = 0.6 }: who falls below it loses against who does not.",
            },
        ]
    };
}

/// Of rules that compare all dev items, as the literature's do.
const ALL_ITEMS: &[Parameter] = common!(0.0);
/// Of rules that are to report what holds on other items.
const RESERVED_ITEMS: &[Parameter] = common!(0.25);

/// Keys of a threshold and of the test that it is held against.
const THRESHOLD: &[Parameter] = &[
    Parameter {
        name: "threshold",
        kind: Kind::Number(0.0, 10.0),
        default: Default::Number(0.5),
        doc: "How many standard errors better an offspring has to be; the other tests use the probability that goes with it.",
    },
    Parameter {
        name: "test",
        kind: Kind::Choice(&["normal", "bootstrap", "mcnemar"]),
        default: Default::Text("normal"),
        doc: "normal: z of the paired difference; bootstrap: share of paired resamples won; mcnemar: the exact test on right or wrong.",
    },
];

/// Two models on the same items.
pub(super) struct Bout<'a> {
    pub(super) objective: &'a Objective,
    /// Index of the stage that was just scored.
    pub(super) stage: usize,
    /// Whether it is the last one.
    pub(super) last: bool,
    /// The offspring and its rival, on all items of the stages so far.
    pub(super) so_far: [&'a Scores; 2],
    /// The same, on the items of this stage alone.
    pub(super) fresh: [&'a Scores; 2],
}

/// What becomes of an offspring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is scored on the next stage's items; at the last stage, it is accepted.
    Pass,
    /// It is given up.
    Reject,
}

/// Decides between an offspring and its rival.
pub(super) trait Rule: Send {
    /// Ascending shares of the items, in (0, 1]; the last is 1.
    fn stages(&self) -> Vec<f64> {
        vec![1.0]
    }

    /// What becomes of the offspring after a stage.
    fn judge(&mut self, bout: &Bout<'_>) -> Verdict;
}

/// How sure one has to be that an offspring is better.
pub(super) struct Threshold {
    errors: f64,
    test: String,
}

impl Threshold {
    fn new(settings: &Settings) -> Self {
        Self { errors: settings.number("threshold"), test: settings.text("test").to_owned() }
    }

    /// Whether `child` is better than `rival` by as much.
    fn passed(&self, objective: &Objective, [child, rival]: [&Scores; 2]) -> bool {
        match self.test.as_str() {
            "bootstrap" => objective.paired_bootstrap(child, rival) > normal::cdf(self.errors),
            // The exact p-value of a draw is above one half.
            "mcnemar" => objective.mcnemar(child, rival) < 1.0 - normal::cdf(self.errors),
            _ => objective.paired_z(child, rival) > self.errors,
        }
    }
}

/// Shares that grow from `first` by `growth` up to `end`, which is the last.
fn growing(first: f64, growth: f64, end: f64) -> Vec<f64> {
    let mut shares: Vec<_> =
        std::iter::successors(Some(first), |share| Some(share * growth)).take_while(|share| *share < end).collect();
    shares.push(end);
    shares
}

/// A rule with what all rules have.
pub(super) struct Acceptance {
    pub(super) rule: Box<dyn Rule>,
    /// Share of the items that no decision reads.
    pub(super) reserve: f64,
    /// Least values of the tasks' metrics.
    pub(super) floors: Vec<Option<f64>>,
    /// Name and version.
    pub(super) identity: (&'static str, u32),
}

pub(super) fn open(plugin: &Plugin, tasks: &[Task]) -> Result<Acceptance, SetupError> {
    let (entry, settings) = find("acceptance", "rule", RULES, plugin)?;
    let floors = per_task("acceptance.floors", &settings.table("floors"), tasks)?;
    let identity = (entry.name, entry.version);
    Ok(Acceptance { rule: (entry.open)(&settings)?, reserve: settings.number("reserve"), floors, identity })
}

/// One number per task of a table by the tasks' names.
pub(crate) fn per_task(key: &str, table: &Map<String, Value>, tasks: &[Task]) -> Result<Vec<Option<f64>>, SetupError> {
    if let Some(name) = table.keys().find(|name| !tasks.iter().any(|task| task.name == **name)) {
        let known = suggest::unknown(name, tasks.iter().map(|task| task.name.as_str()));
        return Err(SetupError(format!("{key}: unknown task {known}")));
    }
    let value = |task: &Task| match table.get(&task.name) {
        None => Ok(None),
        Some(value) => {
            let number = value.as_f64().filter(|number| (0.0..=1.0).contains(number));
            number.map(Some).ok_or_else(|| SetupError(format!("{key}.{} is {value}: it must lie between 0 and 1", task.name)))
        }
    };
    tasks.iter().map(value).collect()
}
