//! The service: gRPC in front, and one thread behind it that owns search, fleet and journal.
//!
//! - [`replay`]: from a journal's records to a search.
//! - [`core`]: what owns search, fleet and journal; no thread and no clock.
//! - [`coordinator`]: the thread that has one, and the handle to it.
//! - [`reports`], [`trust`], [`status`]: what the owner does with reports, with workers that lie, and what it publishes.
//! - [`grpc`]: the RPCs, which only translate.

mod coordinator;
mod core;
mod grpc;
mod replay;
mod reports;
mod status;
mod trust;

pub(crate) use self::core::busy;
pub use self::{
    coordinator::{Coordinator, Options},
    core::{Command, Core, EndError, Reply, StartError},
    grpc::{ServeError, serve},
    replay::{Failed, LIMITS, Replay, ReplayError, Spent, extend, replay},
};
