//! `evaluate`: the scores of one checkpoint on a search's tasks.

use std::{io::Write as _, ops::ControlFlow};

use evolver_common::{
    checkpoint::DigestCache,
    definition::{self, Expert},
    recipe::Recipe,
    score::Split,
};
use evolver_coordinator::setup;
use evolver_worker::child::Workshop;

use crate::{cli, fail::refuse};

pub(crate) fn evaluate(options: &cli::Evaluate) -> anyhow::Result<()> {
    let mut definition = definition::load(&options.definition.search, &options.definition.overrides).map_err(refuse)?;
    // The checkpoint joins the experts, so that it is checked as they are; a name that no expert can have keeps it apart.
    definition.models.experts.push(Expert { name: ".checkpoint".into(), path: std::path::absolute(&options.checkpoint)? });
    let resolved = definition::resolve(definition, &DigestCache::in_memory()).map_err(refuse)?;
    let objective = setup::search(&resolved).map_err(refuse)?.objective;
    let digest = resolved.experts.last().map_or(resolved.base.digest, |source| source.digest);
    let scratch = tempfile::tempdir()?;
    let mut workshop = Workshop::open(&resolved, scratch.path()).map_err(|failure| refuse(failure.message))?;
    let candidate = workshop.materializer().build(&Recipe::checkpoint(digest), &[])?;
    let split = match options.split {
        cli::SplitName::Dev => Split::Dev,
        cli::SplitName::Test => Split::Test,
    };
    let scores = workshop.score(candidate, split.into(), &mut |_, _| ControlFlow::Continue(()))?;
    let interval = objective.interval(&scores);
    let mut out = std::io::stdout().lock();
    if options.json {
        let json = serde_json::json!({ "mean": interval.mean, "interval": [interval.low, interval.high], "tasks": scores.tasks });
        writeln!(out, "{json}")?;
        return Ok(());
    }
    for task in &scores.tasks {
        let metric = |name: &str| task.metrics.get(name).copied().unwrap_or(f64::NAN);
        writeln!(
            out,
            "{:<20} accuracy {:.4} ± {:.4}   macro-F1 {:.4} ± {:.4}   {} items",
            task.task,
            metric("accuracy"),
            metric("accuracy_stderr"),
            metric("macro_f1"),
            metric("macro_f1_stderr"),
            task.credits.len()
        )?;
    }
    writeln!(out, "mean {:.4}, 95 % interval {:.4} to {:.4}", interval.mean, interval.low, interval.high)?;
    Ok(())
}
