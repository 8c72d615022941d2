//! Token classification: a tag for every word, and F1 over the spans that the tags make.

use evolver_common::{
    data::Row,
    score::{Split, TaskScore},
};
use rayon::prelude::*;
use serde_json::Value;

use super::{
    Declaration, EvaluateError, Evaluator, Parameter, ParameterKind, Progress, Setup, Splits, Subject, TaskInput, batches,
    classification::{enough_labels, label, too_long},
    parameters::Settings,
    scoring::{Builder, f1},
};
use crate::models::{HeadPlan, Kind, Token, Use};

pub(super) static DECLARATION: Declaration = Declaration {
    name: "token_classification",
    summary: "A tag for every word by an encoder's token head; a word has the tag of its first token.",
    source: "transformers' AutoModelForTokenClassification; spans and F1 as seqeval's default mode (CoNLL-2000) has them",
    metrics: &[
        ("span_f1", "F1 over spans of BIO, IOBES or plain tags"),
        ("accuracy", "share of an item's words whose tag is right, averaged over items"),
    ],
    parameters: &[Parameter {
        name: "too_long",
        kind: ParameterKind::Choice(&["cut", "refuse"]),
        default: Some(r#""cut""#),
        doc: "What happens to an item of more than max_length tokens: words beyond count as tagged O, or the task is refused.",
    }],
    open,
};

struct Item {
    tokens: Vec<Token>,
    /// Place of each word's first token; none for a word that was cut off.
    firsts: Vec<Option<usize>>,
    tags: Vec<usize>,
}

struct Tagging {
    plan: HeadPlan,
    name: String,
    labels: Vec<String>,
    budget: usize,
    items: Splits<Item>,
}

fn open(setup: &Setup, input: &TaskInput) -> Result<Box<dyn Evaluator>, EvaluateError> {
    let task = &input.task;
    let architecture = setup.architecture(&[Kind::Encoder], DECLARATION.name)?;
    enough_labels(&task.name, &input.labels)?;
    let tokenizer = setup.tokenizer()?;
    let max_length = task.max_length.min(architecture.limit(&setup.config)?);
    let refuse = Settings::new(&DECLARATION, task).text("too_long") == "refuse";
    let one = |row: &Row| -> Result<Item, EvaluateError> {
        let list = |column: &str| match row.need(column)? {
            Value::Array(values) => Ok(values),
            _ => Err(row.error(format!("field {column:?} is not a list: one text for each word is expected"))),
        };
        let words = list(&task.text)?.iter().map(|word| word.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>();
        let words = words.ok_or_else(|| row.error(format!("field {:?} holds something else than texts", task.text)))?;
        let tags = list(&task.label)?.iter().map(|tag| row.label_of(tag, &task.label, &input.labels));
        let tags = tags.collect::<Result<Vec<_>, _>>()?;
        if words.len() != tags.len() {
            return Err(row.error(format!("it has {} words and {} tags", words.len(), tags.len())).into());
        }
        let (tokens, firsts) = tokenizer.encode_words(&words, max_length)?;
        if tokens.is_empty() {
            return Err(row.error("it has no tokens at all, and there is nothing to run the model on").into());
        }
        if refuse && firsts.last().is_some_and(Option::is_none) {
            return Err(too_long(row, max_length).into());
        }
        Ok(Item { tokens, firsts, tags })
    };
    Ok(Box::new(Tagging {
        items: Splits::new(input, |rows| rows.par_iter().map(one).collect::<Result<_, EvaluateError>>())?,
        plan: architecture.head(&setup.config, Use::Tokens)?,
        name: task.name.clone(),
        budget: batches::budget(setup.batch_tokens, &setup.config),
        labels: input.labels.clone(),
    }))
}

impl Evaluator for Tagging {
    fn head(&self) -> Vec<String> {
        self.plan.tensors()
    }

    fn items(&self, split: Split) -> usize {
        self.items.of(split).len()
    }

    fn evaluate(
        &mut self,
        subject: &mut Subject<'_>,
        split: Split,
        chosen: &[usize],
        progress: Progress<'_>,
    ) -> Result<TaskScore, EvaluateError> {
        let head = subject.head(&self.plan, self.labels.len())?;
        let encoder = subject.encoder()?;
        let items: Vec<_> = chosen.iter().map(|&item| &self.items.of(split)[item]).collect();
        let lengths: Vec<_> = items.iter().map(|item| item.tokens.len()).collect();
        let outside = self.labels.iter().position(|label| label == "O").unwrap_or(0);
        let found = batches::run(chosen, &lengths, self.budget, progress, |batch| {
            let sequences: Vec<_> = batch.iter().map(|&item| items[item].tokens.as_slice()).collect();
            let rows = head.outputs(&encoder.states(&sequences)?)?;
            let mut start = 0;
            let mut tags = Vec::with_capacity(batch.len());
            for &item in batch {
                let rows = &rows[start..start + items[item].tokens.len()];
                if rows.iter().flatten().any(|logit| !logit.is_finite()) {
                    return Err(EvaluateError::NonFinite { task: self.name.clone(), item: chosen[item] });
                }
                let firsts = items[item].firsts.iter();
                tags.push(firsts.map(|first| first.map_or(outside, |row| label(&rows[row]))).collect::<Vec<_>>());
                start += rows.len();
            }
            Ok(tags)
        })?;
        let names = |tags: &[usize]| tags.iter().map(|&tag| self.labels[tag].as_str()).collect::<Vec<_>>();
        let pairs = items.iter().zip(&found).map(|(item, found)| (names(&item.tags), names(found)));
        Ok(score(&pairs.collect::<Vec<_>>()))
    }
}

/// A span: its type, first and last word.
type Span<'a> = (&'a str, usize, usize);

/// The spans of a sequence of tags, as seqeval's default mode reads them: `B-` begins, `I-` goes on or begins, `E-` and `S-` end, a tag without a
/// prefix is one of type `_` that goes on.
fn spans<'a>(tags: &[&'a str]) -> Vec<Span<'a>> {
    let split = |tag: &'a str| match tag.split_once('-') {
        Some((prefix, kind)) => (prefix.chars().next().unwrap_or('O'), kind),
        None => (tag.chars().next().unwrap_or('O'), "_"),
    };
    let mut found = Vec::new();
    let (mut before, mut kind_before, mut start) = ('O', "", 0);
    for index in 0..=tags.len() {
        let (prefix, kind) = tags.get(index).map_or(('O', "_"), |tag| split(tag));
        let other = kind_before != kind;
        let inside = before != 'O' && before != '.';
        let ends = matches!(before, 'E' | 'S' | 'L' | 'U')
            || (matches!(before, 'B' | 'I') && matches!(prefix, 'B' | 'S' | 'O' | 'U'))
            || (inside && other);
        if inside && ends {
            found.push((kind_before, start, index - 1));
        }
        let begins = matches!(prefix, 'B' | 'S' | 'U')
            || (matches!(before, 'E' | 'S' | 'L' | 'U' | 'O') && matches!(prefix, 'E' | 'I' | 'L'))
            || (prefix != 'O' && prefix != '.' && other);
        if begins {
            start = index;
        }
        (before, kind_before) = (prefix, kind);
    }
    found
}

