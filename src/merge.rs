//! `merge`: one merge, without a search.

use evolver_oneshot::{
    build::BuildOptions,
    config::MergeConfig,
    plan::{Plan, PlanOptions},
};

use crate::{cli, fail::refuse};

pub(crate) fn merge(options: &cli::Merge) -> anyhow::Result<()> {
    let config = MergeConfig::load(&options.config).map_err(refuse)?;
    let plan = Plan::open(config, PlanOptions { dtype: options.written.dtype }).map_err(refuse)?;
    for note in &plan.notes {
        eprintln!("note: {note}");
    }
    let build = BuildOptions { shard_bytes: options.written.max_shard_size, allow_non_finite: options.allow_non_finite };
    let written = plan.build(&build, &options.out).map_err(refuse)?;
    let files = if written.shards == 1 { String::new() } else { format!(", {} weight files", written.shards) };
    eprintln!("wrote {}{files}, digest {}", options.out.display(), written.digest);
    Ok(())
}
