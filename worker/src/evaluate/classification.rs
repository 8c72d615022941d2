//! Classification of texts and pairs of texts, with one label, several labels or a number for each.

use evolver_common::{
    data::{DataError, Row},
    score::{Split, TaskScore, classification},
};
use rayon::prelude::*;
use serde_json::Value;

use super::{
    Declaration, EvaluateError, Evaluator, Parameter, ParameterKind, Progress, Setup, Splits, Subject, TaskInput, batches,
    columns::Column,
    parameters::Settings,
    scoring::{Builder, f1, pearson, spearman},
};
use crate::models::{HeadPlan, Kind, Token, Use};

/// As definitions name it.
pub(super) static DECLARATION: Declaration = Declaration {
    name: "classification",
    summary: "Texts or pairs of texts by an encoder's classification head: one label, several labels, or a number.",
    source: "transformers' AutoModelForSequenceClassification; metrics as in scikit-learn",
    metrics: &[
        ("accuracy", "share of items whose label, or whole set of labels, is right"),
        ("macro_f1", "mean F1 over the labels"),
        ("micro_f1", "F1 over all labels of all items (several labels)"),
        ("matthews", "Matthews' correlation, below 0 counted as 0 (one label)"),
        ("pearson", "Pearson's correlation, below 0 counted as 0 (a number)"),
        ("spearman", "Spearman's correlation, below 0 counted as 0 (a number)"),
    ],
    parameters: &[
        Parameter {
            name: "kind",
            kind: ParameterKind::Choice(&["one_label", "several_labels", "number"]),
            default: Some(r#""one_label""#),
            doc: "What the label field holds: one label, a list of labels, or a number that the model's one output approximates.",
        },
        Parameter {
            name: "threshold",
            kind: ParameterKind::Number(0.0, 1.0),
            default: Some("0.5"),
            doc: "Probability from which on a label is given, where there may be several.",
        },
        Parameter {
            name: "too_long",
            kind: ParameterKind::Choice(&["cut", "refuse"]),
            default: Some(r#""cut""#),
            doc: "What happens to a text of more than max_length tokens: its end is cut off, or the task is refused.",
        },
    ],
    open,
};

/// What is right for an item.
#[derive(Clone, Debug)]
enum Truth {
    One(usize),
    Several(Vec<bool>),
    Number(f64),
}

struct Text {
    tokens: Vec<Token>,
    truth: Truth,
}

/// The evaluator of one task, its texts tokenized.
pub struct Classification {
    plan: HeadPlan,
    name: String,
    outputs: usize,
    budget: usize,
    threshold: f32,
    texts: Splits<Text>,
}

fn open(setup: &Setup, input: &TaskInput) -> Result<Box<dyn Evaluator>, EvaluateError> {
    Ok(Box::new(Classification::open(setup, input)?))
}

impl Classification {
    /// Reads the tokenizer and tokenizes every text.
    ///
    /// # Errors
    /// If the model is none that can be run, the tokenizer cannot be used, or an item does not fit the task.
    pub fn open(setup: &Setup, input: &TaskInput) -> Result<Self, EvaluateError> {
        let task = &input.task;
        let settings = Settings::new(&DECLARATION, task);
        let architecture = setup.architecture(&[Kind::Encoder], DECLARATION.name)?;
        let kind = settings.text("kind");
        let (fitting, outputs): (&[&str], usize) = match kind.as_str() {
            "several_labels" => (&["accuracy", "macro_f1", "micro_f1"], input.labels.len()),
            "number" => (&["pearson", "spearman"], 1),
            _ => (&["accuracy", "macro_f1", "matthews"], input.labels.len()),
        };
        if !fitting.contains(&task.metric()) {
            return Err(EvaluateError::Unfit(format!(
                "tasks.{}: the metric {} does not fit kind = {kind:?}: {} do",
                task.name,
                task.metric(),
                fitting.join(", ")
            )));
        }
        if kind != "number" {
            enough_labels(&task.name, &input.labels)?;
        }
        let tokenizer = setup.tokenizer()?;
        let (text, pair) = (Column::new(&task.text)?, task.text_pair.as_deref().map(Column::new).transpose()?);
        let limit = architecture.limit(&setup.config)?;
        let max_length = task.max_length.min(limit);
        let refuse = settings.text("too_long") == "refuse";
        let one = |row: &Row| -> Result<Text, EvaluateError> {
            let truth = match kind.as_str() {
                "several_labels" => Truth::Several(several(row, &task.label, &input.labels)?),
                "number" => Truth::Number(number(row, &task.label)?),
                _ => Truth::One(row.label(&task.label, &input.labels)?),
            };
            // A second text that is null is none.
            let there = task.text_pair.as_deref().is_some_and(|column| row.get(column) != Some(&Value::Null));
            let pair = pair.as_ref().filter(|_| there).map(|pair| pair.text(row)).transpose()?;
            let text = text.text(row)?;
            let tokens = tokenizer.encode(&text, pair.as_deref(), max_length)?;
            if refuse && tokenizer.encode(&text, pair.as_deref(), usize::MAX >> 1)?.len() > max_length {
                return Err(too_long(row, max_length).into());
            }
            if tokens.is_empty() {
                return Err(row.error("it has no tokens at all, and there is nothing to run the model on").into());
            }
            Ok(Text { tokens, truth })
        };
        Ok(Self {
            texts: Splits::new(input, |rows| rows.par_iter().map(one).collect::<Result<_, EvaluateError>>())?,
            plan: architecture.head(&setup.config, Use::Whole)?,
            name: task.name.clone(),
            outputs,
            #[expect(clippy::cast_possible_truncation, reason = "a probability")]
            threshold: settings.number("threshold") as f32,
            budget: batches::budget(setup.batch_tokens, &setup.config),
        })
    }

    /// The (token, type) pairs of every text.
    #[must_use]
    pub fn tokens(&self, split: Split) -> Vec<&[Token]> {
        self.texts.of(split).iter().map(|text| text.tokens.as_slice()).collect()
    }

    /// How many labels there are.
    pub(crate) fn outputs(&self) -> usize {
        self.outputs
    }

    /// Dev texts that have one label, with it.
    pub(crate) fn labelled(&self) -> Vec<(&[Token], usize)> {
        let one = |text: &'_ Text| if let Truth::One(label) = text.truth { Some(label) } else { None };
        self.texts.of(Split::Dev).iter().filter_map(|text| Some((text.tokens.as_slice(), one(text)?))).collect()
    }

    /// The model's outputs for the chosen items, in their order.
    ///
    /// # Errors
    /// If the model does not fit the network or the task, cannot be run, gives NaN or infinity, or was stopped by `progress`.
    pub fn logits(
        &self,
        subject: &mut Subject<'_>,
        split: Split,
        chosen: &[usize],
        progress: Progress<'_>,
    ) -> Result<Vec<Vec<f32>>, EvaluateError> {
        let head = subject.head(&self.plan, self.outputs)?;
        let encoder = subject.encoder()?;
        let texts: Vec<_> = chosen.iter().map(|&item| self.texts.of(split)[item].tokens.as_slice()).collect();
        let lengths: Vec<_> = texts.iter().map(|text| text.len()).collect();
        let logits = batches::run(chosen, &lengths, self.budget, progress, |batch| {
            let sequences: Vec<_> = batch.iter().map(|&item| texts[item]).collect();
            let lengths: Vec<_> = sequences.iter().map(|sequence| sequence.len()).collect();
            Ok(head.of_texts(&encoder.states(&sequences)?, &lengths)?)
        })?;
        let finite = |logits: &Vec<f32>| logits.iter().all(|logit| logit.is_finite());
        match logits.iter().position(|logits| !finite(logits)) {
            Some(item) => Err(EvaluateError::NonFinite { task: self.name.clone(), item: chosen[item] }),
            None => Ok(logits),
        }
    }
}

/// At least two labels are needed where one is to be chosen.
pub(super) fn enough_labels(task: &str, labels: &[String]) -> Result<(), EvaluateError> {
    if labels.len() < 2 {
        return Err(EvaluateError::Unfit(format!(
            "tasks.{task}.labels is missing, and the base's config.json has no id2label: name at least two labels in the order of the model's outputs"
        )));
    }
    Ok(())
}

/// The refusal of a text.
pub(super) fn too_long(row: &Row, max_length: usize) -> DataError {
    row.error(format!("it has more than {max_length} tokens, and too_long = \"refuse\": raise max_length, or cut texts"))
}

fn number(row: &Row, column: &str) -> Result<f64, DataError> {
    let value = row.need(column)?;
    let number = value.as_f64().or_else(|| value.as_str().and_then(|text| text.trim().parse().ok()));
    number.filter(|number| number.is_finite()).ok_or_else(|| row.error(format!("field {column:?} is not a number")))
}

/// Labels from a list, from a text with commas, or from a list of zeros and ones as long as the labels.
fn several(row: &Row, column: &str, labels: &[String]) -> Result<Vec<bool>, DataError> {
    let mut given = vec![false; labels.len()];
    let values: Vec<Value> = match row.need(column)? {
        Value::Array(values) => values.clone(),
        Value::String(text) => text.split(',').map(str::trim).filter(|name| !name.is_empty()).map(Value::from).collect(),
        value => vec![value.clone()],
    };
    let flag = |value: &Value| value.as_bool().or_else(|| value.as_f64().filter(|v| [0.0, 1.0].contains(v)).map(|v| v == 1.0));
    let flags: Option<Vec<bool>> = values.iter().map(flag).collect();
    if let Some(flags) = flags.filter(|flags| flags.len() == labels.len()) {
        return Ok(flags);
    }
    for value in &values {
        given[row.label_of(value, column, labels)?] = true;
    }
    Ok(given)
}

impl Evaluator for Classification {
    fn head(&self) -> Vec<String> {
        self.plan.tensors()
    }

    fn items(&self, split: Split) -> usize {
        self.texts.of(split).len()
    }

    fn evaluate(
        &mut self,
        subject: &mut Subject<'_>,
        split: Split,
        chosen: &[usize],
        progress: Progress<'_>,
    ) -> Result<TaskScore, EvaluateError> {
        let logits = self.logits(subject, split, chosen, progress)?;
        let truths: Vec<_> = chosen.iter().map(|&item| &self.texts.of(split)[item].truth).collect();
        Ok(match truths.first() {
            Some(Truth::Several(_)) => several_score(&truths, &logits, self.threshold),
            Some(Truth::Number(_)) => number_score(&truths, &logits),
            _ => one_score(&self.name, &truths, &logits, self.outputs),
        })
    }
}

fn one_score(task: &str, truths: &[&Truth], logits: &[Vec<f32>], labels: usize) -> TaskScore {
    let truth: Vec<_> =
        truths.iter().filter_map(|truth| if let Truth::One(label) = truth { Some(*label) } else { None }).collect();
    let predicted: Vec<_> = logits.iter().map(|logits| label(logits)).collect();
    let mut score = classification(task, &truth, &predicted, labels);
    let matthews =
        Builder::new(score.credits.clone()).over("matthews", |items| matthews(items, &truth, &predicted, labels).max(0.0));
    score.metrics.extend(matthews.finish().metrics);
    score
}

/// Matthews' correlation for any number of labels (Gorodkin, 2004).
#[expect(clippy::cast_precision_loss, reason = "counts of items")]
fn matthews(items: &[usize], truth: &[usize], predicted: &[usize], labels: usize) -> f64 {
    let mut counts = vec![(0.0, 0.0); labels];
    let mut hits = 0.0;
    for &item in items {
        counts[truth[item]].0 += 1.0;
        counts[predicted[item]].1 += 1.0;
        hits += f64::from(u8::from(truth[item] == predicted[item]));
    }
    let total = items.len() as f64;
    let sum = |term: &dyn Fn(f64, f64) -> f64| counts.iter().map(|(t, p)| term(*t, *p)).sum::<f64>();
    let spread = ((total * total - sum(&|_, p| p * p)) * (total * total - sum(&|t, _| t * t))).sqrt();
    if spread == 0.0 { 0.0 } else { (hits * total - sum(&|t, p| t * p)) / spread }
}

fn several_score(truths: &[&Truth], logits: &[Vec<f32>], threshold: f32) -> TaskScore {
    // sigmoid(x) >= t where x >= ln(t / (1 - t)).
    let cut = libm::logf(threshold / (1.0 - threshold));
    let pairs: Vec<Vec<(bool, bool)>> = truths
        .iter()
        .zip(logits)
        .filter_map(|(truth, logits)| match truth {
            Truth::Several(truth) => Some(truth.iter().zip(logits).map(|(truth, logit)| (*truth, *logit >= cut)).collect()),
            _ => None,
        })
        .collect();
    let labels = logits.first().map_or(0, Vec::len);
    let exact = pairs.iter().map(|pairs| f32::from(u8::from(pairs.iter().all(|(truth, found)| truth == found)))).collect();
    let count = |items: &[usize], label: usize| {
        items.iter().map(|&item| pairs[item][label]).fold((0, 0, 0), |(hits, found, expected), (truth, predicted)| {
            (hits + u64::from(truth && predicted), found + u64::from(predicted), expected + u64::from(truth))
        })
    };
    let micro = |items: &[usize]| {
        let (hits, found, expected) =
            (0..labels).map(|label| count(items, label)).fold((0, 0, 0), |a, b| (a.0 + b.0, a.1 + b.1, a.2 + b.2));
        f1(hits, found, expected)
    };
    #[expect(clippy::cast_precision_loss, reason = "a count of labels")]
    let of_labels = labels.max(1) as f64;
    let by_label = |items: &[usize]| {
        let f1 = |label| {
            let (hits, found, expected) = count(items, label);
            f1(hits, found, expected)
        };
        (0..labels).map(f1).sum::<f64>() / of_labels
    };
    Builder::new(exact).mean("accuracy").over("micro_f1", micro).over("macro_f1", by_label).finish()
}

fn number_score(truths: &[&Truth], logits: &[Vec<f32>]) -> TaskScore {
    let pairs: Vec<_> = truths
        .iter()
        .zip(logits)
        .filter_map(|(truth, logits)| match truth {
            Truth::Number(truth) => Some((*truth, f64::from(logits[0]))),
            _ => None,
        })
        .collect();
    let errors: Vec<_> = pairs.iter().map(|(truth, found)| (truth - found).abs()).collect();
    // An item's credit falls with its error, from 1 at none.
    #[expect(clippy::cast_possible_truncation, reason = "a credit")]
    let credits = errors.iter().map(|error| (1.0 / (1.0 + error)) as f32).collect();
    let of = |items: &[usize]| items.iter().map(|&item| pairs[item]).collect::<Vec<_>>();
    Builder::new(credits)
        .over("pearson", |items| pearson(&of(items)).max(0.0))
        .over("spearman", |items| spearman(&of(items)).max(0.0))
        .mean_of("mean_absolute_error", &errors)
        .finish()
}

/// The predicted label: the first of the largest outputs, as argmax has it.
pub(super) fn label(logits: &[f32]) -> usize {
    (1..logits.len()).fold(0, |best, label| if logits[label] > logits[best] { label } else { best })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_agree_with_scikit_learn() {
        // sklearn.metrics.matthews_corrcoef([0,0,1,1,2,2],[0,1,1,1,2,0]) = 0.522232967867094
        let (truth, predicted) = ([0, 0, 1, 1, 2, 2], [0, 1, 1, 1, 2, 0]);
        let all: Vec<_> = (0..6).collect();
        assert!((matthews(&all, &truth, &predicted, 3) - 0.522_232_967_867_094).abs() < 1e-12);
        // f1_score of these with average micro: 2*3/(4+4); macro: (1 + 2/3 + 0.5... ) by hand.
        let truths: Vec<_> =
            [[true, false, true], [false, true, false], [true, false, false]].map(|row| Truth::Several(row.to_vec())).into();
        let logits = vec![vec![2.0, -1.0, -1.0], vec![-1.0, 3.0, 0.5], vec![0.1, -2.0, -3.0]];
        let score = several_score(&truths.iter().collect::<Vec<_>>(), &logits, 0.5);
        assert_eq!(score.metrics["micro_f1"], 0.75);
        assert!((score.metrics["macro_f1"] - 2.0 / 3.0).abs() < 1e-12);
        assert_eq!(score.credits, [0.0, 0.0, 1.0]);
    }

    #[test]
    fn several_labels_are_read_in_every_form() {
        let labels = ["a".to_owned(), "b".to_owned(), "c".to_owned()];
        let read = |value: &str| {
            let row = Row::new(1, serde_json::from_str(&format!("{{\"l\": {value}}}")).unwrap());
            several(&row, "l", &labels)
        };
        assert_eq!(read(r#"["a", "c"]"#).unwrap(), [true, false, true]);
        assert_eq!(read(r#""c, b""#).unwrap(), [false, true, true]);
        assert_eq!(read("[1, 0, 0]").unwrap(), [true, false, false]);
        assert_eq!(read("[2]").unwrap(), [false, false, true]);
        assert_eq!(read("[]").unwrap(), [false; 3]);
        assert!(read(r#"["d"]"#).unwrap_err().to_string().contains("unknown label"));
    }
}
