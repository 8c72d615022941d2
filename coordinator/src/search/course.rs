//! Which items an offspring is scored on, stage by stage, and how its scores are put together and compared.

use evolver_common::score::{Objective, Order, Portion, Scores, Split, Subset, WHOLE};

use super::model::{SetupError, Task};

/// Separates the order of the items from the search's other draws.
const ORDER: u64 = 0x17e5_0f0d_e150_0001;

/// The stages of every offspring. Where every metric is a mean of credits, a stage scores only what the stages before have not; else the last
/// stage scores everything, since such a metric cannot be put together.
pub(super) struct Course {
    seed: u64,
    /// Ends of the stages, ascending, in [`WHOLE`]ths of the items.
    ends: Vec<u32>,
    additive: bool,
    /// Dev items of each task.
    items: Vec<usize>,
    /// Their orders.
    orders: Vec<Order>,
}

impl Course {
    pub(super) fn new(
        seed: u64,
        shares: &[f64],
        reserve: f64,
        objective: &Objective,
        tasks: &[Task],
    ) -> Result<Self, SetupError> {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share in (0, 1]")]
        let end = |share: &f64| (share * (1.0 - reserve) * f64::from(WHOLE)).round() as u32;
        let seed = seed ^ ORDER;
        let this = Self {
            seed,
            ends: shares.iter().map(end).collect(),
            additive: objective.is_additive(),
            items: tasks.iter().map(|task| task.dev_items).collect(),
            orders: tasks.iter().map(|task| Order::new(seed, &task.name, task.dev_items)).collect(),
        };
        // A task without dev items at all is refused where the data are read.
        if let Some(task) = tasks.iter().find(|task| task.dev_items > 0 && !this.has_items(task.dev_items)) {
            let least = (1..).find(|items| this.has_items(*items)).unwrap_or(usize::MAX);
            return Err(SetupError(format!(
                "tasks.{} has {} dev items, too few for the stages of the acceptance rule and its reserve: at least {least} are needed",
                task.name, task.dev_items
            )));
        }
        Ok(this)
    }

    /// Whether every stage and the reserve have at least one of `items`.
    fn has_items(&self, items: usize) -> bool {
        let reserve = self.reserve().is_none_or(|reserve| reserve.count(items) > 0);
        let mut from = 0;
        reserve
            && self.ends.iter().all(|&to| {
                let some = Subset::new(self.seed, from, to).is_some_and(|slice| slice.count(items) > 0);
                from = to;
                some
            })
    }

    fn last(&self) -> usize {
        self.ends.len() - 1
    }

    /// Whether this is the last stage.
    pub(super) fn is_last(&self, stage: usize) -> bool {
        stage >= self.last()
    }

    fn subset(&self, from: u32, to: u32) -> Subset {
        Subset { seed: self.seed, from, to }
    }

    /// Where the items of a stage that no stage before has read begin.
    fn start(&self, stage: usize) -> u32 {
        if stage == 0 { 0 } else { self.ends[stage - 1] }
    }

    /// All items that decisions read.
    pub(super) fn whole(&self) -> Portion {
        self.portion(0, self.ends[self.last()])
    }

    /// The items that no decision reads.
    pub(super) fn reserve(&self) -> Option<Subset> {
        Subset::new(self.seed, self.ends[self.last()], WHOLE)
    }

    fn portion(&self, from: u32, to: u32) -> Portion {
        let all = from == 0 && to == WHOLE;
        Portion { split: Split::Dev, subset: (!all).then(|| self.subset(from, to)) }
    }

    /// What is scored at a stage.
    pub(super) fn scored_at(&self, stage: usize) -> Portion {
        let again = self.is_last(stage) && !self.additive;
        self.portion(if again { 0 } else { self.start(stage) }, self.ends[stage])
    }

    /// Least dev items that one offspring costs.
    pub(super) fn least_items(&self) -> u64 {
        self.items.iter().map(|&items| self.scored_at(0).count(items) as u64).sum()
    }

    /// Scores up to this stage from those up to the one before and what was scored now.
    pub(super) fn join(&self, before: &Scores, now: Scores, stage: usize) -> Scores {
        if stage == 0 || self.scored_at(stage).subset.is_none_or(|subset| subset.from == 0) {
            return now;
        }
        let (start, end) = (self.start(stage), self.ends[stage]);
        before.join(self.subset(0, start), &now, self.subset(start, end), &self.orders)
    }

    /// A rival's scores on the items of all stages so far. Metrics other than accuracy are there at the last stage only.
    pub(super) fn so_far(&self, rival: &Scores, stage: usize) -> Scores {
        if self.is_last(stage) {
            return rival.clone();
        }
        rival.restrict(self.whole().subset, self.subset(0, self.ends[stage]), &self.orders)
    }

    /// The part of scores up to this stage that is this stage's own, by credits.
    pub(super) fn fresh(&self, so_far: &Scores, stage: usize) -> Scores {
        let (start, end) = (self.start(stage), self.ends[stage]);
        so_far.restrict(self.portion(0, end).subset, self.subset(start, end), &self.orders)
    }
}
