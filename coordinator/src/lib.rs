//! The coordinator: it holds the population and the journal, and hands out work.
//!
//! - [`search`]: pure: what to try next, what to keep.
//! - [`fleet`]: pure, with time as an input: workers, leases, attempts.
//! - [`journal`]: the durable record of what came back.
//! - [`service`]: gRPC, and the one thread that owns all of the above.
//! - [`access`]: certificates, tokens, roles, audit lines.
//! - [`setup`]: from a resolved definition to a search.

pub mod access;
pub mod fleet;
pub mod journal;
pub mod search;
pub mod service;
pub mod setup;
