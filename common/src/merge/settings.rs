//! Parameters of merge methods: declared once, and checked, completed and documented from the declaration.

use serde_json::Value as Json;
use thiserror::Error;

use crate::{
    merge::find,
    recipe::{Merge, Parameters, Value},
    suggest,
};

/// A merge that cannot be: an unknown method, or a parameter that is unknown, missing or out of range.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct ParameterError(pub String);

/// Where a parameter stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// At the merge as a whole.
    Merge,
    /// At each model; a value at the merge holds for every model without its own.
    Model,
}

/// What a parameter may be.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// A number between two bounds, both allowed.
    Number(f64, f64),
    /// True or false.
    Flag,
    /// One of some names.
    Choice(&'static [&'static str]),
}

/// A parameter's value where none is given.
#[derive(Clone, Copy, Debug)]
pub enum Default {
    /// A number.
    Number(f64),
    /// True or false.
    Flag(bool),
    /// A name.
    Choice(&'static str),
}

/// A declared parameter.
#[derive(Clone, Copy, Debug)]
pub struct ParameterSpec {
    /// Its name.
    pub name: &'static str,
    /// Where it stands.
    pub scope: Scope,
    /// What it may be.
    pub kind: Kind,
    /// Its value where none is given.
    pub default: Default,
    /// One sentence of meaning.
    pub doc: &'static str,
}

/// The complete parameters of one merge.
#[derive(Clone, Debug)]
pub struct Settings {
    merge: Parameters,
    models: Vec<Parameters>,
}

impl Settings {
    /// The parameters of a [`normalize`]d merge.
    #[must_use]
    pub fn new(merge: &Merge) -> Self {
        Self { merge: merge.parameters.clone(), models: merge.models.iter().map(|input| input.parameters.clone()).collect() }
    }

    /// A declared number of the merge.
    #[must_use]
    pub fn number(&self, name: &str) -> f64 {
        number(&self.merge, name)
    }

    /// A declared flag of the merge.
    #[must_use]
    pub fn flag(&self, name: &str) -> bool {
        matches!(self.merge.get(name), Some(Value::Flag(true)))
    }

    /// A declared name of the merge.
    #[must_use]
    pub fn choice(&self, name: &str) -> &str {
        match self.merge.get(name) {
            Some(Value::Text(text)) => text,
            _ => "",
        }
    }

    /// A declared number of every model, in order.
    #[must_use]
    pub fn numbers(&self, name: &str) -> Vec<f64> {
        self.models.iter().map(|model| number(model, name)).collect()
    }
}

fn number(parameters: &Parameters, name: &str) -> f64 {
    match parameters.get(name) {
        Some(Value::Number(number)) => *number,
        _ => f64::NAN,
    }
}

/// Checks a merge against its method's declaration and writes every default out, so that its recipe says everything.
///
/// # Errors
/// The first thing that is wrong, with what would be right.
pub fn normalize(mut merge: Merge) -> Result<Merge, ParameterError> {
    let method = find(&merge.method)?;
    let bad = |what: String| ParameterError(format!("merge method {}: {what}", method.name()));
    if merge.models.is_empty() {
        return Err(bad("at least one model is needed".into()));
    }
    if method.needs_base() && merge.base.is_none() {
        return Err(bad("a base model is needed, since it merges differences to it".into()));
    }
    if !method.needs_base() {
        merge.base = None;
    }
    let specs = method.parameters();
    for name in merge.parameters.keys().chain(merge.models.iter().flat_map(|input| input.parameters.keys())) {
        if !specs.iter().any(|spec| spec.name == name) {
            let known: Vec<_> = specs.iter().map(|spec| spec.name).collect();
            return Err(bad(format!("unknown parameter {}", suggest::unknown(name, known.iter().copied()))));
        }
    }
    for spec in specs {
        let given = merge.parameters.remove(spec.name);
        let value = given.unwrap_or_else(|| spec.default.value());
        spec.check(&value).map_err(&bad)?;
        match spec.scope {
            Scope::Merge => {
                if merge.models.iter().any(|input| input.parameters.contains_key(spec.name)) {
                    return Err(bad(format!("{} holds for the whole merge and cannot stand at one model", spec.name)));
                }
                merge.parameters.insert(spec.name.to_owned(), value);
            }
            Scope::Model => {
                for input in &mut merge.models {
                    let own = input.parameters.entry(spec.name.to_owned()).or_insert_with(|| value.clone());
                    spec.check(own).map_err(&bad)?;
                }
            }
        }
    }
    Ok(merge)
}

impl ParameterSpec {
    fn check(&self, value: &Value) -> Result<(), String> {
        let name = self.name;
        let shown = || serde_json::to_value(value).unwrap_or(Json::Null);
        match (self.kind, value) {
            (Kind::Number(low, high), Value::Number(number)) => {
                if !(low..=high).contains(number) {
                    return Err(format!("{name} is {number}: it must lie between {low} and {high}"));
                }
            }
            (Kind::Flag, Value::Flag(_)) => {}
            (Kind::Choice(names), Value::Text(text)) => {
                if !names.contains(&text.as_str()) {
                    return Err(format!("unknown {name} {}", suggest::unknown(text, names.iter().copied())));
                }
            }
            (Kind::Number(..), _) => return Err(format!("{name} is {}: a number is expected", shown())),
            (Kind::Flag, _) => return Err(format!("{name} is {}: true or false is expected", shown())),
            (Kind::Choice(names), _) => {
                return Err(format!("{name} is {}: one of {} is expected", shown(), names.join(", ")));
            }
        }
        Ok(())
    }
}

impl Default {
    fn value(self) -> Value {
        match self {
            Self::Number(number) => Value::Number(number),
            Self::Flag(flag) => Value::Flag(flag),
            Self::Choice(name) => Value::Text(name.to_owned()),
        }
    }
}
