//! From a journal's records to a search: the same fold for a coordinator that resumes and for a reader that shows.

use std::collections::{BTreeMap, HashSet, VecDeque};

use evolver_common::{
    definition::{Resolved, Stop},
    digest::Digest,
    recipe::parse,
    score::Scores,
    suggest,
};
use serde::Serialize;
use thiserror::Error;

use crate::{
    fleet::stands_on,
    journal::{Record, Timings},
    search::{DEV_BASE, Named, Outcome, Search, SetupError, Spec, TEST_BASE, TellError},
    setup,
};

/// Results that are remembered whole.
const LATEST: usize = 4;
/// Reason of a stop by the clock's limit, the one limit whose end is a record.
pub(super) const STOP_SECONDS: &str = "stop.seconds";

/// The limits that can be raised.
pub const LIMITS: [&str; 5] = ["offspring", "generations", "evaluations", "seconds", "patience"];

/// Records that do not make a search.
#[derive(Debug, Error)]
pub enum ReplayError {
    /// An operator's decision that this program does not understand.
    #[error("record {record}: {what}")]
    Decision {
        /// The record.
        record: usize,
        /// What is wrong with it.
        what: String,
    },
    /// No definition stands at the beginning.
    #[error("the journal has no definition: nothing was begun in this folder")]
    NoDefinition,
    /// A definition that this program does not understand.
    #[error("record {record}: the definition cannot be read: {source}")]
    Definition {
        /// The record.
        record: usize,
        /// Why.
        source: serde_json::Error,
    },
    /// A definition that this program refuses.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// A result that was never asked for.
    #[error("record {record}: {source}; the journal was written by a program that draws differently")]
    Tell {
        /// The record.
        record: usize,
        /// What is wrong.
        source: TellError,
    },
    /// A result of a model that this program does not draw.
    #[error(
        "record {record}: spec {number} was scored as recipe {written}, and is recipe {found}: the journal was written by a program that draws differently"
    )]
    Recipe {
        /// The record.
        record: usize,
        /// The spec.
        number: u64,
        /// The recipe's id now.
        found: Digest,
        /// The recipe's id then.
        written: Digest,
    },
    /// The state is not what it was.
    #[error(
        "record {record}: after {absorbed} results the state is {found}, and it was {written}: the journal was written by a program that draws differently"
    )]
    State {
        /// The record.
        record: usize,
        /// Results absorbed.
        absorbed: u64,
        /// The hash now.
        found: Digest,
        /// The hash then.
        written: Digest,
    },
}

/// Time spent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spent {
    /// Seconds of workers, by what they did.
    pub timings: Timings,
    /// Of these, what offspring took: the search itself, without the start models and the sealed split.
    pub offspring: Timings,
    /// Seconds of the coordinator's clock, over all its starts.
    pub seconds: f64,
}

/// An attempt that failed, or the end of a spec that was given up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failed {
    /// The spec.
    pub number: u64,
    /// Who tried; empty where the spec was given up.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub worker: String,
    /// Why.
    pub reason: String,
}

/// A result that is there and belongs to no spec that has been drawn so far.
struct Banked {
    work: Option<Digest>,
    outcome: Outcome,
}

/// What a journal holds.
pub struct Replay {
    /// The latest definition.
    pub resolved: Resolved,
    /// The search as it stands.
    pub search: Search,
    /// Specs that have a result.
    pub told: HashSet<u64>,
    /// The latest epoch.
    pub epoch: u64,
    /// Time.
    pub spent: Spent,
    /// Attempts that failed, in the order of their records.
    pub failed_attempts: Vec<Failed>,
    /// Specs that were given up.
    pub given_up: Vec<Failed>,
    /// Seconds of the coordinator's clock when each spec's result was committed.
    pub committed_at: BTreeMap<u64, f64>,
    /// Who scored each spec.
    pub authors: BTreeMap<u64, String>,
    /// Specs whose scores more than one worker stands behind.
    pub confirmed: HashSet<u64>,
    /// Voices that are not trusted, with the reason; see [`crate::fleet::voice`].
    pub distrusted: BTreeMap<String, String>,
    /// Results that were taken back.
    pub retracted: u64,
    /// Results that are to be compared and have not been.
    pub(super) compared: BTreeMap<u64, (Spec, Scores)>,
    /// The latest results, for workers to prove themselves by.
    pub(super) latest: VecDeque<(Spec, Scores)>,
    /// Specs that were drawn and have no result.
    open: BTreeMap<u64, Spec>,
    /// Numbers of specs that were drawn since they were last asked for.
    fresh: Vec<u64>,
    /// Results of specs that may be drawn again, after one before them was taken back.
    bank: BTreeMap<u64, Banked>,
}

