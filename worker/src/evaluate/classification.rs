//! Text classification by a BERT encoder.
//!
//! Texts are tokenized once. A batch holds texts of similar length, packed without padding; since no row's arithmetic depends on its batch, item
//! outcomes are the same for any batch size and thread count.

use std::ops::ControlFlow;

use candle_core::{Device, Tensor};
use evolver_common::{
    data::Item,
    score::{Portion, Scores, Split, classification},
};
use rayon::prelude::*;
use tokenizers::{PostProcessor as _, Tokenizer, TruncationDirection, TruncationParams, TruncationStrategy, truncate_encodings};

use super::{Candidate, EvaluateError, Evaluator, Setup, TaskInput};
use crate::models::{Bert, BertConfig, Head, ModelError};

/// The evaluator, its texts tokenized.
pub struct Classification {
    config: BertConfig,
    device: Device,
    batch_tokens: usize,
    tasks: Vec<Task>,
}

struct Task {
    name: String,
    labels: usize,
    dev: Vec<Text>,
    test: Vec<Text>,
}

struct Text {
    /// Token ids with their token types.
    tokens: Vec<(u32, u32)>,
    label: usize,
}

/// A text's place: task and item.
type Place = (usize, usize);

pub(super) fn open(setup: &Setup, tasks: Vec<TaskInput>) -> Result<Box<dyn Evaluator>, EvaluateError> {
    Ok(Box::new(Classification::open(setup, tasks)?))
}

/// The fastest device that this program was built for. The GPU branches have not been run where this project is built.
fn device() -> Result<Device, EvaluateError> {
    let device = if cfg!(feature = "cuda") {
        Device::new_cuda(0)
    } else if cfg!(feature = "metal") {
        Device::new_metal(0)
    } else {
        Ok(Device::Cpu)
    };
    Ok(device.map_err(ModelError::from)?)
}

/// Tokens of every item, the special ones included, at most `max_length` of them.
///
/// Encodings are cut here and not by the tokenizer: the tokenizers crate (0.23.2) cuts each text of a pair before it looks which is the longer, and
/// so keeps other tokens than `transformers` does.
fn tokenize(tokenizer: &Tokenizer, max_length: usize, items: &[Item]) -> Result<Vec<Text>, String> {
    let one = |(number, item): (usize, &Item)| -> Result<Text, String> {
        let encode = |text: &str| tokenizer.encode(text, false).map_err(|error| error.to_string());
        let first = encode(&item.text)?;
        let mut second = item.pair.as_deref().map(encode).transpose()?;
        if let Some(second) = &mut second {
            second.set_type_ids(vec![1; second.len()]);
        }
        let special = tokenizer.get_post_processor().map_or(0, |processor| processor.added_tokens(second.is_some()));
        let room = max_length.checked_sub(special).filter(|&room| room > 0).ok_or_else(|| {
            format!("max_length is {max_length}, of which {special} are special tokens: nothing is left for the text")
        })?;
        let (strategy, direction) = (TruncationStrategy::LongestFirst, TruncationDirection::Right);
        let cut = TruncationParams { max_length: room, strategy, stride: 0, direction };
        let (first, second) = truncate_encodings(first, second, &cut).map_err(|error| error.to_string())?;
        let whole = tokenizer.post_process(first, second, true).map_err(|error| error.to_string())?;
        if whole.is_empty() {
            return Err(format!("item {number} has no tokens at all, and there is nothing to run the model on"));
        }
        let tokens = whole.get_ids().iter().copied().zip(whole.get_type_ids().iter().copied());
        Ok(Text { tokens: tokens.collect(), label: item.label })
    };
    items.par_iter().enumerate().map(one).collect()
}

impl Task {
    fn texts(&self, split: Split) -> &[Text] {
        match split {
            Split::Dev => &self.dev,
            Split::Test => &self.test,
        }
    }
}

impl Classification {
    /// Reads the tokenizer and tokenizes every text.
    ///
    /// # Errors
    /// If the config is not of a network that can be run, or the tokenizer cannot be used.
    pub fn open(setup: &Setup, tasks: Vec<TaskInput>) -> Result<Self, EvaluateError> {
        let config = BertConfig::new(setup.config.clone())?;
        let path = setup.folder.join("tokenizer.json");
        let bad = |what: String| EvaluateError::Tokenizer { path: path.clone(), what };
        let mut tokenizer = Tokenizer::from_file(&path).map_err(|error| bad(error.to_string()))?;
        tokenizer.with_padding(None).with_truncation(None).map_err(|error| bad(error.to_string()))?;
        let tasks = tasks.into_iter().map(|task| {
            let max_length = task.max_length.min(config.max_position_embeddings);
            let tokenize = |items: &[Item]| tokenize(&tokenizer, max_length, items).map_err(&bad);
            Ok(Task { dev: tokenize(&task.dev)?, test: tokenize(&task.test)?, labels: task.labels, name: task.name })
        });
        Ok(Self {
            tasks: tasks.collect::<Result<_, EvaluateError>>()?,
            device: device()?,
            batch_tokens: setup.batch_tokens,
            config,
        })
    }

    /// The (token, type) pairs of every text of a task.
    #[must_use]
    pub fn tokens(&self, task: usize, split: Split) -> Vec<&[(u32, u32)]> {
        self.tasks[task].texts(split).iter().map(|text| text.tokens.as_slice()).collect()
    }

