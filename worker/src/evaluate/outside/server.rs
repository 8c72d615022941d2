//! Servers that speak OpenAI's interface: SGLang and vLLM, whose weights are swapped through their own, and any other.
//!
//! Tested against a stand-in server that speaks the documented interfaces, not against SGLang and vLLM themselves.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use evolver_common::{
    data::Row,
    score::{Split, TaskScore},
};
use serde_json::{Value, json};
use ureq::Agent;

use super::{
    super::{
        Declaration, EvaluateError, Evaluator, Parameter, ParameterKind, Progress, Subject, TaskInput,
        columns::Column,
        generation::{METRICS, cut, score},
        parameters::Settings,
    },
    DIRECTORY, ENVIRONMENT, MEMORY, SECONDS,
    program::{Program, Running},
};

const COMMAND: Parameter = Parameter {
    name: "command",
    kind: ParameterKind::Texts,
    default: Some("[]"),
    doc: "How the server is started, {model} being a folder and {port} a free port; empty: it runs already, at url.",
};
const URL: Parameter = Parameter {
    name: "url",
    kind: ParameterKind::Text,
    default: Some(r#""http://127.0.0.1:{port}""#),
    doc: "Where the server listens, without /v1.",
};
const READY: Parameter = Parameter {
    name: "start_seconds",
    kind: ParameterKind::Number(0.1, 1e6),
    default: Some("600"),
    doc: "Longest time until a started server answers.",
};
const MODEL: Parameter = Parameter {
    name: "model",
    kind: ParameterKind::Text,
    default: Some(r#""{model}""#),
    doc: "The model's name in requests; {model} is the folder.",
};
const KEY: Parameter = Parameter {
    name: "key_variable",
    kind: ParameterKind::Text,
    default: Some(r#""""#),
    doc: "Environment variable with the server's key, if it wants one.",
};
const TOKENS: Parameter = Parameter {
    name: "max_new_tokens",
    kind: ParameterKind::Integer(1, 1 << 16),
    default: Some("32"),
    doc: "Longest answer in tokens.",
};
const STOP: Parameter = Parameter {
    name: "stop",
    kind: ParameterKind::Texts,
    default: Some(r#"["\n"]"#),
    doc: "Texts that end an answer, at most four, as the interface has it.",
};
const CHAT: Parameter = Parameter {
    name: "chat",
    kind: ParameterKind::Flag,
    default: Some("false"),
    doc: "Ask by /v1/chat/completions, not by /v1/completions.",
};
const SYSTEM: Parameter =
    Parameter { name: "system", kind: ParameterKind::Text, default: Some(r#""""#), doc: "System message of the chat." };
const AT_ONCE: Parameter =
    Parameter { name: "at_once", kind: ParameterKind::Integer(1, 4096), default: Some("16"), doc: "Requests under way at once." };

const PARAMETERS: &[Parameter] =
    &[COMMAND, URL, READY, MODEL, KEY, TOKENS, STOP, CHAT, SYSTEM, AT_ONCE, SECONDS, MEMORY, ENVIRONMENT, DIRECTORY];

pub(crate) static OPENAI: Declaration = Declaration {
    name: "openai",
    summary: "Answers of any server that speaks OpenAI's interface, started anew for each model.",
    source: "OpenAI API: /v1/completions, /v1/chat/completions, /v1/models",
    metrics: METRICS,
    parameters: PARAMETERS,
    open: |_, input| open(&OPENAI, Swap::Restart, input),
};

pub(crate) static SGLANG: Declaration = Declaration {
    name: "sglang",
    summary: "Answers of a resident SGLang server; weights are swapped by POST /update_weights_from_disk.",
    source: "SGLang: native API and OpenAI-compatible endpoints",
    metrics: METRICS,
    parameters: PARAMETERS,
    open: |_, input| open(&SGLANG, Swap::Sglang, input),
};

pub(crate) static VLLM: Declaration = Declaration {
    name: "vllm",
    summary: "Answers of a resident vLLM server (VLLM_SERVER_DEV_MODE=1); weights are swapped by POST /collective_rpc reload_weights.",
    source: "vLLM: development endpoints and OpenAI-compatible server",
    metrics: METRICS,
    parameters: PARAMETERS,
    open: |_, input| open(&VLLM, Swap::Vllm, input),
};

/// How a server comes to another model's weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Swap {
    /// It is started again.
    Restart,
    Sglang,
    Vllm,
}

struct Item {
    asked: String,
    right: Vec<String>,
}

struct Server {
    name: &'static str,
    swap: Swap,
    program: Program,
    url: String,
    start: f64,
    model: String,
    key: Option<String>,
    tokens: usize,
    stop: Vec<String>,
    chat: bool,
    system: String,
    at_once: usize,
    metric: String,
    task: String,
    items: [Vec<Item>; 2],
    /// The started server and where it listens.
    running: Option<(Running, String)>,
}

fn open(declaration: &'static Declaration, swap: Swap, input: &TaskInput) -> Result<Box<dyn Evaluator>, EvaluateError> {
    let task = &input.task;
    let settings = Settings::new(declaration, task);
    let (text, right) = (Column::new(&task.text)?, Column::new(&task.label)?);
    let read = |rows: &[Row]| -> Result<Vec<Item>, EvaluateError> {
        rows.iter().map(|row| Ok(Item { asked: text.text(row)?, right: right.texts(row)? })).collect()
    };
    let (command, url) = (settings.texts("command"), settings.text("url"));
    let unfit = |what: &str| Err(EvaluateError::Unfit(format!("tasks.{}: {what}", task.name)));
    if command.is_empty() && url.contains("{port}") {
        return unfit("neither command nor url tells of a server");
    }
    if command.is_empty() && swap == Swap::Restart {
        return unfit(
            "command is empty: the evaluator openai starts a server for each model, since the interface has no way to swap weights",
        );
    }
    let variable = settings.text("key_variable");
    let key = match variable.as_str() {
        "" => None,
        name => match std::env::var(name) {
            Ok(key) => Some(key),
            Err(_) => return unfit(&format!("key_variable names {name}, which is not set")),
        },
    };
    Ok(Box::new(Server {
        name: declaration.name,
        swap,
        program: Program::new(command, task, &settings),
        url,
        start: settings.number("start_seconds"),
        model: settings.text("model"),
        key,
        tokens: settings.integer("max_new_tokens"),
        stop: settings.texts("stop").into_iter().filter(|text| !text.is_empty()).collect(),
        chat: settings.flag("chat"),
        system: settings.text("system"),
        at_once: settings.integer("at_once"),
        metric: task.metric().to_owned(),
        items: [read(&input.dev)?, read(&input.test)?],
        task: input.task.name.clone(),
        running: None,
    }))
}

/// A port that is free now.
fn free_port() -> Result<u16, EvaluateError> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    listener.map(|address| address.port()).map_err(|error| EvaluateError::Outside(format!("no port is free: {error}")))
}

impl Server {
    fn agent(seconds: f64) -> Agent {
        let timeout = Duration::from_secs_f64(seconds.max(0.1));
        Agent::config_builder().timeout_global(Some(timeout)).http_status_as_error(false).build().into()
    }

    /// A server that has this model's weights, and where it listens.
    fn with_model(&mut self, model: &str, progress: Progress<'_>) -> Result<String, EvaluateError> {
        let dead = self.running.as_mut().is_none_or(|(running, _)| running.ended().is_some());
        if self.program.arguments.is_empty() {
            self.swap(&self.url, model)?;
            return Ok(self.url.clone());
        }
        if dead || self.swap == Swap::Restart {
            self.running = None;
            let port = free_port()?.to_string();
            let url = self.url.replace("{port}", &port);
            let running = self.program.start(&[("model", model), ("port", &port)], false)?;
            self.running = Some((running, url.clone()));
            self.wait(&url, progress)?;
            // It was started with these weights.
            return Ok(url);
        }
        let url = self.running.as_ref().map(|(_, url)| url.clone()).unwrap_or_default();
        self.swap(&url, model)?;
        Ok(url)
    }

    fn wait(&mut self, url: &str, progress: Progress<'_>) -> Result<(), EvaluateError> {
        let until = Instant::now() + Duration::from_secs_f64(self.start);
        let agent = Self::agent(5.0);
        loop {
            let mut request = agent.get(format!("{url}/v1/models"));
            if let Some(key) = &self.key {
                request = request.header("Authorization", &format!("Bearer {key}"));
            }
            if request.call().is_ok_and(|answer| answer.status().is_success()) {
                return Ok(());
            }
            if let Some((running, _)) = &mut self.running
                && let Some(status) = running.ended()
            {
                return Err(running.failure(&format!("ended with {status} before it was ready")));
            }
            if Instant::now() > until {
                let what = format!("did not answer at {url}/v1/models within start_seconds = {}", self.start);
                return Err(match &self.running {
                    Some((running, _)) => running.failure(&what),
                    None => EvaluateError::Outside(format!("the server {what}")),
                });
            }
            if progress.done(0).is_break() {
                return Err(EvaluateError::Stopped);
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn post(&self, agent: &Agent, url: &str, body: &Value) -> Result<Value, String> {
        let mut request = agent.post(url);
        if let Some(key) = &self.key {
            request = request.header("Authorization", &format!("Bearer {key}"));
        }
        let mut answer = request.send_json(body).map_err(|error| format!("{url} cannot be asked: {error}"))?;
        let (status, text) = (answer.status(), answer.body_mut().read_to_string().map_err(|error| format!("{url}: {error}"))?);
        let shown: String = text.chars().take(300).collect();
        if !status.is_success() {
            return Err(format!("{url} answered {status}: {shown}"));
        }
        // Some endpoints answer with an empty body.
        if text.trim().is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&text).map_err(|error| format!("{url} answered with what is not JSON ({error}): {shown}"))
    }

    /// Has the server read the weights in a folder.
    fn swap(&self, url: &str, model: &str) -> Result<(), EvaluateError> {
        let agent = Self::agent(self.program.seconds);
        let swapped = match self.swap {
            Swap::Restart => Ok(()),
            Swap::Sglang => {
                let body = json!({ "model_path": model, "flush_cache": true });
                self.post(&agent, &format!("{url}/update_weights_from_disk"), &body).and_then(|answer| {
                    match answer["success"].as_bool() {
                        Some(true) => Ok(()),
                        _ => Err(format!("the weights were not swapped: {answer}")),
                    }
                })
            }
            Swap::Vllm => {
                let body = json!({ "method": "reload_weights", "kwargs": { "weights_path": model } });
                self.post(&agent, &format!("{url}/collective_rpc"), &body)
                    // Cached prefixes are the old weights' work.
                    .and_then(|_| self.post(&agent, &format!("{url}/reset_prefix_cache"), &Value::Null))
                    .map(drop)
            }
        };
        swapped.map_err(|what| EvaluateError::Outside(format!("{}: {what}", self.name)))
    }

    fn ask(&self, agent: &Agent, url: &str, model: &str, item: &Item) -> Result<String, String> {
        let mut body = json!({ "model": model, "max_tokens": self.tokens, "temperature": 0.0 });
        if !self.stop.is_empty() {
            body["stop"] = self.stop.clone().into();
        }
        let (path, place) = if self.chat {
            let mut messages = Vec::new();
            if !self.system.is_empty() {
                messages.push(json!({ "role": "system", "content": self.system }));
            }
            messages.push(json!({ "role": "user", "content": item.asked }));
            body["messages"] = messages.into();
            ("chat/completions", "/choices/0/message/content")
        } else {
            body["prompt"] = item.asked.clone().into();
            ("completions", "/choices/0/text")
        };
        let url = format!("{url}/v1/{path}");
        let answer = self.post(agent, &url, &body)?;
        let text = answer.pointer(place).and_then(Value::as_str);
        text.map(|text| cut(text.trim_start(), &self.stop).to_owned())
            .ok_or_else(|| format!("{url} answered without {place}: {answer}"))
    }

    fn items(&self, split: Split) -> &[Item] {
        &self.items[usize::from(split == Split::Test)]
    }

    /// The answers to the chosen items, several requests at once.
    fn answers(&self, url: &str, model: &str, items: &[&Item], progress: Progress<'_>) -> Result<Vec<String>, EvaluateError> {
        let (next, done, stop) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
        let answers: Vec<Mutex<Option<String>>> = items.iter().map(|_| Mutex::new(None)).collect();
        let failure = Mutex::new(None);
        let until = Instant::now() + Duration::from_secs_f64(self.program.seconds);
        std::thread::scope(|scope| {
            let work = || {
                while stop.load(Ordering::Relaxed) == 0 {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(index) else {
                        return;
                    };
                    let left = until.saturating_duration_since(Instant::now()).as_secs_f64();
                    match self.ask(&Self::agent(left), url, model, item) {
                        Ok(answer) => *answers[index].lock().unwrap_or_else(PoisonError::into_inner) = Some(answer),
                        Err(what) => {
                            stop.store(1, Ordering::Relaxed);
                            failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert((index, what));
                        }
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                }
            };
            let workers: Vec<_> = (0..self.at_once.min(items.len())).map(|_| scope.spawn(work)).collect();
            while workers.iter().any(|worker| !worker.is_finished()) {
                std::thread::sleep(Duration::from_millis(10));
                if progress.done(done.load(Ordering::Relaxed) as u64).is_break() {
                    stop.store(1, Ordering::Relaxed);
                }
            }
        });
        if let Some((index, what)) = failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(EvaluateError::Outside(format!("{}, item {index} of task {}: {what}", self.name, self.task)));
        }
        let answers: Option<Vec<_>> =
            answers.into_iter().map(|answer| answer.into_inner().unwrap_or_else(PoisonError::into_inner)).collect();
        answers.ok_or(EvaluateError::Stopped)
    }
}

impl Evaluator for Server {
    fn outside(&self) -> bool {
        true
    }

    fn items(&self, split: Split) -> usize {
        Self::items(self, split).len()
    }

    fn evaluate(
        &mut self,
        subject: &mut Subject<'_>,
        split: Split,
        chosen: &[usize],
        progress: Progress<'_>,
    ) -> Result<TaskScore, EvaluateError> {
        let folder = subject.folder()?.to_string_lossy().into_owned();
        let answers = self.with_model(&folder, progress).and_then(|url| {
            let items: Vec<_> = chosen.iter().map(|&item| &Self::items(self, split)[item]).collect();
            self.answers(&url, &self.model.replace("{model}", &folder), &items, progress)
        });
        if answers.is_err() || self.swap == Swap::Restart {
            // A server that failed is not asked again; the next model finds a new one.
            self.running = None;
        }
        let right: Vec<_> = chosen.iter().map(|&item| Self::items(self, split)[item].right.as_slice()).collect();
        Ok(score(&answers?, &right, &self.metric))
    }
}
