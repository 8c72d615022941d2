//! An evaluator's own keys: declared once, and checked, completed and documented from the declaration.

use std::collections::BTreeMap;

use evolver_common::{definition::Task, suggest};
use serde_json::{Map, Value};

use super::Declaration;

/// What a value may be.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// A number between two bounds, both allowed.
    Number(f64, f64),
    /// A whole number between two bounds, both allowed.
    Integer(u64, u64),
    /// True or false.
    Flag,
    /// One of some names.
    Choice(&'static [&'static str]),
    /// A text.
    Text,
    /// A list of texts.
    Texts,
    /// A table of texts.
    Table,
}

/// A declared key.
#[derive(Clone, Copy, Debug)]
pub struct Parameter {
    /// Its name.
    pub name: &'static str,
    /// What it may be.
    pub kind: Kind,
    /// Its value where none is given, as JSON; none: it has to be given.
    pub default: Option<&'static str>,
    /// One sentence of meaning.
    pub doc: &'static str,
}

impl Kind {
    fn accepts(self, value: &Value) -> bool {
        match self {
            Self::Number(low, high) => value.as_f64().is_some_and(|number| (low..=high).contains(&number)),
            Self::Integer(low, high) => value.as_u64().is_some_and(|number| (low..=high).contains(&number)),
            Self::Flag => value.is_boolean(),
            Self::Choice(names) => value.as_str().is_some_and(|name| names.contains(&name)),
            Self::Text => value.is_string(),
            Self::Texts => value.as_array().is_some_and(|items| items.iter().all(Value::is_string)),
            Self::Table => value.as_object().is_some_and(|table| table.values().all(Value::is_string)),
        }
    }

    /// What is expected, for people.
    #[must_use]
    pub fn describe(self) -> String {
        match self {
            Self::Number(low, high) => format!("a number from {low} to {high}"),
            Self::Integer(low, high) => format!("a whole number from {low} to {high}"),
            Self::Flag => "true or false".to_owned(),
            Self::Choice(names) => names.join(" | "),
            Self::Text => "a text".to_owned(),
            Self::Texts => "a list of texts".to_owned(),
            Self::Table => "a table of texts".to_owned(),
        }
    }
}

impl Parameter {
    fn default(&self) -> Option<Value> {
        self.default.and_then(|text| serde_json::from_str(text).ok())
    }
}

/// Fills in defaults and adds a sentence for everything that is wrong.
pub(super) fn complete(declaration: &Declaration, given: &mut Map<String, Value>, at: &str, problems: &mut Vec<String>) {
    // The task's own keys are among those that a misspelt one may have meant.
    let own = [
        "metric",
        "text",
        "text_pair",
        "label",
        "labels",
        "weight",
        "head",
        "max_length",
        "dev",
        "test",
        "dev_items",
        "test_items",
    ];
    let names = || declaration.parameters.iter().map(|known| known.name).chain(own);
    for key in given.keys() {
        if !declaration.parameters.iter().any(|known| known.name == key) {
            let known = names().collect::<Vec<_>>();
            problems.push(format!(
                "unknown key {} in {at}, which the evaluator {} scores",
                suggest::unknown(key, known),
                declaration.name
            ));
        }
    }
    for known in declaration.parameters {
        match (given.get(known.name), known.default()) {
            (Some(value), _) if !known.kind.accepts(value) => {
                problems.push(format!("{at}.{} is {value}: {} is expected", known.name, known.kind.describe()));
            }
            (None, None) => problems.push(format!("{at}.{} is missing: {}", known.name, known.doc)),
            (None, Some(default)) => {
                given.insert(known.name.to_owned(), default);
            }
            _ => {}
        }
    }
}

/// A task's values of an evaluator's keys.
pub(super) struct Settings<'a> {
    declaration: &'static Declaration,
    given: &'a Map<String, Value>,
}

impl<'a> Settings<'a> {
    pub(super) fn new(declaration: &'static Declaration, task: &'a Task) -> Self {
        Self { declaration, given: &task.parameters }
    }

    /// The value, or the default where the definition was not completed.
    fn get(&self, name: &str) -> Value {
        let default = || self.declaration.parameters.iter().find(|known| known.name == name).and_then(Parameter::default);
        self.given.get(name).cloned().or_else(default).unwrap_or(Value::Null)
    }

    pub(super) fn number(&self, name: &str) -> f64 {
        self.get(name).as_f64().unwrap_or(0.0)
    }

    pub(super) fn integer(&self, name: &str) -> usize {
        self.get(name).as_u64().and_then(|number| usize::try_from(number).ok()).unwrap_or(0)
    }

    pub(super) fn flag(&self, name: &str) -> bool {
        self.get(name).as_bool().unwrap_or(false)
    }

    pub(super) fn text(&self, name: &str) -> String {
        self.get(name).as_str().unwrap_or_default().to_owned()
    }

    pub(super) fn texts(&self, name: &str) -> Vec<String> {
        let value = self.get(name);
        value.as_array().into_iter().flatten().filter_map(|text| text.as_str().map(str::to_owned)).collect()
    }

    pub(super) fn table(&self, name: &str) -> BTreeMap<String, String> {
        let value = self.get(name);
        let pairs = value.as_object().into_iter().flatten();
        pairs.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
    }

    /// All of them, completed.
    pub(super) fn all(&self) -> Map<String, Value> {
        self.declaration.parameters.iter().map(|known| (known.name.to_owned(), self.get(known.name))).collect()
    }
}
