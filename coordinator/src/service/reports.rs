//! Reports: what is checked before one counts, and what becomes of it.

use evolver_common::{digest::Digest, score::Scores, score::Split};
use evolver_proto::{parts_from_wire, scores_from_wire, v1};
use tonic::Status;

use super::core::{Core, Reply, token};
use crate::{
    fleet::{Purpose, Token},
    journal::{Log, Record, Timings},
};

/// Longest reason of a failure that is journaled, in bytes.
const REASON_MAX: usize = 4000;

/// A report that has passed its checks and waits for the commit.
pub(super) struct Accepted {
    pub(super) token: Token,
    pub(super) worker: String,
    /// On whose word the scores stand.
    pub(super) author: String,
    pub(super) records: Vec<Record>,
    /// Whether another worker is asked for the same.
    pub(super) compared: bool,
    /// The scores of a spec that the search waits for.
    pub(super) scores: Option<Scores>,
    pub(super) reply: Reply<v1::ReportReply>,
    pub(super) verdict: v1::ReportReply,
}

impl<L: Log> Core<L> {
    pub(super) fn report(&mut self, request: v1::ReportRequest, reply: Reply<v1::ReportReply>, reports: &mut Vec<Accepted>) {
        let Some(token) = request.token.map(token) else {
            reply.send(Err(Status::invalid_argument("the report has no token"))).ok();
            return;
        };
        // Another's token is as good as none: it cannot be told from a forged one.
        let holds = self.fleet.holder(token) == Some(request.worker.as_str());
        let done = reports.iter().any(|other| other.token.spec == token.spec && other.scores.is_some());
        let purpose = self.fleet.purpose(token).filter(|_| holds && !done);
        let Some(purpose) = purpose else {
            if let Some(audit) = self.audit.as_ref().filter(|_| self.fleet.is_foreign(token, &request.worker)) {
                audit.note(&request.worker, "", "Report", "refused: the token was not given to this worker");
            }
            let reason = "another attempt holds this spec, or it has a result";
            reply.send(Ok(answer(v1::report_reply::Verdict::Superseded, reason))).ok();
            return;
        };
        let worker = request.worker;
        let scores = match request.result {
            Some(v1::report_request::Result::Scores(scores)) => scores,
            Some(v1::report_request::Result::Failure(failure)) => {
                let class = v1::FailureClass::try_from(failure.class).unwrap_or_default();
                let name = class.as_str_name().trim_start_matches("FAILURE_CLASS_").to_lowercase();
                let message = &failure.message[..failure.message.floor_char_boundary(REASON_MAX)];
                let verdict = answer(v1::report_reply::Verdict::Committed, "");
                reports.push(self.failed(token, worker, &format!("{name}: {message}"), class, verdict, reply));
                return;
            }
            released => {
                if let Some(v1::report_request::Result::Released(v1::Released { parts })) = released {
                    self.fleet.hand_in(token, parts_from_wire(parts));
                }
                self.fleet.release(token);
                reply.send(Ok(answer(v1::report_reply::Verdict::Committed, ""))).ok();
                return;
            }
        };
        let scores =
            scores_from_wire(scores).map_err(|error| error.to_string()).and_then(|scores| self.check(token.spec, scores));
        match (scores, purpose) {
            (Ok(scores), Purpose::Search) => {
                let timings = request.timings.unwrap_or_default();
                let author = self.fleet.author(token, &worker);
                let record = Record::Result {
                    number: token.spec,
                    recipe: self.recipe_id(token.spec),
                    scores: scores.clone(),
                    worker: author.clone(),
                    attempt: token.attempt,
                    timings: Timings {
                        lease: seconds(timings.lease),
                        build: seconds(timings.build),
                        score: seconds(timings.score),
                        report: seconds(timings.report),
                    },
                    elapsed: self.now().as_secs_f64(),
                };
                let compared = self.fleet.compares(&worker);
                let compare = compared.then_some(Record::Compare { number: token.spec });
                let records = compare.into_iter().chain([record]).collect();
                let verdict = answer(v1::report_reply::Verdict::Committed, "");
                reports.push(Accepted { token, worker, author, records, compared, scores: Some(scores), reply, verdict });
            }
            (Ok(scores), Purpose::Check) => {
                let consequences = self.fleet.answer(token, scores, self.now());
                self.follow(consequences);
                reply.send(Ok(answer(v1::report_reply::Verdict::Committed, ""))).ok();
            }
            (Err(reason), _) => {
                let refused = answer(v1::report_reply::Verdict::Refused, &reason);
                reports.push(self.failed(token, worker, &reason, v1::FailureClass::Error, refused, reply));
            }
        }
    }

