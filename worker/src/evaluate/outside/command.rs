//! Any program: it gets the model's folder and the items, and writes its outcome as JSON.

use std::fs;

use evolver_common::score::{Split, TaskScore};

use super::{
    super::{
        Declaration, EvaluateError, Evaluator, Parameter, ParameterKind, Progress, Setup, Subject, TaskInput,
        parameters::Settings,
    },
    DIRECTORY, ENVIRONMENT, MEMORY, Rows, SECONDS, name_of,
    outcome::Outcome,
    program::Program,
};

pub(crate) static DECLARATION: Declaration = Declaration {
    name: "command",
    summary: "Any program: started for each model with its folder and the items, it writes metrics and credits as JSON.",
    source: "docs/evaluators.md",
    metrics: &[],
    parameters: &[
        Parameter {
            name: "command",
            kind: ParameterKind::Texts,
            default: None,
            doc: "The program and its arguments; {model}, {items}, {out}, {task} and {split} stand for the model's folder, the items as JSON lines, the \
                  file to write, and the names.",
        },
        SECONDS,
        MEMORY,
        ENVIRONMENT,
        DIRECTORY,
    ],
    open,
};

struct Run {
    task: String,
    metric: String,
    program: Program,
    rows: Rows,
}

fn open(_: &Setup, input: &TaskInput) -> Result<Box<dyn Evaluator>, EvaluateError> {
    let settings = Settings::new(&DECLARATION, &input.task);
    Ok(Box::new(Run {
        program: Program::new(settings.texts("command"), &input.task, &settings),
        rows: Rows::new(input),
        metric: input.task.metric().to_owned(),
        task: input.task.name.clone(),
    }))
}

impl Evaluator for Run {
    fn outside(&self) -> bool {
        true
    }

    fn items(&self, split: Split) -> usize {
        self.rows.count(split)
    }

    fn evaluate(
        &mut self,
        subject: &mut Subject<'_>,
        split: Split,
        chosen: &[usize],
        progress: Progress<'_>,
    ) -> Result<TaskScore, EvaluateError> {
        let scratch = tempfile::tempdir().map_err(|error| EvaluateError::Outside(error.to_string()))?;
        let (items, out) = (scratch.path().join("items.jsonl"), scratch.path().join("out.json"));
        self.rows.write(split, chosen, &items)?;
        let model = subject.folder()?.to_string_lossy().into_owned();
        let (items, written) = (items.to_string_lossy(), out.to_string_lossy());
        let values =
            [("model", model.as_str()), ("items", &items), ("out", &written), ("task", &self.task), ("split", name_of(split))];
        self.program.start(&values, false)?.wait(progress)?;
        let text = fs::read_to_string(&out).map_err(|error| {
            EvaluateError::Outside(format!("{} ended well, and its outcome cannot be read: {error}", self.program.arguments[0]))
        })?;
        let score = Outcome::parse(&text).and_then(|outcome| outcome.score(&self.metric, chosen.len()));
        let score =
            score.map_err(|what| EvaluateError::Outside(format!("the outcome of {}: {what}", self.program.arguments[0])))?;
        // The last report is that of the whole.
        if progress.done(chosen.len() as u64).is_break() { Err(EvaluateError::Stopped) } else { Ok(score) }
    }
}
