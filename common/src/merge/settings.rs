//! Parameters of merge methods: declared once, and checked, completed and documented from the declaration.

use std::sync::Arc;

use serde_json::Value as Json;
use thiserror::Error;

use super::{Base, find, layers::Layers};
use crate::{
    recipe::{Merge, Parameters, Rule, Value},
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
    /// A number between two bounds, both allowed; or a list of them over the layers, or rules by tensor.
    Number(f64, f64),
    /// A number between two bounds, both allowed, that is one for all tensors.
    Constant(f64, f64),
    /// A whole number between two bounds, both allowed, that is one for all tensors.
    Integer(f64, f64),
    /// True or false; or rules by tensor.
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
    layers: Arc<Layers>,
}

impl Settings {
    /// The parameters of a [`normalize`]d merge over tensors at these places.
    #[must_use]
    pub fn new(merge: &Merge, layers: Arc<Layers>) -> Self {
        let models = merge.models.iter().map(|input| input.parameters.clone()).collect();
        Self { merge: merge.parameters.clone(), models, layers }
    }

    /// Where the tensors stand.
    #[must_use]
    pub fn layers(&self) -> &Layers {
        &self.layers
    }

    /// A declared number of the merge that is one for all tensors.
    #[must_use]
    pub fn number(&self, name: &str) -> f64 {
        number(self.merge.get(name), 0.0)
    }

    /// A declared whole number of the merge.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be whole and at least 0")]
    pub fn integer(&self, name: &str) -> u64 {
        self.number(name) as u64
    }

    /// A declared number of the merge, for each tensor.
    #[must_use]
    pub fn per_tensor(&self, name: &str) -> Vec<f64> {
        (0..self.layers.tensors()).map(|tensor| self.at(&self.merge, name, tensor)).collect()
    }

    /// A declared flag of the merge, for each tensor.
    #[must_use]
    pub fn flags(&self, name: &str) -> Vec<bool> {
        let flag = |tensor| matches!(self.chosen(&self.merge, name, tensor), Some(Value::Flag(true)));
        (0..self.layers.tensors()).map(flag).collect()
    }

    /// A declared name of the merge.
    #[must_use]
    pub fn choice(&self, name: &str) -> &str {
        match self.merge.get(name) {
            Some(Value::Text(text)) => text,
            _ => "",
        }
    }

    /// A declared number of every model, in order, for each tensor: `[tensor][model]`.
    #[must_use]
    pub fn per_model(&self, name: &str) -> Vec<Vec<f64>> {
        let row = |tensor| self.models.iter().map(|model| self.at(model, name, tensor)).collect();
        (0..self.layers.tensors()).map(row).collect()
    }

    fn at(&self, parameters: &Parameters, name: &str, tensor: usize) -> f64 {
        number(self.chosen(parameters, name, tensor), self.layers.depth(tensor))
    }

    /// The value that holds for a tensor.
    fn chosen<'p>(&self, parameters: &'p Parameters, name: &str, tensor: usize) -> Option<&'p Value> {
        let tensor = self.layers.name(tensor);
        match parameters.get(name)? {
            Value::Rules(rules) => {
                let holds = |rule: &&Rule| rule.filter.as_ref().is_none_or(|filter| tensor.contains(filter.as_str()));
                rules.iter().find(holds).map(|rule| &rule.value)
            }
            value => Some(value),
        }
    }
}

/// A number, or what a list of them is at a relative depth.
fn number(value: Option<&Value>, depth: f64) -> f64 {
    match value {
        Some(Value::Number(number)) => *number,
        Some(Value::Numbers(list)) => interpolate(list, depth),
        _ => f64::NAN,
    }
}

/// Linear interpolation between evenly spaced values, mergekit's "gradient".
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a place in a list, from a depth in [0, 1]"
)]
fn interpolate(list: &[f64], depth: f64) -> f64 {
    let last = list.len().saturating_sub(1);
    let place = depth * last as f64;
    let below = (place as usize).min(last);
    let above = (below + 1).min(last);
    let share = place - below as f64;
    match list {
        [] => f64::NAN,
        list => (1.0 - share) * list[below] + share * list[above],
    }
}

