//! The coordinator as an agent sees it: every call is repeated through restarts, lost answers and other addresses, and a new epoch is registered
//! with at once.

use std::time::{Duration, Instant};

use evolver_proto::{PROTOCOL, v1};
use tonic::{Code, Request, Response, Status};

use super::{AgentError, AgentOptions, pause::Pause};
use crate::{
    connect::Client,
    evaluate::{self, EVALUATORS},
};

/// Longest that a call may take beyond what it was asked to wait.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);
/// A sign of life must not hold up the work that it tells of.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(5);
/// Released within this time, or the lease runs out instead.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(4);

pub(super) struct Link {
    client: Client,
    /// Index of the address in use.
    at: usize,
    options: AgentOptions,
    registered: v1::RegisterReply,
    /// Memory that can be had, taken once: later an offspring of its own is in it, and a coordinator that has just begun would refuse a worker that does well.
    memory_bytes: u64,
    /// Seconds that the last report took; told with the next one.
    last_report: f64,
}

/// What a sign of life brought back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Alive {
    /// The token holds, or the coordinator is away, which says nothing against it.
    Yes,
    /// The token holds no more.
    No,
}

impl Link {
    /// Connects and registers.
    pub(super) async fn open(options: &AgentOptions) -> Result<Self, AgentError> {
        let client = options.target.client(0)?;
        let registered = v1::RegisterReply::default();
        let memory_bytes = evaluate::available_memory().unwrap_or(0);
        let mut link = Self { client, at: 0, registered, memory_bytes, options: options.clone(), last_report: 0.0 };
        link.register().await?;
        Ok(link)
    }

    pub(super) fn definition(&self) -> &str {
        &self.registered.definition
    }

    pub(super) fn definition_hash(&self) -> &[u8] {
        &self.registered.definition_hash
    }

    pub(super) fn heartbeat_interval(&self) -> Duration {
        Duration::from_millis(u64::from(self.registered.heartbeat_ms.max(1)))
    }

    fn address(&self) -> &str {
        self.options.target.address(self.at)
    }

    /// The next address, over a new connection: the old one may be half open.
    fn turn(&mut self) {
        match self.options.target.client(self.at + 1) {
            Ok(client) => {
                self.at += 1;
                self.client = client;
            }
            // Files are being replaced, for instance: the old connection is as good as none, and the next turn tries again.
            Err(error) => tracing::warn!("{error}"),
        }
    }

    /// After a failure that may pass: the next address, and a pause once all have been tried.
    async fn wait(&mut self, pause: &mut Pause, status: &Status) -> Result<(), AgentError> {
        let asked = status.code() == Code::ResourceExhausted || status.metadata().contains_key(evolver_proto::PUSHBACK);
        if !asked {
            self.turn();
            if !self.at.is_multiple_of(self.options.target.addresses.len().max(1)) {
                return Ok(());
            }
        }
        if pause.next(status).await {
            return Ok(());
        }
        Err(AgentError::Unreachable(format!("{}: {}", self.options.target.addresses.join(", "), status.message())))
    }

    async fn register(&mut self) -> Result<(), AgentError> {
        let request = v1::RegisterRequest {
            protocol: PROTOCOL,
            worker: self.options.name.clone(),
            host: self.options.host.clone(),
            threads: u32::try_from(self.options.threads).unwrap_or(u32::MAX),
            version: env!("CARGO_PKG_VERSION").into(),
            evaluators: EVALUATORS.iter().map(|known| known.name.to_owned()).collect(),
            device: evaluate::device_name().into(),
            memory_bytes: self.memory_bytes,
        };
        let mut pause = Pause::new(self.options.patience);
        loop {
            match within(CALL_TIMEOUT, request.clone(), |request| self.client.register(request)).await {
                Ok(reply) => {
                    let known = &self.registered.definition_hash;
                    if !known.is_empty() && *known != reply.definition_hash {
                        return Err(AgentError::Refused(format!("{} now runs another search", self.address())));
                    }
                    self.registered = reply;
                    return Ok(());
                }
                Err(status) if is_passing(&status) => self.wait(&mut pause, &status).await?,
                Err(status) => {
                    return Err(AgentError::Refused(format!("{} refuses: {}", self.address(), status.message())));
                }
            }
        }
    }

