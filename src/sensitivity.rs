//! `sensitivity`: which experts and layers of a model matter for which task.
//!
//! An expert is left out of a range of layers: there the model is what its recipe gives with the base in the expert's place. What the score of each task
//! loses by that, paired on the same items, is the expert's part in it. A row for all experts puts the base itself there.

use std::{collections::HashMap, fmt::Write as _, io::Write as _, ops::ControlFlow};

use evolver_common::{
    checkpoint::write,
    digest::Digest,
    recipe::{Op, Recipe},
    score::{Parts, Portion, Scores, Split, Subset, WHOLE},
};
use evolver_worker::child::Workshop;
use serde_json::json;

use crate::{cli, export, fail::refuse, show};

/// One model that is scored: without whom, in which range of layers.
struct Probe {
    expert: String,
    layers: String,
    recipe: Recipe,
}

pub(crate) fn sensitivity(options: &cli::Sensitivity) -> anyhow::Result<()> {
    let replay = show::open(&options.dir)?;
    let groups = usize::try_from(options.layer_groups)?;
    let model = export::chosen(&replay, options.individual.as_deref())?;
    let resolved = &replay.resolved;
    let base = Recipe::checkpoint(resolved.base.digest);
    let used: Vec<_> = resolved.experts.iter().filter(|expert| uses(&model.recipe, expert.digest)).collect();
    let mut probes = Vec::new();
    let without = used.iter().map(|expert| (expert.name.clone(), replaced(&model.recipe, expert.digest, &base)));
    for (expert, other) in without.chain([("all experts".to_owned(), base.clone())]) {
        for group in 0..groups {
            let (from, to) = (share(group, groups), share(group + 1, groups));
            let layers = format!("{:.0}–{:.0} %", 100.0 * from, 100.0 * to);
            probes.push(Probe { expert: expert.clone(), layers, recipe: spliced(&model.recipe, &other, from, to) });
        }
        probes.push(Probe { expert, layers: "all".into(), recipe: other });
    }
    let portion = portion(options.items, probes.len() + 1, &replay)?;
    let mut workshop = Workshop::open(resolved, &options.dir.join("cache")).map_err(|failure| refuse(failure.message))?;
    let mut score = |recipe: &Recipe| -> anyhow::Result<Scores> {
        let candidate = workshop.materializer().build(recipe, &[])?;
        Ok(workshop.score(candidate, portion, &Parts::default(), &mut |_, _, _| ControlFlow::Continue(()))?)
    };
    let whole = score(&model.recipe)?;
    let mut rows = Vec::new();
    for (index, probe) in probes.iter().enumerate() {
        eprint!("\r{} of {} models scored", index + 1, probes.len());
        rows.push((probe, losses(&whole, &score(&probe.recipe)?)));
    }
    eprintln!();
    let tasks: Vec<_> = whole.tasks.iter().map(|task| task.task.as_str()).collect();
    let items: usize = whole.tasks.iter().map(|task| task.credits.len()).sum();
    write!(std::io::stdout(), "{}", text(&rows, &tasks, items))?;
    write::file(&options.dir.join("sensitivity.html"), html(&rows, &tasks, items, groups).as_bytes())?;
    let entry = |(probe, losses): &(&Probe, Vec<Loss>)| json!({ "expert": probe.expert, "layers": probe.layers, "losses": losses.iter().map(|loss| json!({ "points": loss.points, "standard_errors": loss.z })).collect::<Vec<_>>() });
    let report = json!({ "tasks": tasks, "items": items, "rows": rows.iter().map(entry).collect::<Vec<_>>() });
    write::file(&options.dir.join("sensitivity.json"), serde_json::to_string_pretty(&report)?.as_bytes())?;
    writeln!(std::io::stdout(), "\nThe heat map is in {}", options.dir.join("sensitivity.html").display())?;
    Ok(())
}

fn share(group: usize, groups: usize) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a count of layer groups")]
    let share = group as f64 / groups as f64;
    share
}

