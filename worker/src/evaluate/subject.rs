//! The model under evaluation.

use std::{
    fs,
    path::{Path, PathBuf},
};

use candle_core::Device;
use evolver_common::checkpoint::{
    Dtype,
    write::{Announced, FolderWriter},
};
use serde_json::Value;
use tempfile::TempDir;

use super::{EvaluateError, Setup};
use crate::models::{self, Body, Encoder, Head, HeadPlan, LanguageModel, ModelError, ModelWeights, Vision};

/// Elements that are written at once.
const BLOCK: usize = 1 << 20;

/// A model's tensors, and what each task has of its own.
#[derive(Debug)]
pub struct Candidate {
    /// Tensors that all tasks share.
    pub shared: ModelWeights,
    /// What each task has of its own; empty where all tasks share everything. What a task lacks there it shares.
    pub heads: Vec<ModelWeights>,
}

/// A candidate while it is scored: its network is built once, from the candidate's own tensors, and a folder of it is written once.
pub struct Subject<'a> {
    setup: &'a Setup,
    candidate: Candidate,
    task: usize,
    body: Option<Body>,
    /// The folder, with the task whose head is in it.
    folder: Option<(usize, TempDir)>,
}

/// The fastest device that this program was built for. The GPU branches have not been run where this project is built.
pub(crate) fn device() -> Result<Device, ModelError> {
    let device = if cfg!(feature = "cuda") {
        Device::new_cuda(0)
    } else if cfg!(feature = "metal") {
        Device::new_metal(0)
    } else {
        Ok(Device::Cpu)
    };
    Ok(device?)
}

impl<'a> Subject<'a> {
    /// A candidate of which nothing has been made yet.
    #[must_use]
    pub fn new(setup: &'a Setup, candidate: Candidate) -> Self {
        Self { setup, candidate, task: 0, body: None, folder: None }
    }

    /// What follows is for this task.
    pub fn begin(&mut self, task: usize) {
        self.task = task;
    }

    fn body(&mut self) -> Result<&Body, EvaluateError> {
        if self.body.is_none() {
            let architecture = models::find(&self.setup.config)?;
            self.body = Some(architecture.load(&self.setup.config, &mut self.candidate.shared, &device()?)?);
        }
        self.body.as_ref().ok_or_else(|| EvaluateError::Unfit("the network was not built".into()))
    }

    /// The network, if it gives a state for every token.
    pub(super) fn encoder(&mut self) -> Result<&dyn Encoder, EvaluateError> {
        match self.body()? {
            Body::Encoder(encoder) => Ok(encoder.as_ref()),
            _ => Err(unfit("an encoder")),
        }
    }

    /// The network, if it gives the next token.
    pub(super) fn language(&mut self) -> Result<&dyn LanguageModel, EvaluateError> {
        match self.body()? {
            Body::Language(model) => Ok(model.as_ref()),
            _ => Err(unfit("a language model")),
        }
    }

    /// The network, if it gives states for images.
    pub(super) fn vision(&mut self) -> Result<&dyn Vision, EvaluateError> {
        match self.body()? {
            Body::Vision(model) => Ok(model.as_ref()),
            _ => Err(unfit("a vision model")),
        }
    }

    /// The task's head: its own tensors, and the shared ones where it has none.
    pub(super) fn head(&mut self, plan: &HeadPlan, outputs: usize) -> Result<Head, EvaluateError> {
        let own = self.candidate.heads.get(self.task);
        let mut weights = match own {
            Some(own) => own.subset(&plan.tensors(), &self.candidate.shared),
            None => self.candidate.shared.subset(&plan.tensors(), &ModelWeights::default()),
        };
        let output = plan.output();
        if let Some((_, (shape, _))) = weights.iter().find(|(name, _)| **name == output)
            && shape.first() != Some(&outputs)
        {
            return Err(EvaluateError::Unfit(format!(
                "the model's head {output:?} has {} outputs, and the task needs {outputs}: name the labels in the order of the model's outputs, or \
                 keep heads apart by models.heads and a head for each task",
                shape.first().copied().unwrap_or(0)
            )));
        }
        if !weights.contains(&output) {
            return Err(EvaluateError::Unfit(format!(
                "the model has no head for this task: tensor {output:?} is missing, as in a model that was not trained for it"
            )));
        }
        Ok(Head::load(plan, &mut weights, outputs, &device()?)?)
    }

