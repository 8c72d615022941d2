//! Opening the models that a definition names: each once, adapters over their bases.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use evolver_common::checkpoint::{Checkpoint, adapter_base, is_adapter};

use super::vectors;
use crate::{
    config::{Content, MergeConfig, ModelReference},
    vocabulary::Tokenizer,
};

/// A model, opened.
#[derive(Debug)]
pub struct Model {
    /// Its name in the definition.
    pub reference: ModelReference,
    /// Its weights.
    pub checkpoint: Arc<Checkpoint>,
    /// Folders that its tokenizer may lie in: an adapter's before its base's.
    pub folders: Vec<PathBuf>,
    /// The folder of a model that was made for this plan.
    #[expect(dead_code, reason = "it is removed when the plan is dropped")]
    pub(super) made: Option<Arc<tempfile::TempDir>>,
}

impl Model {
    /// Its tokenizer, if it has a fast one.
    pub(super) fn tokenizer(&self) -> Result<Option<Tokenizer>, String> {
        for folder in &self.folders {
            if let Some(tokenizer) = Tokenizer::open(folder)? {
                return Ok(Some(tokenizer));
            }
        }
        Ok(None)
    }
}

/// Opens every model; `None` if one cannot be opened, with a sentence for each that cannot.
pub(super) fn open(config: &MergeConfig, problems: &mut Vec<String>) -> Option<Vec<Model>> {
    if config.vectors {
        return vectors::open(config).map_err(|sentence| problems.push(sentence)).ok();
    }
    let mut opener = Opener { folder: &config.folder, full: HashMap::new(), base: None };
    let mut models = Vec::new();
    let references = config.models();
    let count = references.len();
    for reference in references {
        match opener.open(reference) {
            Ok(model) => {
                if config.base.as_ref() == Some(reference) {
                    opener.base = Some(Arc::clone(&model.checkpoint));
                }
                models.push(model);
            }
            Err(sentence) => problems.push(sentence),
        }
    }
    (models.len() == count).then_some(models)
}

struct Opener<'a> {
    folder: &'a Path,
    /// Full checkpoints by their folders.
    full: HashMap<PathBuf, Arc<Checkpoint>>,
    /// What adapters that stand alone lie over.
    base: Option<Arc<Checkpoint>>,
}

impl Opener<'_> {
    fn open(&mut self, reference: &ModelReference) -> Result<Model, String> {
        let path = reference.model.locate(self.folder)?;
        let adapter = match &reference.adapter {
            Some(adapter) => Some(adapter.locate(self.folder)?),
            None => None,
        };
        let (adapter, base) = match (adapter, is_adapter(&path)) {
            (Some(adapter), _) => {
                if !is_adapter(&adapter) {
                    return Err(format!("{}: no PEFT adapter, which {reference} needs there", adapter.display()));
                }
                (adapter, self.full(&path)?)
            }
            (None, true) => {
                let base = match &self.base {
                    Some(base) => Arc::clone(base),
                    None => self.named_base(&path)?,
                };
                (path, base)
            }
            (None, false) => {
                let checkpoint = self.full(&path)?;
                let folders = vec![checkpoint.folder().to_owned()];
                return Ok(Model { reference: reference.clone(), checkpoint, folders, made: None });
            }
        };
        let checkpoint = Arc::new(Checkpoint::open_over(&adapter, &base).map_err(|error| error.to_string())?);
        let folders = vec![adapter, base.folder().to_owned()];
        Ok(Model { reference: reference.clone(), checkpoint, folders, made: None })
    }

    fn full(&mut self, path: &Path) -> Result<Arc<Checkpoint>, String> {
        if let Some(known) = self.full.get(path) {
            return Ok(Arc::clone(known));
        }
        let checkpoint = Arc::new(Checkpoint::open(path).map_err(|error| error.to_string())?);
        self.full.insert(path.to_owned(), Arc::clone(&checkpoint));
        Ok(checkpoint)
    }

    /// The base that an adapter's own config names, where the definition has none.
    fn named_base(&mut self, adapter: &Path) -> Result<Arc<Checkpoint>, String> {
        let named = adapter_base(adapter).map_err(|error| error.to_string())?;
        let alone =
            || format!("{} is an adapter, and no base_model is given: write base+adapter, or base_model", adapter.display());
        let named = named.ok_or_else(alone)?;
        let reference = ModelReference::folder(Path::new(&named));
        let path =
            reference.model.locate(adapter).map_err(|sentence| format!("{}; its config names a base: {sentence}", alone()))?;
        self.full(&path)
    }
}

/// The model that the output is laid out as: the base, or else the first that is merged.
pub(super) fn layout(config: &MergeConfig, models: &[Model]) -> usize {
    let first = config.modules.first().and_then(|module| match &module.content {
        Content::Models(entries) => entries.first().map(|entry| &entry.model),
        Content::Slices(slices) => slices.first().and_then(|slice| slice.sources.first()).map(|source| &source.model),
    });
    let reference = config.base.as_ref().or(first);
    models.iter().position(|model| Some(&model.reference) == reference).unwrap_or(0)
}
