//! The worker: leases offspring specs, builds their weights, scores them, reports.
//!
//! - [`agent`]: the process that talks to the coordinator and supervises a child.
//! - [`connect`]: the way to a coordinator.
//! - [`child`]: the child process, which builds and scores, and whose death costs one attempt and nothing else.
//! - [`notice`]: the clouds' notices that a machine is about to be taken away.
//! - [`materialize`]: from a recipe to weights.
//! - [`evaluate`]: from weights to scores; one file per evaluator.
//! - [`models`]: the networks that evaluators run.
//! - [`statistics`]: what merge methods want to know of a classifier: Fisher information and Gram matrices.

pub mod agent;
pub mod child;
pub mod connect;
pub mod evaluate;
pub mod materialize;
pub mod models;
pub mod notice;
pub mod statistics;
