//! `check`: everything that a merge or a search would refuse, and what a merge would cost, from headers alone.

use std::{io::Write as _, path::Path, time::Instant};

use evolver_common::definition;
use evolver_coordinator::setup;
use evolver_oneshot::{
    check::{Costs, is_merge},
    config::MergeConfig,
    output::bytes,
    plan::{Plan, PlanOptions},
};
use serde_json::json;

use crate::{cli, fail::refuse};

pub(crate) fn check(options: &cli::Check) -> anyhow::Result<()> {
    let began = Instant::now();
    if is_merge(&options.config) {
        let config = MergeConfig::load(&options.config).map_err(refuse)?;
        let plan = Plan::open(config, PlanOptions { dtype: options.written.dtype }).map_err(refuse)?;
        let read = began.elapsed();
        let beside = options.config.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let costs = plan.costs(options.written.max_shard_size, options.out.as_deref().unwrap_or(beside));
        return report(options, &plan, &costs, read.as_secs_f64());
    }
    let definition = definition::load(&options.config, &[]).map_err(refuse)?;
    let resolved = definition::preflight(definition).map_err(refuse)?;
    setup::search(&resolved).map_err(refuse)?;
    let definition = &resolved.definition;
    let seconds = began.elapsed().as_secs_f64();
    let mut out = std::io::stdout().lock();
    if options.json {
        writeln!(
            out,
            "{}",
            json!({ "kind": "search", "experts": definition.models.experts.len(), "tasks": definition.tasks.len(), "header_seconds": seconds })
        )?;
    } else {
        writeln!(
            out,
            "the search can begin: {} experts and {} tasks fit, by headers and data ({:.0} ms); weights are scanned for NaN when it begins",
            definition.models.experts.len(),
            definition.tasks.len(),
            1000.0 * seconds
        )?;
    }
    Ok(())
}

fn report(options: &cli::Check, plan: &Plan, costs: &Costs, read_seconds: f64) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    let files = plan.files();
    if options.json {
        let value = json!({
            "kind": "merge", "method": plan.config.method, "models": plan.models.iter().map(|model| model.reference.to_string()).collect::<Vec<_>>(),
            "tensors": plan.tensors.len(), "parameters": costs.parameters, "read_bytes": costs.read, "write_bytes": costs.write,
            "shards": costs.shards, "memory_bytes": costs.memory, "merge_seconds": costs.seconds, "free_bytes": costs.free,
            "notes": plan.notes, "weight_files": files, "header_seconds": read_seconds,
        });
        writeln!(out, "{}", serde_json::to_string_pretty(&value)?)?;
        return fits(costs);
    }
    writeln!(
        out,
        "the merge fits: {} over {} models, {} tensors in {} weight files read by header in {:.0} ms",
        plan.config.method,
        plan.models.len(),
        plan.tensors.len(),
        files,
        1000.0 * read_seconds
    )?;
    for note in &plan.notes {
        writeln!(out, "note: {note}")?;
    }
    #[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
    let millions = costs.parameters as f64 / 1e6;
    writeln!(
        out,
        "output   {} in {} weight file{}, {millions:.1} M parameters",
        bytes(costs.write),
        costs.shards,
        if costs.shards == 1 { "" } else { "s" }
    )?;
    writeln!(out, "reads    {}", bytes(costs.read))?;
    writeln!(out, "memory   about {} private, besides mapped files", bytes(costs.memory))?;
    match costs.seconds {
        Some(seconds) => writeln!(
            out,
            "time     about {seconds:.1} s of merging, by a sample on this machine; reading, digests and writing come on top"
        )?,
        None => writeln!(out, "time     not told: {} decomposes matrices", plan.config.method)?,
    }
    if let Some(free) = costs.free {
        writeln!(out, "disk     {} free", bytes(free))?;
    }
    fits(costs)
}

fn fits(costs: &Costs) -> anyhow::Result<()> {
    match costs.free.filter(|free| *free < costs.write) {
        Some(free) => Err(refuse(format!("the disk has {} free, and the result needs {}", bytes(free), bytes(costs.write)))),
        None => Ok(()),
    }
}
