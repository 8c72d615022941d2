//! The wire protocol: generated code, and checked conversions to the types that both sides work with.

mod convert;

pub use convert::{WireError, portion_from_wire, scores_from_wire, scores_to_wire, split_to_wire, subset_to_wire};

/// Version of the protocol; a coordinator refuses a worker that speaks another.
pub const PROTOCOL: u32 = 2;

/// Largest reply that a worker accepts, in bytes. Replies come from the coordinator that the user named, and some are large by right: a recipe of
/// as many nodes as recipes may have, or a definition with very many models and labels.
pub const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// Largest request that a coordinator accepts, in bytes, where a report carries the credits of `items` items: 1 MiB and the credits.
#[must_use]
pub fn request_bytes_max(items: usize) -> usize {
    (1 << 20) + items * size_of::<f32>()
}

/// The protocol's descriptors, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/evolver.v1.bin"));

/// Generated from `evolver/v1/evolver.proto`.
#[allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub, reason = "generated code")]
pub mod v1 {
    tonic::include_proto!("evolver.v1");
}
