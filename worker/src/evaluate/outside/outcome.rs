//! What a program gives: `{"metrics": {name: number}, "credits": [number, …]}`, checked before it counts.

use std::collections::BTreeMap;

use evolver_common::score::TaskScore;
use serde::Deserialize;

use super::super::scoring::Builder;

/// Metrics and the credit of every item, in the items' order. Without metrics the searched one is the mean of the credits.
#[derive(Debug, Deserialize)]
pub(super) struct Outcome {
    #[serde(default)]
    pub(super) metrics: BTreeMap<String, f64>,
    pub(super) credits: Vec<f64>,
}

impl Outcome {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        serde_json::from_str(text.trim()).map_err(|error| {
            let shown: String = text.chars().take(80).collect();
            format!("it is not {{\"metrics\": {{…}}, \"credits\": […]}}: {error}; it begins {shown:?}")
        })
    }

    /// The task's score, if all items have outcomes and everything is within its range.
    #[expect(clippy::cast_possible_truncation, reason = "a credit")]
    pub(super) fn score(self, metric: &str, items: usize) -> Result<TaskScore, String> {
        if self.credits.len() != items {
            return Err(format!(
                "it has {} credits, and there are {items} items: each needs one, in their order",
                self.credits.len()
            ));
        }
        if let Some(item) = self.credits.iter().position(|credit| !(0.0..=1.0).contains(credit)) {
            return Err(format!("the credit of item {item} is {}, outside 0 to 1", self.credits[item]));
        }
        if let Some((name, value)) = self.metrics.iter().find(|(_, value)| !value.is_finite()) {
            return Err(format!("the metric {name} is {value}"));
        }
        let credits: Vec<f32> = self.credits.iter().map(|&credit| credit as f32).collect();
        let mut score = Builder::new(credits).mean(metric).finish();
        if !self.metrics.is_empty() && !self.metrics.contains_key(metric) {
            let known: Vec<_> = self.metrics.keys().map(String::as_str).collect();
            return Err(format!("the metric {metric}, by which the task is searched, is not among {}", known.join(", ")));
        }
        score.metrics.extend(self.metrics);
        match score.metrics.get(metric) {
            Some(value) if !(0.0..=1.0).contains(value) => Err(format!(
                "the metric {metric} is {value}: a metric that a search maximises lies in 0 to 1, larger being better"
            )),
            _ => Ok(score),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_outcomes_count() {
        let score = |text: &str| Outcome::parse(text).and_then(|outcome| outcome.score("acc", 3));
        let good = score(r#"{"metrics": {"acc": 0.5, "tokens": 70}, "credits": [1, 0, 0.5]}"#).unwrap();
        assert_eq!((good.metrics["acc"], good.metrics["tokens"], good.credits[2]), (0.5, 70.0, 0.5));
        assert_eq!(score(r#"{"credits": [1, 1, 0.25]}"#).unwrap().metrics["acc"], 0.75);
        for (text, expected) in [
            ("Traceback", "it begins \"Traceback\""),
            (r#"{"metrics": {"acc": 1}}"#, "credits"),
            (r#"{"credits": [1, 0]}"#, "2 credits, and there are 3 items"),
            (r#"{"credits": [1, 0, 1.5]}"#, "credit of item 2 is 1.5"),
            (r#"{"credits": [1, 0, null]}"#, "is not"),
            (r#"{"credits": [1, 0, 1], "metrics": {"f1": 1}}"#, "is not among f1"),
            (r#"{"credits": [1, 0, 1], "metrics": {"acc": 7}}"#, "the metric acc is 7"),
        ] {
            let error = score(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
