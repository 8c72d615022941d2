//! Values that are out of range or do not fit each other. What needs files open is [`super::resolve`]'s.

use std::collections::HashSet;

use super::{Definition, model::Task};
use crate::suggest;

/// Metrics that a task can be searched by.
const METRICS: [&str; 2] = ["accuracy", "macro_f1"];
/// Longest text any evaluator is asked for, in tokens.
const MAX_LENGTH_LIMIT: usize = 8192;

/// Every problem of `definition`, a sentence each.
pub(super) fn problems(definition: &Definition) -> Vec<String> {
    let mut problems = Vec::new();
    let experts: Vec<&str> = names(definition.models.experts.iter().map(|e| &e.name));
    let tasks: Vec<&str> = names(definition.tasks.iter().map(|t| &t.name));
    if experts.is_empty() {
        problems.push("models.experts: at least one expert is needed".into());
    }
    if tasks.is_empty() {
        problems.push("tasks: at least one task is needed".into());
    }
    let merges = names(definition.merges.iter().map(|m| &m.name));
    let models = || experts.iter().chain(&merges).copied();
    repeated("an expert or a merge", models(), &mut problems);
    repeated("a task", tasks.iter().copied(), &mut problems);
    for name in models().chain(tasks.iter().copied()) {
        if name.is_empty() || name.contains(['/', '\\', '\n']) || name.starts_with('.') {
            problems.push(format!("{name:?} cannot be a name: it must not be empty, start with a dot, or hold a slash"));
        }
        if ["base", "evolved"].contains(&name) {
            problems.push(format!("the name {name:?} is kept for the base model and the search's result: choose another"));
        }
    }
    if let Some(first) = definition.tasks.first()
        && let Some(other) = definition.tasks.iter().find(|task| task.evaluator != first.evaluator)
    {
        problems.push(format!(
            "tasks.{}.evaluator is {:?}, and tasks.{}.evaluator is {:?}: one search has one evaluator",
            other.name, other.evaluator, first.name, first.evaluator
        ));
    }
    for task in &definition.tasks {
        task_problems(task, definition, &experts, &mut problems);
    }
    for merge in &definition.merges {
        for model in &merge.models {
            if !experts.contains(&model.as_str()) {
                problems.push(format!(
                    "merges.{}: unknown expert {}",
                    merge.name,
                    suggest::unknown(model, experts.iter().copied())
                ));
            }
        }
    }
    settings_problems(definition, &mut problems);
    problems
}

fn task_problems(task: &Task, definition: &Definition, experts: &[&str], problems: &mut Vec<String>) {
    let at = format!("tasks.{}", task.name);
    if !METRICS.contains(&task.metric.as_str()) {
        problems.push(format!("{at}.metric: unknown metric {}", suggest::unknown(&task.metric, METRICS)));
    }
    if !(task.weight.is_finite() && task.weight > 0.0) {
        problems.push(format!("{at}.weight is {}: it must be above 0", task.weight));
    }
    if !(2..=MAX_LENGTH_LIMIT).contains(&task.max_length) {
        problems.push(format!("{at}.max_length is {}: it must lie between 2 and {MAX_LENGTH_LIMIT} tokens", task.max_length));
    }
    let mut seen = HashSet::new();
    for label in &task.labels {
        if !seen.insert(label) {
            problems.push(format!("{at}.labels: {label:?} stands there twice"));
        }
    }
    match &task.head {
        Some(head) if !experts.contains(&head.as_str()) => {
            problems.push(format!("{at}.head: unknown expert {}", suggest::unknown(head, experts.iter().copied())));
        }
        Some(_) if definition.models.heads.is_empty() => {
            problems.push(format!("{at}.head is set, but models.heads names no tensors that tasks keep their own of"));
        }
        None if !definition.models.heads.is_empty() => problems.push(format!(
            "{at}.head is missing: models.heads keeps heads apart, so each task names the expert whose head it uses"
        )),
        _ => {}
    }
}

fn settings_problems(definition: &Definition, problems: &mut Vec<String>) {
    if !(1..=4096).contains(&definition.search.in_flight) {
        problems.push(format!("search.in_flight is {}: it must lie between 1 and 4096", definition.search.in_flight));
    }
    if definition.evaluator.batch_tokens == 0 {
        problems.push("evaluator.batch_tokens is 0: a batch holds at least one token".into());
    }
    let fleet = &definition.fleet;
    if fleet.attempts == 0 {
        problems.push("fleet.attempts is 0: at least one attempt is needed".into());
    }
    let finite = fleet.lease_seconds.is_finite();
    if !(finite && fleet.heartbeat_seconds > 0.0 && fleet.lease_seconds >= 2.0 * fleet.heartbeat_seconds) {
        problems.push(format!(
            "fleet.lease_seconds is {} and fleet.heartbeat_seconds is {}: a lease must outlast at least two heartbeats",
            fleet.lease_seconds, fleet.heartbeat_seconds
        ));
    }
    if !(0.0..1.0).contains(&fleet.tolerance) {
        problems.push(format!("fleet.tolerance is {}: it is a share, from 0 to below 1", fleet.tolerance));
    }
    let positive = [
        ("stop.seconds", definition.stop.seconds.unwrap_or(1.0)),
        ("evaluator.hang_seconds", definition.evaluator.hang_seconds),
        ("evaluator.attempt_seconds", definition.evaluator.attempt_seconds),
    ];
    for (key, value) in positive {
        if !(value.is_finite() && value > 0.0) {
            problems.push(format!("{key} is {value}: it must be above 0"));
        }
    }
}

fn names<'a>(names: impl Iterator<Item = &'a String>) -> Vec<&'a str> {
    names.map(String::as_str).collect()
}

fn repeated<'a>(what: &str, names: impl Iterator<Item = &'a str>, problems: &mut Vec<String>) {
    let mut seen = HashSet::new();
    for name in names {
        if !seen.insert(name) {
            problems.push(format!("{name:?} names {what} twice: names must differ"));
        }
    }
}