/// The latest definition that was journaled.
///
/// # Errors
/// If there is none, or it cannot be read.
pub(super) fn definition(records: &[Record]) -> Result<Resolved, ReplayError> {
    let latest = (1..).zip(records).filter_map(|(index, record)| match record {
        Record::Definition { resolved, .. } => Some((index, resolved)),
        _ => None,
    });
    let (record, resolved) = latest.last().ok_or(ReplayError::NoDefinition)?;
    serde_json::from_value(resolved.clone()).map_err(|source| ReplayError::Definition { record, source })
}

/// Folds records; a definition given as `newer` holds instead of the journaled one.
///
/// # Errors
/// Names the record that does not fit.
pub fn replay(records: &[Record], newer: Option<&Resolved>) -> Result<Replay, ReplayError> {
    let mut resolved = newer.map_or_else(|| definition(records), |newer| Ok(newer.clone()))?;
    for (index, record) in (1..).zip(records) {
        if let Record::Extend { limits } = record {
            extend(&mut resolved.definition.stop, limits).map_err(|what| ReplayError::Decision { record: index, what })?;
        }
    }
    let mut this = Replay::new(resolved)?;
    // Seconds of earlier starts, and of this one so far.
    let (mut before, mut current) = (0.0, 0.0);
    // The clock's limit at that time.
    let mut limit = None;
    // The results that stand, and the stops, by their records: what is told again if one of them is taken back.
    let mut standing: BTreeMap<u64, (&Record, Option<Digest>)> = BTreeMap::new();
    let (mut stops, mut enqueued) = (Vec::new(), Vec::new());
    let mut compare = None;
    for (index, record) in (1..).zip(records) {
        match record {
            Record::Definition { resolved, .. } => limit = resolved["definition"]["stop"]["seconds"].as_f64(),
            Record::Start { epoch, .. } => {
                before += current;
                current = 0.0;
                this.epoch = *epoch;
            }
            Record::Result { number, recipe, scores, timings, elapsed, worker, .. } => {
                if let Some(found) = this.recipe(*number).filter(|found| found != recipe) {
                    return Err(ReplayError::Recipe { record: index, number: *number, found, written: *recipe });
                }
                current = *elapsed;
                this.committed_at.insert(*number, before + current);
                this.authors.insert(*number, worker.clone());
                this.spent.timings.add(timings);
                if this.is_offspring(*number) {
                    this.spent.offspring.add(timings);
                }
                standing.insert(*number, (record, this.work(*number)));
                if let Some(spec) = this.open.get(number).filter(|_| compare.take() == Some(*number)) {
                    this.compared.insert(*number, (spec.clone(), scores.clone()));
                }
                this.tell(*number, outcome(record)).map_err(|source| ReplayError::Tell { record: index, source })?;
            }
            Record::Failure { number, reason } => {
                this.given_up.push(Failed { number: *number, worker: String::new(), reason: reason.clone() });
                standing.insert(*number, (record, this.work(*number)));
                this.tell(*number, outcome(record)).map_err(|source| ReplayError::Tell { record: index, source })?;
            }
            Record::Attempt { number, worker, reason } => {
                this.failed_attempts.push(Failed { number: *number, worker: worker.clone(), reason: reason.clone() });
            }
            // A limit that has been raised since then ends nothing.
            Record::Stop { reason, .. } if reason == STOP_SECONDS && raised(limit, this.resolved.definition.stop.seconds) => {}
            Record::Extend { limits } => limit = limits.get("seconds").copied().unwrap_or(limit),
            Record::Enqueue { offspring, name, recipe } => {
                let recipe = parse(recipe).map_err(|error| ReplayError::Decision { record: index, what: error.to_string() })?;
                let named = Named { name: name.clone(), kind: "evolved", recipe };
                enqueued.push((*offspring, named.clone()));
                this.search.enqueue(*offspring, named);
                this.draw();
            }
            Record::Stop { number, reason } => {
                stops.push((*number, reason));
                this.search.stop(*number, reason);
            }
            Record::Compare { number } => compare = Some(*number),
            Record::Check { number, .. } => {
                this.confirmed.insert(*number);
                this.compared.remove(number);
            }
            Record::Distrust { worker, reason, numbers, epoch } => {
                this.distrusted.insert(worker.clone(), reason.clone());
                this.epoch = *epoch;
                this.retracted += numbers.len() as u64;
                for number in numbers {
                    standing.remove(number);
                    this.authors.remove(number);
                    this.committed_at.remove(number);
                    this.confirmed.remove(number);
                    this.compared.remove(number);
                }
                if !numbers.is_empty() {
                    this.begin_again(&standing, &stops, &enqueued)?;
                }
            }
            Record::Readmit { worker } => {
                this.distrusted.remove(worker);
            }
            Record::State { absorbed, hash } => {
                let found = this.search.state_hash();
                if *absorbed != this.search.absorbed() || *hash != found {
                    return Err(ReplayError::State { record: index, absorbed: *absorbed, found, written: *hash });
                }
            }
        }
    }
    this.spent.seconds = before + current;
    Ok(this)
}

