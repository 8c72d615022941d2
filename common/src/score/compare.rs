//! The objective over several tasks, its interval, and the paired comparison of two models.

use super::{Scores, TaskScore, normal};
use crate::rng::Stream;

/// Share of the mean in a Chebyshev objective, so that of models with the same weakest task the better one is better (Wierzbicki 1980).
const AUGMENTATION: f64 = 1e-3;
/// Resamples of the paired bootstrap.
const RESAMPLES: u64 = 200;
const BOOTSTRAP_SEED: u64 = 0xb007;

/// A task's part in the objective.
#[derive(Clone, Debug, PartialEq)]
pub struct Weighted {
    /// The metric's name.
    pub metric: String,
    /// The task's weight, above 0.
    pub weight: f64,
}

/// How the tasks' scores become one number.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Scalarisation {
    /// Their weighted mean.
    #[default]
    Mean,
    /// The weighted distance of the weakest task to its reference: the augmented Chebyshev achievement of Wierzbicki (1980), maximised.
    Chebyshev {
        /// One value per task, in the order of the scores, in the metric's unit.
        reference: Vec<f64>,
    },
}

/// The objective: one metric of each task, and how they become one number.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Objective {
    /// One entry per task, in the order of the scores.
    pub tasks: Vec<Weighted>,
    /// How they become one number.
    pub scalarisation: Scalarisation,
}

