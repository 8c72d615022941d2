//! EleutherAI's lm-evaluation-harness: one of its tasks, its items joined on the hash of their documents.
//!
//! The task's dev data is what the harness itself wrote of a model, for instance the base, with `--log_samples`: JSON lines with `doc_id` and
//! `doc_hash`. That names the items and their order; what another run gives is joined on the hash, since `doc_id` counts anew in a choice of items.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use evolver_common::{
    data::{self, Row},
    score::{Split, TaskScore},
};
use serde_json::{Value, json};

use super::{
    super::{
        Declaration, EvaluateError, Evaluator, Parameter, ParameterKind, Progress, Setup, Subject, TaskInput,
        parameters::Settings, scoring::Builder,
    },
    DIRECTORY, ENVIRONMENT, MEMORY, Rows, SECONDS,
    program::Program,
};

pub(crate) static DECLARATION: Declaration = Declaration {
    name: "lm_eval",
    summary: "A task of lm-evaluation-harness; the data are the harness's own samples of any model, which name the items.",
    source: "EleutherAI lm-evaluation-harness 0.4: lm_eval run --log_samples --samples",
    metrics: &[],
    parameters: &[
        Parameter { name: "harness_task", kind: ParameterKind::Text, default: None, doc: "The task's name in the harness." },
        Parameter {
            name: "python",
            kind: ParameterKind::Text,
            default: Some(r#""python3""#),
            doc: "A Python that has the package lm_eval.",
        },
        Parameter {
            name: "model_args",
            kind: ParameterKind::Text,
            default: Some(r#""""#),
            doc: "Arguments of the harness's model beside the folder, for instance dtype=float32.",
        },
        Parameter {
            name: "arguments",
            kind: ParameterKind::Texts,
            default: Some("[]"),
            doc: "Further arguments of `lm_eval run`, for instance [\"--num_fewshot\", \"5\"].",
        },
        Parameter {
            name: "filter",
            kind: ParameterKind::Text,
            default: Some(r#""none""#),
            doc: "The harness's filter whose outcomes count.",
        },
        SECONDS,
        MEMORY,
        ENVIRONMENT,
        DIRECTORY,
    ],
    open,
};

struct Harness {
    metric: String,
    task: String,
    filter: String,
    model_args: String,
    program: Program,
    rows: Rows,
}

fn open(_: &Setup, input: &TaskInput) -> Result<Box<dyn Evaluator>, EvaluateError> {
    let settings = Settings::new(&DECLARATION, &input.task);
    for row in input.dev.iter().chain(&input.test) {
        document(row)?;
    }
    let mut arguments: Vec<String> = vec![settings.text("python")];
    arguments.extend(["-m", "lm_eval", "run", "--model", "hf", "--model_args", "{model_args}"].map(String::from));
    arguments.extend(
        ["--tasks", "{harness_task}", "--output_path", "{out}", "--log_samples", "--samples", "{samples}"].map(String::from),
    );
    arguments.extend(settings.texts("arguments"));
    Ok(Box::new(Harness {
        program: Program::new(arguments, &input.task, &settings),
        rows: Rows::new(input),
        metric: input.task.metric().to_owned(),
        task: settings.text("harness_task"),
        filter: settings.text("filter"),
        model_args: settings.text("model_args"),
    }))
}

/// The number and the hash of a row's document.
fn document(row: &Row) -> Result<(u64, &str), data::DataError> {
    let number = row.need("doc_id")?.as_u64();
    let number = number.ok_or_else(|| row.error("field \"doc_id\" is not a number: samples of lm_eval are expected"))?;
    Ok((number, row.text("doc_hash")?))
}

impl Harness {
    /// Credits by the documents' hashes.
    fn join(&self, out: &Path, wanted: &[&Row]) -> Result<Vec<f64>, String> {
        let found = files(out);
        let named = |prefix: &str| {
            let is = |file: &&PathBuf| file.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix));
            found.iter().find(is)
        };
        if named("results").is_none() {
            return Err("it ended well, but wrote no results: its run is not complete".into());
        }
        let samples =
            named(&format!("samples_{}", self.task)).ok_or_else(|| format!("it wrote no samples of task {}", self.task))?;
        let mut credits: HashMap<String, f64> = HashMap::new();
        for row in data::read(samples).map_err(|error| error.to_string())? {
            if row.get("filter").and_then(Value::as_str).is_some_and(|filter| filter != self.filter) {
                continue;
            }
            let (_, hash) = document(&row).map_err(|error| error.to_string())?;
            let value = row.need(&self.metric).map_err(|error| error.to_string())?;
            let credit = value.as_f64().or_else(|| value.as_bool().map(|right| f64::from(u8::from(right))));
            let credit = credit
                .filter(|credit| (0.0..=1.0).contains(credit))
                .ok_or_else(|| format!("the metric {} of a document is {value}: an item's credit lies in 0 to 1", self.metric))?;
            credits.insert(hash.to_owned(), credit);
        }
        let mut joined = Vec::with_capacity(wanted.len());
        let mut missing = 0;
        for row in wanted {
            let (_, hash) = document(row).map_err(|error| error.to_string())?;
            match credits.get(hash) {
                Some(credit) => joined.push(*credit),
                None => missing += 1,
            }
        }
        if missing > 0 {
            return Err(format!(
                "{missing} of {} items have no outcome under the filter {:?}: results that are not whole do not count",
                wanted.len(),
                self.filter
            ));
        }
        Ok(joined)
    }
}

/// All files below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() { folders.push(path) } else { found.push(path) }
        }
    }
    found.sort();
    found
}

