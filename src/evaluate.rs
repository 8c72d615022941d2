//! `evaluate`: the scores of one checkpoint on a search's tasks, or of two on the same items.

use std::{fmt::Write as _, io::Write as _, ops::ControlFlow, path::Path};

use evolver_common::{
    checkpoint::{DigestCache, write},
    definition::{self, Expert},
    recipe::Recipe,
    score::{Objective, Parts, Scores, Split, TaskScore},
};
use evolver_coordinator::setup;
use evolver_worker::{child::Workshop, evaluate};
use serde_json::{Value, json};

use crate::{cli, fail::refuse};

pub(crate) fn evaluate(options: &cli::Evaluate) -> anyhow::Result<()> {
    let mut definition = definition::load(&options.definition.search, &options.definition.overrides).map_err(refuse)?;
    evaluate::complete(&mut definition).map_err(|problems| refuse(problems.join("\n")))?;
    let paths: Vec<_> = std::iter::once(&options.checkpoint).chain(&options.with).collect();
    let experts = definition.models.experts.len();
    // The checkpoints join the experts, so that they are checked as those are, and take part in no merge. Their paths are names that no expert can have.
    definition.merges.clear();
    for path in &paths {
        let path = std::path::absolute(path)?;
        definition.models.experts.push(Expert { name: path.display().to_string(), path, statistics: None });
    }
    let resolved = definition::resolve(definition, &DigestCache::in_memory()).map_err(refuse)?;
    let objective = setup::search(&resolved).map_err(refuse)?.objective;
    let scratch = tempfile::tempdir()?;
    let mut workshop = Workshop::open(&resolved, scratch.path()).map_err(|failure| refuse(failure.message))?;
    let split = match options.split {
        cli::SplitName::Dev => Split::Dev,
        cli::SplitName::Test => Split::Test,
    };
    let mut all = Vec::new();
    for source in &resolved.experts[experts..] {
        let candidate = workshop.materializer().build(&Recipe::checkpoint(source.digest), &[])?;
        all.push(workshop.score(candidate, split.into(), &Parts::default(), &mut |_, _, _| ControlFlow::Continue(()))?);
    }
    if let Some(path) = &options.items {
        save_items(path, split, &all)?;
    }
    let text = if options.json { report(&objective, &all).to_string() + "\n" } else { table(&objective, &all, &paths) };
    Ok(write!(std::io::stdout(), "{text}")?)
}

/// A line for each item, with the credit of each checkpoint.
fn save_items(path: &Path, split: Split, all: &[Scores]) -> anyhow::Result<()> {
    let mut lines = String::new();
    for (task, score) in all[0].tasks.iter().enumerate() {
        for item in 0..score.credits.len() {
            let credits: Vec<_> = all.iter().map(|scores| scores.tasks[task].credits[item]).collect();
            let mut line = json!({ "task": score.task, "split": split, "item": item, "credit": credits[0] });
            if let Some(other) = credits.get(1) {
                line["credit_with"] = (*other).into();
            }
            writeln!(lines, "{line}").ok();
        }
    }
    Ok(write::file(path, lines.as_bytes())?)
}

fn report(objective: &Objective, all: &[Scores]) -> Value {
    let one = |scores: &Scores| {
        let interval = objective.interval(scores);
        json!({ "mean": interval.mean, "interval": [interval.low, interval.high], "tasks": scores.tasks })
    };
    let mut report = one(&all[0]);
    if let Some(other) = all.get(1) {
        let difference = objective.difference(&all[0], other);
        report["with"] = one(other);
        report["difference"] = json!({
            "mean": difference.mean, "interval": [difference.low, difference.high], "z": finite(objective.paired_z(&all[0], other)),
        });
    }
    report
}

/// JSON has no infinity.
fn finite(z: f64) -> f64 {
    z.clamp(-1e9, 1e9)
}

fn table(objective: &Objective, all: &[Scores], paths: &[&std::path::PathBuf]) -> String {
    let mut text = String::new();
    for (scores, path) in all.iter().zip(paths) {
        if all.len() > 1 {
            writeln!(text, "{}", path.display()).ok();
        }
        scores.tasks.iter().for_each(|task| writeln!(text, "{}", line(task)).unwrap_or_default());
        let interval = objective.interval(scores);
        writeln!(text, "mean {:.4}, 95 % interval {:.4} to {:.4}", interval.mean, interval.low, interval.high).ok();
    }
    if let [first, second] = all {
        let (difference, z) = (objective.difference(first, second), objective.paired_z(first, second));
        let verdict = if z.abs() < 1.96 { "no more than chance would give" } else { "more than chance would give" };
        writeln!(
            text,
            "difference on the same items, first less second: {:+.4}, 95 % interval {:+.4} to {:+.4}, z {z:.2}: {verdict}",
            difference.mean, difference.low, difference.high
        )
        .ok();
    }
    text
}

/// A task's metrics with their standard errors.
fn line(task: &TaskScore) -> String {
    let metrics = task.metrics.iter().filter(|(name, _)| !name.ends_with("_stderr"));
    let shown = metrics.map(|(name, value)| match task.metrics.get(&format!("{name}_stderr")) {
        Some(error) => format!("{name} {value:.4} ± {error:.4}"),
        None => format!("{name} {value:.4}"),
    });
    format!("{:<20} {}   {} items", task.task, shown.collect::<Vec<_>>().join("   "), task.credits.len())
}
