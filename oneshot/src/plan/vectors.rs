//! The vectors of (IA)³ adapters (Liu et al., NeurIPS 2022) as models of their own: they scale activations, so what they start from is ones.

use std::sync::Arc;

use evolver_common::checkpoint::{
    Checkpoint, Vectors, open_vectors,
    write::{Announced, WeightsWriter},
};

use super::Model;
use crate::config::{MergeConfig, ModelReference};

/// Opens the base of ones and then every adapter that the definition names.
pub(super) fn open(config: &MergeConfig) -> Result<Vec<Model>, String> {
    let ones = ModelReference::ones();
    let adapter = |reference: &ModelReference| {
        if reference.adapter.is_some() {
            return Err(format!("{reference}: with ia3: true the adapter alone is expected, without its base"));
        }
        let path = reference.model.locate(&config.folder)?;
        let Vectors { checkpoint, of_inputs } = open_vectors(&path).map_err(|error| error.to_string())?;
        let model = Model { reference: reference.clone(), checkpoint: Arc::new(checkpoint), folders: vec![path], made: None };
        Ok((model, of_inputs))
    };
    let named = config.models().into_iter().filter(|reference| **reference != ones);
    let (adapters, of_inputs): (Vec<_>, Vec<_>) = named.map(adapter).collect::<Result<Vec<_>, _>>()?.into_iter().unzip();
    // The merged adapter has the first one's config, which would scale another side of the weights than the others were trained to.
    for (other, sides) in adapters.iter().zip(&of_inputs).skip(1) {
        if let Some(name) = sides.symmetric_difference(&of_inputs[0]).next() {
            let first = &adapters[0].reference;
            return Err(format!(
                "{name:?} scales a module's inputs in one of {first} and {}, its outputs in the other (feedforward_modules)",
                other.reference
            ));
        }
    }
    let Some(first) = adapters.first() else {
        return Err("models names no adapter".into());
    };
    let (base, made) = ones_like(&first.checkpoint).map_err(|error| format!("the base of ones: {error}"))?;
    let made = Some(Arc::new(made));
    let base = Model { reference: ones, checkpoint: Arc::new(base), folders: first.folders.clone(), made };
    Ok(std::iter::once(base).chain(adapters).collect())
}

/// A checkpoint of ones with the tensors of another, and the folder that it lies in.
fn ones_like(vectors: &Checkpoint) -> Result<(Checkpoint, tempfile::TempDir), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("ones.safetensors");
    let tensors: Vec<_> = vectors
        .tensors()
        .iter()
        .map(|(name, info)| Announced { name: name.clone(), dtype: info.dtype, shape: info.shape.clone() })
        .collect();
    let writer = WeightsWriter::create(&path, &tensors, &serde_json::Map::new())?;
    for (index, tensor) in tensors.iter().enumerate() {
        writer.values(index, 0, &vec![1.0; tensor.shape.iter().product()])?;
    }
    writer.finish(false)?;
    Ok((Checkpoint::open(&path)?, folder))
}
