//! What each part of the output is merged from.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use evolver_common::{
    checkpoint::{Dtype, Space, SpaceTensor, TensorInfo},
    merge::{self, Base, Layers, numbered},
    recipe::{Parameters, Value},
};

use super::{
    Model, Operand, Part, compare,
    modules::{self, Tensors},
};
use crate::{
    config::{Content, Entry, MergeConfig, ModelReference, Module, Slice},
    vocabulary::{Vocabulary, is_embedding},
};

/// A tensor of the output.
pub(super) struct Output {
    pub(super) info: TensorInfo,
    /// Where it is copied from, if it is not merged.
    pub(super) kept: Option<(usize, String)>,
}

/// A part under construction.
pub(super) struct Draft {
    label: String,
    stack: Option<String>,
    tensors: Vec<SpaceTensor>,
    base: Option<Operand>,
    models: Vec<(Operand, Parameters)>,
    parameters: Parameters,
}

/// All parts under construction.
pub(super) struct Drafts<'a> {
    config: &'a MergeConfig,
    models: &'a [Model],
    layout: usize,
    vocabulary: Option<&'a Vocabulary>,
    dtype: Option<Dtype>,
    pub(super) drafts: Vec<Draft>,
    pub(super) outputs: BTreeMap<String, Output>,
    pub(super) stacks: Vec<(String, Vec<usize>)>,
    pub(super) problems: Vec<String>,
}

/// A tensor of the output and its name in each source.
struct Wanted {
    name: String,
    /// One for each source, in order.
    sources: Vec<String>,
}

/// What a part is merged from: models with their parameters, and the base among them.
struct Sources<'a> {
    entries: Vec<(&'a ModelReference, &'a Parameters)>,
    base: Option<&'a ModelReference>,
    parameters: Parameters,
    label: String,
    /// Whether the base has to be among the entries: a slice's has its own layers.
    sliced: bool,
}

impl Draft {
    pub(super) fn finish(self, places: &BTreeMap<&String, usize>) -> Part {
        let space = Space { tensors: self.tensors };
        let layers = match &self.stack {
            Some(stack) => Layers::of_stack(&space, stack),
            None => Layers::new(&space),
        };
        Part {
            label: self.label,
            outputs: space.tensors.iter().map(|tensor| places[&tensor.name]).collect(),
            space: Arc::new(space),
            layers,
            base: self.base,
            models: self.models,
            parameters: self.parameters,
        }
    }
}

impl<'a> Drafts<'a> {
    pub(super) fn new(
        config: &'a MergeConfig,
        models: &'a [Model],
        layout: usize,
        vocabulary: Option<&'a Vocabulary>,
        dtype: Option<Dtype>,
    ) -> Self {
        let (drafts, outputs, stacks, problems) = Default::default();
        Self { config, models, layout, vocabulary, dtype, drafts, outputs, stacks, problems }
    }

    /// Plans every module of the definition.
    pub(super) fn draw(&mut self) {
        match modules::split(&self.config.modules, &self.models[self.layout].checkpoint) {
            Err(sentence) => self.problems.push(sentence),
            Ok(parts) => {
                for (module, tensors) in self.config.modules.iter().zip(parts) {
                    match &module.content {
                        Content::Models(entries) => self.whole(module, entries, &tensors),
                        Content::Slices(slices) => self.slices(module, slices, &tensors),
                    }
                }
            }
        }
    }

    /// Whole models.
    fn whole(&mut self, module: &Module, entries: &[Entry], tensors: &Tensors) {
        let config = self.config;
        let sources = Sources {
            entries: entries.iter().map(|entry| (&entry.model, &entry.parameters)).collect(),
            base: config.base.as_ref(),
            parameters: joined(&[&module.parameters, &config.parameters]),
            label: module.name.as_ref().map_or_else(String::new, |name| format!("modules.{name}")),
            sliced: false,
        };
        let wanted =
            tensors.names.iter().map(|name| Wanted { name: name.clone(), sources: vec![name.clone(); entries.len()] }).collect();
        // What a model has besides is only told apart where the whole network is one module.
        if config.modules.len() == 1 {
            for (reference, _) in &sources.entries {
                let model = self.model(reference);
                for (name, info) in self.models[model].checkpoint.tensors() {
                    if info.dtype.is_float() && !tensors.names.contains(name) && !compare::is_buffer(name) {
                        self.problems.push(format!("{reference}: {}", compare::extra(name)));
                    }
                }
            }
        }
        self.part(sources, wanted, None);
    }

