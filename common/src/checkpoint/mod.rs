//! Checkpoints: folders of safetensors files in Hugging Face's layout.
//!
//! - [`header`]: the check of a file's header, before anything else reads it.
//! - [`map`]: the memory map, and the only `unsafe` of the project.
//! - [`open`]: one file or shards behind one list of tensors.
//! - [`adapter`]: a PEFT LoRA folder as a view over its base.
//! - [`digest`]: content digests and their cache.
//! - [`fit`]: whether experts fit their base, and which tensors evolve.
//! - [`write`]: durable writing of files and of whole folders.

mod adapter;
mod digest;
mod dtype;
mod fit;
mod header;
mod map;
mod open;
pub mod write;

pub use self::{
    digest::{DigestCache, DigestError},
    dtype::Dtype,
    fit::{Difference, Patterns, Space, SpaceTensor, fit},
    header::HeaderError,
    open::{ChangedError, Checkpoint, NonFiniteError, OpenError, ReadError, TensorInfo, View},
};
