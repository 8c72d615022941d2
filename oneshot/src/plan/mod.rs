//! A definition bound to its models, from headers alone.
//!
//! - [`models`]: opening what the definition names.
//! - [`modules`]: which tensors belong to which part of the network.
//! - [`parts`]: what each part is merged from.
//! - [`statistics`]: files of statistics that parameters name.
//! - [`vectors`]: (IA)³ adapters merged by their vectors.
//! - [`compare`]: whether the tensors and vocabularies of several models fit.

mod compare;
mod models;
mod modules;
mod parts;
mod statistics;
mod vectors;

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use evolver_common::{
    checkpoint::{Checkpoint, Dtype, Space, TensorInfo, write::Announced},
    digest::Digest,
    merge::{self, Layers},
    recipe::{Input, Merge, Op, Parameters, Recipe},
};
use thiserror::Error;

pub use self::{models::Model, statistics::Statistics};
use crate::{
    config::MergeConfig,
    output::check_template,
    vocabulary::{Speaker, Tokenizer, Vocabulary, is_embedding},
};

/// Everything that keeps a definition from being carried out, a sentence each.
#[derive(Debug, Error)]
#[error("{}", .0.join("\n"))]
pub struct Problems(pub Vec<String>);

/// A merge, ready to be carried out.
#[derive(Debug)]
pub struct Plan {
    /// The definition.
    pub config: MergeConfig,
    /// The models that it names, the base first.
    pub models: Vec<Model>,
    /// Index of the model whose config and files the output begins with.
    pub layout: usize,
    /// Every tensor of the output, by name.
    pub tensors: Vec<Announced>,
    /// What is merged.
    pub parts: Vec<Part>,
    /// What is copied: index of the output's tensor, model, name there.
    pub kept: Vec<(usize, usize, String)>,
    /// The output's vocabulary, where there is a rule for it.
    pub vocabulary: Option<Vocabulary>,
    /// For each stack whose layers were chosen: its name, and for each layer of the output the layer that it comes from.
    pub stacks: Vec<(String, Vec<usize>)>,
    /// The files of statistics that parameters name.
    pub statistics: Vec<Statistics>,
    /// What its user should know.
    pub notes: Vec<String>,
}

/// Tensors that are merged by one recipe.
#[derive(Debug)]
pub struct Part {
    /// What it is, for people; empty where it is the whole.
    pub label: String,
    /// The tensors, by their names in the output.
    pub space: Arc<Space>,
    /// Where they stand.
    pub layers: Layers,
    /// Index of each in the output.
    pub outputs: Vec<usize>,
    /// The base.
    pub base: Option<Operand>,
    /// What is merged, with its parameters.
    pub models: Vec<(Operand, Parameters)>,
    /// Parameters of the merge.
    pub parameters: Parameters,
}

/// A model's tensors in a part.
#[derive(Clone, Debug, PartialEq)]
pub struct Operand {
    /// Index of the model.
    pub model: usize,
    /// Names in the model of the part's tensors.
    pub names: Vec<String>,
}

/// What may be asked for besides the definition.
#[derive(Clone, Copy, Debug, Default)]
pub struct PlanOptions {
    /// Type of the output's tensors, before the definition's.
    pub dtype: Option<Dtype>,
}

impl Plan {
    /// Opens what the definition names and plans every tensor of the output.
    ///
    /// # Errors
    /// Everything that is wrong, at once, as far as it can be told.
    pub fn open(mut config: MergeConfig, options: PlanOptions) -> Result<Self, Problems> {
        let mut problems = Vec::new();
        let statistics = statistics::open(&mut config, &mut problems);
        let models = models::open(&config, &mut problems);
        problems.extend(config.chat_template.as_deref().and_then(|wanted| check_template(wanted).err()));
        if let Err(error) = merge::find(&config.method) {
            problems.push(error.0);
        }
        let models = match models {
            Some(models) if !models.is_empty() && merge::find(&config.method).is_ok() => models,
            _ => return Err(Problems(problems)),
        };
        let layout = models::layout(&config, &models);
        let vocabulary = join_vocabularies(&config, &models, layout, &mut problems);
        let dtype = options.dtype.or(config.dtype);
        let mut drafts = parts::Drafts::new(&config, &models, layout, vocabulary.as_ref(), dtype);
        drafts.draw();
        let parts::Drafts { drafts, outputs, stacks, problems: mut found, .. } = drafts;
        problems.append(&mut found);
        let places: BTreeMap<&String, usize> = outputs.keys().zip(0..).collect();
        let mut kept = Vec::new();
        for (name, output) in &outputs {
            kept.extend(output.kept.iter().map(|(model, source)| (places[name], *model, source.clone())));
        }
        let parts: Vec<_> = drafts.into_iter().map(|draft| draft.finish(&places)).collect();
        let (notes, tensors) = (Vec::new(), Vec::new());
        let mut plan = Self { notes, tensors, config, models, layout, parts, kept, vocabulary, stacks, statistics };
        plan.tensors = outputs
            .into_iter()
            .map(|(name, output)| Announced { name, dtype: output.info.dtype, shape: output.info.shape })
            .collect();
        plan.check_merges(&mut problems);
        plan.notes = plan.vocabulary.iter().flat_map(|vocabulary| vocabulary.notes.clone()).collect();
        if plan.tensors.is_empty() {
            problems.push("the definition leaves no tensor to write".into());
        }
        if problems.is_empty() { Ok(plan) } else { Err(Problems(problems)) }
    }

