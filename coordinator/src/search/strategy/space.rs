//! Coefficients of a merge as a vector of numbers in the unit cube.
//!
//! A searched parameter has one coefficient for the merge, or one per model where it stands at models; times one for each group of layers (a list, linear
//! in between, as mergekit's gradients), times one for each module pattern and one for the rest (rules by tensor name).

use evolver_common::{
    merge::{self, ParameterSpec, Scope, find},
    recipe::{Parameters, Recipe, Rule, Value},
    suggest,
};

use super::{
    Start,
    merging::{Merging, chosen},
};
use crate::search::{
    model::{Individual, SetupError},
    settings::{Default, Kind, Parameter, Settings},
};

/// Most coefficients of one search.
const GENES_MAX: usize = 1000;

/// Keys of a space.
pub(super) const SPACE: &[Parameter] = &[
    Parameter {
        name: "coefficients",
        kind: Kind::Texts,
        default: Default::Open,
        doc: "Parameters of the method that are searched, for instance [\"weight\", \"density\"]; by default weight, or else lambda.",
    },
    Parameter {
        name: "ranges",
        kind: Kind::Table,
        default: Default::Open,
        doc: "Lowest, highest and first value of a coefficient, for instance { weight = [0.5, 3.0, 1.0] }.",
    },
    Parameter {
        name: "layer_groups",
        kind: Kind::Integer(1, 512),
        default: Default::Number(1.0),
        doc: "Values over the layers, from the first to the last, linear in between.",
    },
    Parameter {
        name: "patterns",
        kind: Kind::Texts,
        default: Default::Open,
        doc: "Parts of tensor names that have values of their own, for instance [\"attention\", \"intermediate\"]; what matches none has one too.",
    },
];

struct Gene {
    low: f64,
    high: f64,
    first: f64,
}

/// A searched parameter and where its genes begin.
struct Searched {
    name: String,
    scope: Scope,
    kind: merge::Kind,
    start: usize,
}

/// The space of one merge's coefficients.
pub(super) struct Space {
    merging: Merging,
    models: Vec<Individual>,
    searched: Vec<Searched>,
    genes: Vec<Gene>,
    groups: usize,
    patterns: Vec<String>,
}

impl Space {
    pub(super) fn new(settings: &Settings, start: &Start<'_>) -> Result<Self, SetupError> {
        let merging = Merging::new(settings, start)?;
        let method = find(&merging.method).map_err(|error| SetupError(format!("search.method: {error}")))?;
        let numeric = |spec: &&ParameterSpec| {
            matches!(spec.kind, merge::Kind::Number(..) | merge::Kind::Constant(..) | merge::Kind::Integer(..))
        };
        let known: Vec<_> = method.parameters().iter().filter(numeric).collect();
        let mut names = settings.texts("coefficients");
        if names.is_empty() {
            names.extend(["weight", "lambda"].into_iter().find(|name| known.iter().any(|spec| spec.name == *name)));
        }
        if names.is_empty() {
            let all: Vec<_> = known.iter().map(|spec| spec.name).collect();
            let what =
                if all.is_empty() { "it has no numbers to search".into() } else { format!("name some of {}", all.join(", ")) };
            return Err(SetupError(format!("search.coefficients is missing for method {}: {what}", merging.method)));
        }
        let models = chosen(settings, start)?;
        if models.is_empty() {
            return Err(SetupError("a merge's coefficients need at least one model, and there is none".into()));
        }
        let mut this = Self {
            merging,
            models,
            searched: Vec::new(),
            genes: Vec::new(),
            groups: settings.count("layer_groups"),
            patterns: settings.texts("patterns").into_iter().map(str::to_owned).collect(),
        };
        let ranges = settings.table("ranges");
        if let Some(other) = ranges.keys().find(|key| !names.contains(&key.as_str())) {
            return Err(SetupError(format!(
                "search.ranges: {}, which is not searched",
                suggest::unknown(other, names.iter().copied())
            )));
        }
        for name in names {
            let spec = known.iter().find(|spec| spec.name == name).ok_or_else(|| {
                let nearest = suggest::unknown(name, known.iter().map(|spec| spec.name));
                SetupError(format!("search.coefficients: method {} has no number {nearest}", this.merging.method))
            })?;
            this.add(spec, ranges.get(name))?;
        }
        if this.genes.len() > GENES_MAX {
            return Err(SetupError(format!(
                "{} coefficients are to be searched, and at most {GENES_MAX} can be",
                this.genes.len()
            )));
        }
        this.build(&this.first())?;
        Ok(this)
    }

