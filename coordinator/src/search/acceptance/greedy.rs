//! Greedy: a strictly better objective, compared after rounding to 5 decimals, as the official Evolver code does.

use evolver_common::score::{Objective, Scores};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Rule, parameters};
use crate::search::model::SetupError;

#[derive(Deserialize)]
struct Greedy {}

pub(super) fn open(table: &Map<String, Value>) -> Result<Box<dyn Rule>, SetupError> {
    Ok(Box::new(parameters::<Greedy>("acceptance", &[], table)?))
}

impl Rule for Greedy {
    fn better(&self, objective: &Objective, child: &Scores, parent: &Scores) -> bool {
        let rounded = |scores| (objective.value(scores) * 1e5).round();
        rounded(child) > rounded(parent)
    }
}
