//! What is published of the search and its fleet.

use std::time::Duration;

use evolver_proto::v1;

use super::core::Core;
use crate::{fleet::Worker, journal::Log, search::Phase};

/// Building a status costs this much for each worker; it is published no more often than keeps that a small share.
const PACE: Duration = Duration::from_micros(20);

impl<L: Log> Core<L> {
    pub(super) fn publish(&mut self) {
        let workers = u32::try_from(self.fleet.workers().count()).unwrap_or(u32::MAX);
        if self.now() < self.published + PACE * workers {
            return;
        }
        self.published = self.now();
        let status = self.status();
        self.publish.send_if_modified(|current| {
            let changed = *current != status;
            *current = status;
            changed
        });
    }

    /// The status now.
    #[must_use]
    pub fn status(&self) -> v1::Status {
        let search = &self.replay.search;
        let (counters, now) = (search.counters(), self.now());
        let finished = self.finished();
        let busy = self.fleet.workers().any(|(_, worker)| worker.holds.is_some());
        let phase = match search.phase() {
            _ if self.paused && !busy => "paused",
            Phase::Start => "start",
            Phase::Search => "search",
            Phase::Test => "test",
            Phase::Finished if !finished => "check",
            Phase::Finished => "finished",
        };
        let worker = |(name, worker): (&String, &Worker)| {
            let record = self.fleet.record(name, now);
            v1::WorkerStatus {
                worker: name.clone(),
                host: worker.host.clone(),
                spec: worker.holds,
                items_done: worker.done,
                items_total: worker.total,
                results: record.results,
                failures: record.failures,
                checked: record.checked,
                agreed: record.agreed,
                withheld: record.withheld,
            }
        };
        let best = search.best().map(|best| {
            let interval = search.interval(&best.scores);
            v1::Best { id: best.id.to_string(), dev: best.dev, dev_low: interval.low, dev_high: interval.high }
        });
        let stuck = if finished {
            None
        } else if self.full {
            Some("the coordinator's disk is full".to_owned())
        } else {
            self.fleet.stuck(now)
        };
        v1::Status {
            epoch: self.epoch,
            phase: phase.into(),
            generation: search.generation(),
            issued: counters.issued,
            committed: counters.committed,
            accepted: counters.accepted,
            failed: counters.failed,
            offspring_limit: search.planned(),
            best,
            workers: self.fleet.workers().map(worker).collect(),
            finished,
            stopped_by: search.stopped_by().into(),
            items_scored: search.items(),
            stuck: stuck.unwrap_or_default(),
            checks_open: self.fleet.checks_open() as u64,
            retracted: self.replay.retracted,
        }
    }
}