/// A value with its interval, normal approximation.
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
    /// Weights whose sum is 1.
    fn weights(&self) -> impl Iterator<Item = f64> {
        let total: f64 = self.tasks.iter().map(|task| task.weight).sum();
        self.tasks.iter().map(move |task| task.weight / total)
    }

    /// The one number of the tasks' values.
    fn scalar(&self, values: &[f64]) -> f64 {
        let mean = self.weights().zip(values).map(|(weight, value)| weight * value).sum();
        match &self.scalarisation {
            Scalarisation::Mean => mean,
            Scalarisation::Chebyshev { reference } => {
                #[expect(clippy::cast_precision_loss, reason = "a count of tasks")]
                let tasks = self.tasks.len() as f64;
                let distances = self.weights().zip(values).zip(reference);
                let weakest = distances.map(|((weight, value), reference)| tasks * weight * (value - reference));
                // NaN, which a missing metric gives, must not be lost by a minimum.
                let weakest = weakest.fold(f64::INFINITY, |a, b| if a.is_nan() || a < b { a } else { b });
                weakest + AUGMENTATION * mean
            }
        }
    }

    /// Each task's metric; NaN where it is missing.
    #[must_use]
    pub fn values(&self, scores: &Scores) -> Vec<f64> {
        let value = |(task, score): (&Weighted, &TaskScore)| score.metrics.get(&task.metric).copied().unwrap_or(f64::NAN);
        self.tasks.iter().zip(&scores.tasks).map(value).collect()
    }

    /// The objective by the tasks' metrics; NaN where one is missing.
    #[must_use]
    pub fn value(&self, scores: &Scores) -> f64 {
        self.scalar(&self.values(scores))
    }

    /// The objective by the means of the tasks' credits, whatever their metrics: what can be said of a part of the items.
    #[must_use]
    pub fn credit_value(&self, scores: &Scores) -> f64 {
        let means: Vec<_> = scores.tasks.iter().map(|task| mean(&task.credits)).collect();
        self.scalar(&means)
    }

    /// Whether every task's metric is the mean of its credits, so that parts of the items can be put together.
    #[must_use]
    pub fn is_additive(&self) -> bool {
        self.tasks.iter().all(|task| task.metric == "accuracy")
    }

    /// The value with its 95 % interval, from the tasks' standard errors, which are independent: their items differ.
    #[must_use]
    pub fn interval(&self, scores: &Scores) -> Interval {
        self.interval_among(scores, 1)
    }

    /// As [`Objective::interval`], for one of `looked_at` models: the intervals of all of them hold together with 95 % (Šidák 1967).
    #[must_use]
    pub fn interval_among(&self, scores: &Scores, looked_at: usize) -> Interval {
        #[expect(clippy::cast_precision_loss, reason = "a count of models")]
        let each = 0.95f64.powf(1.0 / looked_at.max(1) as f64);
        let mean = self.value(scores);
        let parts = self.weights().zip(&self.tasks).zip(&scores.tasks);
        let variances = parts.map(|((weight, task), score)| {
            let error = score.metrics.get(&format!("{}_stderr", task.metric)).copied().unwrap_or(0.0);
            (weight * weight * error * error, error * error)
        });
        let variance = match self.scalarisation {
            Scalarisation::Mean => variances.map(|(part, _)| part).sum(),
            // That of whichever task is the weakest is at most the largest.
            Scalarisation::Chebyshev { .. } => variances.map(|(_, alone)| alone).fold(0.0, f64::max),
        };
        let half = normal::quantile(0.5 + each / 2.0) * f64::sqrt(variance);
        let (low, high) = (mean - half, mean + half);
        match self.scalarisation {
            Scalarisation::Mean => Interval { mean, low: low.max(0.0), high: high.min(1.0) },
            Scalarisation::Chebyshev { .. } => Interval { mean, low, high },
        }
    }

    /// How many standard errors `child` is better than `parent` on the same items: the difference of their objectives by credits over its standard
    /// error. For right-or-wrong credits and a mean this is the z of McNemar's test, weighted over tasks; for a Chebyshev objective the error is
    /// that of a paired bootstrap. Infinite where they differ without variance, 0 where they do not differ.
    #[must_use]
    pub fn paired_z(&self, child: &Scores, parent: &Scores) -> f64 {
        let (difference, error) = self.paired(child, parent);
        if difference == 0.0 { 0.0 } else { difference / error }
    }

    /// The difference of two models' objectives by credits on the same items, with its 95 % interval.
    #[must_use]
    pub fn difference(&self, child: &Scores, parent: &Scores) -> Interval {
        let (mean, error) = self.paired(child, parent);
        let half = normal::quantile(0.975) * error;
        Interval { mean, low: mean - half, high: mean + half }
    }

    /// The difference of objectives by credits and its standard error.
    fn paired(&self, child: &Scores, parent: &Scores) -> (f64, f64) {
        match self.scalarisation {
            Scalarisation::Mean => self.paired_mean(child, parent),
            Scalarisation::Chebyshev { .. } => {
                let resampled = self.resampled(child, parent);
                (self.credit_value(child) - self.credit_value(parent), deviation(&resampled))
            }
        }
    }

    fn paired_mean(&self, child: &Scores, parent: &Scores) -> (f64, f64) {
        let (mut difference, mut variance) = (0.0, 0.0);
        for ((weight, child), parent) in self.weights().zip(&child.tasks).zip(&parent.tasks) {
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

    /// The share of paired bootstrap resamples of the items in which `child` is better than `parent`; ties count half.
    #[must_use]
    pub fn paired_bootstrap(&self, child: &Scores, parent: &Scores) -> f64 {
        let resampled = self.resampled(child, parent);
        let won = |difference: &f64| if *difference > 0.0 { 1.0 } else { f64::from(u8::from(*difference == 0.0)) / 2.0 };
        #[expect(clippy::cast_precision_loss, reason = "a count of resamples")]
        let share = resampled.iter().map(won).sum::<f64>() / resampled.len() as f64;
        share
    }

    /// Differences of the objectives by credits over resamples of the items, the same items for both. The draws depend on the tasks' names and the
    /// numbers of items alone.
    fn resampled(&self, child: &Scores, parent: &Scores) -> Vec<f64> {
        let streams: Vec<_> = child.tasks.iter().map(|task| Stream::new(BOOTSTRAP_SEED, &task.task)).collect();
        let resample = |round| {
            let mut means = [Vec::new(), Vec::new()];
            for ((child, parent), stream) in child.tasks.iter().zip(&parent.tasks).zip(&streams) {
                let count = child.credits.len() as u64;
                let mut sums = [0.0, 0.0];
                for item in 0..count {
                    let draw = (u64::from(stream.element(round * count + item)) * count) >> 32;
                    let at = usize::try_from(draw).unwrap_or(0);
                    sums[0] += f64::from(child.credits[at]);
                    sums[1] += f64::from(parent.credits.get(at).copied().unwrap_or(0.0));
                }
                #[expect(clippy::cast_precision_loss, reason = "a count of items")]
                for (means, sum) in means.iter_mut().zip(sums) {
                    means.push(sum / count as f64);
                }
            }
            self.scalar(&means[0]) - self.scalar(&means[1])
        };
        (0..RESAMPLES).map(resample).collect()
    }

    /// The one-sided p-value of McNemar's exact test that `child` is better than `parent`: the chance of as many items won among those on which they
    /// differ, if each were won or lost by the toss of a coin. Weights of tasks do not enter.
    #[must_use]
    pub fn mcnemar(&self, child: &Scores, parent: &Scores) -> f64 {
        let pairs = child.tasks.iter().zip(&parent.tasks).flat_map(|(c, p)| c.credits.iter().zip(&p.credits));
        let (won, lost) = pairs.fold((0u32, 0u32), |(won, lost), (c, p)| (won + u32::from(c > p), lost + u32::from(c < p)));
        let n = won + lost;
        // ln of the binomial coefficients by ln-gamma: no overflow.
        let ln = |k: u32| libm::lgamma(f64::from(k) + 1.0);
        let tail = (won..=n).map(|k| libm::exp(ln(n) - ln(k) - ln(n - k) - f64::from(n) * std::f64::consts::LN_2));
        tail.sum::<f64>().min(1.0)
    }
}

#[expect(clippy::cast_precision_loss, reason = "a count of items")]
fn mean(credits: &[f32]) -> f64 {
    credits.iter().map(|credit| f64::from(*credit)).sum::<f64>() / credits.len() as f64
}

#[expect(clippy::cast_precision_loss, reason = "a count of resamples")]
fn deviation(values: &[f64]) -> f64 {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    (values.iter().map(|value| (value - mean) * (value - mean)).sum::<f64>() / (count - 1.0)).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::score::classification;

    fn scores(predicted: &[usize]) -> Scores {
        Scores { tasks: vec![classification("t", &[0; 8], predicted, 2)] }
    }

    fn weighted(weight: f64) -> Weighted {
        Weighted { metric: "accuracy".into(), weight }
    }

    fn objective() -> Objective {
        Objective { tasks: vec![weighted(3.0)], ..Objective::default() }
    }

    fn two(a: &[f32], b: &[f32]) -> Scores {
        Scores { tasks: vec![TaskScore::of_credits("a", a.to_vec()), TaskScore::of_credits("b", b.to_vec())] }
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
        assert!(
            (difference.mean - 0.25).abs() < 1e-12
                && (difference.high - difference.mean - normal::quantile(0.975) * 0.25 / z).abs() < 1e-12
        );
    }

    #[test]
    fn the_interval_holds_the_value() {
        let half_right = scores(&[0, 0, 0, 0, 1, 1, 1, 1]);
        let interval = objective().interval(&half_right);
        assert_eq!(interval.mean, 0.5);
        let error = (0.25f64 / 8.0).sqrt();
        assert!((interval.high - 0.5 - 1.959_963_984_540_054 * error).abs() < 1e-12);
        // scipy.stats.norm.ppf(0.5 + 0.95 ** (1 / 8) / 2) = 2.7271 for eight models looked at.
        let corrected = objective().interval_among(&half_right, 8);
        assert!((corrected.high - 0.5 - 2.7271 * error).abs() < 1e-4 * error, "{}", (corrected.high - 0.5) / error);
    }

    #[test]
    fn a_chebyshev_objective_is_its_weakest_task() {
        let chebyshev = Objective {
            tasks: vec![weighted(1.0), weighted(1.0)],
            scalarisation: Scalarisation::Chebyshev { reference: vec![0.5, 0.0] },
        };
        let (a, b) = (two(&[1.0, 1.0, 1.0, 0.0], &[1.0, 0.0]), two(&[1.0, 1.0, 0.0, 0.0], &[1.0, 1.0]));
        assert!((chebyshev.value(&a) - (0.25 + AUGMENTATION * 0.625)).abs() < 1e-12);
        assert!((chebyshev.value(&b) - AUGMENTATION * 0.75).abs() < 1e-12);
        assert!(chebyshev.paired_z(&a, &b) > 0.0);
        let missing =
            Scores { tasks: vec![TaskScore::of_credits("a", vec![1.0]), TaskScore { metrics: [].into(), ..a.tasks[1].clone() }] };
        assert!(chebyshev.value(&missing).is_nan());
    }

    #[test]
    fn mcnemars_exact_test_and_the_bootstrap() {
        let (good, bad) = (two(&[1.0; 10], &[1.0, 0.0]), two(&[0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0], &[0.0, 1.0]));
        let objective = Objective { tasks: vec![weighted(1.0), weighted(1.0)], ..Objective::default() };
        // scipy.stats.binomtest(6, 7, alternative="greater").pvalue = 0.0625.
        assert!((objective.mcnemar(&good, &bad) - 0.0625).abs() < 1e-12);
        assert_eq!(objective.mcnemar(&good, &good), 1.0);
        assert_eq!(objective.paired_bootstrap(&good, &good), 0.5);
        let (won, lost) = (objective.paired_bootstrap(&good, &bad), objective.paired_bootstrap(&bad, &good));
        assert!(won > 0.5 && (won + lost - 1.0).abs() < 1e-12);
    }
}
