//! A small search behind a real socket, and the worker's side of the protocol: models that are never opened, and scores that a recipe's id decides.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part")]

use std::{path::Path, time::Duration};

use evolver_common::{
    definition::{Data, Resolved, ResolvedTask, Source},
    digest::Digest,
    recipe::decode,
    score::{Portion, Scores, Split, classification},
};
use evolver_coordinator::{
    access::Security,
    service::{Coordinator, Options, serve},
};
use evolver_proto::{PROTOCOL, portion_from_wire, scores_to_wire, v1};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

/// Items of the dev split.
pub const DEV: usize = 24;
/// Items of the sealed split.
pub const TEST: usize = 8;
/// Specs of the start: three experts and the base.
pub const START: u64 = 4;

/// A definition over three experts and one task; `change` edits it as JSON first.
pub fn resolved(change: impl FnOnce(&mut Value)) -> Resolved {
    let names = ["a", "b", "c"];
    let mut definition = json!({
        "models": {
            "base": "/models/base",
            "experts": names.iter().map(|name| json!({ "name": name, "path": format!("/models/{name}") })).collect::<Value>(),
        },
        "tasks": [{ "name": "t", "dev": "/data/dev.jsonl", "test": "/data/test.jsonl", "metric": "macro_f1" }],
        "search": { "strategy": "evolver", "seed": 7, "in_flight": 4 },
        "acceptance": { "rule": "greedy" },
        "stop": { "offspring": 12 },
        "fleet": { "lease_seconds": 30.0, "heartbeat_seconds": 5.0 },
    });
    change(&mut definition);
    let source =
        |name: &str| Source { name: name.into(), path: format!("/models/{name}").into(), digest: digest(name), statistics: None };
    let data = |name: &str, items| Data { path: format!("/data/{name}.jsonl").into(), digest: digest(name), items };
    Resolved {
        definition: serde_json::from_value(definition).unwrap(),
        base: source("base"),
        experts: names.map(source).to_vec(),
        tasks: vec![ResolvedTask {
            name: "t".into(),
            labels: ["x", "y", "z"].map(String::from).to_vec(),
            dev: data("dev", DEV),
            test: Some(data("test", TEST)),
        }],
    }
}

fn digest(name: &str) -> Digest {
    Digest::of(name.as_bytes())
}

/// What a model scores: each item's prediction is right or not by the bytes of its recipe's id.
pub fn scores(recipe: &[u8], portion: Portion) -> Scores {
    let id = decode(recipe).unwrap().id();
    let bytes = id.as_bytes();
    let items = portion.items("t", if portion.split == Split::Test { TEST } else { DEV });
    let truth: Vec<_> = items.iter().map(|item| item % 3).collect();
    let predict = |item: &usize| if bytes[*item] < 100 { (item % 3 + 1) % 3 } else { item % 3 };
    let predicted: Vec<_> = items.iter().map(predict).collect();
    Scores { tasks: vec![classification("t", &truth, &predicted, 3)] }
}

/// A coordinator that serves.
pub struct Served {
    /// Where.
    pub address: String,
    status: tokio::sync::watch::Receiver<v1::Status>,
    stop: oneshot::Sender<()>,
    server: JoinHandle<Coordinator>,
}

impl Served {
    /// Starts a coordinator on a free port that takes its workers at their word.
    pub async fn start(dir: &Path, resolved: &Resolved) -> Self {
        Self::serve(dir, resolved, false).await
    }

    /// Starts one that compares what its workers say.
    pub async fn comparing(dir: &Path, resolved: &Resolved) -> Self {
        Self::serve(dir, resolved, true).await
    }

    async fn serve(dir: &Path, resolved: &Resolved, compare: bool) -> Self {
        let coordinator = Coordinator::start(&Options { dir: dir.to_owned(), resolved: resolved.clone(), compare }).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let status = coordinator.status();
        let (stop, stopped) = oneshot::channel::<()>();
        let server = tokio::spawn(async move {
            let stopped = async {
                stopped.await.ok();
            };
            serve(&coordinator, listener, &Security::Loopback, stopped).await.unwrap();
            coordinator
        });
        Self { address, status, stop, server }
    }

    /// The status now.
    pub fn status(&self) -> v1::Status {
        self.status.borrow().clone()
    }

    /// Stops the server and ends the coordinator; its last words.
    pub async fn end(self) -> Result<(), String> {
        self.stop.send(()).ok();
        let coordinator = self.server.await.unwrap();
        drop(self.status);
        tokio::task::spawn_blocking(|| coordinator.join()).await.unwrap().map_err(|error| error.to_string())
    }
}

