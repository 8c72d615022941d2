//! Statistics that were measured on a model's data and are read from safetensors files.
//!
//! A recipe names a file by its content digest, as it names a checkpoint, in the parameter `statistics` of a model; whoever builds the recipe has told the
//! engine about the file before (`Engine::insert_statistics`). In a merge definition the parameter is the file's path.

use std::{ops::Range, sync::Arc};

use super::{Default, Kind, ParameterSpec, Pass, Scope, Settings};
use crate::checkpoint::Checkpoint;

pub(super) const STATISTICS: ParameterSpec = ParameterSpec {
    name: "statistics",
    scope: Scope::Model,
    kind: Kind::Statistics,
    default: Default::Required,
    doc: "The model's file of statistics.",
};

/// Every model's file, and what it holds for each tensor.
pub(super) struct Measured {
    files: Vec<Arc<Checkpoint>>,
    /// `[tensor][model]`: the name in the file.
    names: Vec<Vec<Option<String>>>,
}

impl Measured {
    /// Finds the models' files, and in them the first of the names that `wanted` gives for a tensor and its shape; a statistic of that name has to have
    /// the shape that it says. What is wrong is reported to the pass, and no merge then comes of it.
    pub(super) fn open(
        settings: &Settings,
        pass: &Pass<'_>,
        wanted: impl Fn(&str, &[usize]) -> Vec<(String, Vec<usize>)>,
    ) -> Self {
        let files: Vec<_> = settings.texts("statistics").iter().filter_map(|digest| pass.statistics(digest)).collect();
        let mut this = Self { files, names: Vec::new() };
        if this.files.len() < pass.models() {
            this.names = vec![vec![None; pass.models()]; pass.elements().len()];
            return this;
        }
        let find = |file: &Checkpoint, wanted: &[(String, Vec<usize>)]| {
            let (name, shape) = wanted.iter().find(|(name, _)| file.tensors().contains_key(name))?;
            let info = &file.tensors()[name];
            if info.shape != *shape || !info.dtype.is_float() {
                pass.fail(format!(
                    "{}: the statistics {name:?} are {} of shape {:?}, and floats of shape {shape:?} are expected",
                    file.path().display(),
                    info.dtype,
                    info.shape
                ));
                return None;
            }
            Some(name.clone())
        };
        for tensor in 0..pass.elements().len() {
            let wanted = wanted(settings.layers().name(tensor), pass.shape(tensor));
            this.names.push(this.files.iter().map(|file| find(file, &wanted)).collect());
        }
        if this.names.iter().flatten().all(Option::is_none) {
            pass.fail(format!("{}: it holds no statistics of any tensor that is merged", this.files[0].path().display()));
        }
        this
    }

    /// Which names a tensor's statistics have in the models' files.
    pub(super) fn names(&self, tensor: usize) -> &[Option<String>] {
        &self.names[tensor]
    }

    /// Reads some elements of a tensor's statistics; zero where the file has none.
    pub(super) fn read(&self, tensor: usize, model: usize, elements: Range<usize>, out: &mut Vec<f32>) {
        out.clear();
        out.resize(elements.len(), 0.0);
        if let Some(name) = &self.names[tensor][model]
            && self.files[model].read(name, elements, out).is_err()
        {
            // Names and shapes have been checked; a wrong read must not pass for a zero.
            out.fill(f32::NAN);
        }
    }
}
