//! The merge of several models as a recipe, by any registered method.

use evolver_common::{
    merge::{Base, find, normalize},
    recipe::{Input, Merge, Op, Parameters, Recipe},
};
use serde_json::{Map, Value};

use super::Start;
use crate::search::{
    model::{Individual, SetupError, Statistics},
    settings::{Default, Kind, Parameter, Settings},
};

/// The method of a merge.
pub(super) const METHOD: Parameter = Parameter {
    name: "method",
    kind: Kind::Text,
    default: Default::Text("pcb"),
    doc: "Merge method; `evolver methods` lists them.",
};

/// What stays as it is in all its merges.
pub(super) const PARAMETERS: Parameter = Parameter {
    name: "parameters",
    kind: Kind::Table,
    default: Default::Open,
    doc: "Parameters of the merge that stay as they are, for instance { ratio = 0.1 }.",
};

/// The same, of the merged models.
pub(super) const MODEL_PARAMETERS: Parameter = Parameter {
    name: "model_parameters",
    kind: Kind::Table,
    default: Default::Open,
    doc: "Parameters of every merged model that stay as they are, for instance { weight = 1.0 }.",
};

/// Keys of a merge.
pub(super) const MERGE: &[Parameter] = &[METHOD, PARAMETERS, MODEL_PARAMETERS];

/// Which models are merged.
pub(super) const MODELS: Parameter = Parameter {
    name: "models",
    kind: Kind::Texts,
    default: Default::Open,
    doc: "Start models that take part, by name; by default all experts.",
};

/// A merge whose models are still open.
#[derive(Clone)]
pub(super) struct Merging {
    pub(super) method: String,
    base: Option<Recipe>,
    parameters: Parameters,
    model_parameters: Parameters,
    statistics: Statistics,
}

impl Merging {
    pub(super) fn new(settings: &Settings, start: &Start<'_>) -> Result<Self, SetupError> {
        Ok(Self {
            parameters: parameters("search.parameters", &settings.table("parameters"))?,
            model_parameters: parameters("search.model_parameters", &settings.table("model_parameters"))?,
            ..Self::plain(settings.text("method"), start)?
        })
    }

    /// A merge by a method's defaults.
    pub(super) fn plain(method: &str, start: &Start<'_>) -> Result<Self, SetupError> {
        let base = find(method).map_err(|error| SetupError(format!("search.method: {error}")))?.base();
        let base = (base != Base::Unused).then(|| start.setup.base.clone());
        let (parameters, model_parameters) = (Parameters::new(), Parameters::new());
        let statistics = start.setup.statistics.clone();
        Ok(Self { method: method.to_owned(), base, parameters, model_parameters, statistics })
    }

    /// The merge of these models; what is given here goes before what stays.
    pub(super) fn of(&self, models: Vec<(Recipe, Parameters)>, parameters: Parameters) -> Result<Recipe, SetupError> {
        let over = |own: Parameters, kept: &Parameters| {
            let mut all = kept.clone();
            all.extend(own);
            all
        };
        let input = |(recipe, own)| {
            let mut parameters = over(own, &self.model_parameters);
            self.statistics.add_to(&mut parameters, &self.method, &recipe)?;
            Ok(Input { recipe, parameters })
        };
        let merge = normalize(Merge {
            method: self.method.clone(),
            base: self.base.clone(),
            models: models.into_iter().map(input).collect::<Result<_, SetupError>>()?,
            parameters: over(parameters, &self.parameters),
        });
        merge.map(|merge| Recipe::new(Op::Merge(merge))).map_err(|error| SetupError(format!("search: {error}")))
    }

    /// The merge of these models without parameters of their own.
    pub(super) fn of_all<'a>(&self, models: impl IntoIterator<Item = &'a Recipe>) -> Result<Recipe, SetupError> {
        self.of(models.into_iter().map(|recipe| (recipe.clone(), Parameters::new())).collect(), Parameters::new())
    }
}

fn parameters(key: &str, table: &Map<String, Value>) -> Result<Parameters, SetupError> {
    let entry = |(name, value): (&String, &Value)| {
        let read = serde_json::from_value(value.clone());
        let bad =
            |_| SetupError(format!("{key}.{name} is {value}: a number, a list of numbers, a text, a flag or rules are expected"));
        Ok((name.clone(), read.map_err(bad)?))
    };
    table.iter().map(entry).collect()
}

/// The chosen start models.
pub(super) fn chosen(settings: &Settings, start: &Start<'_>) -> Result<Vec<Individual>, SetupError> {
    let names = settings.texts("models");
    if names.is_empty() {
        return Ok(start.members.iter().filter(|member| member.kind == "expert").cloned().collect());
    }
    let named = |name: &&str| {
        let known = || start.setup.individuals.iter().map(|named| named.name.as_str());
        if !known().any(|known| known == *name) {
            return Err(SetupError(format!(
                "search.models: unknown start model {}",
                evolver_common::suggest::unknown(name, known())
            )));
        }
        // One that could not be scored takes no part.
        Ok(start.members.iter().find(|member| member.name == *name).cloned())
    };
    Ok(names.iter().map(named).collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
}