/// The value that holds where `sources`, from the most to the least binding, give one or rules: rules of one go before those of the next, as
/// mergekit looks from a model's parameters on to the merge's.
pub fn join<'v>(sources: impl IntoIterator<Item = &'v Value>) -> Value {
    let mut joined = Vec::new();
    for source in sources {
        match source {
            Value::Rules(rules) => {
                joined.extend(rules.iter().map(|rule| {
                    let filter = rule.filter.clone().filter(|filter| filter != "*");
                    Rule { filter, value: rule.value.clone() }
                }));
            }
            value => joined.push(Rule { filter: None, value: value.clone() }),
        }
    }
    if let Some(end) = joined.iter().position(|rule| rule.filter.is_none()) {
        joined.truncate(end + 1);
    }
    match joined.as_slice() {
        [Rule { filter: None, value }] => value.clone(),
        _ => Value::Rules(joined),
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
    match method.base() {
        Base::Needed if merge.base.is_none() => {
            return Err(bad("a base model is needed, since it merges differences to it".into()));
        }
        Base::Unused => merge.base = None,
        Base::Needed | Base::Optional => {}
    }
    let specs = method.parameters();
    for name in merge.parameters.keys().chain(merge.models.iter().flat_map(|input| input.parameters.keys())) {
        if !specs.iter().any(|spec| spec.name == name) {
            let known: Vec<_> = specs.iter().map(|spec| spec.name).collect();
            return Err(bad(format!("unknown parameter {}", suggest::unknown(name, known.iter().copied()))));
        }
    }
    method.complete(&mut merge);
    for spec in specs {
        let own = |parameters: &mut Parameters| {
            let given = parameters.remove(spec.name).map(|value| spec.coerce(value));
            given.iter().try_for_each(|value| spec.check(value)).map_err(&bad)?;
            Ok(given)
        };
        let value = join(own(&mut merge.parameters)?.iter().chain([&spec.default.value()]));
        match spec.scope {
            Scope::Merge => {
                if merge.models.iter().any(|input| input.parameters.contains_key(spec.name)) {
                    return Err(bad(format!("{} holds for the whole merge and cannot stand at one model", spec.name)));
                }
                merge.parameters.insert(spec.name.to_owned(), value);
            }
            Scope::Model => {
                for input in &mut merge.models {
                    let value = join(own(&mut input.parameters)?.iter().chain([&value]));
                    input.parameters.insert(spec.name.to_owned(), value);
                }
            }
        }
    }
    method.check(&merge).map_err(bad)?;
    Ok(merge)
}

impl ParameterSpec {
    /// mergekit's files write flags as 0 and 1 too.
    fn coerce(&self, value: Value) -> Value {
        match (self.kind, value) {
            (Kind::Flag, Value::Number(0.0)) => Value::Flag(false),
            (Kind::Flag, Value::Number(1.0)) => Value::Flag(true),
            (Kind::Flag, Value::Rules(rules)) => {
                let rule = |rule: Rule| Rule { value: self.coerce(rule.value), ..rule };
                Value::Rules(rules.into_iter().map(rule).collect())
            }
            (_, value) => value,
        }
    }

    fn check(&self, value: &Value) -> Result<(), String> {
        let name = self.name;
        match value {
            Value::Rules(_) if !self.kind.varies() => {
                Err(format!("{name} is one for all tensors: rules by tensor are given, and one value is expected"))
            }
            Value::Rules(rules) => rules.iter().try_for_each(|rule| self.check_one(&rule.value)),
            value => self.check_one(value),
        }
    }

    /// Checks a value that holds no rules.
    fn check_one(&self, value: &Value) -> Result<(), String> {
        let name = self.name;
        let shown = || serde_json::to_value(value).unwrap_or(Json::Null);
        let within = |low: f64, high: f64, number: &f64| {
            if (low..=high).contains(number) {
                Ok(())
            } else {
                Err(format!("{name} is {number}: it must lie between {low} and {high}"))
            }
        };
        match (self.kind, value) {
            (Kind::Number(low, high) | Kind::Constant(low, high), Value::Number(number)) => within(low, high, number),
            (Kind::Number(low, high), Value::Numbers(list)) if !list.is_empty() => {
                list.iter().try_for_each(|number| within(low, high, number))
            }
            (Kind::Integer(low, high), Value::Number(number)) if number.fract() == 0.0 => within(low, high, number),
            (Kind::Flag, Value::Flag(_)) => Ok(()),
            (Kind::Choice(names), Value::Text(text)) => {
                if names.contains(&text.as_str()) {
                    Ok(())
                } else {
                    Err(format!("unknown {name} {}", suggest::unknown(text, names.iter().copied())))
                }
            }
            (Kind::Number(..), _) => Err(format!(
                "{name} is {}: a number, a list of numbers over the layers, or rules by tensor are expected",
                shown()
            )),
            (Kind::Constant(..), _) => Err(format!("{name} is {}: a number is expected, one for all tensors", shown())),
            (Kind::Integer(..), _) => Err(format!("{name} is {}: a whole number is expected, one for all tensors", shown())),
            (Kind::Flag, _) => Err(format!("{name} is {}: true or false is expected", shown())),
            (Kind::Choice(names), _) => Err(format!("{name} is {}: one of {} is expected", shown(), names.join(", "))),
        }
    }
}

impl Kind {
    /// Whether values may differ between tensors.
    #[must_use]
    pub fn varies(&self) -> bool {
        matches!(self, Self::Number(..) | Self::Flag)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        checkpoint::{Space, SpaceTensor},
        digest::Digest,
        recipe::{Input, Recipe},
    };

    fn value(json: &str) -> Value {
        serde_json::from_str(json).unwrap()
    }

    /// A TIES merge of two models, with these texts of JSON as parameters.
    fn ties(merge: &[(&str, &str)], first: &[(&str, &str)]) -> Merge {
        let table = |pairs: &[(&str, &str)]| pairs.iter().map(|(name, json)| ((*name).to_owned(), value(json))).collect();
        let leaf = |n: u8| Recipe::checkpoint(Digest::of(&[n]));
        let models =
            vec![Input { recipe: leaf(1), parameters: table(first) }, Input { recipe: leaf(2), parameters: Parameters::new() }];
        Merge { method: "ties".into(), base: Some(leaf(0)), models, parameters: table(merge) }
    }

    fn layers() -> Arc<Layers> {
        let names = ["embed.weight", "h.0.attn.q", "h.0.mlp.up", "h.1.attn.q", "h.2.attn.q", "h.4.mlp.up"];
        let tensor = |name: &str| SpaceTensor { name: name.into(), shape: vec![1], elements: 1 };
        Arc::new(Layers::new(&Space { tensors: names.into_iter().map(tensor).collect() }))
    }

    #[test]
    fn a_models_rules_go_before_the_merges_and_those_before_the_default() {
        let merge = ties(
            &[("weight", r#"[{"filter": "attn", "value": [0, 1]}, {"filter": "embed", "value": 7}]"#)],
            &[("weight", r#"[{"filter": "mlp", "value": 0.3}]"#)],
        );
        let merge = normalize(merge).unwrap();
        assert_eq!(normalize(merge.clone()).unwrap(), merge, "what is complete stays as it is");
        let weights = Settings::new(&merge, layers()).per_model("weight");
        let expected = [[7.0, 7.0], [0.0, 0.0], [0.3, 1.0], [0.25, 0.25], [0.5, 0.5], [0.3, 1.0]];
        assert_eq!(weights, expected.map(Vec::from));
    }

    #[test]
    fn lists_are_interpolated_over_the_layers() {
        let merge = normalize(ties(&[("density", "[0, 1, 0.5]"), ("normalize", "1")], &[])).unwrap();
        let settings = Settings::new(&merge, layers());
        let densities: Vec<_> = settings.per_model("density").into_iter().map(|row| row[0]).collect();
        assert_eq!(densities, [0.0, 0.0, 0.0, 0.5, 1.0, 0.5]);
        assert_eq!(settings.flags("normalize"), [true; 6]);
    }

    #[test]
    fn wrong_values_are_named() {
        for (name, json, expected) in [
            ("density", "[0.5, 2]", "density is 2: it must lie between 0 and 1"),
            ("density", "[]", "density is []"),
            ("density", r#"[{"filter": "mlp", "value": -1}]"#, "density is -1"),
            ("density", r#"[{"value": [{"value": 1}]}]"#, "density is [{\"value\":1.0}]"),
            ("normalize", r#"[{"filter": "mlp", "value": [0, 1]}]"#, "true or false is expected"),
            ("lambda", r#""x""#, "a number, a list of numbers over the layers"),
        ] {
            let error = normalize(ties(&[(name, json)], &[])).unwrap_err().to_string();
            assert!(error.contains(expected), "{name} {json}: {error}");
        }
    }
}
