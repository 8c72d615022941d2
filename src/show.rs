//! `show` and `verify`: what a search's folder holds.

use std::{io::Write as _, path::Path};

use evolver_coordinator::{
    journal::{self, JournalError},
    search::{Individual, Phase},
    service::{Failed, Replay, replay},
};
use serde_json::{Value, json};

use crate::{cli, fail::refuse, table};

/// Failed attempts that are shown with their reasons.
const FAILED_SHOWN: usize = 10;

/// Reads and folds a folder's journal.
pub(crate) fn open(dir: &Path) -> anyhow::Result<Replay> {
    let records = journal::read(dir).map_err(refuse)?;
    replay(&records, None).map_err(refuse)
}

pub(crate) fn show(options: &cli::Show) -> anyhow::Result<()> {
    let replay = open(&options.dir)?;
    let mut out = std::io::stdout().lock();
    if options.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&json(&replay, &options.dir))?)?;
    } else {
        write!(out, "{}", text(&replay))?;
    }
    Ok(())
}

pub(crate) fn verify(dir: &Path) -> anyhow::Result<()> {
    // A damaged record is what was asked for and no wrong use.
    let records = journal::verify(dir).map_err(|error| match error {
        JournalError::Missing(_) => refuse(error),
        other => other.into(),
    })?;
    let replay = open(dir)?;
    writeln!(
        std::io::stdout(),
        "{records} records verify, and fold to the state {} after {} results",
        replay.search.state_hash(),
        replay.search.absorbed()
    )?;
    Ok(())
}

fn json(replay: &Replay, dir: &Path) -> Value {
    let search = &replay.search;
    let test = |individual: &Individual| search.test_scores(individual).map(|scores| search.interval(scores).mean);
    let member = |individual: &Individual| {
        json!({
            "id": individual.id, "name": individual.name, "kind": individual.kind, "parents": individual.parents,
            "recipe": individual.recipe.to_string(), "dev": individual.dev,
        })
    };
    json!({
        "state_hash": search.state_hash(),
        "definition_hash": replay.resolved.hash(),
        "phase": search.phase(),
        "finished": search.phase() == Phase::Finished,
        "stopped_by": search.stopped_by(),
        "generation": search.generation(),
        "offspring": search.counters(),
        "items_scored": search.items(),
        "best": search.best().map(|best| json!({
            "id": best.id, "digest": table::best_digest(replay, dir), "name": best.name, "dev": best.dev, "test": test(best), "recipe": best.recipe.to_string(),
        })),
        "front": search.front().iter().map(member).collect::<Value>(),
        "enqueued": search.guests().iter().map(|guest| json!({
            "id": guest.individual.id, "name": guest.individual.name, "dev": guest.scored.then_some(guest.individual.dev), "accepted": guest.accepted,
        })).collect::<Value>(),
        "population": search.population().iter().map(member).collect::<Value>(),
        "seconds": replay.spent.seconds,
        "failed_attempts": replay.failed_attempts.len(),
        "last_failed_attempts": last(&replay.failed_attempts),
        "given_up": replay.given_up,
        "overhead": replay.spent.offspring.overhead(),
        "worker_seconds": { "offspring": replay.spent.offspring, "all": replay.spent.timings },
    })
}

/// The newest of what may be very many.
fn last(failed: &[Failed]) -> &[Failed] {
    &failed[failed.len().saturating_sub(FAILED_SHOWN)..]
}

fn text(replay: &Replay) -> String {
    let search = &replay.search;
    let counters = search.counters();
    let timings = &replay.spent.offspring;
    let ended = match search.stopped_by() {
        "" => String::new(),
        by => format!(", ended by {by}"),
    };
    let mut out = format!(
        "{}: {:?} after {} generations{ended}\noffspring: {} drawn, {} scored, {} accepted, {} given up; {} dev items\n",
        replay.resolved.definition.name,
        search.phase(),
        search.generation(),
        counters.issued,
        counters.committed,
        counters.accepted,
        counters.failed,
        search.items(),
    );
    out.push_str(&format!(
        "workers, for offspring: {:.1} s scoring, {:.1} s building, {:.2} s leasing, {:.2} s reporting: {:.1} % overhead; {} failed attempts\nstate {}\n\n",
        timings.score,
        timings.build,
        timings.lease,
        timings.report,
        100.0 * timings.overhead(),
        replay.failed_attempts.len(),
        search.state_hash(),
    ));
    for (what, failed) in [("given up", &replay.given_up), ("failed attempt", &replay.failed_attempts)] {
        for failed in last(failed) {
            out.push_str(&format!("{what}: spec {}: {}\n", failed.number, failed.reason));
        }
    }
    out.push_str(&table::text(replay));
    out.push_str(&table::front(replay));
    out.push_str(&table::guests(replay));
    if let Some(best) = search.best() {
        out.push_str(&format!("\nThe best is {}:\n\n{}\n", best.id, best.recipe));
    }
    out
}
