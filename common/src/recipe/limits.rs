//! Bounds on recipes that come from outside, so that a hostile or runaway recipe is refused before anything is built from it.

use thiserror::Error;

/// Distinct nodes of one recipe.
pub const NODES_MAX: usize = 65_536;
/// Nodes from the root to a leaf.
pub const DEPTH_MAX: usize = 16_384;
/// Operands of one operation.
pub const OPERANDS_MAX: usize = 4_096;
/// Rank of a low-rank mutation.
pub const RANK_MAX: u32 = 1_024;

/// A recipe beyond its bounds.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("the recipe has {found} {what}, and at most {limit} are allowed")]
pub struct LimitError {
    /// What there is too much of.
    pub what: &'static str,
    /// How much there is.
    pub found: usize,
    /// How much is allowed.
    pub limit: usize,
}

/// Refuses `found` above `limit`.
pub(super) fn check(what: &'static str, found: usize, limit: usize) -> Result<(), LimitError> {
    if found > limit {
        return Err(LimitError { what, found, limit });
    }
    Ok(())
}