/// The same part of the dev items for every model, within the budget.
fn portion(budget: u64, models: usize, replay: &evolver_coordinator::service::Replay) -> anyhow::Result<Portion> {
    let tasks = &replay.search.setup().tasks;
    let all: usize = tasks.iter().map(|task| task.dev_items).sum();
    let needed = (models * all) as u64;
    if budget >= needed {
        return Ok(Split::Dev.into());
    }
    let share = u32::try_from(u64::from(WHOLE) * budget / needed).unwrap_or(WHOLE);
    let subset = Subset::new(replay.search.setup().seed, 0, share)
        .filter(|subset| tasks.iter().all(|task| subset.count(task.dev_items) >= 2));
    // Rounding up gives each task an item more than its share.
    let least = 2 * (models * tasks.len()) as u64;
    let subset = subset.ok_or_else(|| {
        refuse(format!("--items {budget}: {models} models are to be scored on at least 2 items of each task, which is {least}"))
    })?;
    Ok(Portion { split: Split::Dev, subset: Some(subset) })
}

fn uses(recipe: &Recipe, checkpoint: Digest) -> bool {
    recipe.nodes().iter().any(|node| matches!(node.op(), Op::Checkpoint(digest) if *digest == checkpoint))
}

/// The recipe with another one in the place of a checkpoint.
fn replaced(recipe: &Recipe, checkpoint: Digest, other: &Recipe) -> Recipe {
    let mut new: HashMap<Digest, Recipe> = HashMap::new();
    for node in recipe.nodes() {
        let of = |old: &Recipe| new.get(&old.id()).unwrap_or(old).clone();
        let changed = match node.op() {
            Op::Checkpoint(digest) if *digest == checkpoint => other.clone(),
            Op::Checkpoint(_) => node.clone(),
            Op::Differential { target, plus, minus, scale } => {
                Recipe::new(Op::Differential { target: of(target), plus: of(plus), minus: of(minus), scale: *scale })
            }
            Op::Crossover { target, donor, rate, seed, per } => {
                Recipe::new(Op::Crossover { target: of(target), donor: of(donor), rate: *rate, seed: *seed, per: *per })
            }
            Op::Perturb { parent, deviation, seed, shape } => {
                Recipe::new(Op::Perturb { parent: of(parent), deviation: *deviation, seed: *seed, shape: *shape })
            }
            Op::Splice { first, second, at } => Recipe::new(Op::Splice { first: of(first), second: of(second), at: *at }),
            Op::Merge(merge) => {
                let mut merge = merge.clone();
                merge.base = merge.base.as_ref().map(of);
                merge.models.iter_mut().for_each(|input| input.recipe = of(&input.recipe));
                Recipe::new(Op::Merge(merge))
            }
        };
        new.insert(node.id(), changed);
    }
    new.remove(&recipe.id()).unwrap_or_else(|| recipe.clone())
}

/// `model` with the layers from relative depth `from` to before `to` of `other`; a `to` of 1 takes the last layer in.
fn spliced(model: &Recipe, other: &Recipe, from: f64, to: f64) -> Recipe {
    let upper = if from > 0.0 {
        Recipe::new(Op::Splice { first: model.clone(), second: other.clone(), at: from })
    } else {
        other.clone()
    };
    if to < 1.0 { Recipe::new(Op::Splice { first: upper, second: model.clone(), at: to }) } else { upper }
}

/// What one task loses.
struct Loss {
    /// Credits, in points.
    points: f64,
    /// In standard errors of the paired difference.
    z: f64,
}

