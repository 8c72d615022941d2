//! Generation: the answer that a language model gives, compared with the right ones.

use std::collections::BTreeMap;

use evolver_common::{
    data::Row,
    score::{Split, TaskScore},
};
use rayon::prelude::*;

use super::{
    Declaration, EvaluateError, Evaluator, Parameter, ParameterKind, Progress, Setup, Splits, Subject, TaskInput, batches,
    choice::keep_last,
    columns::Column,
    parameters::Settings,
    scoring::Builder,
    texts::{BleuCounts, normalized, rouge_l, rouge_n, word_f1},
};
use crate::models::Kind;

/// Metrics of answers in words.
pub(super) const METRICS: &[(&str, &str)] = &[
    ("exact_match", "share of answers that are a right one, normalized as SQuAD does"),
    ("f1", "F1 over the words of answer and reference, the best reference's"),
    ("rouge1", "ROUGE-1's F measure, the best reference's"),
    ("rouge2", "ROUGE-2's F measure, the best reference's"),
    ("rougeL", "ROUGE-L's F measure, the best reference's"),
    ("bleu", "BLEU over all answers, mteval's 13a words"),
];

pub(super) static DECLARATION: Declaration = Declaration {
    name: "generation",
    summary: "Greedy answers of a decoder or encoder-decoder, compared with the right ones.",
    source: "SQuAD's script (exact match, F1), rouge_score, sacrebleu",
    metrics: METRICS,
    parameters: &[
        Parameter {
            name: "max_new_tokens",
            kind: ParameterKind::Integer(1, 1 << 16),
            default: Some("32"),
            doc: "Longest answer in tokens.",
        },
        Parameter {
            name: "stop",
            kind: ParameterKind::Texts,
            default: Some(r#"["\n"]"#),
            doc: "Texts that end an answer, which is cut before them.",
        },
        Parameter { name: "chat", kind: ParameterKind::Flag, default: Some("false"), doc: "Ask by the model's chat template." },
        Parameter {
            name: "system",
            kind: ParameterKind::Text,
            default: Some(r#""""#),
            doc: "System message of the chat template.",
        },
    ],
    open,
};

struct Item {
    prompt: Vec<u32>,
    right: Vec<String>,
}

struct Generation {
    metric: String,
    limit: usize,
    stop: Vec<String>,
    budget: usize,
    tokenizer: std::sync::Arc<super::TextTokenizer>,
    items: Splits<Item>,
}

fn open(setup: &Setup, input: &TaskInput) -> Result<Box<dyn Evaluator>, EvaluateError> {
    let task = &input.task;
    let settings = Settings::new(&DECLARATION, task);
    let architecture = setup.architecture(&[Kind::Decoder, Kind::EncoderDecoder], DECLARATION.name)?;
    let tokenizer = setup.tokenizer()?;
    let (text, right) = (Column::new(&task.text)?, Column::new(&task.label)?);
    let (chat, system, answer) = (settings.flag("chat"), settings.text("system"), settings.integer("max_new_tokens"));
    let system = Some(system.as_str()).filter(|system| !system.is_empty());
    let all = architecture.limit(&setup.config)?;
    let room = if architecture.kind == Kind::Decoder { all.saturating_sub(answer) } else { all };
    if room == 0 {
        return Err(EvaluateError::Unfit(format!(
            "tasks.{}: max_new_tokens is {answer}, and the model sees {all} tokens in all: nothing is left for the question",
            task.name
        )));
    }
    let one = |row: &Row| -> Result<Item, EvaluateError> {
        let mut asked = text.text(row)?;
        if chat {
            asked = tokenizer.chat(system, &asked)?;
        }
        let mut prompt = tokenizer.prompt(&asked, !chat)?;
        keep_last(&mut prompt, task.max_length.min(room));
        if prompt.is_empty() {
            prompt.extend(tokenizer.before());
        }
        if prompt.is_empty() {
            return Err(row.error("it has no tokens at all, and there is nothing to run the model on").into());
        }
        Ok(Item { prompt, right: right.texts(row)? })
    };
    Ok(Box::new(Generation {
        items: Splits::new(input, |rows| rows.par_iter().map(one).collect::<Result<_, EvaluateError>>())?,
        metric: task.metric().to_owned(),
        limit: answer,
        stop: settings.texts("stop").into_iter().filter(|text| !text.is_empty()).collect(),
        budget: batches::budget(setup.batch_tokens, &setup.config),
        tokenizer,
    }))
}

/// An answer without what follows the first of the texts that end it.
pub(super) fn cut<'t>(answer: &'t str, stop: &[String]) -> &'t str {
    let end = stop.iter().filter_map(|text| answer.find(text.as_str())).min().unwrap_or(answer.len());
    answer[..end].trim()
}

/// The score of answers against the right ones of each item; the credits are those of the metric.
#[expect(clippy::cast_possible_truncation, reason = "a credit")]
pub(super) fn score(answers: &[String], right: &[&[String]], metric: &str) -> TaskScore {
    let best = |index: usize, value: &dyn Fn(&str, &str) -> f64| {
        right[index].iter().map(|right| value(&answers[index], right)).fold(0.0, f64::max)
    };
    let each = |value: &dyn Fn(&str, &str) -> f64| (0..answers.len()).map(|index| best(index, value)).collect::<Vec<f64>>();
    let values = BTreeMap::from([
        ("exact_match", each(&|answer, right| f64::from(u8::from(normalized(answer) == normalized(right))))),
        ("f1", each(&word_f1)),
        ("rouge1", each(&|answer, right| rouge_n(answer, right, 1))),
        ("rouge2", each(&|answer, right| rouge_n(answer, right, 2))),
        ("rougeL", each(&rouge_l)),
    ]);
    let counts: Vec<_> = answers.iter().zip(right).map(|(answer, right)| BleuCounts::of(answer, right)).collect();
    let bleu = |of: &[usize]| BleuCounts::bleu(of.iter().map(|&item| counts[item]));
    let credits = match values.get(metric) {
        Some(values) => values.iter().map(|&value| value as f32).collect(),
        None => (0..answers.len()).map(|item| bleu(&[item]) as f32).collect(),
    };
    let builder = values.iter().fold(Builder::new(credits), |builder, (name, values)| builder.mean_of(name, values));
    builder.over("bleu", bleu).finish()
}

impl Evaluator for Generation {
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
        let model = subject.language()?;
        let items: Vec<_> = chosen.iter().map(|&item| &self.items.of(split)[item]).collect();
        let sizes: Vec<_> = items.iter().map(|item| model.cost(item.prompt.len(), self.limit)).collect();
        let stop = |tokens: &[u32]| {
            let text = self.tokenizer.text_of(tokens).unwrap_or_default();
            // A leading line break is not yet an answer's end.
            self.stop.iter().any(|stop| text.trim_start().contains(stop.as_str()))
        };
        let answers = batches::run(chosen, &sizes, self.budget, progress, |batch| {
            let prompts: Vec<_> = batch.iter().map(|&item| items[item].prompt.as_slice()).collect();
            let answers = model.generate(&prompts, self.limit, self.tokenizer.ends(), &stop)?;
            answers.iter().map(|tokens| Ok(cut(self.tokenizer.text_of(tokens)?.trim_start(), &self.stop).to_owned())).collect()
        })?;
        let right: Vec<_> = items.iter().map(|item| item.right.as_slice()).collect();
        Ok(score(&answers, &right, &self.metric))
    }
}