/// The score of tags: expected and found ones of each item.
#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "counts and a credit")]
fn score(items: &[(Vec<&str>, Vec<&str>)]) -> TaskScore {
    let counts: Vec<(u64, u64, u64)> = items
        .iter()
        .map(|(expected, found)| {
            let (expected, found) = (spans(expected), spans(found));
            let hits = found.iter().filter(|span| expected.contains(span)).count();
            (hits as u64, found.len() as u64, expected.len() as u64)
        })
        .collect();
    let over = |chosen: &[usize]| {
        let sum = |part: fn(&(u64, u64, u64)) -> u64| chosen.iter().map(|&item| part(&counts[item])).sum();
        f1(sum(|count| count.0), sum(|count| count.1), sum(|count| count.2))
    };
    let right = items.iter().map(|(expected, found)| {
        let right = expected.iter().zip(found).filter(|(a, b)| a == b).count();
        right as f64 / expected.len().max(1) as f64
    });
    let credits = right.map(|share| f64::from(share as f32)).collect::<Vec<_>>();
    Builder::new(credits.iter().map(|&share| share as f32).collect()).over("span_f1", over).mean("accuracy").finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_those_of_seqeval() {
        // seqeval.metrics.sequence_labeling.get_entities of the same tags.
        for (tags, expected) in [
            ("B-PER I-PER O B-LOC", vec![("PER", 0, 1), ("LOC", 3, 3)]),
            ("I-PER I-PER B-PER I-LOC", vec![("PER", 0, 1), ("PER", 2, 2), ("LOC", 3, 3)]),
            ("S-A B-B I-B E-B O E-C", vec![("A", 0, 0), ("B", 1, 3), ("C", 5, 5)]),
            ("O O", vec![]),
            ("B-A B-A", vec![("A", 0, 0), ("A", 1, 1)]),
            ("I-A O I-A", vec![("A", 0, 0), ("A", 2, 2)]),
        ] {
            assert_eq!(spans(&tags.split(' ').collect::<Vec<_>>()), expected, "{tags}");
        }
    }

    #[test]
    fn span_f1_is_that_of_seqeval() {
        let tags = |text: &'static str| text.split(' ').collect::<Vec<_>>();
        // seqeval.metrics.f1_score of these is 0.5.
        let items = [
            (tags("O O O B-MISC I-MISC I-MISC O"), tags("O O B-MISC I-MISC I-MISC I-MISC O")),
            (tags("B-PER I-PER O"), tags("B-PER I-PER O")),
        ];
        let score = score(&items);
        assert_eq!(score.metrics["span_f1"], 0.5);
        assert!((score.metrics["accuracy"] - (f64::from(5.0f32 / 7.0) + 1.0) / 2.0).abs() < 1e-9);
    }
}
