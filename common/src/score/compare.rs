//! The objective over several tasks, its interval, and the paired comparison of two models.

use super::{Scores, TaskScore};

/// Half-width of a 95 % interval in standard errors.
const Z95: f64 = 1.959_963_984_540_054;

/// A task's part in the objective.
#[derive(Clone, Debug, PartialEq)]
pub struct Weighted {
    /// The metric's name.
    pub metric: String,
    /// The task's weight, above 0.
    pub weight: f64,
}

/// The objective: the weighted mean of one metric of each task.
#[derive(Clone, Debug, PartialEq)]
pub struct Objective {
    /// One entry per task, in the order of the scores.
    pub tasks: Vec<Weighted>,
}

/// A value with its 95 % interval, normal approximation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// The value.
    pub mean: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

impl Objective {
    fn parts<'a>(&'a self, scores: &'a Scores) -> impl Iterator<Item = (f64, &'a str, &'a TaskScore)> {
        let total: f64 = self.tasks.iter().map(|task| task.weight).sum();
        self.tasks.iter().zip(&scores.tasks).map(move |(task, score)| (task.weight / total, task.metric.as_str(), score))
    }

    /// The weighted mean of the tasks' metrics; NaN where one is missing.
    #[must_use]
    pub fn value(&self, scores: &Scores) -> f64 {
        self.parts(scores).map(|(weight, metric, score)| weight * score.metrics.get(metric).copied().unwrap_or(f64::NAN)).sum()
    }

    /// The value with its interval, from the tasks' standard errors, which are independent: their items differ.
    #[must_use]
    pub fn interval(&self, scores: &Scores) -> Interval {
        let mean = self.value(scores);
        let variance: f64 = self
            .parts(scores)
            .map(|(weight, metric, score)| {
                let error = score.metrics.get(&format!("{metric}_stderr")).copied().unwrap_or(0.0);
                weight * weight * error * error
            })
            .sum();
        let half = Z95 * variance.sqrt();
        Interval { mean, low: (mean - half).max(0.0), high: (mean + half).min(1.0) }
    }

    /// How many standard errors `child` is better than `parent` on the same items: the weighted mean difference of their credits over its standard
    /// error. For right-or-wrong credits this is the z of McNemar's test, weighted over tasks. Infinite where they differ without variance,
    /// 0 where they do not differ.
    #[must_use]
    pub fn paired_z(&self, child: &Scores, parent: &Scores) -> f64 {
        let (difference, error) = self.paired(child, parent);
        if difference == 0.0 { 0.0 } else { difference / error }
    }

    /// The weighted mean difference of two models' credits on the same items, with its 95 % interval.
    #[must_use]
    pub fn difference(&self, child: &Scores, parent: &Scores) -> Interval {
        let (mean, error) = self.paired(child, parent);
        Interval { mean, low: mean - Z95 * error, high: mean + Z95 * error }
    }

    /// The weighted mean difference of credits and its standard error.
    fn paired(&self, child: &Scores, parent: &Scores) -> (f64, f64) {
        let (mut difference, mut variance) = (0.0, 0.0);
        for ((weight, _, child), (_, _, parent)) in self.parts(child).zip(self.parts(parent)) {
            #[expect(clippy::cast_precision_loss, reason = "a count of items")]
            let items = child.credits.len() as f64;
            let pairs = || child.credits.iter().zip(&parent.credits).map(|(c, p)| f64::from(*c) - f64::from(*p));
            let mean = pairs().sum::<f64>() / items;
            let squares = pairs().map(|d| (d - mean) * (d - mean)).sum::<f64>();
            difference += weight * mean;
            variance += weight * weight * squares / (items * (items - 1.0).max(1.0));
        }
        (difference, variance.sqrt())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::score::classification;

    fn scores(predicted: &[usize]) -> Scores {
        Scores { tasks: vec![classification("t", &[0; 8], predicted, 2)] }
    }

    fn objective() -> Objective {
        Objective { tasks: vec![Weighted { metric: "accuracy".into(), weight: 3.0 }] }
    }

    #[test]
    fn pairs_count_only_where_the_models_differ() {
        let (good, bad) = (scores(&[0, 0, 0, 0, 0, 0, 0, 1]), scores(&[0, 0, 0, 0, 0, 1, 1, 1]));
        let z = objective().paired_z(&good, &bad);
        // Mean difference 2/8, variance of the differences (2 - 8/16)/7.
        assert!((z - 0.25 / (1.5 / (8.0 * 7.0f64)).sqrt()).abs() < 1e-12, "{z}");
        assert_eq!(objective().paired_z(&bad, &good), -z);
        assert_eq!(objective().paired_z(&good, &good), 0.0);
        let difference = objective().difference(&good, &bad);
        assert!((difference.mean - 0.25).abs() < 1e-12 && (difference.high - difference.mean - Z95 * 0.25 / z).abs() < 1e-12);
    }

    #[test]
    fn the_interval_holds_the_value() {
        let interval = objective().interval(&scores(&[0, 0, 0, 0, 1, 1, 1, 1]));
        assert_eq!(interval.mean, 0.5);
        assert!((interval.high - 0.5 - Z95 * (0.25f64 / 8.0).sqrt()).abs() < 1e-12);
    }
}
