//! Perplexity: how surprised a language model is by texts.

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
    name: "perplexity",
    summary: "How likely a decoder finds texts, token after token.",
    source: "lm-evaluation-harness's loglikelihood_rolling: each token once, with as much context as the windows give",
    metrics: &[
        ("likelihood", "probability of a token, the geometric mean over all tokens: 1 / perplexity"),
        ("byte_likelihood", "the same of a byte of the texts, which compares models of different tokenizers"),
    ],
    parameters: &[Parameter {
        name: "stride",
        kind: ParameterKind::Integer(0, 1 << 20),
        default: Some("0"),
        doc: "Tokens by which windows of max_length move on where a text is longer; 0: half of max_length.",
    }],
    open,
};

struct Item {
    /// The token before the first, then the text's.
    tokens: Vec<u32>,
    bytes: usize,
}

struct Perplexity {
    name: String,
    window: usize,
    stride: usize,
    budget: usize,
    items: Splits<Item>,
}

fn open(setup: &Setup, input: &TaskInput) -> Result<Box<dyn Evaluator>, EvaluateError> {
    let task = &input.task;
    let architecture = setup.architecture(&[Kind::Decoder], DECLARATION.name)?;
    let tokenizer = setup.tokenizer()?;
    let text = Column::new(&task.text)?;
    let window = task.max_length.min(architecture.limit(&setup.config)?);
    let stride = match Settings::new(&DECLARATION, task).integer("stride") {
        0 => (window / 2).max(1),
        stride => stride.min(window),
    };
    let one = |row: &Row| -> Result<Item, EvaluateError> {
        let text = text.text(row)?;
        let mut tokens = tokenizer.prompt(&text, false)?;
        if let Some(before) = tokenizer.before() {
            tokens.insert(0, before);
        }
        if tokens.len() < 2 {
            return Err(row.error("its text has no token to predict").into());
        }
        Ok(Item { bytes: text.len().max(1), tokens })
    };
    Ok(Box::new(Perplexity {
        items: Splits::new(input, |rows| rows.par_iter().map(one).collect::<Result<_, EvaluateError>>())?,
        name: task.name.clone(),
        budget: batches::budget(setup.batch_tokens, &setup.config),
        window,
        stride,
    }))
}

/// Windows over a text of this many tokens: where each begins, the first token that it predicts, and where it ends.
fn windows(length: usize, window: usize, stride: usize) -> Vec<(usize, usize, usize)> {
    let mut windows = Vec::new();
    let mut predicted = 1;
    // A window has one token at least that is not predicted, to predict the others from.
    let stride = stride.min(window.saturating_sub(1)).max(1);
    while predicted < length {
        let end = if predicted == 1 { window.min(length) } else { (predicted + stride).min(length) };
        windows.push((end.saturating_sub(window), predicted, end));
        predicted = end;
    }
    windows
}

impl Evaluator for Perplexity {
    fn items(&self, split: Split) -> usize {
        self.items.of(split).len()
    }

    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "counts of tokens and bytes, and a credit")]
    fn evaluate(
        &mut self,
        subject: &mut Subject<'_>,
        split: Split,
        chosen: &[usize],
        progress: Progress<'_>,
    ) -> Result<TaskScore, EvaluateError> {
        let model = subject.language()?;
        let items: Vec<_> = chosen.iter().map(|&item| &self.items.of(split)[item]).collect();
        let sizes: Vec<_> = items.iter().map(|item| item.tokens.len()).collect();
        let logs = batches::run(chosen, &sizes, self.budget, progress, |batch| {
            let mut prompts = Vec::new();
            let mut owners = Vec::new();
            for &item in batch {
                let tokens = &items[item].tokens;
                for (start, first, end) in windows(tokens.len(), self.window, self.stride) {
                    prompts.push(Prompt { context: &tokens[start..first], continuations: vec![&tokens[first..end]] });
                    owners.push(item);
                }
            }
            let mut logs = vec![0.0; items.len()];
            // A long text's windows need not all fit a batch.
            let mut start = 0;
            while start < prompts.len() {
                let mut room = self.budget;
                let size = |prompt: &Prompt<'_>| prompt.context.len() + prompt.continuations[0].len();
                let fits = prompts[start..].iter().take_while(|prompt| {
                    let fits = size(prompt) <= room;
                    room = room.saturating_sub(size(prompt));
                    fits
                });
                let end = start + fits.count().max(1);
                for (owner, found) in owners[start..end].iter().zip(model.likelihoods(&prompts[start..end])?) {
                    logs[*owner] += found[0].log;
                }
                start = end;
            }
            Ok(batch.iter().map(|&item| logs[item]).collect())
        })?;
        if let Some(item) = logs.iter().position(|log| !log.is_finite()) {
            return Err(EvaluateError::NonFinite { task: self.name.clone(), item: chosen[item] });
        }
        let counts: Vec<(f64, f64, f64)> =
            items.iter().zip(&logs).map(|(item, log)| (*log, (item.tokens.len() - 1) as f64, item.bytes as f64)).collect();
        let credits = counts.iter().map(|(log, tokens, _)| libm::exp(log / tokens) as f32).collect();
        let mean = |of: &[usize], below: fn(&(f64, f64, f64)) -> f64| {
            let sum = |part: &dyn Fn(&(f64, f64, f64)) -> f64| of.iter().map(|&item| part(&counts[item])).sum::<f64>();
            sum(&|count| count.0) / sum(&below)
        };
        Ok(Builder::new(credits)
            .over("likelihood", |of| libm::exp(mean(of, |count| count.1)))
            .over("byte_likelihood", |of| libm::exp(mean(of, |count| count.2)))
            .over("perplexity", |of| libm::exp(-mean(of, |count| count.1)))
            .over("bits_per_byte", |of| -mean(of, |count| count.2) / std::f64::consts::LN_2)
            .finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_predict_every_token_once() {
        for (length, window, stride) in [(2, 8, 4), (8, 8, 4), (9, 8, 4), (30, 8, 4), (31, 8, 8), (50, 8, 1)] {
            let windows = windows(length, window, stride);
            let predicted: Vec<_> = windows.iter().flat_map(|(_, first, end)| *first..*end).collect();
            assert_eq!(predicted, (1..length).collect::<Vec<_>>(), "{length} {window} {stride}");
            assert!(windows.iter().all(|(start, first, end)| end - start <= window && start < first));
        }
    }
}
