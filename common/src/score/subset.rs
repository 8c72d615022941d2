//! A part of the items: a range of a seeded order, the same share of every task.
//!
//! Ranges from 0 are nested, and ranges that do not meet have no items in common. So an offspring can be scored on more and more items, each of
//! them once, and items can be kept for later.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::{Scores, Split, TaskScore, classification::deviation_of_mean};
use crate::rng::Stream;

/// All items, in the unit of [`Subset`]'s bounds.
pub const WHOLE: u32 = 1 << 16;

/// The items from place `from` to before place `to` of a seeded order, both in [`WHOLE`]ths of each task's items.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Subset {
    /// Seed of the order; each task's own order follows from it and the task's name.
    pub seed: u64,
    /// First place, below `to`.
    pub from: u32,
    /// Place after the last, at most [`WHOLE`].
    pub to: u32,
}

/// What a model is scored on: a split, or a part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Portion {
    /// The split.
    pub split: Split,
    /// The part; all items if there is none.
    pub subset: Option<Subset>,
}

impl From<Split> for Portion {
    fn from(split: Split) -> Self {
        Self { split, subset: None }
    }
}

impl Portion {
    /// The chosen ones of a task's `items`, ascending.
    #[must_use]
    pub fn items(&self, task: &str, items: usize) -> Vec<usize> {
        self.subset.map_or_else(|| (0..items).collect(), |subset| subset.items(task, items))
    }

    /// How many of a task's `items` are chosen.
    #[must_use]
    pub fn count(&self, items: usize) -> usize {
        self.subset.map_or(items, |subset| subset.count(items))
    }
}

impl Subset {
    /// A range of the order under `seed`; `None` if the bounds are not ascending or beyond [`WHOLE`].
    #[must_use]
    pub fn new(seed: u64, from: u32, to: u32) -> Option<Self> {
        (from < to && to <= WHOLE).then_some(Self { seed, from, to })
    }

    /// How many of a task's `items` are chosen.
    #[must_use]
    pub fn count(&self, items: usize) -> usize {
        place(self.to, items) - place(self.from, items)
    }

    /// The chosen ones of a task's `items`, ascending.
    #[must_use]
    pub fn items(&self, task: &str, items: usize) -> Vec<usize> {
        let order = Order::new(self.seed, task, items);
        let range = order.range(*self);
        (0..items).filter(|&item| range.contains(&order.places[item])).collect()
    }
}

/// A task's items in the order of a seed, for whoever takes scores apart again and again.
#[derive(Clone, Debug)]
pub struct Order {
    /// Each item's place.
    places: Vec<usize>,
}

impl Order {
    /// The order of a task's `items` under `seed`.
    #[must_use]
    pub fn new(seed: u64, task: &str, items: usize) -> Self {
        let stream = Stream::new(seed, task);
        let mut order: Vec<usize> = (0..items).collect();
        order.sort_by_cached_key(|&item| (stream.element(item as u64), item));
        let mut places = vec![0; items];
        for (place, item) in order.into_iter().enumerate() {
            places[item] = place;
        }
        Self { places }
    }

    fn range(&self, subset: Subset) -> Range<usize> {
        let items = self.places.len();
        place(subset.from, items)..place(subset.to, items)
    }
}

/// The place at a share of `items`, rounded up.
fn place(share: u32, items: usize) -> usize {
    // At most `items`, since the share is at most WHOLE.
    usize::try_from((u128::from(share) * items as u128).div_ceil(u128::from(WHOLE))).unwrap_or(items)
}

impl TaskScore {
    /// A score by credits alone: their mean, as `accuracy`, and its standard error.
    #[must_use]
    pub fn of_credits(task: &str, credits: Vec<f32>) -> Self {
        let (mean, error) = deviation_of_mean(&credits);
        let metrics = [("accuracy".to_owned(), mean), ("accuracy_stderr".to_owned(), error)];
        Self { task: task.to_owned(), metrics: metrics.into(), credits }
    }
}

