//! Parameters of strategies and acceptance rules: declared once, and checked, completed and documented from the declaration.

use evolver_common::suggest;
use serde_json::{Map, Value};

use super::model::{Plugin, SetupError};

/// What a parameter may be.
#[derive(Clone, Copy, Debug, PartialEq)]
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
    /// A table of keys.
    Table,
}

/// A parameter's value where none is given.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Default {
    /// A number.
    Number(f64),
    /// True or false.
    Flag(bool),
    /// A name or text.
    Text(&'static str),
    /// Whatever follows from the others; the doc says what.
    Open,
}

/// A declared parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Parameter {
    /// Its name.
    pub name: &'static str,
    /// What it may be.
    pub kind: Kind,
    /// Its value where none is given.
    pub default: Default,
    /// One sentence of meaning.
    pub doc: &'static str,
}

/// What is known of a strategy or rule.
#[derive(Clone, Debug)]
pub struct About {
    /// Its name in definitions.
    pub name: &'static str,
    /// Rises whenever the same results lead it to other draws or decisions; part of the state hash.
    pub version: u32,
    /// What it does.
    pub summary: &'static str,
    /// Where it comes from.
    pub source: &'static str,
    /// Its parameters.
    pub parameters: Vec<Parameter>,
}

/// An entry of a registry of plugins; see [`About`].
pub(super) struct Entry<O: 'static> {
    pub(super) name: &'static str,
    pub(super) version: u32,
    pub(super) summary: &'static str,
    pub(super) source: &'static str,
    /// Its parameters, group by group.
    pub(super) parameters: &'static [&'static [Parameter]],
    /// Makes it.
    pub(super) open: O,
}

impl<O> Entry<O> {
    fn about(&self) -> About {
        let parameters = self.parameters.iter().copied().flatten().copied().collect();
        About { name: self.name, version: self.version, summary: self.summary, source: self.source, parameters }
    }
}

/// What is known of every plugin of a registry.
pub(super) fn about<O>(registry: &[Entry<O>]) -> Vec<About> {
    registry.iter().map(Entry::about).collect()
}

/// Finds a plugin in its registry and checks its parameters.
pub(super) fn find<O>(
    section: &str,
    key: &str,
    registry: &'static [Entry<O>],
    plugin: &Plugin,
) -> Result<(&'static Entry<O>, Settings), SetupError> {
    let names = || registry.iter().map(|entry| entry.name);
    let entry = registry.iter().find(|entry| entry.name == plugin.name);
    let entry =
        entry.ok_or_else(|| SetupError(format!("{section}.{key}: unknown {key} {}", suggest::unknown(&plugin.name, names()))))?;
    Ok((entry, Settings::new(section, entry.parameters, &plugin.parameters)?))
}

/// Checked parameters.
pub(super) struct Settings {
    given: Map<String, Value>,
    defaults: Vec<(&'static str, Default)>,
}

impl Settings {
    /// Checks `given` against the declaration; an unknown key is refused with the nearest known one.
    pub(super) fn new(section: &str, groups: &[&[Parameter]], given: &Map<String, Value>) -> Result<Self, SetupError> {
        let declared = || groups.iter().copied().flatten();
        for (key, value) in given {
            let Some(parameter) = declared().find(|parameter| parameter.name == key) else {
                let nearest = suggest::unknown(key, declared().map(|parameter| parameter.name));
                return Err(SetupError(format!("unknown key {nearest} in {section}")));
            };
            parameter.check(value).map_err(|expected| SetupError(format!("{section}.{key} is {value}: {expected}")))?;
        }
        let defaults = declared().map(|parameter| (parameter.name, parameter.default)).collect();
        Ok(Self { given: given.clone(), defaults })
    }

    /// Whether the definition gives this parameter.
    pub(super) fn has(&self, name: &str) -> bool {
        self.given.contains_key(name)
    }