    /// Ranges of layers, one after the other. What stands outside the layers goes with the first slice if it comes before them, else with the last.
    fn slices(&mut self, module: &Module, slices: &[Slice], tensors: &Tensors) {
        let place = module.name.as_ref().map_or_else(String::new, |name| format!("modules.{name}."));
        let stacks = tensors.stacks();
        let names: Vec<_> = stacks.keys().map(|stack| stack.trim_end_matches('.').to_owned()).collect();
        let [stack] = names.as_slice() else {
            self.problems.push(match names.as_slice() {
                [] => format!("{place}slices: no layers are found in the names of the tensors"),
                several => format!(
                    "{place}slices: there are several stacks of layers ({}): name one each under modules",
                    several.join(", ")
                ),
            });
            return;
        };
        let stack = format!("{stack}.");
        let outside: Vec<_> =
            tensors.names.iter().filter(|name| numbered(name).is_none_or(|(found, _)| found != stack)).cloned().collect();
        let mut layer = 0;
        let mut origins = Vec::new();
        for (index, slice) in slices.iter().enumerate() {
            let label = format!("{place}slices[{index}]");
            let mut wanted = self.layers(slice, &stack, layer, &label);
            let (first, last) = (index == 0, index + 1 == slices.len());
            let goes = |name: &&String| (first && is_before(name)) || (last && !is_before(name));
            wanted.extend(
                outside
                    .iter()
                    .filter(goes)
                    .map(|name| Wanted { name: name.clone(), sources: vec![name.clone(); slice.sources.len()] }),
            );
            wanted.sort_unstable_by(|a, b| a.name.cmp(&b.name));
            layer += slice.sources[0].layers.len();
            origins.extend(slice.sources[0].layers.clone());
            let sources = Sources {
                entries: slice.sources.iter().map(|source| (&source.model, &source.parameters)).collect(),
                base: slice.base.as_ref().or(self.config.base.as_ref()),
                parameters: joined(&[&slice.parameters, &module.parameters, &self.config.parameters]),
                label,
                sliced: true,
            };
            self.part(sources, wanted, Some(stack.clone()));
        }
        self.stacks.push((stack, origins));
    }

    /// The tensors of a slice's layers, from the output's layer `first` on; as the first source has them.
    fn layers(&mut self, slice: &Slice, stack: &str, first: usize, label: &str) -> Vec<Wanted> {
        let mut by_layer: Vec<BTreeMap<usize, BTreeSet<&str>>> = Vec::new();
        for source in &slice.sources {
            let model = self.model(&source.model);
            let mut layers: BTreeMap<usize, BTreeSet<&str>> = BTreeMap::new();
            for name in self.models[model].checkpoint.tensors().keys() {
                if let Some((_, number)) = numbered(name).filter(|(found, _)| *found == stack) {
                    let rest = &name[stack.len()..];
                    layers.entry(number).or_default().insert(rest.split_once('.').map_or("", |(_, rest)| rest));
                }
            }
            let count = layers.keys().last().map_or(0, |last| last + 1);
            if source.layers.end > count {
                self.problems.push(format!(
                    "{label}: layer_range of {} is [{}, {}], and {}* has {count} layers",
                    source.model, source.layers.start, source.layers.end, stack
                ));
            }
            by_layer.push(layers);
        }
        let mut wanted = Vec::new();
        for offset in 0..slice.sources[0].layers.len() {
            let rests = by_layer[0].get(&(slice.sources[0].layers.start + offset)).cloned().unwrap_or_default();
            for (source, layers) in slice.sources.iter().zip(&by_layer) {
                let number = source.layers.start + offset;
                for rest in layers.get(&number).into_iter().flatten().filter(|rest| !rests.contains(*rest)) {
                    self.problems.push(format!(
                        "{label}: {} has tensor \"{stack}{number}.{rest}\", which the first source lacks",
                        source.model
                    ));
                }
            }
            for rest in rests {
                let name = |number: usize| format!("{stack}{number}.{rest}");
                let sources = slice.sources.iter().map(|source| name(source.layers.start + offset)).collect();
                wanted.push(Wanted { name: name(first + offset), sources });
            }
        }
        wanted
    }

    fn model(&self, reference: &ModelReference) -> usize {
        self.models.iter().position(|model| model.reference == *reference).unwrap_or(self.layout)
    }