impl Evaluator for Harness {
    fn outside(&self) -> bool {
        true
    }

    fn items(&self, split: Split) -> usize {
        self.rows.count(split)
    }

    #[expect(clippy::cast_possible_truncation, reason = "a credit")]
    fn evaluate(
        &mut self,
        subject: &mut Subject<'_>,
        split: Split,
        chosen: &[usize],
        progress: Progress<'_>,
    ) -> Result<TaskScore, EvaluateError> {
        let scratch = tempfile::tempdir().map_err(|error| EvaluateError::Outside(error.to_string()))?;
        let wanted = self.rows.chosen(split, chosen);
        let numbers = wanted.iter().map(|row| document(row).map(|(number, _)| number)).collect::<Result<Vec<_>, _>>()?;
        let samples = json!({ self.task.as_str(): numbers }).to_string();
        let model = subject.folder()?.to_string_lossy().into_owned();
        let more = if self.model_args.is_empty() { String::new() } else { format!(",{}", self.model_args) };
        let model_args = format!("pretrained={model}{more}");
        let out = scratch.path().join("out");
        let written = out.to_string_lossy();
        let values =
            [("model_args", model_args.as_str()), ("harness_task", &self.task), ("out", &written), ("samples", &samples)];
        self.program.start(&values, false)?.wait(progress)?;
        let credits = self.join(&out, &wanted).map_err(|what| EvaluateError::Outside(format!("lm_eval: {what}")))?;
        let score = Builder::new(credits.iter().map(|&credit| credit as f32).collect()).mean_of(&self.metric, &credits).finish();
        if progress.done(chosen.len() as u64).is_break() { Err(EvaluateError::Stopped) } else { Ok(score) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn harness() -> Harness {
        let program = Program {
            arguments: Vec::new(),
            environment: std::collections::BTreeMap::new(),
            directory: PathBuf::new(),
            seconds: 1.0,
            memory: None,
        };
        let rows = Rows(super::super::Splits { dev: Vec::new(), test: Vec::new() });
        Harness { metric: "acc".into(), task: "t".into(), filter: "none".into(), model_args: String::new(), program, rows }
    }

    #[test]
    fn outcomes_are_joined_on_the_hash_and_must_be_whole() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("m");
        fs::create_dir(&out).unwrap();
        let wanted: Vec<_> = [(7, "h7"), (3, "h3")]
            .map(|(id, hash)| Row::new(1, json!({ "doc_id": id, "doc_hash": hash }).as_object().unwrap().clone()))
            .into();
        let wanted: Vec<_> = wanted.iter().collect();
        let join = || harness().join(folder.path(), &wanted);
        assert!(join().unwrap_err().contains("wrote no results"));
        fs::write(out.join("results_2026.json"), "{}").unwrap();
        assert!(join().unwrap_err().contains("no samples of task t"));
        let line = |id: u64, hash: &str, acc: f64, filter: &str| {
            json!({ "doc_id": id, "doc_hash": hash, "acc": acc, "filter": filter }).to_string() + "\n"
        };
        let samples = out.join("samples_t_2026.jsonl");
        fs::write(&samples, line(0, "h3", 1.0, "none") + &line(1, "h7", 0.0, "strict")).unwrap();
        assert!(join().unwrap_err().contains("1 of 2 items have no outcome"));
        fs::write(&samples, line(0, "h3", 1.0, "none") + &line(1, "h7", 0.0, "none")).unwrap();
        assert_eq!(join().unwrap(), [0.0, 1.0]);
        fs::write(&samples, line(0, "h3", 3.0, "none")).unwrap();
        assert!(join().unwrap_err().contains("lies in 0 to 1"));
    }
}