    /// The chosen texts of a split, longest first, cut into batches of at most `batch_tokens`.
    fn batches(&self, split: Split, chosen: &[Vec<usize>]) -> Vec<Vec<Place>> {
        let tasks = chosen.iter().enumerate();
        let mut places: Vec<Place> = tasks.flat_map(|(task, items)| items.iter().map(move |&item| (task, item))).collect();
        let length = |&(task, item): &Place| self.tasks[task].texts(split)[item].tokens.len();
        places.sort_by_key(|place| std::cmp::Reverse(length(place)));
        let mut batches: Vec<Vec<Place>> = Vec::new();
        let mut room = 0;
        for place in places {
            let tokens = length(&place);
            match batches.last_mut() {
                Some(batch) if tokens <= room => {
                    batch.push(place);
                    room -= tokens;
                }
                _ => {
                    batches.push(vec![place]);
                    room = self.batch_tokens.saturating_sub(tokens);
                }
            }
        }
        batches
    }

    /// The heads that the candidate brings: one shared by all tasks, or one per task.
    fn heads(&self, candidate: &mut Candidate) -> Result<Vec<Head>, EvaluateError> {
        if candidate.heads.is_empty() {
            let labels = self.tasks.first().map_or(0, |task| task.labels);
            if let Some(other) = self.tasks.iter().find(|task| task.labels != labels) {
                let (first, second) = (self.tasks[0].name.clone(), other.name.clone());
                return Err(EvaluateError::Labels { first, labels, second, others: other.labels });
            }
            return Ok(vec![Head::load(&self.config, &mut candidate.shared, labels, &self.device)?]);
        }
        let heads = self.tasks.iter().zip(&mut candidate.heads).map(|(task, own)| {
            own.share(&Head::TENSORS, &candidate.shared);
            Ok(Head::load(&self.config, own, task.labels, &self.device)?)
        });
        heads.collect()
    }

    /// The model's outputs for every item of every task, in the data's order; none for items that the portion leaves out.
    ///
    /// # Errors
    /// If the model does not fit the network or the tasks, cannot be run, gives NaN or infinity, or was stopped by `progress`.
    pub fn logits(
        &self,
        mut candidate: Candidate,
        portion: impl Into<Portion>,
        progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Result<Vec<Vec<Vec<f32>>>, EvaluateError> {
        let portion = portion.into();
        let split = portion.split;
        let chosen: Vec<_> = self.tasks.iter().map(|task| portion.items(&task.name, task.texts(split).len())).collect();
        let heads = self.heads(&mut candidate)?;
        let bert = Bert::load(&self.config, &mut candidate.shared, &self.device)?;
        drop(candidate);
        let total = chosen.iter().map(|items| items.len() as u64).sum();
        let mut done = 0;
        let mut all: Vec<Vec<Vec<f32>>> = self.tasks.iter().map(|task| vec![Vec::new(); task.texts(split).len()]).collect();
        for batch in self.batches(split, &chosen) {
            for (&(task, item), logits) in batch.iter().zip(self.run(&bert, &heads, split, &batch)?) {
                if logits.iter().any(|logit| !logit.is_finite()) {
                    return Err(EvaluateError::NonFinite { task: self.tasks[task].name.clone(), item });
                }
                all[task][item] = logits;
            }
            done += batch.len() as u64;
            if progress(done, total).is_break() {
                return Err(EvaluateError::Stopped);
            }
        }
        Ok(all)
    }

    /// Logits of one batch.
    fn run(&self, bert: &Bert, heads: &[Head], split: Split, batch: &[Place]) -> Result<Vec<Vec<f32>>, ModelError> {
        let texts: Vec<_> = batch.iter().map(|&(task, item)| self.tasks[task].texts(split)[item].tokens.as_slice()).collect();
        let first = bert.forward(&texts)?;
        if let [head] = heads {
            return head.logits(&first);
        }
        let mut all = vec![Vec::new(); batch.len()];
        for (task, head) in heads.iter().enumerate() {
            let rows: Vec<u32> = (0u32..).zip(batch).filter(|(_, place)| place.0 == task).map(|(row, _)| row).collect();
            if rows.is_empty() {
                continue;
            }
            let chosen = first.index_select(&Tensor::new(rows.as_slice(), &self.device)?, 0)?;
            for (row, logits) in rows.into_iter().zip(head.logits(&chosen)?) {
                all[row as usize] = logits;
            }
        }
        Ok(all)
    }
}

impl Evaluator for Classification {
    fn head(&self) -> &[&str] {
        &Head::TENSORS
    }

    fn evaluate(
        &mut self,
        candidate: Candidate,
        portion: Portion,
        progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Result<Scores, EvaluateError> {
        let logits = self.logits(candidate, portion, progress)?;
        let tasks = self.tasks.iter().zip(&logits).map(|(task, logits)| {
            let texts = task.texts(portion.split);
            let scored = texts.iter().zip(logits).filter(|(_, logits)| !logits.is_empty());
            let (truth, predicted): (Vec<_>, Vec<_>) = scored.map(|(text, logits)| (text.label, label(logits))).unzip();
            classification(&task.name, &truth, &predicted, task.labels)
        });
        Ok(Scores { tasks: tasks.collect() })
    }
}

/// The predicted label: the first of the largest outputs, as argmax has it.
#[must_use]
pub fn label(logits: &[f32]) -> usize {
    (1..logits.len()).fold(0, |best, label| if logits[label] > logits[best] { label } else { best })
}
