//! `show` and `verify`: what a search's folder holds.

use std::{io::Write as _, path::Path};

use evolver_coordinator::{
    journal,
    search::{Individual, Phase},
    service::{Replay, replay},
};
use serde_json::{Value, json};

use crate::{cli, fail::refuse, table};

/// Reads and folds a folder's journal.
pub(crate) fn open(dir: &Path) -> anyhow::Result<Replay> {
    let records = journal::read(dir).map_err(refuse)?;
    replay(&records, None).map_err(refuse)
}

pub(crate) fn show(options: &cli::Show) -> anyhow::Result<()> {
    let replay = open(&options.dir)?;
    let mut out = std::io::stdout().lock();
    if options.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&json(&replay))?)?;
    } else {
        write!(out, "{}", text(&replay))?;
    }
    Ok(())
}

pub(crate) fn verify(dir: &Path) -> anyhow::Result<()> {
    let records = journal::verify(dir)?;
    let replay = open(dir)?;
    writeln!(
        std::io::stdout(),
        "{records} records verify, and fold to the state {} after {} results",
        replay.search.state_hash(),
        replay.search.absorbed()
    )?;
    Ok(())
}

fn json(replay: &Replay) -> Value {
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
            "id": best.id, "digest": best.id, "name": best.name, "dev": best.dev, "test": test(best), "recipe": best.recipe.to_string(),
        })),
        "front": search.front().iter().map(member).collect::<Value>(),
        "population": search.population().iter().map(member).collect::<Value>(),
        "seconds": replay.spent.seconds,
        "failed_attempts": replay.spent.failed_attempts,
        "overhead": overhead(replay),
        "worker_seconds": replay.spent.timings,
    })
}

/// The share of the workers' time that was not scoring.
fn overhead(replay: &Replay) -> f64 {
    let timings = &replay.spent.timings;
    let other = timings.lease + timings.build + timings.report;
    let all = other + timings.score;
    if all > 0.0 { other / all } else { 0.0 }
}

fn text(replay: &Replay) -> String {
    let search = &replay.search;
    let counters = search.counters();
    let timings = &replay.spent.timings;
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
        "workers: {:.1} s scoring, {:.1} s building, {:.2} s leasing, {:.2} s reporting: {:.1} % overhead; {} failed attempts\nstate {}\n\n",
        timings.score,
        timings.build,
        timings.lease,
        timings.report,
        100.0 * overhead(replay),
        replay.spent.failed_attempts,
        search.state_hash(),
    ));
    out.push_str(&table::text(replay));
    out.push_str(&table::front(replay));
    if let Some(best) = search.best() {
        out.push_str(&format!("\nThe best is {}:\n\n{}\n", best.id, best.recipe));
    }
    out
}