/// The worker's side.
#[derive(Clone)]
pub struct Worker {
    /// The RPCs.
    pub client: v1::evolver_client::EvolverClient<Channel>,
    /// Its name.
    pub name: String,
    /// The epoch that it registered with.
    pub epoch: u64,
}

impl Worker {
    /// Connects, and is nobody yet.
    pub async fn connect(address: &str, name: &str) -> Self {
        let endpoint = Endpoint::from_shared(address.to_owned()).unwrap().tcp_nodelay(true);
        let client = v1::evolver_client::EvolverClient::new(endpoint.connect().await.unwrap());
        Self { client, name: name.into(), epoch: 0 }
    }

    /// Connects and registers.
    pub async fn join(address: &str, name: &str) -> Self {
        let mut this = Self::connect(address, name).await;
        this.epoch = this.register(PROTOCOL).await.unwrap().epoch;
        this
    }

    /// Registers, speaking this protocol.
    pub async fn register(&mut self, protocol: u32) -> Result<v1::RegisterReply, Status> {
        let request = v1::RegisterRequest {
            protocol,
            worker: self.name.clone(),
            host: "here".into(),
            threads: 1,
            version: "test".into(),
            ..v1::RegisterRequest::default()
        };
        self.client.register(request).await.map(tonic::Response::into_inner)
    }

    /// Asks for work, waiting at most `wait`.
    pub async fn ask(&mut self, wait: Duration) -> Result<v1::lease_reply::Outcome, Status> {
        let wait_ms = u32::try_from(wait.as_millis()).unwrap();
        let request = v1::LeaseRequest { worker: self.name.clone(), epoch: self.epoch, wait_ms, held: None };
        self.client.lease(request).await.map(|reply| reply.into_inner().outcome.unwrap())
    }

    /// A lease that must be there.
    pub async fn lease(&mut self) -> v1::Assignment {
        match self.ask(Duration::from_secs(10)).await.unwrap() {
            v1::lease_reply::Outcome::Assignment(assignment) => assignment,
            other => panic!("no work: {other:?}"),
        }
    }

    /// A sign of life, 3 of 7 items done.
    pub async fn heartbeat(&mut self, token: Option<v1::Token>) -> v1::HeartbeatReply {
        let (worker, epoch) = (self.name.clone(), self.epoch);
        let request = v1::HeartbeatRequest { worker, epoch, token, items_done: 3, items_total: 7 };
        self.client.heartbeat(request).await.unwrap().into_inner()
    }

    /// Reports an attempt's end.
    pub async fn report(&mut self, token: Option<v1::Token>, result: v1::report_request::Result) -> v1::ReportReply {
        self.try_report(token, result).await.unwrap()
    }

    /// Reports an attempt's end to a coordinator that may refuse.
    pub async fn try_report(
        &mut self,
        token: Option<v1::Token>,
        result: v1::report_request::Result,
    ) -> Result<v1::ReportReply, Status> {
        let timings = Some(v1::Timings { lease: 0.1, build: 0.2, score: 0.3, report: 0.4 });
        let request = v1::ReportRequest { worker: self.name.clone(), token, result: Some(result), timings };
        self.client.report(request).await.map(tonic::Response::into_inner)
    }

    /// Reports what the assignment's model scores.
    pub async fn finish(&mut self, assignment: &v1::Assignment) -> v1::ReportReply {
        self.report(assignment.token, right(assignment)).await
    }

    /// Registers with whatever epoch there is now.
    pub async fn again(&mut self) {
        self.epoch = self.register(PROTOCOL).await.unwrap().epoch;
    }

    /// Works until it is told to leave, through changes of the epoch.
    pub async fn work_on(&mut self) {
        loop {
            match self.ask(Duration::from_secs(5)).await {
                Ok(v1::lease_reply::Outcome::Assignment(assignment)) => drop(self.finish(&assignment).await),
                Ok(v1::lease_reply::Outcome::Leave(_)) => return,
                Ok(v1::lease_reply::Outcome::Idle(_)) => {}
                Err(_) => self.again().await,
            }
        }
    }

    /// Works until it is told to leave.
    pub async fn work(&mut self) {
        loop {
            match self.ask(Duration::from_secs(10)).await.unwrap() {
                v1::lease_reply::Outcome::Assignment(assignment) => {
                    assert_eq!(self.finish(&assignment).await.verdict(), v1::report_reply::Verdict::Committed);
                }
                v1::lease_reply::Outcome::Leave(_) => return,
                v1::lease_reply::Outcome::Idle(_) => {}
            }
        }
    }
}

/// What the assignment's model scores, as a report's result.
pub fn right(assignment: &v1::Assignment) -> v1::report_request::Result {
    let portion = portion_from_wire(assignment).unwrap();
    v1::report_request::Result::Scores(scores_to_wire(&scores(&assignment.recipe, portion)))
}
