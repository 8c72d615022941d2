//! What the coordinator and the workers must agree on bit for bit.
//!
//! - [`digest`]: content digests (BLAKE3).
//! - [`definition`]: the search's definition, read from TOML or YAML, and its resolved form with digests.
//! - [`data`]: labelled items.
//! - [`checkpoint`]: open, check, map, digest and write checkpoints.
//! - [`recipe`]: an individual as an expression over checkpoints.
//! - [`merge`]: merge methods and the streaming engine that builds a recipe's weights.
//! - [`rng`]: counter-based random numbers.
//! - [`score`]: metrics, item outcomes, intervals, paired comparison.
//! - [`simd`]: loops compiled for the vector instructions that the machine has.

pub mod checkpoint;
pub mod data;
pub mod definition;
pub mod digest;
pub mod merge;
pub mod recipe;
pub mod rng;
pub mod score;
pub mod simd;
pub mod suggest;
