//! mergekit's merge definitions, as YAML or as the same keys in TOML.
//!
//! - [`read`]: from a file's tree to the typed definition; every wrong key at once.
//! - [`tokens`]: the section `tokenizer`.
//! - [`reference`]: `path@revision+adapter`, and where such a model lies on this machine.
//! - [`write`]: a recipe as mergekit's YAML.

mod read;
mod reference;
mod tokens;
mod write;

use std::{ops::Range, path::PathBuf};

use evolver_common::{checkpoint::Dtype, recipe::Parameters};
use thiserror::Error;

pub use self::{
    reference::ModelReference,
    tokens::{TokenRule, TokenSource, TokenizerRule, TokenizerSource},
    write::{Unwritable, to_mergekit},
};

/// A merge definition that cannot be used; the sentences, one each line.
#[derive(Debug, Error)]
#[error("{path}: {}", .problems.join("\n"), path = path.display())]
pub struct ConfigError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong, a sentence each.
    pub problems: Vec<String>,
}

/// A merge as its user wrote it.
#[derive(Clone, Debug, PartialEq)]
pub struct MergeConfig {
    /// The method's name.
    pub method: String,
    /// The base model.
    pub base: Option<ModelReference>,
    /// The models are (IA)³ adapters whose vectors are merged; then the base is a vector of ones.
    pub vectors: bool,
    /// What is merged: one part for `models` and `slices`, one for each of `modules`.
    pub modules: Vec<Module>,
    /// Parameters of the whole merge.
    pub parameters: Parameters,
    /// Type that the result is saved in (`out_dtype`, else `dtype`); the base's or first model's if not given.
    pub dtype: Option<Dtype>,
    /// How vocabularies become one; without it they must be the same.
    pub tokenizer: Option<TokenizerRule>,
    /// `auto`, the name of a template, or a template.
    pub chat_template: Option<String>,
    /// Folder that relative paths start from.
    pub folder: PathBuf,
    /// The definition's text, for the model card.
    pub text: String,
}

/// A part of the network.
#[derive(Clone, Debug, PartialEq)]
pub struct Module {
    /// Its name under `modules`; `None` where there is no such key.
    pub name: Option<String>,
    /// What it is made of.
    pub content: Content,
    /// Parameters of this part.
    pub parameters: Parameters,
}

/// Whole models, or ranges of their layers one after the other.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// Models, merged from the first layer to the last.
    Models(Vec<Entry>),
    /// Layers, slice after slice.
    Slices(Vec<Slice>),
}

/// A model that is merged.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The model.
    pub model: ModelReference,
    /// Parameters of this model.
    pub parameters: Parameters,
}

/// Some layers of the output.
#[derive(Clone, Debug, PartialEq)]
pub struct Slice {
    /// The layers that they are merged from, as many of each model.
    pub sources: Vec<SliceSource>,
    /// Stands in for the merge's base here.
    pub base: Option<ModelReference>,
    /// Parameters of this slice.
    pub parameters: Parameters,
}

/// Some layers of one model.
#[derive(Clone, Debug, PartialEq)]
pub struct SliceSource {
    /// The model.
    pub model: ModelReference,
    /// Its layers, the last not included.
    pub layers: Range<usize>,
    /// Parameters of this model here.
    pub parameters: Parameters,
}

impl MergeConfig {
    /// Every model that the definition names, each once, the base first.
    #[must_use]
    pub fn models(&self) -> Vec<&ModelReference> {
        let mut all: Vec<&ModelReference> = self.base.iter().collect();
        for module in &self.modules {
            match &module.content {
                Content::Models(entries) => all.extend(entries.iter().map(|entry| &entry.model)),
                Content::Slices(slices) => {
                    for slice in slices {
                        all.extend(slice.sources.iter().map(|source| &source.model).chain(&slice.base));
                    }
                }
            }
        }
        all.extend(self.tokenizer.iter().flat_map(TokenizerRule::models));
        let mut seen = std::collections::HashSet::new();
        all.retain(|model| seen.insert(*model));
        all
    }
}