    /// A folder with the model, its config and its tokenizer, on a file system in memory where there is room; it is removed when the model was scored.
    pub(super) fn folder(&mut self) -> Result<&Path, EvaluateError> {
        let shared = self.candidate.heads.is_empty();
        if self.folder.as_ref().is_none_or(|(task, _)| *task != self.task && !shared) {
            self.folder = None;
            self.folder = Some((self.task, self.write()?));
        }
        self.folder.as_ref().map(|(_, folder)| folder.path()).ok_or_else(|| EvaluateError::Unfit("no folder was written".into()))
    }

    fn write(&self) -> Result<TempDir, EvaluateError> {
        let own = self.candidate.heads.get(self.task);
        let mut tensors: Vec<_> =
            self.candidate.shared.iter().filter(|(name, _)| own.is_none_or(|own| !own.contains(name))).collect();
        tensors.extend(own.into_iter().flat_map(ModelWeights::iter));
        tensors.sort_by_key(|(name, _)| name.as_str());
        let announced: Vec<_> = tensors
            .iter()
            .map(|(name, (shape, values))| {
                let dtype = if values.dtype() == Dtype::F64 { Dtype::F32 } else { values.dtype() };
                Announced { name: (*name).clone(), dtype, shape: shape.clone() }
            })
            .collect();
        let bytes: u64 = announced.iter().map(|one| (one.shape.iter().product::<usize>() * one.dtype.size()) as u64).sum();
        let outside = |what: &dyn ToString| EvaluateError::Outside(format!("the model's folder: {}", what.to_string()));
        let folder =
            tempfile::Builder::new().prefix("evolver-model-").tempdir_in(scratch(bytes)).map_err(|error| outside(&error))?;
        let writer = FolderWriter::new(folder.path()).map_err(|error| outside(&error))?;
        let weights = writer.weights("model.safetensors", &announced).map_err(|error| outside(&error))?;
        let mut block = vec![0.0; BLOCK];
        for (index, (_, (shape, values))) in tensors.iter().enumerate() {
            let elements: usize = shape.iter().product();
            for start in (0..elements).step_by(BLOCK) {
                let part = &mut block[..BLOCK.min(elements - start)];
                values.read(start, part)?;
                weights.values(index, start, part).map_err(|error| outside(&error))?;
            }
        }
        weights.finish(false).map_err(|error| outside(&error))?;
        let config = serde_json::to_string_pretty(&self.config(&tensors)).map_err(|error| outside(&error))?;
        writer.write("config.json", config.as_bytes()).map_err(|error| outside(&error))?;
        writer.copy_side_files(&self.setup.folder).map_err(|error| outside(&error))?;
        writer.finish().map_err(|error| outside(&error))?;
        Ok(folder)
    }

    /// The base's config, without labels where the head in the folder is another's.
    fn config(&self, tensors: &[(&String, &(Vec<usize>, models::Values))]) -> Value {
        let mut config = self.setup.config.clone();
        let labels = config["id2label"].as_object().map(serde_json::Map::len);
        let head = models::find(&config).and_then(|found| found.head(&config, models::Use::Whole));
        let outputs = head.ok().and_then(|plan| {
            let output = plan.output();
            tensors.iter().find(|(name, _)| **name == output).and_then(|(_, (shape, _))| shape.first().copied())
        });
        if let (Some(table), Some(outputs)) = (config.as_object_mut(), outputs.filter(|outputs| Some(*outputs) != labels)) {
            table.retain(|key, _| !["id2label", "label2id"].contains(&key.as_str()));
            table.insert("num_labels".into(), outputs.into());
        }
        config
    }
}

fn unfit(wanted: &str) -> EvaluateError {
    EvaluateError::Unfit(format!("{wanted} is needed, and the model is none"))
}

/// Where models are written for a program outside: `EVOLVER_SCRATCH` if it is set, else a file system in memory if twice as much is free there, else
/// the system's folder for temporary files.
fn scratch(bytes: u64) -> PathBuf {
    if let Some(folder) = std::env::var_os("EVOLVER_SCRATCH") {
        return folder.into();
    }
    let memory = Path::new("/dev/shm");
    if fs::metadata(memory).is_ok_and(|found| found.is_dir()) && free(memory).is_some_and(|free| free / 2 > bytes) {
        return memory.to_owned();
    }
    std::env::temp_dir()
}

#[cfg(unix)]
fn free(folder: &Path) -> Option<u64> {
    let found = rustix::fs::statvfs(folder).ok()?;
    Some(found.f_bavail * found.f_frsize)
}

#[cfg(not(unix))]
fn free(_: &Path) -> Option<u64> {
    None
}
