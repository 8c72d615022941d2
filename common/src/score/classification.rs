//! Accuracy and macro-F1 of a classifier, each with its standard error over the items.

use std::collections::BTreeMap;

use super::TaskScore;
use crate::rng::Stream;

/// Resamples of the bootstrap behind macro-F1's standard error.
const RESAMPLES: u64 = 200;
const BOOTSTRAP_SEED: u64 = 0x5eed;

/// The score of predicted label indices against the true ones.
///
/// Macro-F1 is the mean of F1 over the labels that occur among the true or predicted ones, as scikit-learn's default has it. Its standard error is
/// that of a bootstrap whose draws depend on the task's name and the number of items alone.
#[must_use]
pub fn classification(task: &str, truth: &[usize], predicted: &[usize], labels: usize) -> TaskScore {
    let credits: Vec<f32> = truth.iter().zip(predicted).map(|(t, p)| if t == p { 1.0 } else { 0.0 }).collect();
    #[expect(clippy::cast_precision_loss, reason = "a count of items")]
    let items = truth.len() as f64;
    let accuracy = credits.iter().map(|&credit| f64::from(credit)).sum::<f64>() / items;
    let f1_of = |index: &[usize]| {
        let mut table = vec![[0u64; 3]; labels];
        for &item in index {
            let (truth, predicted) = (truth[item], predicted[item]);
            table[truth][1] += 1;
            table[predicted][2] += 1;
            if truth == predicted {
                table[truth][0] += 1;
            }
        }
        macro_f1(&table)
    };
    let metrics = BTreeMap::from([
        ("accuracy".to_owned(), accuracy),
        ("accuracy_stderr".to_owned(), (accuracy * (1.0 - accuracy) / items).sqrt()),
        ("macro_f1".to_owned(), f1_of(&(0..truth.len()).collect::<Vec<_>>())),
        ("macro_f1_stderr".to_owned(), bootstrap_error(task, truth.len(), &f1_of)),
    ]);
    TaskScore { task: task.to_owned(), metrics, credits }
}

/// The standard error of a statistic over items, by a bootstrap whose draws depend on `name` and the number of items alone.
#[must_use]
pub fn bootstrap_error(name: &str, items: usize, statistic: &dyn Fn(&[usize]) -> f64) -> f64 {
    let stream = Stream::new(BOOTSTRAP_SEED, name);
    let count = items as u64;
    let resampled: Vec<f64> = (0..RESAMPLES)
        .map(|round| {
            let draws = (0..count).map(|item| {
                let draw = u64::from(stream.element(round * count + item));
                usize::try_from((draw * count) >> 32).unwrap_or(0)
            });
            statistic(&draws.collect::<Vec<_>>())
        })
        .collect();
    deviation(&resampled)
}

/// The mean of right-or-wrong credits and its standard error, `sqrt(p (1 - p) / n)`; for credits in between the error is an upper bound.
pub(super) fn deviation_of_mean(credits: &[f32]) -> (f64, f64) {
    #[expect(clippy::cast_precision_loss, reason = "a count of items")]
    let items = credits.len() as f64;
    let mean = credits.iter().map(|&credit| f64::from(credit)).sum::<f64>() / items;
    (mean, (mean * (1.0 - mean) / items).sqrt())
}

/// Mean F1 over the labels that occur; each row holds hits, true and predicted counts.
#[expect(clippy::cast_precision_loss, reason = "counts of items")]
fn macro_f1(table: &[[u64; 3]]) -> f64 {
    let occurring = table.iter().filter(|[_, truth, predicted]| truth + predicted > 0);
    let (sum, count) = occurring.fold((0.0, 0.0), |(sum, count), [hits, truth, predicted]| {
        (sum + 2.0 * *hits as f64 / (truth + predicted) as f64, count + 1.0)
    });
    if count == 0.0 { 0.0 } else { sum / count }
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

    #[test]
    fn metrics_agree_with_scikit_learn() {
        // sklearn.metrics.f1_score(truth, predicted, average="macro") = 0.6555555555555556 for these; label 3 never occurs.
        let score = classification("t", &[0, 0, 1, 1, 2, 2], &[0, 1, 1, 1, 2, 0], 4);
        assert!((score.metrics["macro_f1"] - (0.5 + 0.8 + 2.0 / 3.0) / 3.0).abs() < 1e-12);
        assert!((score.metrics["accuracy"] - 4.0 / 6.0).abs() < 1e-12);
        assert_eq!(score.credits, [1.0, 0.0, 1.0, 1.0, 1.0, 0.0]);
        assert!(score.metrics["macro_f1_stderr"] > 0.05);
        let perfect = classification("t", &[0, 1], &[0, 1], 2);
        assert_eq!(perfect.metrics["macro_f1"], 1.0);
        assert_eq!(perfect.metrics["accuracy_stderr"], 0.0);
    }
}