/// Raises limits; of each the highest that was given holds, and none is the highest.
///
/// # Errors
/// Names a limit that there is not.
pub fn extend(stop: &mut Stop, limits: &BTreeMap<String, Option<f64>>) -> Result<(), String> {
    for (name, limit) in limits {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "limits are whole numbers far below 2^53, or as good as none"
        )]
        let whole = |was: Option<u64>| was.zip(*limit).map(|(was, is)| was.max(is as u64));
        match name.as_str() {
            "offspring" => stop.offspring = whole(stop.offspring),
            "generations" => stop.generations = whole(stop.generations),
            "evaluations" => stop.evaluations = whole(stop.evaluations),
            "patience" => stop.patience = whole(stop.patience),
            "seconds" => stop.seconds = stop.seconds.zip(*limit).map(|(was, is)| was.max(is)),
            other => return Err(format!("unknown limit {}", suggest::unknown(other, LIMITS))),
        }
    }
    Ok(())
}

/// A result or failure as the search takes it.
fn outcome(record: &Record) -> Outcome {
    match record {
        Record::Result { scores, .. } => Outcome::Scored(scores.clone()),
        Record::Failure { reason, .. } => Outcome::Failed(reason.clone()),
        _ => Outcome::Failed(String::new()),
    }
}

fn raised(was: Option<f64>, is: Option<f64>) -> bool {
    is.is_none_or(|is| was.is_some_and(|was| is > was))
}

impl Replay {
    fn new(resolved: Resolved) -> Result<Self, ReplayError> {
        let mut this = Self {
            search: Search::new(setup::search(&resolved)?)?,
            resolved,
            told: HashSet::new(),
            epoch: 0,
            spent: Spent::default(),
            failed_attempts: Vec::new(),
            given_up: Vec::new(),
            committed_at: BTreeMap::new(),
            authors: BTreeMap::new(),
            confirmed: HashSet::new(),
            distrusted: BTreeMap::new(),
            retracted: 0,
            compared: BTreeMap::new(),
            latest: VecDeque::new(),
            open: BTreeMap::new(),
            fresh: Vec::new(),
            bank: BTreeMap::new(),
        };
        this.draw();
        Ok(this)
    }

    fn is_offspring(&self, number: u64) -> bool {
        let setup = self.search.setup();
        let start = setup.individuals.len() + setup.references.len();
        (start as u64..DEV_BASE).contains(&number)
    }

