//! What random pruning keeps: a bit for each element.
//!
//! A merge that keeps L1 norms needs the draws twice, for the norms and for the values. What was drawn for the norms is remembered for the values, once, and
//! as far as all merges of the process together stay within [`WORDS`]; beyond that it is drawn again, with the same bits.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicUsize, Ordering},
};

/// Words that are remembered at most: 128 MiB.
const WORDS: usize = 1 << 24;
/// The same in bytes, for those who tell what a merge needs.
pub const REMEMBERED_BYTES: usize = WORDS * 8;
/// Words that a place takes besides its bits.
const PLACE: usize = 8;
static ROOM: AtomicUsize = AtomicUsize::new(WORDS);

/// The bits of some elements, 64 to a word; those beyond the last element say nothing.
pub(super) type Bits = Vec<u64>;

/// Pieces of all tensors and models.
pub(super) struct Drawn {
    /// `[tensor][piece * models + model]`
    pieces: Vec<Vec<Mutex<Option<Bits>>>>,
    models: usize,
    /// Words that there is room for.
    room: &'static AtomicUsize,
}

/// One of them.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) tensor: usize,
    pub(super) piece: usize,
    pub(super) model: usize,
}

impl Drawn {
    /// Room for as many pieces, of as many words each, of each tensor, as far as it goes.
    pub(super) fn new(pieces: impl Iterator<Item = (usize, usize)>, models: usize) -> Self {
        Self::within(&ROOM, pieces, models)
    }

    fn within(room: &'static AtomicUsize, pieces: impl Iterator<Item = (usize, usize)>, models: usize) -> Self {
        let mut left = room.load(Ordering::Relaxed);
        let slots = |(pieces, words): (usize, usize)| {
            let each = ((words + PLACE) * models).max(1);
            let pieces = pieces.min(left / each);
            left -= pieces * each;
            (0..pieces * models).map(|_| Mutex::default()).collect()
        };
        Self { pieces: pieces.map(slots).collect(), models, room }
    }

    fn at(&self, place: Place) -> Option<&Mutex<Option<Bits>>> {
        self.pieces.get(place.tensor)?.get(place.piece * self.models + place.model)
    }

    /// Remembers bits, if there is room.
    pub(super) fn put(&self, place: Place, bits: &Bits) {
        let Some(slot) = self.at(place) else {
            return;
        };
        let fits = self.room.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |room| room.checked_sub(bits.len()));
        if fits.is_ok() {
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(bits.clone());
        }
    }

    /// Bits that are remembered, and are not any more after this.
    pub(super) fn take(&self, place: Place) -> Option<Bits> {
        let bits = self.at(place)?.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        self.room.fetch_add(bits.len(), Ordering::Relaxed);
        Some(bits)
    }
}

impl Drop for Drawn {
    fn drop(&mut self) {
        let slots = self.pieces.iter_mut().flatten();
        let kept = slots.filter_map(|slot| slot.get_mut().unwrap_or_else(PoisonError::into_inner).as_ref().map(Vec::len));
        self.room.fetch_add(kept.sum(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_remembered_once_and_their_room_is_given_back() {
        static ROOM: AtomicUsize = AtomicUsize::new(100);
        let place = |piece| Place { tensor: 1, piece, model: 1 };
        let drawn = Drawn::within(&ROOM, [(1, 3), (3, 10)].into_iter(), 2);
        drawn.put(place(0), &vec![5; 10]);
        drawn.put(place(1), &vec![6; 10]);
        drawn.put(place(2), &vec![7; 10]);
        assert_eq!(ROOM.load(Ordering::Relaxed), 80, "after 22 and 36 and 36 words there is no place for the third");
        assert_eq!(drawn.take(place(0)), Some(vec![5; 10]));
        assert_eq!(drawn.take(place(0)), None);
        assert_eq!(drawn.take(place(2)), None);
        assert_eq!(ROOM.load(Ordering::Relaxed), 90);
        drop(drawn);
        assert_eq!(ROOM.load(Ordering::Relaxed), 100);
    }
}
