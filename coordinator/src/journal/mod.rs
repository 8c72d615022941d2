//! The journal: what the world told us, durably.
//!
//! A folder holds one search. `journal.sqlite` is append-only: numbered records, each chained to the one before by a digest. Population and
//! lineage are not in it; they are recomputed by folding it.
//!
//! - [`record`]: what a record says.
//! - [`store`]: append and read.
//! - [`head`]: the last acknowledged record, so that a lost tail is noticed.
//! - [`lock`]: one coordinator a folder.

mod head;
mod lock;
mod record;
mod store;

pub use self::{
    lock::LockError,
    record::{Record, Timings},
    store::{Journal, JournalError, Log, read, verify},
};