    fn failed(
        &mut self,
        token: Token,
        worker: String,
        reason: &str,
        class: v1::FailureClass,
        verdict: v1::ReportReply,
        reply: Reply<v1::ReportReply>,
    ) -> Accepted {
        tracing::warn!(worker, spec = token.spec, reason, "attempt failed");
        let attempt = Record::Attempt { number: token.spec, worker: worker.clone(), reason: reason.to_owned() };
        let now = self.now();
        match class {
            v1::FailureClass::Killed => self.fleet.lose(token, reason, now),
            v1::FailureClass::Input => self.fleet.spoil(token, reason, now),
            _ => self.fleet.fail(token, reason, now),
        }
        Accepted { token, author: worker.clone(), worker, records: vec![attempt], compared: false, scores: None, reply, verdict }
    }

    /// The scores must cover each task's items, and say the accuracy that their items say.
    fn check(&self, spec: u64, scores: Scores) -> Result<Scores, String> {
        let portion = self.fleet.spec(spec).map_or(Split::Dev.into(), |spec| spec.portion);
        let tasks = &self.replay.search.setup().tasks;
        if tasks.len() != scores.tasks.len() {
            return Err(format!("{} tasks were scored, and there are {}", scores.tasks.len(), tasks.len()));
        }
        for ((task, score), weighted) in tasks.iter().zip(&scores.tasks).zip(&self.replay.search.setup().objective.tasks) {
            let items = portion.count(if portion.split == Split::Test { task.test_items } else { task.dev_items });
            if task.name != score.task || score.credits.len() != items {
                return Err(format!(
                    "task {} has {items} items to be scored, and {} of task {} were reported",
                    task.name,
                    score.credits.len(),
                    score.task
                ));
            }
            match score.metrics.get(&weighted.metric) {
                None if items > 0 => return Err(format!("task {}: the metric {} is missing", task.name, weighted.metric)),
                Some(value) if !(0.0..=1.0).contains(value) => {
                    return Err(format!("task {}: {} is {value}, outside 0 to 1", task.name, weighted.metric));
                }
                _ => {}
            }
            #[expect(clippy::cast_precision_loss, reason = "a count of items")]
            let mean = score.credits.iter().map(|&credit| f64::from(credit)).sum::<f64>() / items as f64;
            if score.metrics.get("accuracy").is_some_and(|accuracy| (accuracy - mean).abs() > 1e-9) {
                return Err(format!("task {}: the accuracy is not the mean of its items, {mean}", task.name));
            }
        }
        Ok(scores)
    }

    fn recipe_id(&self, spec: u64) -> Digest {
        self.fleet.spec(spec).map_or(self.hash, |spec| spec.recipe.id())
    }
}

fn answer(verdict: v1::report_reply::Verdict, reason: &str) -> v1::ReportReply {
    v1::ReportReply { verdict: verdict.into(), reason: reason.into() }
}

/// Seconds as a worker tells them; what cannot be a time counts as none. The journal's JSON has no NaN.
fn seconds(told: f64) -> f64 {
    if told.is_finite() { told.max(0.0) } else { 0.0 }
}
