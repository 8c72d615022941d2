//! Evaluators outside this program: the model is handed over as a folder, and what comes back is checked before it counts.
//!
//! - [`program`]: starting a program with limits, and its last words.
//! - [`outcome`]: metrics and item outcomes as a program gives them.

pub(super) mod command;
pub(super) mod lm_eval;
mod outcome;
mod program;
pub(super) mod resident;
pub(super) mod server;

use std::{fs, path::Path};

use evolver_common::{data::Row, score::Split};

use super::{EvaluateError, Parameter, ParameterKind, Splits, TaskInput};

/// Keys of every program that is started.
pub(super) const SECONDS: Parameter = Parameter {
    name: "seconds",
    kind: ParameterKind::Number(0.1, 1e7),
    default: Some("3600"),
    doc: "Longest time for one model.",
};
pub(super) const MEMORY: Parameter = Parameter {
    name: "memory_mb",
    kind: ParameterKind::Integer(0, 1 << 40),
    default: Some("0"),
    doc: "Private memory of the program and all that it starts, in MiB; 0: no limit.",
};
pub(super) const ENVIRONMENT: Parameter = Parameter {
    name: "environment",
    kind: ParameterKind::Table,
    default: Some("{}"),
    doc: "Environment variables beside those of the worker.",
};
pub(super) const DIRECTORY: Parameter = Parameter {
    name: "directory",
    kind: ParameterKind::Text,
    default: Some(r#""""#),
    doc: "Folder that the program is started in; by default that of the task's dev data.",
};

/// The rows of a task, as a program gets them.
struct Rows(Splits<Row>);

impl Rows {
    fn new(input: &TaskInput) -> Self {
        Self(Splits { dev: input.dev.clone(), test: input.test.clone() })
    }

    fn count(&self, split: Split) -> usize {
        self.0.of(split).len()
    }

    fn chosen(&self, split: Split, chosen: &[usize]) -> Vec<&Row> {
        chosen.iter().map(|&item| &self.0.of(split)[item]).collect()
    }

    /// The chosen rows as JSON lines.
    fn write(&self, split: Split, chosen: &[usize], path: &Path) -> Result<(), EvaluateError> {
        let mut lines = String::new();
        for row in self.chosen(split, chosen) {
            let line = serde_json::to_string(row.fields()).map_err(|error| EvaluateError::Outside(error.to_string()))?;
            lines.push_str(&line);
            lines.push('\n');
        }
        fs::write(path, lines).map_err(|error| EvaluateError::Outside(format!("cannot write {}: {error}", path.display())))
    }
}

/// The split's name.
fn name_of(split: Split) -> &'static str {
    match split {
        Split::Dev => "dev",
        Split::Test => "test",
    }
}
