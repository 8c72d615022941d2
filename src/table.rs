//! The table that a search ends with, as text and as JSON.

use std::{fmt::Write as _, fs, path::Path};

use evolver_common::{
    checkpoint::write,
    digest::Digest,
    score::{Scores, Weighted},
};
use evolver_coordinator::{
    search::{Guest, Individual},
    service::Replay,
};
use serde_json::{Map, Value, json};

/// The file with the table's rows, in a search's folder.
pub(crate) const RESULTS: &str = "results.json";

/// The rows as JSON, in the order of the table.
pub(crate) fn rows(replay: &Replay) -> Value {
    replay.search.table().iter().map(|individual| row(replay, individual)).collect()
}

fn row(replay: &Replay, individual: &Individual) -> Value {
    let search = &replay.search;
    let (test, fresh) = (search.test_scores(individual), search.fresh_scores(individual));
    // Several final candidates are looked at: their intervals hold together.
    let corrected = |scores: &Scores| {
        let interval = search.interval_of_final(scores);
        json!([interval.low, interval.high])
    };
    let interval = |scores: &Scores| {
        let interval = search.interval(scores);
        json!([interval.low, interval.high])
    };
    let name = if individual.name.is_empty() { "evolved" } else { &individual.name };
    // What was spent on rows of the table alone did not help to find the evolved one.
    let own: u64 = items(&individual.scores);
    let references = search.table().iter().filter(|row| row.kind != "evolved").count() as u64;
    let members = search.setup().individuals.len() as u64;
    let spent = if individual.kind == "evolved" { search.items() - own * (references - members.min(references)) } else { own };
    let per_task: Map<String, Value> = search
        .dev_scores(individual)
        .tasks
        .iter()
        .enumerate()
        .map(|(index, dev)| {
            let test = test.and_then(|test| test.tasks.get(index));
            let metrics =
                |score: &evolver_common::score::TaskScore| json!({ "metrics": score.metrics, "items": score.credits.len() });
            (dev.task.clone(), json!({ "dev": metrics(dev), "test": test.map(metrics) }))
        })
        .collect();
    json!({
        "name": name,
        "kind": individual.kind,
        "id": individual.id,
        "dev_mean": individual.dev,
        "dev_interval": interval(&individual.scores),
        "test_mean": test.map(|scores| search.interval(scores).mean),
        "test_interval": test.map(corrected),
        "fresh_mean": fresh.map(|scores| search.interval(scores).mean),
        "fresh_interval": fresh.map(corrected),
        "per_task": per_task,
        "dev_items_spent": spent,
        "seconds": replay.seconds_until(individual.number),
    })
}

fn items(scores: &Scores) -> u64 {
    scores.tasks.iter().map(|task| task.credits.len() as u64).sum()
}

/// Writes `results.json`; `digest` is that of the exported best model.
pub(crate) fn save(replay: &Replay, digest: Option<Digest>, path: &Path) -> anyhow::Result<()> {
    let results = json!({
        "rows": rows(replay),
        "best": replay.search.best().map(|best| json!({ "id": best.id, "digest": digest })),
        "state_hash": replay.search.state_hash(),
        "stopped_by": replay.search.stopped_by(),
        "seconds": replay.spent.seconds,
    });
    write::file(path, serde_json::to_string_pretty(&results)?.as_bytes())?;
    Ok(())
}

/// The content digest of the best model's weights, if `results.json` in `dir` was written when the same model was the best.
pub(crate) fn best_digest(replay: &Replay, dir: &Path) -> Option<Value> {
    let results: Value = serde_json::from_slice(&fs::read(dir.join(RESULTS)).ok()?).ok()?;
    let best = &results["best"];
    (best["id"] == json!(replay.search.best()?.id)).then(|| best["digest"].clone())
}

/// A classifier's two metrics, whichever the search maximises, where they were measured; of other tasks that one.
fn shown<'m>(rows: &[&Value], task: &str, metric: &'m str) -> Vec<&'m str> {
    const BOTH: [&str; 2] = ["accuracy", "macro_f1"];
    let measured = |metric: &&str| rows.iter().any(|row| row["per_task"][task]["dev"]["metrics"][*metric].is_number());
    if BOTH.contains(&metric) { BOTH.into_iter().filter(measured).collect() } else { vec![metric] }
}

