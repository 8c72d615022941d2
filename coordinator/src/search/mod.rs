//! The search: a pure function of what came back.
//!
//! No clock, no I/O, no randomness but from `(seed, offspring number)`. Spec k is drawn from the state after the results `0 ..= k - in_flight` have been
//! absorbed in order; so the search depends on its seed and `in_flight` and on nothing else. With [`Mode::Arrival`] results are absorbed as they
//! come, and the search depends on the journal's order besides.
//!
//! - [`core`]: ask and tell.
//! - [`model`]: what goes in and what comes out.
//! - [`strategy`]: how offspring are drawn, one file each.
//! - [`acceptance`]: when an offspring replaces its rival, one file each.
//! - [`course`]: which items an offspring is scored on, stage by stage.
//! - [`front`]: the Pareto front over tasks.
//! - [`settings`]: declared parameters of strategies and rules.

mod acceptance;
mod core;
mod course;
mod front;
mod model;
mod settings;
mod strategy;

pub(crate) use self::acceptance::per_task;
pub use self::{
    core::{DEV_BASE, FRESH_BASE, Guest, Search, TEST_BASE, TellError},
    model::{Counters, Individual, Kind, Mode, Named, Outcome, Phase, Plugin, Setup, SetupError, Spec, Statistics, Stop, Task},
    settings::{About, Default, Kind as ParameterKind, Parameter},
};

/// Every strategy, kin beside kin.
#[must_use]
pub fn strategies() -> Vec<About> {
    settings::about(strategy::STRATEGIES)
}

/// Every acceptance rule.
#[must_use]
pub fn rules() -> Vec<About> {
    settings::about(acceptance::RULES)
}