    fn add(&mut self, spec: &ParameterSpec, range: Option<&serde_json::Value>) -> Result<(), SetupError> {
        let (merge::Kind::Number(least, most) | merge::Kind::Constant(least, most) | merge::Kind::Integer(least, most)) =
            spec.kind
        else {
            return Ok(());
        };
        let default = if let merge::Default::Number(number) = spec.default { number } else { 0.0 };
        let given: Option<Vec<f64>> =
            range.and_then(serde_json::Value::as_array).map(|list| list.iter().filter_map(serde_json::Value::as_f64).collect());
        let (low, high, first) = match (range, given.as_deref()) {
            (None, _) => (least.max(0.0), most.min((2.0 * default).max(1.0)), default),
            (_, Some([low, high])) => (*low, *high, default.clamp(*low, high.max(*low))),
            (_, Some([low, high, first])) => (*low, *high, *first),
            _ => (f64::NAN, f64::NAN, f64::NAN),
        };
        if !(least <= low && low < high && high <= most && (low..=high).contains(&first)) {
            return Err(SetupError(format!(
                "search.ranges.{}: lowest, highest and first value are expected, in this order of size within {least} to {most}, for instance [{}, {}, {default}]",
                spec.name,
                least.max(0.0),
                most.min((2.0 * default).max(1.0)),
            )));
        }
        self.searched.push(Searched { name: spec.name.to_owned(), scope: spec.scope, kind: spec.kind, start: self.genes.len() });
        let models = if spec.scope == Scope::Model { self.models.len() } else { 1 };
        let count = models * self.values(spec.kind);
        self.genes.extend((0..count).map(|_| Gene { low, high, first }));
        Ok(())
    }

    /// Values of one parameter of one model.
    fn values(&self, kind: merge::Kind) -> usize {
        if kind.varies() { self.groups * (self.patterns.len() + 1) } else { 1 }
    }

    /// How many coefficients there are.
    pub(super) fn dimension(&self) -> usize {
        self.genes.len()
    }

    /// The point to start from.
    pub(super) fn first(&self) -> Vec<f64> {
        self.genes.iter().map(|gene| (gene.first - gene.low) / (gene.high - gene.low)).collect()
    }

    /// The models that are merged.
    pub(super) fn models(&self) -> &[Individual] {
        &self.models
    }

    fn build(&self, point: &[f64]) -> Result<Recipe, SetupError> {
        let numbers: Vec<f64> =
            self.genes.iter().zip(point).map(|(gene, at)| gene.low + at.clamp(0.0, 1.0) * (gene.high - gene.low)).collect();
        let mut merge = Parameters::new();
        let mut models = vec![Parameters::new(); self.models.len()];
        for searched in &self.searched {
            let size = self.values(searched.kind);
            let tables: Vec<&mut Parameters> =
                if searched.scope == Scope::Model { models.iter_mut().collect() } else { vec![&mut merge] };
            for (table, numbers) in tables.into_iter().zip(numbers[searched.start..].chunks(size)) {
                table.insert(searched.name.clone(), self.value(searched.kind, numbers));
            }
        }
        let models = self.models.iter().map(|model| model.recipe.clone()).zip(models).collect();
        self.merging.of(models, merge)
    }

    fn value(&self, kind: merge::Kind, numbers: &[f64]) -> Value {
        match (kind, numbers) {
            (merge::Kind::Integer(..), [number]) => Value::Number(number.round()),
            (_, [number]) => Value::Number(*number),
            _ => {
                let list = |numbers: &[f64]| {
                    if let [number] = numbers { Value::Number(*number) } else { Value::Numbers(numbers.to_vec()) }
                };
                if self.patterns.is_empty() {
                    return list(numbers);
                }
                let filters = self.patterns.iter().cloned().map(Some).chain([None]);
                Value::Rules(
                    filters
                        .zip(numbers.chunks(self.groups))
                        .map(|(filter, numbers)| Rule { filter, value: list(numbers) })
                        .collect(),
                )
            }
        }
    }

    /// The merge with the coefficients of this point.
    pub(super) fn recipe(&self, point: &[f64]) -> Recipe {
        // Every point of the cube is within the bounds that the method's declaration allows, as the first point was.
        self.build(point).unwrap_or_else(|_| self.models[0].recipe.clone())
    }
}