    /// Hands a result to the search. What that lets it draw is told at once where its result is there already.
    ///
    /// # Errors
    /// If the spec was not drawn, or has a result.
    pub(super) fn tell(&mut self, number: u64, outcome: Outcome) -> Result<(), TellError> {
        let scores = if let Outcome::Scored(scores) = &outcome { Some(scores.clone()) } else { None };
        self.search.tell(number, outcome)?;
        self.told.insert(number);
        let spec = self.open.remove(&number);
        self.latest.extend(spec.zip(scores));
        if self.latest.len() > LATEST {
            self.latest.pop_front();
        }
        // What was known of the model that had this number before is of no use any more.
        self.bank.remove(&number);
        self.confirmed.remove(&number);
        self.draw();
        Ok(())
    }

    /// Results that are to be compared: of specs that still are what they were.
    pub(super) fn compared(&self) -> Vec<(Spec, Scores)> {
        self.compared.iter().filter(|(number, _)| !self.open.contains_key(number)).map(|(_, compared)| compared.clone()).collect()
    }

    /// Specs that were drawn and have no result, in the order of their numbers.
    pub fn undone(&self) -> impl Iterator<Item = &Spec> {
        self.open.values()
    }

    /// Specs without a result that were drawn since this was last asked.
    pub(super) fn fresh(&mut self) -> Vec<Spec> {
        let numbers = std::mem::take(&mut self.fresh);
        numbers.into_iter().filter_map(|number| self.open.get(&number).cloned()).collect()
    }

    /// The recipe of a spec that has no result.
    fn recipe(&self, number: u64) -> Option<Digest> {
        self.open.get(&number).map(|spec| spec.recipe.id())
    }

    /// What a spec that has no result asks for.
    fn work(&self, number: u64) -> Option<Digest> {
        self.open.get(&number).map(Spec::work)
    }

    /// Takes over what the search has drawn, and tells it what is known of that.
    fn draw(&mut self) {
        loop {
            while let Some(spec) = self.search.ask() {
                self.fresh.push(spec.number);
                self.open.insert(spec.number, spec);
            }
            for spec in self.search.tests() {
                if !self.open.contains_key(&spec.number) {
                    self.fresh.push(spec.number);
                    self.open.insert(spec.number, spec);
                }
            }
            // Mostly nothing is banked, and this is asked at every result.
            if self.bank.is_empty() {
                return;
            }
            let fits = |(number, spec): (&u64, &Spec)| {
                let banked = self.bank.get(number)?;
                banked.work.is_none_or(|work| work == spec.work()).then_some(*number)
            };
            let Some(number) = self.open.iter().find_map(fits) else {
                return;
            };
            let Some(banked) = self.bank.remove(&number) else { return };
            if self.search.tell(number, banked.outcome).is_ok() {
                self.told.insert(number);
            }
            self.open.remove(&number);
        }
    }

    /// The search from its beginning, with the results that stand: it ends as if those that do not had never been reported. Scores are a pure
    /// function of model and items, so a result is as good for the model that is drawn now as it was then, if it is the same one.
    fn begin_again(
        &mut self,
        standing: &BTreeMap<u64, (&Record, Option<Digest>)>,
        stops: &[(u64, &String)],
        enqueued: &[(u64, Named)],
    ) -> Result<(), ReplayError> {
        self.search = Search::new(setup::search(&self.resolved)?)?;
        for (number, reason) in stops {
            self.search.stop(*number, reason);
        }
        for (offspring, named) in enqueued {
            self.search.enqueue(*offspring, named.clone());
        }
        self.told.clear();
        self.latest.clear();
        self.open.clear();
        self.fresh.clear();
        let bank = standing.iter().map(|(number, (record, work))| (*number, Banked { work: *work, outcome: outcome(record) }));
        self.bank = bank.collect();
        self.draw();
        Ok(())
    }

    /// The specs that stand on this voice's word alone.
    pub(super) fn unconfirmed(&self, of: &str) -> Vec<u64> {
        let alone =
            |(number, author): (&u64, &String)| (stands_on(author, of) && !self.confirmed.contains(number)).then_some(*number);
        self.authors.iter().filter_map(alone).collect()
    }

    /// Seconds of the coordinator's clock from its first start until the spec's result was committed.
    #[must_use]
    pub fn seconds_until(&self, number: u64) -> f64 {
        let sealed = self.committed_at.get(&(TEST_BASE + number));
        self.committed_at.get(&number).or(sealed).copied().unwrap_or(0.0)
    }
}
