//! placeholder
/// Generated.
#[allow(missing_docs, clippy::all, clippy::pedantic, reason = "generated code")]
pub mod v1 { tonic::include_proto!("evolver.v1"); }
