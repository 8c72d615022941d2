//! The search: a pure function of what came back.
//!
//! No clock, no I/O, no randomness but from `(seed, offspring number)`. Offspring number k is drawn from the population after the results
//! `0 ..= k - in_flight` have been absorbed in order; so the search depends on its seed and `in_flight` and on nothing else.
//!
//! - [`core`]: ask and tell.
//! - [`model`]: what goes in and what comes out.
//! - [`strategy`]: how offspring are drawn, one file each.
//! - [`acceptance`]: when an offspring replaces its parent, one file each.

mod acceptance;
mod core;
mod model;
mod strategy;

pub use self::{
    core::{Search, TEST_BASE, TellError},
    model::{Counters, Individual, Kind, Named, Outcome, Phase, Plugin, Setup, SetupError, Spec, Stop, Task},
};
