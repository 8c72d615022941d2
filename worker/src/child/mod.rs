//! The child process: it builds and scores, and nothing that it does to itself reaches the agent but its end.
//!
//! It speaks JSON lines over standard input and output, and ends when its input does.

mod limits;
mod messages;

use std::{
    io::{self, BufRead, Write},
    ops::ControlFlow,
    panic::{self, AssertUnwindSafe},
    time::Instant,
};

use evolver_common::{
    definition::Resolved,
    recipe::decode,
    score::{Parts, Portion, Scores},
};

pub use self::messages::{FailureClass, FromChild, ToChild};
use crate::{
    evaluate::{self, EvaluateError, Evaluators, Setup},
    materialize::{MaterializeError, Materializer},
};

/// Builds and scores the models of one search.
pub struct Workshop {
    materializer: Materializer,
    evaluators: Evaluators,
}

/// Why an attempt has no scores.
#[derive(Debug)]
pub struct Failure {
    /// Its class.
    pub class: FailureClass,
    /// The sentence.
    pub message: String,
}

impl From<MaterializeError> for Failure {
    fn from(error: MaterializeError) -> Self {
        let class = match &error {
            MaterializeError::Input(_) => FailureClass::Input,
            MaterializeError::Build(evolver_common::merge::BuildError::NonFinite { .. }) => FailureClass::NonFinite,
            MaterializeError::Build(_) => FailureClass::Error,
        };
        Self { class, message: error.to_string() }
    }
}

impl From<EvaluateError> for Failure {
    fn from(error: EvaluateError) -> Self {
        let class = match &error {
            EvaluateError::NonFinite { .. } => FailureClass::NonFinite,
            EvaluateError::Data(_) | EvaluateError::Tokenizer { .. } => FailureClass::Input,
            _ => FailureClass::Error,
        };
        Self { class, message: error.to_string() }
    }
}

impl Workshop {
    /// Opens checkpoints and data of a search.
    ///
    /// # Errors
    /// If a file is missing or not the one that the search began with.
    pub fn open(resolved: &Resolved, cache: &std::path::Path) -> Result<Self, Failure> {
        let materializer = Materializer::open(resolved, cache)?;
        let input = |error: &dyn ToString| Failure { class: FailureClass::Input, message: error.to_string() };
        let base = materializer.base();
        // An offspring takes as much memory as the base has bytes; what has no room here is for another machine.
        let (bytes, free) = (base.bytes(), evaluate::available_memory().unwrap_or(u64::MAX));
        if free < bytes {
            return Err(input(&format!("a model has {} MB, and this machine has {} MB of free memory", bytes >> 20, free >> 20)));
        }
        let config = base.config().map_err(|error| input(&error))?;
        let setup = Setup::new(base.folder().to_owned(), config, resolved.definition.evaluator.batch_tokens);
        let evaluators = Evaluators::open(resolved, setup)?;
        for ((_, names), (task, head)) in materializer.task_heads().into_iter().zip(evaluators.heads()) {
            // A program outside may have any head.
            if let Some(other) = names.into_iter().find(|name| !head.is_empty() && !head.contains(name)) {
                return Err(input(&format!(
                    "models.heads names tensor {other:?}, which cannot be a task's own: a head of task {task} consists of {}",
                    head.join(", ")
                )));
            }
        }
        Ok(Self { materializer, evaluators })
    }

    /// The builder.
    pub fn materializer(&mut self) -> &mut Materializer {
        &mut self.materializer
    }

    /// Scores a built model.
    ///
    /// # Errors
    /// See [`EvaluateError`].
    pub fn score(
        &mut self,
        candidate: evaluate::Candidate,
        portion: Portion,
        known: &Parts,
        course: evaluate::Course<'_>,
    ) -> Result<Scores, EvaluateError> {
        self.evaluators.score(candidate, portion, known, course)
    }
}

/// Serves an agent until its end of the pipe closes.
///
/// # Errors
/// If the pipe breaks or carries something else than messages.
pub fn run(input: impl BufRead, mut output: impl Write) -> io::Result<()> {
    let mut say = |message: &FromChild| {
        serde_json::to_writer(&mut output, message)?;
        output.write_all(b"\n")?;
        output.flush()
    };
    let mut workshop = None;
    for line in input.lines() {
        match serde_json::from_str(&line?)? {
            ToChild::Setup { resolved, cache } => {
                match guarded(|| limited(&resolved).and_then(|()| Workshop::open(&resolved, &cache))) {
                    Ok(open) => {
                        workshop = Some(open);
                        say(&FromChild::Ready)?;
                    }
                    Err(Failure { class, message }) => say(&FromChild::Failed { class, message })?,
                }
            }
            ToChild::Work { recipe, portion, keep, known } => {
                let Some(workshop) = &mut workshop else {
                    return Err(io::Error::other("work came before the setup"));
                };
                let mut told = Instant::now();
                let mut untold = Parts::default();
                let mut course = |done, total, found| {
                    untold.extend(found);
                    if told.elapsed().as_millis() >= 200 {
                        told = Instant::now();
                        // A broken pipe is noticed at the next message that matters.
                        say(&FromChild::Progress { done, total, found: std::mem::take(&mut untold) }).ok();
                    }
                    ControlFlow::Continue(())
                };
                let answer = match guarded(|| work(workshop, &recipe, portion, &keep, &known, &mut course)) {
                    Ok(scored) => scored,
                    Err(Failure { class, message }) => FromChild::Failed { class, message },
                };
                say(&answer)?;
            }
        }
    }
    Ok(())
}

fn limited(resolved: &Resolved) -> Result<(), Failure> {
    limits::apply(&resolved.definition.evaluator).map_err(|message| Failure { class: FailureClass::Error, message })
}

fn work(
    workshop: &mut Workshop,
    recipe: &[u8],
    portion: Portion,
    keep: &[evolver_common::digest::Digest],
    known: &Parts,
    course: evaluate::Course<'_>,
) -> Result<FromChild, Failure> {
    let began = Instant::now();
    let recipe = decode(recipe).map_err(|error| Failure { class: FailureClass::Error, message: error.to_string() })?;
    let candidate = workshop.materializer.build(&recipe, keep)?;
    let built = Instant::now();
    let scores = workshop.score(candidate, portion, known, course)?;
    workshop.materializer.unchanged()?;
    Ok(FromChild::Scored { scores, build: (built - began).as_secs_f64(), score: built.elapsed().as_secs_f64() })
}

/// A panic is a failure like any other.
fn guarded<T>(work: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()));
        Err(Failure { class: FailureClass::Crash, message: format!("a panic: {}", text.unwrap_or_default()) })
    })
}