    fn default(&self, name: &str) -> Option<Default> {
        self.defaults.iter().find(|(known, _)| *known == name).map(|(_, default)| *default)
    }

    /// A number.
    pub(super) fn number(&self, name: &str) -> f64 {
        match (self.given.get(name).and_then(Value::as_f64), self.default(name)) {
            (Some(number), _) | (None, Some(Default::Number(number))) => number,
            _ => f64::NAN,
        }
    }

    /// A whole number.
    pub(super) fn integer(&self, name: &str) -> u64 {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a default that is declared as a whole number"
        )]
        let default = || self.number(name) as u64;
        self.given.get(name).and_then(Value::as_u64).unwrap_or_else(default)
    }

    /// A whole number as a count.
    pub(super) fn count(&self, name: &str) -> usize {
        usize::try_from(self.integer(name)).unwrap_or(usize::MAX)
    }

    /// True or false.
    pub(super) fn flag(&self, name: &str) -> bool {
        let default = self.default(name) == Some(Default::Flag(true));
        self.given.get(name).and_then(Value::as_bool).unwrap_or(default)
    }

    /// A text or a choice, empty where neither the definition nor the declaration gives one.
    pub(super) fn text(&self, name: &str) -> &str {
        match (self.given.get(name).and_then(Value::as_str), self.default(name)) {
            (Some(text), _) | (None, Some(Default::Text(text))) => text,
            _ => "",
        }
    }

    /// A choice whose default follows from others.
    pub(super) fn text_or<'a>(&'a self, name: &str, default: &'a str) -> &'a str {
        if self.has(name) { self.text(name) } else { default }
    }

    /// A list of texts, empty by default.
    pub(super) fn texts(&self, name: &str) -> Vec<&str> {
        self.given.get(name).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect()
    }

    /// A table, empty by default.
    pub(super) fn table(&self, name: &str) -> Map<String, Value> {
        self.given.get(name).and_then(Value::as_object).cloned().unwrap_or_default()
    }
}

impl Parameter {
    /// What would be right, if `value` is not.
    fn check(&self, value: &Value) -> Result<(), String> {
        let right = match self.kind {
            Kind::Number(low, high) => value.as_f64().is_some_and(|number| (low..=high).contains(&number)),
            Kind::Integer(low, high) => value.as_u64().is_some_and(|number| (low..=high).contains(&number)),
            Kind::Flag => value.is_boolean(),
            Kind::Choice(names) => value.as_str().is_some_and(|name| names.contains(&name)),
            Kind::Text => value.is_string(),
            Kind::Texts => value.as_array().is_some_and(|items| items.iter().all(Value::is_string)),
            Kind::Table => value.is_object(),
        };
        let expected = || match self.kind {
            Kind::Number(low, high) => format!("it must lie between {low} and {high}"),
            Kind::Integer(low, high) => format!("it must be a whole number between {low} and {high}"),
            Kind::Flag => "true or false is expected".to_owned(),
            Kind::Choice(names) => format!("one of {} is expected", names.join(", ")),
            Kind::Text => "a text is expected".to_owned(),
            Kind::Texts => "a list of texts is expected".to_owned(),
            Kind::Table => "a table is expected".to_owned(),
        };
        if right { Ok(()) } else { Err(expected()) }
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Number(low, high) => write!(f, "{low} to {high}"),
            Self::Integer(low, high) => write!(f, "whole, {low} to {high}"),
            Self::Flag => f.write_str("true or false"),
            Self::Choice(names) => f.write_str(&names.join(" | ")),
            Self::Text => f.write_str("text"),
            Self::Texts => f.write_str("list of texts"),
            Self::Table => f.write_str("table"),
        }
    }
}

impl std::fmt::Display for Default {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Flag(flag) => write!(f, "{flag}"),
            Self::Text(text) => f.write_str(text),
            Self::Open => f.write_str("–"),
        }
    }
}