    /// Tells base and models apart, compares them tensor by tensor, and keeps the part.
    fn part(&mut self, sources: Sources<'_>, wanted: Vec<Wanted>, stack: Option<String>) {
        let uses = merge::find(&self.config.method).map_or(Base::Unused, merge::Method::base);
        let base = sources.base.filter(|_| uses != Base::Unused);
        let names = |column: Option<usize>| -> Vec<String> {
            let pick = |wanted: &Wanted| column.map_or_else(|| wanted.name.clone(), |column| wanted.sources[column].clone());
            wanted.iter().map(pick).collect()
        };
        let mut models: Vec<(usize, Vec<String>, Parameters)> = Vec::new();
        let mut base_operand = None;
        for (column, (reference, parameters)) in sources.entries.iter().enumerate() {
            if Some(*reference) == base {
                base_operand = Some((self.model(reference), names(Some(column))));
            } else {
                models.push((self.model(reference), names(Some(column)), (*parameters).clone()));
            }
        }
        if let (Some(reference), None) = (base, &base_operand) {
            if !sources.sliced {
                base_operand = Some((self.model(reference), names(None)));
            } else if uses == Base::Needed {
                self.problems.push(format!(
                    "{}: base_model {reference} is not among its sources: add it with its layer_range",
                    sources.label
                ));
            }
        }
        let sides: Vec<&(usize, Vec<String>)> = base_operand.iter().collect();
        let compared: Vec<(usize, &Vec<String>)> = sides
            .iter()
            .map(|(model, names)| (*model, names))
            .chain(models.iter().map(|(model, names, _)| (*model, names)))
            .collect();
        let (tensors, kept) = self.fit(&sources.label, &wanted, &compared);
        let operand =
            |model: usize, names: &[String]| Operand { model, names: kept.iter().map(|&index| names[index].clone()).collect() };
        let draft = Draft {
            label: sources.label.clone(),
            stack,
            base: base_operand.as_ref().map(|(model, names)| operand(*model, names)),
            models: models.iter().map(|(model, names, parameters)| (operand(*model, names), parameters.clone())).collect(),
            parameters: sources.parameters.clone(),
            tensors,
        };
        if !draft.tensors.is_empty() {
            self.drafts.push(draft);
        }
    }

    /// The wanted tensors that are merged, with their indices; the others are copied from the first side.
    fn fit(&mut self, label: &str, wanted: &[Wanted], sides: &[(usize, &Vec<String>)]) -> (Vec<SpaceTensor>, Vec<usize>) {
        let (mut tensors, mut indices) = (Vec::new(), Vec::new());
        let Some((first, first_names)) = sides.first().copied() else { return (tensors, indices) };
        let place = if label.is_empty() { String::new() } else { format!("{label}: ") };
        let any_dtype = self.dtype.is_some();
        for (index, wanted) in wanted.iter().enumerate() {
            let Some(info) = self.models[first].checkpoint.tensors().get(&first_names[index]) else {
                let name = &self.models[first].reference;
                self.problems.push(format!("{place}{name}: tensor {:?} is missing", first_names[index]));
                continue;
            };
            if !info.dtype.is_float() || compare::is_buffer(&wanted.name) {
                let kept = Some((first, first_names[index].clone()));
                self.outputs.insert(wanted.name.clone(), Output { info: info.clone(), kept });
                continue;
            }
            let rows = self.vocabulary.filter(|_| is_embedding(&wanted.name)).map(|vocabulary| vocabulary.rows);
            let mut shape = info.shape.clone();
            if let (Some(rows), Some(side)) = (rows, shape.first_mut()) {
                *side = rows;
            }
            for (model, names) in &sides[1..] {
                let model = &self.models[*model];
                let other = model.checkpoint.tensors().get(&names[index]);
                if let Some(sentence) = compare::tensor(&names[index], info, other, rows.is_some(), any_dtype) {
                    self.problems.push(format!("{place}{}: {sentence}", model.reference));
                }
            }
            let output = TensorInfo { dtype: compare::written(info, self.dtype), shape: shape.clone() };
            self.outputs.insert(wanted.name.clone(), Output { info: output, kept: None });
            let elements = shape.iter().product();
            tensors.push(SpaceTensor { name: wanted.name.clone(), shape, elements });
            indices.push(index);
        }
        (tensors, indices)
    }
}

/// Whether a tensor outside the layers comes before them: the input embeddings and what belongs to them.
fn is_before(name: &str) -> bool {
    let output = ["lm_head", "embed_out", "output"].iter().any(|module| name.split('.').any(|part| part == *module));
    !output && name.split('.').any(|part| part.contains("emb") || ["wte", "wpe", "shared"].contains(&part))
}

/// Parameters under which those of an earlier table hold before those of a later one, rule by rule.
fn joined(tables: &[&Parameters]) -> Parameters {
    let names: BTreeSet<&String> = tables.iter().flat_map(|table| table.keys()).collect();
    let value = |name: &String| -> Value { merge::join(tables.iter().filter_map(|table| table.get(name))) };
    names.into_iter().map(|name| (name.clone(), value(name))).collect()
}
