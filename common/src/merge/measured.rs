//! Statistics that were measured on a model's data and are read from safetensors files.
//!
//! A recipe names a file by its content digest, as it names a checkpoint, in the parameter `statistics` of a model; whoever builds the recipe has told the
//! engine about the file before (`Engine::insert_statistics`). In a merge definition the parameter is the file's path.

use std::{ops::Range, sync::Arc};

use super::{Default, Kind, METHODS, Method, ParameterSpec, Pass, Scope, Settings};
use crate::checkpoint::{Checkpoint, Space, TensorInfo};

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
    /// Finds the models' files, and in them what the method reads of each tensor. What is wrong is reported to the pass, and no merge then comes of it.
    pub(super) fn open(method: &dyn Method, settings: &Settings, pass: &Pass<'_>) -> Self {
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
                pass.fail(misfit(file, name, info, &format!("{shape:?}")));
                return None;
            }
            Some(name.clone())
        };
        for tensor in 0..pass.elements().len() {
            let wanted = method.measured(settings.layers().name(tensor), pass.shape(tensor));
            this.names.push(this.files.iter().map(|file| find(file, &wanted)).collect());
        }
        if this.names.iter().flatten().all(Option::is_none) {
            pass.fail(nothing(&this.files[0]));
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

/// Whether some method can read this file of statistics for models with these tensors, told by its header.
///
/// # Errors
/// A sentence that says what does not fit.
pub fn check(file: &Checkpoint, space: &Space) -> Result<(), String> {
    let mut found = false;
    for tensor in &space.tensors {
        let wanted: Vec<_> = METHODS.iter().flat_map(|method| method.measured(&tensor.name, &tensor.shape)).collect();
        for (name, _) in &wanted {
            let Some(info) = file.tensors().get(name) else { continue };
            let shapes: Vec<_> = wanted.iter().filter(|(other, _)| other == name).map(|(_, shape)| shape).collect();
            if !info.dtype.is_float() || !shapes.contains(&&info.shape) {
                let shapes: Vec<_> = shapes.iter().map(|shape| format!("{shape:?}")).collect();
                return Err(misfit(file, name, info, &shapes.join(" or ")));
            }
            found = true;
        }
    }
    if found { Ok(()) } else { Err(nothing(file)) }
}

fn misfit(file: &Checkpoint, name: &str, info: &TensorInfo, wanted: &str) -> String {
    let path = file.path().display();
    format!(
        "{path}: the statistics {name:?} are {} of shape {:?}, and floats of shape {wanted} are expected",
        info.dtype, info.shape
    )
}

fn nothing(file: &Checkpoint) -> String {
    format!("{}: it holds no statistics of any tensor that is merged", file.path().display())
}
