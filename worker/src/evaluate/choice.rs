//! Multiple choice: the answer that a language model finds likeliest.

use evolver_common::{
    data::Row,
    score::{Split, TaskScore},
};
use rayon::prelude::*;

use super::{
    Declaration, EvaluateError, Evaluator, Parameter, ParameterKind, Progress, Setup, Splits, Subject, TaskInput, batches,
    columns::Column, parameters::Settings, scoring::Builder,
};
use crate::models::{Kind, Prompt};

pub(super) static DECLARATION: Declaration = Declaration {
    name: "multiple_choice",
    summary: "The likeliest of several answers, or of the labels' texts, by a decoder or encoder-decoder.",
    source: "lm-evaluation-harness's multiple_choice: acc by log-likelihood, acc_norm by log-likelihood per byte of the answer",
    metrics: &[
        ("accuracy", "share of items whose likeliest answer is right"),
        ("accuracy_norm", "the same, the log-likelihood divided by the answer's bytes"),
    ],
    parameters: &[
        Parameter {
            name: "choices",
            kind: ParameterKind::Text,
            default: Some(r#""choices""#),
            doc: "Column with the list of answers; with an empty text the task's labels are the answers of every item.",
        },
        Parameter {
            name: "delimiter",
            kind: ParameterKind::Text,
            default: Some(r#"" ""#),
            doc: "What stands between the text and an answer.",
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
    context: Vec<u32>,
    choices: Vec<Vec<u32>>,
    /// Bytes of each choice.
    bytes: Vec<usize>,
    right: usize,
}

struct Choice {
    name: String,
    normalized: bool,
    budget: usize,
    items: Splits<Item>,
}

fn open(setup: &Setup, input: &TaskInput) -> Result<Box<dyn Evaluator>, EvaluateError> {
    let task = &input.task;
    let settings = Settings::new(&DECLARATION, task);
    let architecture = setup.architecture(&[Kind::Decoder, Kind::EncoderDecoder], DECLARATION.name)?;
    let tokenizer = setup.tokenizer()?;
    let text = Column::new(&task.text)?;
    let choices =
        Some(settings.text("choices")).filter(|column| !column.is_empty()).map(|column| Column::new(&column)).transpose()?;
    let (delimiter, chat, system) = (settings.text("delimiter"), settings.flag("chat"), settings.text("system"));
    let system = Some(system.as_str()).filter(|system| !system.is_empty());
    let limit = task.max_length.min(architecture.limit(&setup.config)?);
    let both = architecture.kind == Kind::EncoderDecoder;
    let one = |row: &Row| -> Result<Item, EvaluateError> {
        let choices = match &choices {
            Some(column) => column.texts(row)?,
            None => input.labels.clone(),
        };
        if choices.len() < 2 {
            return Err(row.error(format!("it has {} answers to choose from: at least two are needed", choices.len())).into());
        }
        let right = row.label(&task.label, &choices)?;
        let mut asked = text.text(row)?;
        if chat {
            asked = tokenizer.chat(system, &asked)?;
        }
        if both {
            let mut context = tokenizer.prompt(&asked, true)?;
            keep_last(&mut context, limit);
            let tokens = choices.iter().map(|choice| tokenizer.prompt(choice, true)).collect::<Result<Vec<_>, _>>()?;
            return Ok(Item { context, bytes: bytes(&choices), choices: tokens, right });
        }
        // A chat template writes the special tokens itself.
        let special = !chat;
        let delimiter = if chat { "" } else { delimiter.as_str() };
        let mut context = tokenizer.prompt(&asked, special)?;
        let mut tokens = Vec::new();
        for choice in &choices {
            let whole = tokenizer.prompt(&format!("{asked}{delimiter}{choice}"), special)?;
            // Where the answer's first letters join the text's last token, that token belongs to the answer.
            let shared = context.iter().zip(&whole).take_while(|(a, b)| a == b).count();
            let from = if shared == context.len() { shared } else { shared.max(1) };
            tokens.push((from, whole));
        }
        let cut = tokens.iter().map(|(from, _)| *from).min().unwrap_or(0).min(context.len());
        context.truncate(cut);
        if context.is_empty() {
            context.extend(tokenizer.before());
        }
        if context.is_empty() {
            return Err(row.error("nothing stands before the answers, and the tokenizer has no token to begin with").into());
        }
        let choices_tokens: Vec<Vec<u32>> = tokens.into_iter().map(|(_, whole)| whole[cut..].to_vec()).collect();
        if choices_tokens.iter().any(Vec::is_empty) {
            return Err(row.error("one of its answers has no tokens").into());
        }
        let longest = choices_tokens.iter().map(Vec::len).max().unwrap_or(0);
        if longest >= limit {
            return Err(row.error(format!("one of its answers has {longest} tokens, and the model sees {limit} in all")).into());
        }
        keep_last(&mut context, limit - longest);
        Ok(Item { context, bytes: bytes(&choices), choices: choices_tokens, right })
    };
    Ok(Box::new(Choice {
        items: Splits::new(input, |rows| rows.par_iter().map(one).collect::<Result<_, EvaluateError>>())?,
        name: task.name.clone(),
        normalized: task.metric() == "accuracy_norm",
        budget: batches::budget(setup.batch_tokens, &setup.config),
    }))
}

fn bytes(choices: &[String]) -> Vec<usize> {
    choices.iter().map(|choice| choice.len().max(1)).collect()
}

/// Cuts the beginning of what is too long: a question's end is nearer to its answer.
pub(super) fn keep_last(tokens: &mut Vec<u32>, limit: usize) {
    let excess = tokens.len().saturating_sub(limit);
    tokens.drain(..excess);
}

impl Evaluator for Choice {
    fn items(&self, split: Split) -> usize {
        self.items.of(split).len()
    }

    #[expect(clippy::cast_precision_loss, reason = "a count of bytes")]
    fn evaluate(
        &mut self,
        subject: &mut Subject<'_>,
        split: Split,
        chosen: &[usize],
        progress: Progress<'_>,
    ) -> Result<TaskScore, EvaluateError> {
        let model = subject.language()?;
        let items: Vec<_> = chosen.iter().map(|&item| &self.items.of(split)[item]).collect();
        let size = |item: &&Item| item.context.len() + item.choices.iter().map(Vec::len).sum::<usize>();
        let sizes: Vec<_> = items.iter().map(size).collect();
        let logs: Vec<Vec<f64>> = batches::run(chosen, &sizes, self.budget, progress, |batch| {
            let prompt = |&item: &usize| Prompt {
                context: &items[item].context,
                continuations: items[item].choices.iter().map(Vec::as_slice).collect(),
            };
            let found = model.likelihoods(&batch.iter().map(prompt).collect::<Vec<_>>())?;
            Ok(found.into_iter().map(|choices| choices.into_iter().map(|choice| choice.log).collect()).collect())
        })?;
        if let Some(item) = logs.iter().position(|logs| logs.iter().any(|log| !log.is_finite())) {
            return Err(EvaluateError::NonFinite { task: self.name.clone(), item: chosen[item] });
        }
        let credit = |(item, logs): (&&Item, &Vec<f64>), normalized: bool| {
            let value = |choice: usize| if normalized { logs[choice] / item.bytes[choice] as f64 } else { logs[choice] };
            let best = (1..logs.len()).fold(0, |best, choice| if value(choice) > value(best) { choice } else { best });
            if best == item.right { 1.0 } else { 0.0 }
        };
        let credits = |normalized| items.iter().zip(&logs).map(|pair| credit(pair, normalized)).collect::<Vec<f64>>();
        let (plain, normalized) = (credits(false), credits(true));
        let mut score = Builder::new(plain.iter().map(|&right| if right == 1.0 { 1.0 } else { 0.0 }).collect())
            .mean("accuracy")
            .mean_of("accuracy_norm", &normalized)
            .finish();
        if self.normalized {
            // The items' credits are those of the metric that is searched by; the other is shown under a name of its own.
            score.credits = normalized.iter().map(|&right| if right == 1.0 { 1.0 } else { 0.0 }).collect();
            for part in ["", "_stderr"] {
                if let Some(value) = score.metrics.remove(&format!("accuracy{part}")) {
                    score.metrics.insert(format!("accuracy_plain{part}"), value);
                }
            }
        }
        Ok(score)
    }
}
