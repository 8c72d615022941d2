//! From items' outcomes to a task's score: each metric with its standard error over the items.

use evolver_common::score::{TaskScore, bootstrap_error};

/// A score whose metrics are added one by one.
pub(super) struct Builder {
    score: TaskScore,
}

impl Builder {
    /// With the credits of the items, each in [0, 1].
    pub(super) fn new(credits: Vec<f32>) -> Self {
        Self { score: TaskScore { task: String::new(), metrics: std::collections::BTreeMap::new(), credits } }
    }

    /// The mean of the credits.
    pub(super) fn mean(self, name: &str) -> Self {
        let values: Vec<_> = self.score.credits.iter().map(|&credit| f64::from(credit)).collect();
        self.mean_of(name, &values)
    }

    /// The mean of a value of each item.
    #[expect(clippy::cast_precision_loss, reason = "a count of items")]
    pub(super) fn mean_of(self, name: &str, values: &[f64]) -> Self {
        let count = values.len().max(1) as f64;
        let mean = values.iter().sum::<f64>() / count;
        let squares = values.iter().map(|value| (value - mean) * (value - mean)).sum::<f64>();
        // Right or wrong: the binomial's error, as for accuracies elsewhere.
        let binary = values.iter().all(|value| *value == 0.0 || *value == 1.0);
        let below = if binary { count } else { (count - 1.0).max(1.0) };
        self.with(name, mean, (squares / below / count).sqrt())
    }

    /// A statistic over all items, its error by bootstrap.
    pub(super) fn over(self, name: &str, statistic: impl Fn(&[usize]) -> f64) -> Self {
        let items = self.score.credits.len();
        let all: Vec<_> = (0..items).collect();
        let (value, error) = (statistic(&all), bootstrap_error(name, items, &statistic));
        self.with(name, value, error)
    }

    fn with(mut self, name: &str, value: f64, error: f64) -> Self {
        self.score.metrics.insert(name.to_owned(), value);
        self.score.metrics.insert(format!("{name}_stderr"), error);
        self
    }

    pub(super) fn finish(self) -> TaskScore {
        self.score
    }
}

/// F1 of hits among found and expected.
#[expect(clippy::cast_precision_loss, reason = "counts")]
pub(super) fn f1(hits: u64, found: u64, expected: u64) -> f64 {
    if found + expected == 0 { 0.0 } else { 2.0 * hits as f64 / (found + expected) as f64 }
}

/// Pearson's correlation; 0 where one side does not vary.
#[expect(clippy::cast_precision_loss, reason = "a count of items")]
pub(super) fn pearson(pairs: &[(f64, f64)]) -> f64 {
    let count = pairs.len().max(1) as f64;
    let mean = |side: fn(&(f64, f64)) -> f64| pairs.iter().map(side).sum::<f64>() / count;
    let (x, y) = (mean(|pair| pair.0), mean(|pair| pair.1));
    let sum = |term: &dyn Fn(f64, f64) -> f64| pairs.iter().map(|pair| term(pair.0 - x, pair.1 - y)).sum::<f64>();
    let spread = (sum(&|a, _| a * a) * sum(&|_, b| b * b)).sqrt();
    if spread == 0.0 { 0.0 } else { sum(&|a, b| a * b) / spread }
}

/// Spearman's correlation: Pearson's of the ranks, equal values sharing theirs.
pub(super) fn spearman(pairs: &[(f64, f64)]) -> f64 {
    let (x, y) = (ranks(pairs.iter().map(|pair| pair.0)), ranks(pairs.iter().map(|pair| pair.1)));
    pearson(&x.into_iter().zip(y).collect::<Vec<_>>())
}

#[expect(clippy::cast_precision_loss, reason = "a count of items")]
fn ranks(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let values: Vec<f64> = values.collect();
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut start = 0;
    while start < order.len() {
        let end = start + order[start..].iter().take_while(|&&item| values[item] == values[order[start]]).count();
        order[start..end].iter().for_each(|&item| ranks[item] = (start + end - 1) as f64 / 2.0);
        start = end;
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn correlations_agree_with_scipy() {
        // scipy.stats.pearsonr and spearmanr of these.
        let pairs = [(1.0, 2.0), (2.0, 1.0), (2.0, 4.0), (5.0, 3.5), (9.0, 8.0)];
        assert!((pearson(&pairs) - 0.888_661_705_1).abs() < 1e-9, "{}", pearson(&pairs));
        assert!((spearman(&pairs) - 0.666_885_928_9).abs() < 1e-9, "{}", spearman(&pairs));
        assert_eq!(pearson(&[(1.0, 2.0), (1.0, 3.0)]), 0.0);
    }

    #[test]
    fn means_have_their_errors() {
        let score = Builder::new(vec![1.0, 0.0, 1.0, 1.0]).mean("accuracy").finish();
        assert_eq!(score.metrics["accuracy"], 0.75);
        assert!((score.metrics["accuracy_stderr"] - (0.75f64 * 0.25 / 4.0).sqrt()).abs() < 1e-12);
        let score = Builder::new(vec![0.5, 0.25, 0.75]).mean("f1").finish();
        assert!((score.metrics["f1_stderr"] - 0.25 / 3f64.sqrt()).abs() < 1e-12);
    }
}
