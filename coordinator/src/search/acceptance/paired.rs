//! Paired: better on the same items by more than `threshold` standard errors of the paired difference, McNemar's test where credits are right or wrong.

use evolver_common::score::{Objective, Scores};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Rule, parameters};
use crate::search::model::SetupError;

#[derive(Deserialize)]
struct Paired {
    /// Standard errors, at least 0.
    #[serde(default = "half")]
    threshold: f64,
}

fn half() -> f64 {
    0.5
}

pub(super) fn open(table: &Map<String, Value>) -> Result<Box<dyn Rule>, SetupError> {
    let rule: Paired = parameters("acceptance", &["threshold"], table)?;
    if !(0.0..=10.0).contains(&rule.threshold) {
        return Err(SetupError(format!(
            "acceptance.threshold is {}: it must lie between 0 and 10 standard errors",
            rule.threshold
        )));
    }
    Ok(Box::new(rule))
}

impl Rule for Paired {
    fn better(&self, objective: &Objective, child: &Scores, parent: &Scores) -> bool {
        objective.paired_z(child, parent) > self.threshold
    }
}
