//! `diff`: how two models differ.

use std::io::Write as _;

use evolver_common::checkpoint::write;
use evolver_oneshot::diff;

use crate::{cli, fail::refuse};

pub(crate) fn diff(options: &cli::Diff) -> anyhow::Result<()> {
    let found = diff::diff(&options.a, &options.b, options.base.as_deref()).map_err(refuse)?;
    if let Some(file) = &options.html {
        write::file(file, diff::page(&found).as_bytes())
            .map_err(|error| refuse(format!("cannot write {}: {error}", file.display())))?;
        eprintln!("wrote {}", file.display());
    }
    let mut out = std::io::stdout().lock();
    if options.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&found)?)?;
    } else {
        write!(out, "{}", diff::text(&found))?;
    }
    Ok(())
}
