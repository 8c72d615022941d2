//! Checked conversions: what comes from outside is bounded and finite, or refused by a sentence.

use evolver_common::{
    digest::Digest,
    score::{Parts, Portion, Scores, Split, Subset, TaskScore, WHOLE},
};
use prost::Message as _;
use thiserror::Error;

use crate::v1;

/// A message that cannot be what it claims.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct WireError(String);

/// Scores as a message.
#[must_use]
pub fn scores_to_wire(scores: &Scores) -> v1::Scores {
    let task = |task: &TaskScore| v1::TaskScore {
        task: task.task.clone(),
        metrics: task.metrics.clone().into_iter().collect(),
        credits: task.credits.clone(),
    };
    v1::Scores { tasks: scores.tasks.iter().map(task).collect() }
}

/// Scores of a message: every metric finite, every credit in [0, 1].
///
/// # Errors
/// Names the task and the value.
pub fn scores_from_wire(scores: v1::Scores) -> Result<Scores, WireError> {
    let tasks = scores.tasks.into_iter().map(|task| {
        if let Some((metric, value)) = task.metrics.iter().find(|(_, value)| !value.is_finite()) {
            return Err(WireError(format!("task {}: {metric} is {value}", task.task)));
        }
        if let Some(item) = task.credits.iter().position(|credit| !(0.0..=1.0).contains(credit)) {
            return Err(WireError(format!(
                "task {}: the credit of item {item} is {}, outside 0 to 1",
                task.task, task.credits[item]
            )));
        }
        Ok(TaskScore { task: task.task, metrics: task.metrics.into_iter().collect(), credits: task.credits })
    });
    Ok(Scores { tasks: tasks.collect::<Result<_, _>>()? })
}

/// A split as a message's number.
#[must_use]
pub fn split_to_wire(split: Split) -> i32 {
    match split {
        Split::Dev => v1::Split::Dev,
        Split::Test => v1::Split::Test,
    }
    .into()
}

/// A subset as a message.
#[must_use]
pub fn subset_to_wire(subset: Subset) -> v1::Subset {
    v1::Subset { seed: subset.seed, from: subset.from, to: subset.to }
}

/// What an assignment says is to be scored.
///
/// # Errors
/// If it names no split, or a subset whose bounds are not ascending or lie beyond all items.
pub fn portion_from_wire(assignment: &v1::Assignment) -> Result<Portion, WireError> {
    let split = match v1::Split::try_from(assignment.split) {
        Ok(v1::Split::Dev) => Split::Dev,
        Ok(v1::Split::Test) => Split::Test,
        _ => return Err(WireError(format!("{} is not a split", assignment.split))),
    };
    let subset = assignment.subset.map(|v1::Subset { seed, from, to }| {
        let bad = || WireError(format!("the items from {from} to {to} of {WHOLE} are no part of them"));
        Subset::new(seed, from, to).ok_or_else(bad)
    });
    Ok(Portion { split, subset: subset.transpose()? })
}

/// Outcomes of items as a message.
#[must_use]
pub fn parts_to_wire(parts: &Parts) -> Vec<v1::Part> {
    let part = |(task, items): (&str, &std::collections::BTreeMap<u32, Vec<u8>>)| v1::Part {
        task: task.to_owned(),
        items: items.keys().copied().collect(),
        outcomes: items.values().cloned().collect(),
    };
    parts.tasks().map(part).collect()
}

/// Outcomes of items of a message. An item without an outcome is one that is not done.
#[must_use]
pub fn parts_from_wire(parts: Vec<v1::Part>) -> Parts {
    let mut found = Parts::default();
    for part in parts {
        for (item, outcome) in part.items.into_iter().zip(part.outcomes) {
            found.insert(&part.task, item as usize, outcome);
        }
    }
    found
}

/// What an assignment asks for, whoever it is given to: a digest of everything in it but the token and the hints.
///
/// A worker that has this work done or under way, and whose token no longer holds, asks for it again by this digest.
#[must_use]
pub fn work_of(assignment: &v1::Assignment) -> Digest {
    let work = v1::Assignment { token: None, keep: Vec::new(), waited: 0.0, parts: Vec::new(), ..assignment.clone() };
    Digest::of_parts("evolver work", [work.encode_to_vec().as_slice()])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assignment(split: i32, subset: Option<(u32, u32)>) -> v1::Assignment {
        let subset = subset.map(|(from, to)| v1::Subset { seed: 7, from, to });
        v1::Assignment { split, subset, ..v1::Assignment::default() }
    }

    #[test]
    fn portions_come_back_and_bad_ones_are_refused() {
        let dev = split_to_wire(Split::Dev);
        assert_eq!(portion_from_wire(&assignment(dev, None)), Ok(Split::Dev.into()));
        let subset = Subset::new(7, 100, WHOLE).unwrap();
        let sent = v1::Assignment { split: dev, subset: Some(subset_to_wire(subset)), ..v1::Assignment::default() };
        assert_eq!(portion_from_wire(&sent), Ok(Portion { split: Split::Dev, subset: Some(subset) }));
        for (split, subset) in [(0, None), (9, None), (dev, Some((4, 4))), (dev, Some((5, 4))), (dev, Some((0, WHOLE + 1)))] {
            assert!(portion_from_wire(&assignment(split, subset)).is_err(), "{split} {subset:?}");
        }
    }
}
