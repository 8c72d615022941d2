//! The definition of a search.
//!
//! A user writes it as TOML or YAML ([`load`]); a test keeps the printed reference and the typed [`model`] together ([`reference`]).
//! [`resolve`] binds it to the world: every checkpoint opened and digested, every data file read, every misfit refused at once.
//! The resolved form travels to the workers and into the journal; [`change`] decides which later changes a running search allows.

mod change;
mod genome;
mod load;
mod model;
mod reference;
mod resolve;
mod validate;

pub use self::{
    change::{ChangeError, compatible},
    load::{LoadError, load, parse},
    model::{
        Acceptance, Definition, Evaluator, Expert, Fleet, MergeEntry, Mode, Models, ObjectiveSettings, Role, Scalarisation,
        SearchSettings, Stop, Task,
    },
    reference::print,
    resolve::{Data, Measured, ResolveError, Resolved, ResolvedTask, Source, leaks, offspring_bytes, preflight, resolve},
};
