//! Checked conversions: what comes from outside is bounded and finite, or refused by a sentence.

use evolver_common::{
    digest::Digest,
    score::{Scores, Split, TaskScore},
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

/// The split of a message's number.
///
/// # Errors
/// If it is none.
pub fn split_from_wire(number: i32) -> Result<Split, WireError> {
    match v1::Split::try_from(number) {
        Ok(v1::Split::Dev) => Ok(Split::Dev),
        Ok(v1::Split::Test) => Ok(Split::Test),
        _ => Err(WireError(format!("{number} is not a split"))),
    }
}

/// What an assignment asks for, whoever it is given to: a digest of everything in it but the token and the hints.
///
/// A worker that has this work done or under way, and whose token no longer holds, asks for it again by this digest.
#[must_use]
pub fn work_of(assignment: &v1::Assignment) -> Digest {
    let work = v1::Assignment { token: None, keep: Vec::new(), waited: 0.0, ..assignment.clone() };
    Digest::of_parts("evolver work", [work.encode_to_vec().as_slice()])
}
