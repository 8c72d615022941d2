//! The service: gRPC in front, and one thread behind it that owns search, fleet and journal.
//!
//! - [`replay`]: from a journal's records to a search.
//! - [`core`]: the owner thread and its handle.
//! - [`grpc`]: the RPCs, which only translate.

mod core;
mod grpc;
mod replay;

pub use self::{
    core::{Coordinator, EndError, Options, StartError},
    grpc::serve,
    replay::{LIMITS, Replay, ReplayError, Spent, extend, replay},
};
