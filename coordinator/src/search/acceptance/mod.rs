//! Acceptance rules: when an offspring replaces the member of the population whose place it was drawn for.

mod greedy;
mod paired;

use evolver_common::{
    score::{Objective, Scores},
    suggest,
};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::model::{Plugin, SetupError};

/// Makes a rule from its parameters.
pub(super) type Open = fn(&Map<String, Value>) -> Result<Box<dyn Rule>, SetupError>;

/// Every rule by its name in definitions.
pub(super) const RULES: &[(&str, Open)] = &[("greedy", greedy::open), ("paired", paired::open)];

/// Decides between an offspring and the current member.
pub(super) trait Rule: Send {
    /// Whether `child` replaces `parent`; both were scored on the same items.
    fn better(&self, objective: &Objective, child: &Scores, parent: &Scores) -> bool;
}

pub(super) fn open(plugin: &Plugin) -> Result<Box<dyn Rule>, SetupError> {
    let names = || RULES.iter().map(|(name, _)| *name).collect::<Vec<_>>();
    let found = RULES.iter().find(|(name, _)| *name == plugin.name);
    let (_, open) =
        found.ok_or_else(|| SetupError(format!("acceptance.rule: unknown rule {}", suggest::unknown(&plugin.name, names()))))?;
    open(&plugin.parameters)
}

/// Reads a plugin's own keys into its typed parameters; an unknown key is refused with the nearest known one.
pub(super) fn parameters<T: DeserializeOwned>(
    section: &str,
    known: &[&str],
    table: &Map<String, Value>,
) -> Result<T, SetupError> {
    if let Some(key) = table.keys().find(|key| !known.contains(&key.as_str())) {
        let nearest = suggest::unknown(key, known.iter().copied());
        return Err(SetupError(format!("unknown key {nearest} in {section}")));
    }
    serde_json::from_value(Value::Object(table.clone())).map_err(|error| SetupError(format!("{section}: {error}")))
}