/// The rows as a table for people: the metrics of each task, dev / test, in percent.
pub(crate) fn text(replay: &Replay) -> String {
    let rows = rows(replay);
    let rows: Vec<&Value> = rows.as_array().into_iter().flatten().collect();
    let tasks: Vec<_> = replay.search.setup().tasks.iter().map(|task| task.name.as_str()).collect();
    let percent = |value: &Value| value.as_f64().map_or("  – ".to_owned(), |value| format!("{:4.1}", 100.0 * value));
    let mut out = String::new();
    // Dev items that no decision has read, where the acceptance rule keeps some.
    let reserve = rows.iter().any(|row| !row["fresh_mean"].is_null());
    let fresh_head = if reserve { format!(" {:>19}", "reserved dev") } else { String::new() };
    writeln!(
        out,
        "The objective over {} tasks with 95 % intervals, those of the final columns corrected for {} models looked at:\n",
        tasks.len(),
        rows.len()
    )
    .ok();
    writeln!(
        out,
        "{:<17} {:<7} {:>19}{fresh_head} {:>19} {:>10} {:>8}",
        "model", "kind", "dev", "sealed test", "dev items", "seconds"
    )
    .ok();
    let range =
        |mean: &Value, interval: &Value| format!("{} [{}, {}]", percent(mean), percent(&interval[0]), percent(&interval[1]));
    for row in &rows {
        let (name, kind) = (row["name"].as_str().unwrap_or(""), row["kind"].as_str().unwrap_or(""));
        let (dev, test) = (range(&row["dev_mean"], &row["dev_interval"]), range(&row["test_mean"], &row["test_interval"]));
        let (spent, seconds) = (&row["dev_items_spent"], row["seconds"].as_f64().unwrap_or(0.0));
        let fresh = range(&row["fresh_mean"], &row["fresh_interval"]);
        let fresh = if reserve { format!(" {fresh:>19}") } else { String::new() };
        writeln!(out, "{name:<17} {kind:<7} {dev:>19}{fresh} {test:>19} {spent:>10} {seconds:>8.1}").ok();
    }
    writeln!(out, "\nMetrics of each task, dev / test:\n").ok();
    write!(out, "{:<17}", "model").ok();
    let objective = &replay.search.setup().objective;
    let column = |(task, weighted): (&&str, &Weighted)| {
        let metrics = shown(&rows, task, &weighted.metric);
        let head = format!("{task}: {}", metrics.join(", "));
        (metrics.into_iter().map(str::to_owned).collect::<Vec<_>>(), head.chars().count().max(26), head)
    };
    let columns: Vec<_> = tasks.iter().zip(&objective.tasks).map(column).collect();
    for (_, width, head) in &columns {
        write!(out, " {head:>width$}").ok();
    }
    out.push('\n');
    for row in &rows {
        write!(out, "{:<17}", row["name"].as_str().unwrap_or("")).ok();
        for (task, (metrics, width, _)) in tasks.iter().zip(&columns) {
            let metric = |metric: &String| {
                let of = |split: &str| percent(&row["per_task"][task][split]["metrics"][metric]);
                format!("{}/{}", of("dev"), of("test"))
            };
            write!(out, " {:>width$}", metrics.iter().map(metric).collect::<Vec<_>>().join("  ")).ok();
        }
        out.push('\n');
    }
    out
}

/// What became of the models that were enqueued, for people; nothing where there was none.
pub(crate) fn guests(replay: &Replay) -> String {
    let mut out = String::new();
    for guest in replay.search.guests() {
        let (id, name) = (guest.individual.id.to_string(), &guest.individual.name);
        let end = match guest {
            Guest { scored: false, .. } => "it could not be scored".to_owned(),
            Guest { accepted: true, .. } => format!("{:.1} on dev, accepted", 100.0 * guest.individual.dev),
            _ => format!("{:.1} on dev, not accepted", 100.0 * guest.individual.dev),
        };
        writeln!(out, "\nEnqueued as {name} ({}): {end}", &id[..12]).ok();
    }
    out
}

/// The Pareto front over tasks, for people; nothing where there is only one task.
pub(crate) fn front(replay: &Replay) -> String {
    let search = &replay.search;
    if search.setup().tasks.len() < 2 || search.front().is_empty() {
        return String::new();
    }
    let mut out = String::from("\nThe Pareto front over tasks, on dev; `evolver export` takes the beginning of an id:\n\n");
    write!(out, "{:<12} {:<17}", "id", "name").ok();
    for task in &search.setup().tasks {
        write!(out, " {:>12}", task.name).ok();
    }
    out.push('\n');
    for individual in search.front() {
        let name = if individual.name.is_empty() { "evolved" } else { &individual.name };
        write!(out, "{:<12} {name:<17}", &individual.id.to_string()[..12]).ok();
        for value in search.setup().objective.values(&individual.scores) {
            write!(out, " {:>12}", format!("{:.1}", 100.0 * value)).ok();
        }
        out.push('\n');
    }
    out
}
