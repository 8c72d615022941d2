//! A program that stays: started once, asked for each model, over JSON lines on its standard input and output.
//!
//! Protocol, version 1; every message is one JSON object on one line:
//! - to the program, first: `{"evolver": 1, "type": "hello", "task": …, "parameters": {…}}`; it answers `{"type": "ready", "evolver": 1}`;
//! - for each model: `{"type": "evaluate", "id": n, "model": folder, "items": file, "count": k, "split": "dev"}`;
//! - from the program, any number of times: `{"type": "progress", "id": n, "done": k}`;
//! - last: `{"type": "result", "id": n, "metrics": {…}, "credits": […]}`, or `{"type": "error", "id": n, "message": …}`.
//!
//! The folder's `model.safetensors` lies in shared memory where the machine has it (`/dev/shm`): mapping the file is the way to read it without a
//! copy. It is removed after the answer. End of input means: end.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    time::{Duration, Instant},
};

use evolver_common::score::{Split, TaskScore};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    super::{
        Declaration, EvaluateError, Evaluator, Parameter, ParameterKind, Progress, Setup, Subject, TaskInput,
        parameters::Settings,
    },
    DIRECTORY, ENVIRONMENT, MEMORY, Rows, SECONDS, name_of,
    outcome::Outcome,
    program::{Program, Running},
};

/// Version of the protocol.
const VERSION: u64 = 1;
/// How often the worker is told that a silent program is waited for.
const WAIT: Duration = Duration::from_millis(500);

pub(crate) static DECLARATION: Declaration = Declaration {
    name: "resident",
    summary: "Any program that stays: started once for each worker, asked for each model over JSON lines, started again when it hangs or leaks.",
    source: "docs/evaluators.md; python/evolver_resident.py speaks the protocol",
    metrics: &[],
    parameters: &[
        Parameter { name: "command", kind: ParameterKind::Texts, default: None, doc: "The program and its arguments." },
        Parameter {
            name: "start_seconds",
            kind: ParameterKind::Number(0.1, 1e6),
            default: Some("300"),
            doc: "Longest time from its start until it is ready.",
        },
        Parameter {
            name: "silent_seconds",
            kind: ParameterKind::Number(0.1, 1e6),
            default: Some("600"),
            doc: "Longest time without a message while a model is evaluated; then it is taken to hang.",
        },
        SECONDS,
        MEMORY,
        ENVIRONMENT,
        DIRECTORY,
    ],
    open,
};

#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Answer {
    Ready {
        evolver: u64,
    },
    Progress {
        id: u64,
        done: u64,
    },
    Result {
        id: u64,
        #[serde(flatten)]
        outcome: Outcome,
    },
    Error {
        id: u64,
        message: String,
    },
}

struct Session {
    running: Running,
    lines: Receiver<String>,
}

struct Resident {
    task: String,
    metric: String,
    parameters: Value,
    start: f64,
    silent: f64,
    program: Program,
    rows: Rows,
    session: Option<Session>,
    asked: u64,
}

fn open(_: &Setup, input: &TaskInput) -> Result<Box<dyn Evaluator>, EvaluateError> {
    let settings = Settings::new(&DECLARATION, &input.task);
    Ok(Box::new(Resident {
        program: Program::new(settings.texts("command"), &input.task, &settings),
        parameters: settings.all().into(),
        start: settings.number("start_seconds"),
        silent: settings.number("silent_seconds"),
        rows: Rows::new(input),
        metric: input.task.metric().to_owned(),
        task: input.task.name.clone(),
        session: None,
        asked: 0,
    }))
}

