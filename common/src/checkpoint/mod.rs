//! Checkpoints: folders of safetensors files in Hugging Face's layout.
//!
//! - [`header`]: the check of a file's header, before anything else reads it.
//! - [`map`]: the memory map with its hints, and the only `unsafe` of the project.
//! - [`open`]: one file or shards behind one list of tensors.
//! - [`row`]: a tensor's values, read where they are used.
//! - [`adapter`]: a PEFT adapter's folder as a view over its base.
//! - [`quantized`]: quantized checkpoints, refused by the name of their format.
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
mod quantized;
mod row;
pub mod write;

pub use self::{
    adapter::{Vectors, adapter_base, check_adapter_config, is_adapter, open_vectors},
    digest::{DigestCache, DigestError},
    dtype::Dtype,
    fit::{Difference, Patterns, Space, SpaceTensor, fit},
    header::{HeaderError, check_header},
    open::{ChangedError, Checkpoint, NonFiniteError, OpenError, ReadError, Slot, TensorInfo, View, check_index},
    row::Row,
};
pub(crate) use self::{
    dtype::{narrow, narrow_bf16},
    row::padded,
};
