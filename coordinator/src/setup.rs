//! From a resolved definition to a search.

use evolver_common::{
    definition::{self, MergeEntry, Resolved, Role, Source},
    merge,
    recipe::{Input, Merge, Op, Recipe},
    score::{Objective, Scalarisation, Weighted},
};

use crate::search::{Mode, Named, Plugin, Setup, SetupError, Statistics, Stop, Task, per_task};

/// The search that a definition describes.
///
/// # Errors
/// A sentence, for instance on a merge's parameter that is out of range.
pub fn search(resolved: &Resolved) -> Result<Setup, SetupError> {
    let definition = &resolved.definition;
    let base = Recipe::checkpoint(resolved.base.digest);
    let expert = |source: &Source| Named { name: source.name.clone(), kind: "expert", recipe: Recipe::checkpoint(source.digest) };
    let measured = |source: &Source| Some((source.digest, source.statistics.as_ref()?.digest));
    let statistics = Statistics(resolved.experts.iter().filter_map(measured).collect());
    let mut individuals: Vec<_> = resolved.experts.iter().map(expert).collect();
    let mut references = vec![Named { name: "base".into(), kind: "base", recipe: base.clone() }];
    for entry in &definition.merges {
        let named = Named { name: entry.name.clone(), kind: "merge", recipe: merge_recipe(entry, &base, resolved, &statistics)? };
        match entry.role {
            Role::Individual => individuals.push(named),
            Role::Reference => references.push(named),
        }
    }
    let tasks: Vec<_> = resolved
        .tasks
        .iter()
        .map(|task| Task {
            name: task.name.clone(),
            dev_items: task.dev.items,
            test_items: task.test.as_ref().map_or(0, |test| test.items),
        })
        .collect();
    let weighted = definition.tasks.iter().map(|task| Weighted { metric: task.metric().to_owned(), weight: task.weight });
    let reference = per_task("objective.reference", &definition.objective.reference, &tasks)?;
    let scalarisation = match definition.objective.scalarisation {
        definition::Scalarisation::Chebyshev => {
            Scalarisation::Chebyshev { reference: reference.into_iter().map(Option::unwrap_or_default).collect() }
        }
        definition::Scalarisation::Mean if definition.objective.reference.is_empty() => Scalarisation::Mean,
        definition::Scalarisation::Mean => {
            return Err(SetupError(
                "objective.reference is given, and objective.scalarisation is mean: only chebyshev has a reference".into(),
            ));
        }
    };
    Ok(Setup {
        seed: definition.search.seed,
        in_flight: definition.search.in_flight,
        mode: match definition.search.mode {
            definition::Mode::Ordered => Mode::Ordered,
            definition::Mode::Arrival => Mode::Arrival,
        },
        base: base.clone(),
        tasks,
        objective: Objective { tasks: weighted.collect(), scalarisation },
        individuals,
        references,
        statistics,
        strategy: Plugin { name: definition.search.strategy.clone(), parameters: definition.search.parameters.clone() },
        acceptance: Plugin { name: definition.acceptance.rule.clone(), parameters: definition.acceptance.parameters.clone() },
        stop: Stop {
            offspring: definition.stop.offspring,
            generations: definition.stop.generations,
            evaluations: definition.stop.evaluations,
            patience: definition.stop.patience,
        },
    })
}

fn merge_recipe(entry: &MergeEntry, base: &Recipe, resolved: &Resolved, statistics: &Statistics) -> Result<Recipe, SetupError> {
    let here = |error: &dyn std::fmt::Display| SetupError(format!("merges.{}: {error}", entry.name));
    let chosen = |name: &String| entry.models.is_empty() || entry.models.contains(name);
    let input = |source: &Source| {
        let recipe = Recipe::checkpoint(source.digest);
        let mut parameters = entry.model_parameters.clone();
        statistics.add_to(&mut parameters, &entry.method, &recipe).map_err(|error| here(&error))?;
        Ok(Input { recipe, parameters })
    };
    let models = resolved.experts.iter().filter(|source| chosen(&source.name)).map(input);
    let merge = merge::normalize(Merge {
        method: entry.method.clone(),
        base: Some(base.clone()),
        models: models.collect::<Result<_, _>>()?,
        parameters: entry.parameters.clone(),
    });
    merge.map(|merge| Recipe::new(Op::Merge(merge))).map_err(|error| here(&error))
}
