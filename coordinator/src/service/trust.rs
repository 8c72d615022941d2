//! Trust: what is compared, and what follows when a worker is shown to have reported what is not so.
//!
//! Results that stand on such a worker's word alone are taken back by a record of the journal. The search is then folded again from its beginning
//! without them: it stands where it would stand had they never been reported, and every result of another worker counts again as soon as its model
//! is drawn again. So a search in deterministic mode ends where the undisturbed one ends, and the journal replays to the same state.

use evolver_proto::v1::{self, operate_request::Action};
use tonic::Status;

use super::{
    core::{Core, EndError},
    replay::replay,
};
use crate::{
    fleet::{Consequences, Opinion, voice},
    journal::{Log, Record},
    search::{Individual, Kind, Spec},
};

impl<L: Log> Core<L> {
    /// Takes note of what follows from a report; it is carried out once the reports at hand are committed.
    pub(super) fn follow(&mut self, consequences: Consequences) {
        self.given_up.extend(consequences.given_up);
        for (number, opinion) in consequences.opinions {
            match opinion {
                Opinion::Open => tracing::info!(spec = number, "workers disagree about the scores: another one is asked"),
                Opinion::Agreed(workers) => self.confirmed(number, workers),
                Opinion::Lied { honest, liars } => {
                    // A result whose author lied is not confirmed by those who showed it.
                    let stands = |author: &String| honest.iter().any(|other| voice(other) == voice(author));
                    if self.replay.authors.get(&number).is_some_and(stands) {
                        self.confirmed(number, honest.clone());
                    }
                    let by = if honest.is_empty() { "nobody else can score the model".into() } else { honest.join(", ") };
                    let reason = format!("false scores of spec {number}, shown by: {by}");
                    self.caught.extend(liars.iter().map(|liar| (voice(liar).to_owned(), reason.clone())));
                }
            }
        }
    }

    fn confirmed(&mut self, number: u64, workers: Vec<String>) {
        if self.replay.confirmed.insert(number) {
            self.replay.compared.remove(&number);
            self.later.push(Record::Check { number, workers });
        }
    }

    /// A new best is compared, whoever reported it.
    pub(super) fn crowned(&mut self) {
        let number = self.replay.search.best().map(|best| best.number);
        if number != self.best {
            self.best = number;
            self.compare_best();
        }
    }

    fn compare_best(&mut self) {
        if let Some(best) = self.replay.search.best().cloned() {
            let wanted = self.check_best && !self.replay.confirmed.contains(&best.number);
            self.remember(&best, wanted);
        }
    }

    fn remember(&mut self, individual: &Individual, wanted: bool) {
        // What several stages scored, perhaps by several workers, is nobody's word in particular.
        let Some(portion) = self.replay.search.portion_of(individual) else { return };
        let author = self.replay.authors.get(&individual.number).cloned().unwrap_or_default();
        let spec = Spec { number: individual.number, kind: Kind::Offspring, recipe: individual.recipe.clone(), portion };
        self.fleet.remember(spec, &author, individual.scores.clone(), wanted);
    }

    /// What an earlier start knew: results to prove oneself by, those that are to be compared, a best that nobody has confirmed, workers that are not trusted.
    pub(super) fn recall(&mut self) {
        for (spec, scores) in self.replay.latest.clone() {
            let author = self.replay.authors.get(&spec.number).cloned().unwrap_or_default();
            self.fleet.remember(spec, &author, scores, false);
        }
        self.compare_best();
        for (spec, scores) in self.replay.compared() {
            let author = self.replay.authors.get(&spec.number).cloned().unwrap_or_default();
            self.fleet.remember(spec, &author, scores, self.compares);
        }
        for (worker, reason) in self.replay.distrusted.clone() {
            self.fleet.distrust(&worker, &reason);
        }
    }

    /// Carries out what comparisons have shown.
    pub(super) fn catch(&mut self) -> Result<(), EndError> {
        while let Some((worker, reason)) = self.caught.first().cloned() {
            if !self.replay.distrusted.contains_key(&worker) {
                self.distrust(&worker, &reason)?;
            }
            self.caught.remove(0);
        }
        Ok(())
    }

    fn distrust(&mut self, worker: &str, reason: &str) -> Result<(), EndError> {
        let numbers = self.replay.unconfirmed(worker);
        let retracts = !numbers.is_empty();
        let epoch = self.epoch + u64::from(retracts);
        tracing::warn!(worker, reason, retracted = numbers.len(), "a worker is not trusted any more");
        let record = Record::Distrust { worker: worker.to_owned(), reason: reason.to_owned(), numbers, epoch };
        self.append(vec![record])?;
        self.fleet.distrust(worker, reason);
        if !retracts {
            self.replay.distrusted.insert(worker.to_owned(), reason.to_owned());
            return Ok(());
        }
        // The journal is the only place that still has every result.
        self.replay = replay(&self.journal.records()?, Some(&self.replay.resolved))?;
        self.epoch = epoch;
        self.generation = self.replay.search.generation();
        self.best = self.replay.search.best().map(|best| best.number);
        self.given_up.clear();
        self.fleet.begin(epoch);
        self.compare_best();
        self.dismiss();
        Ok(())
    }

    /// An operator's action.
    pub(super) fn operate(&mut self, request: v1::OperateRequest) -> Result<v1::OperateReply, Status> {
        let unknown = |worker: &str| Status::not_found(format!("no worker is known as {worker:?}"));
        let done = match request.action {
            None => return Err(Status::invalid_argument("the request names no action")),
            Some(Action::Pause(_)) => {
                self.held = true;
                "no more work is handed out, and workers wait".to_owned()
            }
            Some(Action::Resume(_)) => {
                self.held = false;
                "work is handed out".to_owned()
            }
            Some(Action::Readmit(v1::Readmit { worker })) => {
                if !self.fleet.readmit(&worker) {
                    return Err(unknown(&worker));
                }
                if self.replay.distrusted.remove(voice(&worker)).is_some() {
                    self.later.push(Record::Readmit { worker: voice(&worker).to_owned() });
                }
                format!("{worker} is given work again")
            }
            Some(Action::Distrust(v1::Distrust { worker })) => {
                if !self.fleet.knows(&worker) && !self.replay.authors.values().any(|author| voice(author) == voice(&worker)) {
                    return Err(unknown(&worker));
                }
                self.caught.push((voice(&worker).to_owned(), "an operator said so".into()));
                format!("{worker} is given no more work, and its unconfirmed results are scored again")
            }
        };
        Ok(v1::OperateReply { done })
    }
}
