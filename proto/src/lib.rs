//! The wire protocol: generated code, and checked conversions to the types that both sides work with.

mod convert;

pub use convert::{
    WireError, parts_from_wire, parts_to_wire, portion_from_wire, scores_from_wire, scores_to_wire, split_to_wire,
    subset_to_wire, work_of,
};

/// Version of the protocol that this program speaks.
///
/// - 1: the first.
/// - 2: a worker may offer what it holds when it asks for work; workers' standing in the status; operators' actions. Each side ignores what it does not
///   know, so a coordinator serves workers of 1 as well.
/// - 3: a part of the items to score, and more operations in recipes. A worker that knows neither is served by searches that use neither.
/// - 4: a worker that leaves hands in the items that it has scored, and another goes on from them.
pub const PROTOCOL: u32 = 4;

/// The first protocol whose workers can do whatever a search asks for.
pub const PROTOCOL_OF_PARTS: u32 = 3;

/// The first protocol whose workers go on from what others have handed in.
pub const PROTOCOL_OF_HANDING: u32 = 4;

/// Oldest protocol that a coordinator serves.
pub const PROTOCOL_OLDEST: u32 = 1;

/// Largest reply that a worker accepts, in bytes. Replies come from the coordinator that the user named, and some are large by right: a recipe of
/// as many nodes as recipes may have, or a definition with very many models and labels.
pub const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// Largest request that a coordinator accepts, in bytes, where a report carries the credits of `items` items: 1 MiB and the credits.
#[must_use]
pub fn request_bytes_max(items: usize) -> usize {
    (1 << 20) + items * size_of::<f32>()
}

/// Most outcomes that a worker that leaves hands in, in bytes: they have to fit in the smallest request that is read.
pub const PARTS_BYTES_MAX: usize = 512 << 10;

/// Metadata of an answer that says how long to wait before asking again, in milliseconds; the name is gRPC's own.
pub const PUSHBACK: &str = "grpc-retry-pushback-ms";

/// The protocol's descriptors, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/evolver.v1.bin"));

/// Generated from `evolver/v1/evolver.proto`.
#[allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub, reason = "generated code")]
pub mod v1 {
    tonic::include_proto!("evolver.v1");
}
