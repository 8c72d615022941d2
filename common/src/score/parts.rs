//! Outcomes of single items: what a worker that leaves hands in of an attempt it did not finish, for the next one to go on from.
//!
//! An outcome is what the evaluator found for one item, in an encoding of its own: a model's outputs, an answer. It depends on the model and the item
//! alone, so whoever finishes the rest ends with the same scores, bit for bit.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Items that are done, by task and place in the task's data.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parts(BTreeMap<String, BTreeMap<u32, Vec<u8>>>);

impl Parts {
    /// Whether no item is done.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.values().all(BTreeMap::is_empty)
    }

    /// How many items are done.
    #[must_use]
    pub fn items(&self) -> usize {
        self.0.values().map(BTreeMap::len).sum()
    }

    /// Bytes of all outcomes, with what carries each.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.values().flat_map(BTreeMap::values).map(|outcome| outcome.len() + CARRIER).sum()
    }

    /// One item's outcome.
    #[must_use]
    pub fn get(&self, task: &str, item: usize) -> Option<&[u8]> {
        self.0.get(task)?.get(&u32::try_from(item).ok()?).map(Vec::as_slice)
    }

    /// Adds an item's outcome. An item beyond 2^32 is not kept, and scored again by whoever goes on.
    pub fn insert(&mut self, task: &str, item: usize, outcome: Vec<u8>) {
        if let Ok(item) = u32::try_from(item) {
            self.0.entry(task.to_owned()).or_default().insert(item, outcome);
        }
    }

    /// Adds all of another's items.
    pub fn extend(&mut self, other: Self) {
        for (task, items) in other.0 {
            self.0.entry(task).or_default().extend(items);
        }
    }

    /// As many of the items as have room in so many bytes.
    #[must_use]
    pub fn within(self, bytes: usize) -> Self {
        let mut room = bytes;
        let mut fits = |outcome: &Vec<u8>| {
            let left = room.checked_sub(outcome.len() + CARRIER);
            room = left.unwrap_or(0);
            left.is_some()
        };
        let tasks =
            self.0.into_iter().map(|(task, items)| (task, items.into_iter().take_while(|(_, outcome)| fits(outcome)).collect()));
        Self(tasks.collect())
    }

    /// The items of each task.
    pub fn tasks(&self) -> impl Iterator<Item = (&str, &BTreeMap<u32, Vec<u8>>)> {
        self.0.iter().map(|(task, items)| (task.as_str(), items))
    }
}

/// Bytes that carry an outcome on the wire: its place and its length.
const CARRIER: usize = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_are_added_found_and_cut_to_size() {
        let mut parts = Parts::default();
        assert!(parts.is_empty());
        parts.insert("a", 3, vec![1, 2]);
        let mut more = Parts::default();
        more.insert("a", 1, vec![3]);
        more.insert("b", 0, vec![4]);
        parts.extend(more);
        assert_eq!((parts.items(), parts.bytes()), (3, 4 + 3 * CARRIER));
        assert_eq!(parts.get("a", 3), Some(&[1, 2][..]));
        assert_eq!((parts.get("a", 0), parts.get("c", 0)), (None, None));
        let some = parts.clone().within(2 * CARRIER + 3);
        assert_eq!((some.items(), some.get("b", 0)), (2, None));
        assert_eq!(parts.clone().within(usize::MAX), parts);
    }
}