fn losses(whole: &Scores, without: &Scores) -> Vec<Loss> {
    let loss = |(whole, without): (&evolver_common::score::TaskScore, &evolver_common::score::TaskScore)| {
        let differences = whole.credits.iter().zip(&without.credits).map(|(a, b)| f64::from(*a) - f64::from(*b));
        #[expect(clippy::cast_precision_loss, reason = "a count of items")]
        let count = whole.credits.len() as f64;
        let mean = differences.clone().sum::<f64>() / count;
        let variance = differences.map(|d| (d - mean) * (d - mean)).sum::<f64>() / (count - 1.0).max(1.0);
        Loss { points: 100.0 * mean, z: if mean == 0.0 { 0.0 } else { mean / (variance / count).sqrt() } }
    };
    whole.tasks.iter().zip(&without.tasks).map(loss).collect()
}

fn text(rows: &[(&Probe, Vec<Loss>)], tasks: &[&str], items: usize) -> String {
    let mut out = format!(
        "What each task loses, in points on {items} dev items, where an expert is left out of a range of layers (in brackets: the same in standard errors):\n\n{:<20} {:<12}",
        "without", "layers"
    );
    for task in tasks {
        write!(out, " {task:>16}").ok();
    }
    out.push('\n');
    for (probe, losses) in rows {
        write!(out, "{:<20} {:<12}", probe.expert, probe.layers).ok();
        for loss in losses {
            write!(out, " {:>16}", format!("{:+.1} ({:+.1})", loss.points, loss.z)).ok();
        }
        out.push('\n');
    }
    out
}

/// A heat map per task: experts by layers; red is lost, blue is gained.
fn html(rows: &[(&Probe, Vec<Loss>)], tasks: &[&str], items: usize, groups: usize) -> String {
    let escape = |text: &str| text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let mut out = String::from(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Sensitivity</title><style>body{font:14px sans-serif;margin:2em}\
         table{border-collapse:collapse;margin:0 0 2em}th,td{border:1px solid #ccc;padding:.3em .6em;text-align:right}th{text-align:left}</style>",
    );
    write!(out, "<h1>Sensitivity</h1><p>What a task loses, in points on {items} dev items of all tasks, where an expert is left out of a range of layers.</p>").ok();
    let largest = rows.iter().flat_map(|(_, losses)| losses).map(|loss| loss.points.abs()).fold(1.0, f64::max);
    for (index, task) in tasks.iter().enumerate() {
        write!(out, "<h2>{}</h2><table><tr><th>without \\ layers</th>", escape(task)).ok();
        for (probe, _) in &rows[..=groups] {
            write!(out, "<th>{}</th>", probe.layers).ok();
        }
        for line in rows.chunks(groups + 1) {
            write!(out, "</tr><tr><th>{}</th>", escape(&line[0].0.expert)).ok();
            for (_, losses) in line {
                let loss = &losses[index];
                let strength = (loss.points.abs() / largest).min(1.0);
                let colour = if loss.points > 0.0 { "214,39,40" } else { "31,119,180" };
                write!(
                    out,
                    "<td style=\"background:rgba({colour},{strength:.2})\" title=\"{:+.1} standard errors\">{:+.1}</td>",
                    loss.z, loss.points
                )
                .ok();
            }
        }
        out.push_str("</tr></table>");
    }
    out.push_str("</html>\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(name: &str) -> Recipe {
        Recipe::checkpoint(Digest::of(name.as_bytes()))
    }

    #[test]
    fn a_checkpoint_is_replaced_wherever_it_stands() {
        let moved = |target: &Recipe, plus: &Recipe| {
            Recipe::new(Op::Differential { target: target.clone(), plus: plus.clone(), minus: target.clone(), scale: 0.5 })
        };
        let (a, b, base) = (leaf("a"), leaf("b"), leaf("base"));
        let model = Recipe::new(Op::Splice { first: moved(&a, &b), second: moved(&b, &a), at: 0.5 });
        let expected = Recipe::new(Op::Splice { first: moved(&base, &b), second: moved(&b, &base), at: 0.5 });
        assert_eq!(replaced(&model, Digest::of(b"a"), &base), expected);
        assert!(uses(&model, Digest::of(b"a")) && !uses(&expected, Digest::of(b"a")));
        assert_eq!(spliced(&a, &b, 0.0, 1.0), b);
    }
}
