//! A population in which each offspring competes for one place.

use std::collections::BTreeMap;

use super::Told;
use crate::search::model::Individual;

/// The members and the places that offspring under way compete for.
pub(super) struct Slots {
    members: Vec<Individual>,
    places: BTreeMap<u64, usize>,
}

impl Slots {
    pub(super) fn new(members: &[Individual]) -> Self {
        Self { members: members.to_vec(), places: BTreeMap::new() }
    }

    pub(super) fn members(&self) -> &[Individual] {
        &self.members
    }

    /// The offspring competes for this place.
    pub(super) fn enter(&mut self, offspring: u64, place: usize) {
        self.places.insert(offspring, place);
    }

    /// The offspring competes for the place of the worst.
    pub(super) fn adopt(&mut self, offspring: u64) {
        let worst = (0..self.members.len()).min_by(|&a, &b| self.members[a].dev.total_cmp(&self.members[b].dev));
        self.enter(offspring, worst.unwrap_or(0));
    }

    /// Who holds the place that the offspring competes for.
    pub(super) fn rival(&self, offspring: u64) -> Option<&Individual> {
        self.members.get(*self.places.get(&offspring)?)
    }

    /// The offspring has ended: the place that it competed for.
    pub(super) fn leave(&mut self, offspring: u64) -> Option<usize> {
        self.places.remove(&offspring)
    }

    pub(super) fn put(&mut self, place: usize, individual: Individual) {
        self.members[place] = individual;
    }

    /// The offspring has ended; accepted, it takes its place at once.
    pub(super) fn settle(&mut self, offspring: u64, told: &Told<'_>) {
        if let Some(place) = self.leave(offspring).filter(|_| told.accepted) {
            self.put(place, told.individual.clone());
        }
    }

    /// The best member without the `taken`, the first of equal ones.
    pub(super) fn best(&self, taken: &[usize]) -> Option<usize> {
        let free = (0..self.members.len()).filter(|index| !taken.contains(index));
        free.reduce(|best, index| if self.members[index].dev > self.members[best].dev { index } else { best })
    }
}