impl Session {
    fn start(program: &Program) -> Result<Self, EvaluateError> {
        let mut running = program.start(&[], true)?;
        let (send, lines) = channel();
        if let Some(output) = running.output.take() {
            std::thread::spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    if send.send(line).is_err() {
                        break;
                    }
                }
            });
        }
        Ok(Self { running, lines })
    }

    fn say(&mut self, message: &Value) -> Result<(), EvaluateError> {
        let said = self.running.input.as_mut().map(|input| {
            writeln!(input, "{message}")?;
            input.flush()
        });
        match said {
            Some(Ok(())) => Ok(()),
            _ => Err(self.running.end("does not read what it is told")),
        }
    }

    /// The next message within `seconds`; `told` hears now and then that it is waited for.
    fn hear(&mut self, seconds: f64, told: Progress<'_>, done: u64) -> Result<Answer, EvaluateError> {
        let until = Instant::now() + Duration::from_secs_f64(seconds);
        loop {
            match self.lines.recv_timeout(WAIT.min(until.saturating_duration_since(Instant::now()))) {
                Ok(line) => {
                    return serde_json::from_str(&line).map_err(|error| {
                        let shown: String = line.chars().take(80).collect();
                        self.running.failure(&format!("said something that is no message ({error}): {shown:?}"))
                    });
                }
                Err(RecvTimeoutError::Disconnected) => {
                    std::thread::sleep(Duration::from_millis(100));
                    let end =
                        self.running.ended().map_or("closed its output".to_owned(), |status| format!("ended with {status}"));
                    return Err(self.running.failure(&end));
                }
                Err(RecvTimeoutError::Timeout) if Instant::now() >= until => {
                    return Err(self.running.failure(&format!("said nothing for {seconds} seconds and was ended")));
                }
                Err(RecvTimeoutError::Timeout) => {
                    self.running.check_memory()?;
                    if told.done(done).is_break() {
                        return Err(EvaluateError::Stopped);
                    }
                }
            }
        }
    }
}

impl Resident {
    /// The session that runs, or a new one.
    fn session(&mut self, progress: Progress<'_>) -> Result<&mut Session, EvaluateError> {
        if self.session.is_none() {
            let mut session = Session::start(&self.program)?;
            session.say(&json!({ "evolver": VERSION, "type": "hello", "task": self.task, "parameters": self.parameters }))?;
            match session.hear(self.start, progress, 0)? {
                Answer::Ready { evolver: VERSION } => {}
                Answer::Ready { evolver } => {
                    return Err(session
                        .running
                        .failure(&format!("speaks version {evolver} of the protocol, and {VERSION} is needed")));
                }
                other => return Err(session.running.failure(&format!("answered the greeting with {other:?}"))),
            }
            self.session = Some(session);
        }
        self.session.as_mut().ok_or_else(|| EvaluateError::Outside("the program was not started".into()))
    }

    fn ask(
        &mut self,
        subject: &mut Subject<'_>,
        split: Split,
        chosen: &[usize],
        progress: Progress<'_>,
    ) -> Result<TaskScore, EvaluateError> {
        let scratch = tempfile::tempdir().map_err(|error| EvaluateError::Outside(error.to_string()))?;
        let items = scratch.path().join("items.jsonl");
        self.rows.write(split, chosen, &items)?;
        let model = subject.folder()?.to_owned();
        self.asked += 1;
        let (asked, silent, seconds, metric) = (self.asked, self.silent, self.program.seconds, self.metric.clone());
        let session = self.session(progress)?;
        let request = json!({
            "type": "evaluate", "id": asked, "model": model, "items": items, "count": chosen.len(), "split": name_of(split),
        });
        session.say(&request)?;
        let until = Instant::now() + Duration::from_secs_f64(seconds);
        let mut done = 0;
        loop {
            let left = until.saturating_duration_since(Instant::now()).as_secs_f64();
            if left == 0.0 {
                return Err(session.running.failure(&format!("did not answer within seconds = {seconds}")));
            }
            match session.hear(silent.min(left), progress, done)? {
                Answer::Progress { id, done: count } if id == asked => done = count.min(chosen.len() as u64),
                Answer::Result { id, outcome } if id == asked => {
                    let score = outcome.score(&metric, chosen.len());
                    let score =
                        score.map_err(|what| session.running.failure(&format!("gave an outcome that does not count: {what}")))?;
                    if let Err(error) = session.running.check_memory() {
                        // The answer counts; the next model finds a new program.
                        tracing::warn!("{error}");
                        self.session = None;
                    }
                    return if progress.done(chosen.len() as u64).is_break() { Err(EvaluateError::Stopped) } else { Ok(score) };
                }
                Answer::Error { id, message } if id == asked => {
                    return Err(EvaluateError::Outside(format!("the resident program could not evaluate the model: {message}")));
                }
                Answer::Ready { .. } => return Err(session.running.failure("said that it is ready while a model was waiting")),
                // Of an earlier question.
                _ => {}
            }
        }
    }
}

impl Evaluator for Resident {
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
        let score = self.ask(subject, split, chosen, progress);
        if score.is_err() {
            // Whatever was wrong with it, the next model finds a new program; dropping the session ends the old one.
            self.session = None;
        }
        score
    }
}
