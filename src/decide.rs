//! `extend` and `enqueue`: an operator's decisions, appended to a search's journal while no coordinator runs in its folder.

use std::collections::{BTreeMap, HashSet};

use evolver_common::{
    merge,
    recipe::{Op, Recipe, parse},
};
use evolver_coordinator::{
    journal::{self, Journal, Log as _, Record},
    service::{LIMITS, Replay, extend as raise, replay},
};

use crate::{cli, fail::refuse, show};

/// Appends one decision to the journal of a folder that holds a search; the next start of the search folds it in.
fn append(dir: &std::path::Path, record: Record) -> anyhow::Result<Replay> {
    let (mut journal, mut records) = Journal::open(dir).map_err(refuse)?;
    records.push(record.clone());
    // The search with the decision, before it is written: what cannot be folded must not be in the journal.
    let replay = replay(&records, None).map_err(refuse)?;
    journal.append(&[record])?;
    Ok(replay)
}

pub(crate) fn extend(options: &cli::Extend) -> anyhow::Result<()> {
    // A folder without a search is refused before anything is made in it.
    journal::read(&options.dir).map_err(refuse)?;
    let before = show::open(&options.dir)?.resolved.definition.stop;
    let mut limits = BTreeMap::new();
    for given in &options.limits {
        let bad = || {
            let names = LIMITS.map(|name| format!("stop.{name}")).join(", ");
            refuse(format!(
                "{given:?}: a limit and its value are expected, for instance stop.offspring=200; the limits are {names}"
            ))
        };
        let (name, value) = given.split_once('=').ok_or_else(bad)?;
        let name = name.trim().trim_start_matches("stop.").to_owned();
        let limit = match value.trim() {
            "none" => None,
            number => Some(number.parse::<f64>().ok().filter(|limit| *limit > 0.0 && limit.is_finite()).ok_or_else(bad)?),
        };
        if name != "seconds" && limit.is_some_and(|limit| limit.fract() != 0.0) {
            return Err(bad());
        }
        limits.insert(name, limit);
    }
    let mut after = before.clone();
    raise(&mut after, &limits).map_err(refuse)?;
    if after == before {
        return Err(refuse("none of these limits is higher than what holds already: a limit may only be raised"));
    }
    let replay = append(&options.dir, Record::Extend { limits })?;
    eprintln!("journaled; the search is at {:?}, and the command that runs it goes on from there", replay.search.phase());
    Ok(())
}

pub(crate) fn enqueue(options: &cli::Enqueue) -> anyhow::Result<()> {
    let file = options.recipe.display();
    let text = std::fs::read_to_string(&options.recipe).map_err(|error| refuse(format!("{file} cannot be read: {error}")))?;
    let recipe = parse(&text).map_err(|error| refuse(format!("{file}: {error}")))?;
    let replay = show::open(&options.dir)?;
    check(&recipe, &replay).map_err(|what| refuse(format!("{file}: {what}")))?;
    if options.name.is_empty() || replay.search.table().iter().any(|row| row.name == options.name) {
        return Err(refuse(format!("--name {:?}: a name that no other model has is needed", options.name)));
    }
    let offspring = replay.search.counters().issued;
    let replay = append(&options.dir, Record::Enqueue { offspring, name: options.name.clone(), recipe: recipe.to_string() })?;
    let waits = if replay.search.is_ending() { "; its limits are reached: raise one by `evolver extend`" } else { "" };
    eprintln!("journaled as {}: it is the next offspring that is drawn{waits}", recipe.id());
    Ok(())
}

/// Whether the search's workers can build the recipe.
fn check(recipe: &Recipe, replay: &Replay) -> Result<(), String> {
    let resolved = &replay.resolved;
    let known: HashSet<_> = std::iter::once(&resolved.base).chain(&resolved.experts).map(|source| source.digest).collect();
    for node in recipe.nodes() {
        match node.op() {
            Op::Checkpoint(digest) if !known.contains(digest) => {
                return Err(format!("checkpoint {digest} is neither the base nor an expert of this search"));
            }
            Op::Merge(merge) => {
                let complete = merge::normalize(merge.clone()).map_err(|error| error.to_string())?;
                if complete != *merge {
                    let complete = Recipe::new(Op::Merge(complete)).to_string();
                    let line = complete.lines().last().unwrap_or_default().to_owned();
                    return Err(format!("merge method {}: a recipe says every parameter, as here: {line}", merge.method));
                }
            }
            _ => {}
        }
    }
    Ok(())
}
