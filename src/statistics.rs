//! `statistics`: the experts' Fisher information or Gram matrices, as files that merges by `fisher` and `regmean` read.

use std::{io::Write as _, ops::ControlFlow};

use evolver_common::{checkpoint::DigestCache, definition};
use evolver_worker::{
    evaluate,
    statistics::{Kind, Labels, Request, measure},
};

use crate::{cli, fail::refuse, interrupt};

pub(crate) fn statistics(options: &cli::Statistics) -> anyhow::Result<()> {
    interrupt::clean_up();
    let mut definition = definition::load(&options.definition.search, &options.definition.overrides).map_err(refuse)?;
    evaluate::complete(&mut definition).map_err(|problems| refuse(problems.join("\n")))?;
    let resolved = definition::resolve(definition, &DigestCache::in_memory()).map_err(refuse)?;
    let request = Request {
        kind: match options.kind {
            cli::StatisticsKind::Fisher => Kind::Fisher,
            cli::StatisticsKind::Gram => Kind::Gram,
        },
        labels: match options.labels {
            cli::StatisticsLabels::Model => Labels::Model,
            cli::StatisticsLabels::Given => Labels::Given,
        },
        experts: options.experts.clone(),
        tasks: options.tasks.clone(),
        data: options.data.clone(),
        items: options.items.map(usize::try_from).transpose()?,
    };
    let scratch = tempfile::tempdir()?;
    let written = measure(&resolved, scratch.path(), &request, &options.out, &mut |expert, done, total| {
        eprint!("\r{expert}: {done} of {total} items");
        if done == total {
            eprintln!();
        }
        ControlFlow::Continue(())
    })
    .map_err(refuse)?;
    for file in written {
        writeln!(
            std::io::stdout(),
            "{}: {} tensors over {} items of {}",
            options.out.join(&file.file).display(),
            file.tensors,
            file.items,
            file.expert
        )?;
    }
    Ok(())
}
