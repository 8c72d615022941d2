//! The Pareto front over tasks: everything that was scored in full and that nothing else beats on every task.

use super::model::Individual;

/// Members kept; of more, those in the most crowded places go.
const FRONT_MAX: usize = 256;

/// The front; values are kept beside each individual, larger is better.
#[derive(Default)]
pub(super) struct Front {
    members: Vec<Individual>,
    values: Vec<Vec<f64>>,
}

/// Whether `a` is nowhere worse than `b` and somewhere better.
pub(super) fn dominates(a: &[f64], b: &[f64]) -> bool {
    let pairs = || a.iter().zip(b);
    pairs().all(|(a, b)| a >= b) && pairs().any(|(a, b)| a > b)
}

/// How far each point is from its neighbours, summed over objectives; infinite at the ends (Deb et al., NSGA-II, 2002).
pub(super) fn crowding(points: &[Vec<f64>]) -> Vec<f64> {
    let mut distance = vec![0.0; points.len()];
    for objective in 0..points.first().map_or(0, Vec::len) {
        let mut order: Vec<usize> = (0..points.len()).collect();
        order.sort_by(|&a, &b| points[a][objective].total_cmp(&points[b][objective]));
        let (Some(&low), Some(&high)) = (order.first(), order.last()) else { break };
        let range = points[high][objective] - points[low][objective];
        distance[low] = f64::INFINITY;
        distance[high] = f64::INFINITY;
        if range > 0.0 {
            for window in order.windows(3) {
                distance[window[1]] += (points[window[2]][objective] - points[window[0]][objective]) / range;
            }
        }
    }
    distance
}

impl Front {
    /// Takes an individual in, if nothing that is there is as good on every task.
    pub(super) fn add(&mut self, individual: &Individual, values: Vec<f64>) {
        if values.iter().any(|value| value.is_nan())
            || self.values.iter().any(|other| dominates(other, &values) || *other == values)
        {
            return;
        }
        let keep: Vec<bool> = self.values.iter().map(|other| !dominates(&values, other)).collect();
        let mut flags = keep.iter();
        self.members.retain(|_| flags.next() == Some(&true));
        let mut flags = keep.iter();
        self.values.retain(|_| flags.next() == Some(&true));
        self.members.push(individual.clone());
        self.values.push(values);
        if self.members.len() > FRONT_MAX {
            let crowding = crowding(&self.values);
            let most = (0..crowding.len()).min_by(|&a, &b| crowding[a].total_cmp(&crowding[b])).unwrap_or(0);
            self.members.remove(most);
            self.values.remove(most);
        }
    }

    /// The members, in the order in which they were found.
    pub(super) fn members(&self) -> &[Individual] {
        &self.members
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dominance_and_crowding() {
        assert!(
            dominates(&[1.0, 2.0], &[1.0, 1.0]) && !dominates(&[1.0, 1.0], &[1.0, 1.0]) && !dominates(&[2.0, 0.0], &[1.0, 1.0])
        );
        let distance = crowding(&[vec![0.0, 4.0], vec![1.0, 3.0], vec![3.0, 1.0], vec![4.0, 0.0]]);
        assert_eq!(distance, [f64::INFINITY, 0.75 + 0.75, 0.75 + 0.75, f64::INFINITY]);
    }
}