impl Scores {
    /// The scores on `part` of what was scored on `whole`, by credits alone; `orders` holds each task's, under the seed of both. `part` lies within
    /// `whole`.
    #[must_use]
    pub fn restrict(&self, whole: Option<Subset>, part: Subset, orders: &[Order]) -> Self {
        let task = |(score, order): (&TaskScore, &Order)| {
            let have = whole.map_or(0..order.places.len(), |whole| order.range(whole));
            let wanted = order.range(part);
            let scored = order.places.iter().filter(|place| have.contains(place)).zip(&score.credits);
            let credits = scored.filter(|(place, _)| wanted.contains(place)).map(|(_, credit)| *credit);
            TaskScore::of_credits(&score.task, credits.collect())
        };
        Self { tasks: self.tasks.iter().zip(orders).map(task).collect() }
    }

    /// The scores on two ranges that follow each other, by credits alone; `orders` as in [`Scores::restrict`].
    #[must_use]
    pub fn join(&self, first: Subset, second: &Self, then: Subset, orders: &[Order]) -> Self {
        let task = |((a, b), order): ((&TaskScore, &TaskScore), &Order)| {
            let (first, then) = (order.range(first), order.range(then));
            let (mut early, mut late) = (a.credits.iter(), b.credits.iter());
            let credit = |place: &usize| {
                let from = if first.contains(place) { Some(&mut early) } else { then.contains(place).then_some(&mut late) };
                from?.next().copied()
            };
            TaskScore::of_credits(&a.task, order.places.iter().filter_map(credit).collect())
        };
        Self { tasks: self.tasks.iter().zip(&second.tasks).zip(orders).map(task).collect() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bounds_are_checked() {
        assert!(Subset::new(1, 0, WHOLE).is_some());
        for (from, to) in [(5, 5), (6, 5), (0, WHOLE + 1)] {
            assert_eq!(Subset::new(1, from, to), None);
        }
    }

    #[test]
    fn seeds_and_tasks_have_orders_of_their_own() {
        let half = |seed| Subset::new(seed, 0, WHOLE / 2).unwrap();
        assert_ne!(half(1).items("a", 40), half(2).items("a", 40));
        assert_ne!(half(1).items("a", 40), half(1).items("b", 40));
        assert_eq!(half(1).items("a", 40), half(1).items("a", 40));
    }

    proptest! {
        #[test]
        fn ranges_that_follow_each_other_part_the_items(seed: u64, items in 0usize..60, cut in 1..WHOLE) {
            let (first, rest) = (Subset::new(seed, 0, cut).unwrap(), Subset::new(seed, cut, WHOLE).unwrap());
            let mut all = first.items("t", items);
            prop_assert_eq!(all.len(), first.count(items));
            all.extend(rest.items("t", items));
            all.sort_unstable();
            prop_assert_eq!(all, (0..items).collect::<Vec<_>>());
        }

        #[test]
        fn scores_taken_apart_and_joined_are_the_scores(seed: u64, right in prop::collection::vec(any::<bool>(), 2..50), cut in 1..WHOLE) {
            let credits: Vec<f32> = right.iter().map(|&right| f32::from(u8::from(right))).collect();
            let orders = [Order::new(seed, "t", credits.len())];
            let whole = Scores { tasks: vec![TaskScore::of_credits("t", credits)] };
            let (first, rest) = (Subset::new(seed, 0, cut).unwrap(), Subset::new(seed, cut, WHOLE).unwrap());
            let part = |subset| whole.restrict(None, subset, &orders);
            let joined = part(first).join(first, &part(rest), rest, &orders);
            prop_assert_eq!(&joined.tasks[0].credits, &whole.tasks[0].credits);
            // A part of a part is the part.
            if let Some(half) = Subset::new(seed, 0, cut / 2) {
                let of_part = part(first).restrict(Some(first), half, &orders);
                prop_assert_eq!(&of_part.tasks[0].credits, &part(half).tasks[0].credits);
            }
        }
    }
}
