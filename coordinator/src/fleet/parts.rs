//! Items that a worker had scored when it left: the next one goes on from them.
//!
//! A result that stands on several workers' items is the word of none of them alone: its author is all of them together, a voice of its own. If it is
//! shown to be false, it is taken back, nobody loses trust over it, and none of them hands in anything more.

use evolver_common::score::Parts;

use super::{Fleet, Purpose, Token, voice};

/// Between the names of a result's authors; no worker's name holds it.
pub const WITH: &str = " with ";
/// Bytes of items handed in that are kept at once.
const KEPT_BYTES_MAX: usize = 64 << 20;

/// What was handed in of a spec.
pub(super) struct Handed {
    /// Whose items these are.
    pub(super) by: Vec<String>,
    pub(super) parts: Parts,
}

/// Those on whose word a result stands.
pub(super) fn authors(author: &str) -> impl Iterator<Item = &str> {
    author.split(WITH)
}

/// Whether a result stands on this voice's word, alone or with others.
#[must_use]
pub fn stands_on(author: &str, of: &str) -> bool {
    voice(author) == of || authors(author).any(|one| voice(one) == of)
}

impl Fleet {
    /// The worker goes on from what others hand in, if there is something.
    pub fn goes_on(&mut self, worker: &str) {
        if let Some(worker) = self.workers.get_mut(worker) {
            worker.goes_on = true;
        }
    }

    /// What a live token's worker has found so far, kept for the next one. Nothing is kept of second opinions, nor of workers whose items made a result
    /// false before.
    pub fn hand_in(&mut self, token: Token, parts: Parts) {
        let kept: usize = self.work.values().filter_map(|work| work.handed.as_ref()).map(|handed| handed.parts.bytes()).sum();
        if self.purpose(token) != Some(Purpose::Search) || kept + parts.bytes() > KEPT_BYTES_MAX {
            return;
        }
        let Some(work) = self.work.get_mut(&token.spec) else { return };
        let Some(lease) = work.leases.iter().find(|lease| lease.attempt == token.attempt) else { return };
        let mut by = lease.helpers.clone();
        if by.iter().all(|helper| voice(helper) != voice(&lease.worker)) {
            by.push(lease.worker.clone());
        }
        let spoiled = |one: &String| self.distrusted.keys().any(|of| stands_on(of, voice(one)));
        let more = work.handed.as_ref().is_none_or(|handed| handed.parts.items() < parts.items());
        if more && !by.iter().any(spoiled) {
            work.handed = Some(Handed { by, parts });
        }
    }

    /// What a live token's worker goes on from.
    #[must_use]
    pub fn parts(&self, token: Token) -> Option<&Parts> {
        let (work, _) = self.work_of(token)?;
        let helped = work.leases.iter().any(|lease| lease.attempt == token.attempt && !lease.helpers.is_empty());
        work.handed.as_ref().filter(|_| helped).map(|handed| &handed.parts)
    }

    /// On whose word a live token's result stands.
    #[must_use]
    pub fn author(&self, token: Token, worker: &str) -> String {
        let lease = self.work_of(token).and_then(|(work, _)| work.leases.iter().find(|lease| lease.attempt == token.attempt));
        let helpers = lease.map_or(&[][..], |lease| lease.helpers.as_slice());
        let others = helpers.iter().filter(|helper| voice(helper) != voice(worker));
        std::iter::once(worker).chain(others.map(String::as_str)).collect::<Vec<_>>().join(WITH)
    }
}