    /// Asks for work, first of all for what is `held`.
    pub(super) async fn lease(
        &mut self,
        wait: Duration,
        held: Option<v1::Held>,
    ) -> Result<Option<v1::lease_reply::Outcome>, AgentError> {
        let mut pause = Pause::new(self.options.patience);
        loop {
            let request = v1::LeaseRequest {
                worker: self.options.name.clone(),
                epoch: self.registered.epoch,
                wait_ms: u32::try_from(wait.as_millis()).unwrap_or(u32::MAX),
                held: held.clone(),
            };
            match within(wait + CALL_TIMEOUT, request, |request| self.client.lease(request)).await {
                Ok(reply) => return Ok(reply.outcome),
                Err(status) if status.code() == Code::Unauthenticated => self.register().await?,
                Err(status) if is_passing(&status) => self.wait(&mut pause, &status).await?,
                Err(status) => {
                    return Err(AgentError::Refused(format!("{} refuses: {}", self.address(), status.message())));
                }
            }
        }
    }

    /// A sign of life.
    pub(super) async fn heartbeat(&mut self, token: Option<v1::Token>, (done, total): (u64, u64)) -> Alive {
        let request = v1::HeartbeatRequest {
            worker: self.options.name.clone(),
            epoch: self.registered.epoch,
            token,
            items_done: done,
            items_total: total,
        };
        match within(HEARTBEAT_TIMEOUT, request, |request| self.client.heartbeat(request)).await {
            Ok(reply) if reply.valid => Alive::Yes,
            Ok(_) => Alive::No,
            Err(status) => {
                if status.code() != Code::ResourceExhausted {
                    self.turn();
                }
                Alive::Yes
            }
        }
    }

    /// Hands in an attempt's end, again and again until it is answered.
    pub(super) async fn report(&mut self, mut request: v1::ReportRequest) -> Result<v1::report_reply::Verdict, AgentError> {
        self.options.name.clone_into(&mut request.worker);
        if let Some(timings) = &mut request.timings {
            timings.report = self.last_report;
        }
        let began = Instant::now();
        let mut pause = Pause::new(self.options.patience);
        let verdict = loop {
            match within(CALL_TIMEOUT, request.clone(), |request| self.client.report(request)).await {
                Ok(reply) => {
                    if reply.verdict() != v1::report_reply::Verdict::Committed {
                        tracing::warn!("the report was not taken: {}", reply.reason);
                    }
                    break reply.verdict();
                }
                Err(status) if is_passing(&status) => self.wait(&mut pause, &status).await?,
                Err(status) => {
                    tracing::warn!("the report was refused: {}", status.message());
                    break v1::report_reply::Verdict::Refused;
                }
            }
        };
        self.last_report = began.elapsed().as_secs_f64();
        Ok(verdict)
    }

    /// Says that this worker leaves: what it holds is free at once.
    pub(super) async fn drain(&mut self) {
        let request = v1::DrainRequest { worker: self.options.name.clone(), epoch: self.registered.epoch };
        let said = async {
            while within(HEARTBEAT_TIMEOUT, request.clone(), |request| self.client.drain(request)).await.is_err() {
                self.turn();
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::time::timeout(DRAIN_TIMEOUT, said).await.ok();
    }
}

/// One call with an end in time: a connection may be half open, and a coordinator may stand still.
async fn within<Q, A, F>(limit: Duration, message: Q, call: impl FnOnce(Request<Q>) -> F) -> Result<A, Status>
where
    F: Future<Output = Result<Response<A>, Status>>,
{
    let mut request = Request::new(message);
    request.set_timeout(limit);
    match tokio::time::timeout(limit, call(request)).await {
        Ok(reply) => reply.map(Response::into_inner),
        Err(_) => Err(Status::deadline_exceeded(format!("no answer within {} s", limit.as_secs()))),
    }
}

/// Whether the call may succeed later.
fn is_passing(status: &Status) -> bool {
    !matches!(
        status.code(),
        Code::FailedPrecondition
            | Code::InvalidArgument
            | Code::Unauthenticated
            | Code::Unimplemented
            | Code::PermissionDenied
            | Code::OutOfRange
    )
}