    /// The recipe of a part; `digest` gives the digest of an operand's values.
    ///
    /// # Errors
    /// A sentence, if a parameter is wrong.
    pub fn recipe(&self, part: &Part, digest: impl Fn(&Operand) -> Digest) -> Result<Recipe, merge::ParameterError> {
        let leaf = |operand: &Operand| Recipe::checkpoint(digest(operand));
        let models =
            part.models.iter().map(|(operand, parameters)| Input { recipe: leaf(operand), parameters: parameters.clone() });
        let merge = Merge {
            method: self.config.method.clone(),
            base: part.base.as_ref().map(leaf),
            models: models.collect(),
            parameters: part.parameters.clone(),
        };
        Ok(Recipe::new(Op::Merge(merge::normalize(merge)?)))
    }

    /// Checks every part's parameters, and what they are at each tensor.
    fn check_merges(&self, problems: &mut Vec<String>) {
        for part in &self.parts {
            let place = if part.label.is_empty() { String::new() } else { format!("{}: ", part.label) };
            // Digests need the weights; the names stand for them.
            let recipe = self.recipe(part, |operand| Digest::of(format!("{operand:?}").as_bytes()));
            match recipe.as_ref().map(Recipe::op) {
                Ok(Op::Merge(merge)) => {
                    let names = |index: usize| self.models[part.models[index].0.model].reference.to_string();
                    let found = compare::vanishing(merge, &part.layers, names);
                    problems.extend(found.map(|sentence| format!("{place}{sentence}")));
                }
                Ok(_) => {}
                Err(error) => {
                    let sentence = format!("{place}{error}");
                    if !problems.contains(&sentence) {
                        problems.push(sentence);
                    }
                }
            }
        }
    }

    /// Bytes of the output's weights.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.tensors.iter().map(|tensor| (tensor.shape.iter().product::<usize>() * tensor.dtype.size()) as u64).sum()
    }

    /// The model that the output's config and files begin with.
    #[must_use]
    pub fn layout(&self) -> &Model {
        &self.models[self.layout]
    }

    /// How many weight files were opened.
    #[must_use]
    pub fn files(&self) -> usize {
        self.models.iter().map(|model| model.checkpoint.file_count()).sum()
    }

    /// Every model's weights.
    #[must_use]
    pub fn checkpoints(&self) -> Vec<Arc<Checkpoint>> {
        self.models.iter().map(|model| Arc::clone(&model.checkpoint)).collect()
    }

    /// Folders that files beside the weights come from, the first that has a file before the others.
    #[must_use]
    pub fn tokenizer_folders(&self) -> &[PathBuf] {
        let origin = self.vocabulary.as_ref().map_or(self.layout, |vocabulary| vocabulary.origin);
        &self.models[origin].folders
    }
}

/// Whether the values of a model's tensor are not what its file holds under that name.
#[must_use]
pub fn is_remapped(vocabulary: Option<&Vocabulary>, model: usize, name: &str, info: Option<&TensorInfo>) -> bool {
    let rows = vocabulary.and_then(|vocabulary| vocabulary.models[model].as_ref());
    let own = info.and_then(|info| info.shape.first()).copied().unwrap_or(0);
    is_embedding(name) && rows.is_some_and(|rows| !rows.is_unchanged(own))
}

fn join_vocabularies(config: &MergeConfig, models: &[Model], layout: usize, problems: &mut Vec<String>) -> Option<Vocabulary> {
    let tokenizers: Vec<_> = models
        .iter()
        .map(|model| {
            model.tokenizer().unwrap_or_else(|sentence| {
                problems.push(sentence);
                None
            })
        })
        .collect();
    let Some(rule) = &config.tokenizer else {
        compare::vocabularies(models, &tokenizers, layout, problems);
        return None;
    };
    let speak = |(model, tokenizer): (_, Option<Tokenizer>)| {
        let model: &Model = model;
        Speaker { reference: &model.reference, checkpoint: &model.checkpoint, tokenizer }
    };
    let speakers: Vec<_> = models.iter().zip(tokenizers).map(speak).collect();
    let base = config.base.as_ref().and_then(|base| models.iter().position(|model| model.reference == *base));
    match Vocabulary::join(rule, &speakers, base) {
        Ok(vocabulary) => Some(vocabulary),
        Err(mut found) => {
            problems.append(&mut found);
            None
        }
    }
}
