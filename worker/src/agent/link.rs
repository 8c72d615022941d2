//! The coordinator as an agent sees it: every call is repeated through restarts and lost answers, and a new epoch is registered with at once.

use std::time::{Duration, Instant};

use evolver_proto::{MESSAGE_BYTES_MAX, PROTOCOL, v1};
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

use super::{AgentError, AgentOptions};

type Client = v1::evolver_client::EvolverClient<Channel>;

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

pub(super) struct Link {
    client: Client,
    options: AgentOptions,
    registered: v1::RegisterReply,
    /// Seconds that the last report took; told with the next one.
    last_report: f64,
}

impl Link {
    /// Connects and registers.
    pub(super) async fn open(options: &AgentOptions) -> Result<Self, AgentError> {
        let url = if options.connect.contains("://") { options.connect.clone() } else { format!("http://{}", options.connect) };
        let endpoint = Endpoint::from_shared(url)
            .map_err(|error| AgentError::Unreachable(format!("{}: {error}", options.connect)))?
            .tcp_nodelay(true)
            .connect_timeout(Duration::from_secs(5))
            .http2_keep_alive_interval(Duration::from_secs(20))
            .keep_alive_while_idle(true);
        let client = Client::new(endpoint.connect_lazy())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let mut link = Self { client, registered: v1::RegisterReply::default(), options: options.clone(), last_report: 0.0 };
        link.register().await?;
        Ok(link)
    }

    pub(super) fn definition(&self) -> &str {
        &self.registered.definition
    }

    pub(super) fn heartbeat_interval(&self) -> Duration {
        Duration::from_millis(u64::from(self.registered.heartbeat_ms.max(1)))
    }

    async fn register(&mut self) -> Result<(), AgentError> {
        let request = v1::RegisterRequest {
            protocol: PROTOCOL,
            worker: self.options.name.clone(),
            host: self.options.host.clone(),
            threads: u32::try_from(self.options.threads).unwrap_or(u32::MAX),
            version: env!("CARGO_PKG_VERSION").into(),
        };
        let mut pause = Pause::new(self.options.patience);
        loop {
            match self.client.register(request.clone()).await {
                Ok(reply) => {
                    let reply = reply.into_inner();
                    let known = &self.registered.definition_hash;
                    if !known.is_empty() && *known != reply.definition_hash {
                        return Err(AgentError::Refused(format!("{} now runs another search", self.options.connect)));
                    }
                    self.registered = reply;
                    return Ok(());
                }
                Err(status) if is_passing(&status) => self.wait(&mut pause, &status).await?,
                Err(status) => {
                    return Err(AgentError::Refused(format!("{} refuses: {}", self.options.connect, status.message())));
                }
            }
        }
    }

    async fn wait(&self, pause: &mut Pause, status: &Status) -> Result<(), AgentError> {
        if pause.next().await {
            return Ok(());
        }
        Err(AgentError::Unreachable(format!("{}: {}", self.options.connect, status.message())))
    }

    /// Asks for work.
    pub(super) async fn lease(&mut self, wait: Duration) -> Result<Option<v1::lease_reply::Outcome>, AgentError> {
        let mut pause = Pause::new(self.options.patience);
        loop {
            let request = v1::LeaseRequest {
                worker: self.options.name.clone(),
                epoch: self.registered.epoch,
                wait_ms: u32::try_from(wait.as_millis()).unwrap_or(u32::MAX),
            };
            match self.client.lease(request).await {
                Ok(reply) => return Ok(reply.into_inner().outcome),
                Err(status) if status.code() == Code::Unauthenticated => self.register().await?,
                Err(status) => self.wait(&mut pause, &status).await?,
            }
        }
    }

    /// A sign of life; false if the token no longer holds. A coordinator that is away says nothing against it.
    pub(super) async fn heartbeat(&mut self, token: Option<v1::Token>, (done, total): (u64, u64)) -> bool {
        let request = v1::HeartbeatRequest {
            worker: self.options.name.clone(),
            epoch: self.registered.epoch,
            token,
            items_done: done,
            items_total: total,
        };
        self.client.heartbeat(request).await.map_or(true, |reply| reply.into_inner().valid)
    }

    /// Hands in an attempt's end, again and again until it is acknowledged.
    pub(super) async fn report(
        &mut self,
        token: Option<v1::Token>,
        result: v1::report_request::Result,
        mut timings: v1::Timings,
    ) -> Result<(), AgentError> {
        timings.report = self.last_report;
        let began = Instant::now();
        let request =
            v1::ReportRequest { worker: self.options.name.clone(), token, result: Some(result), timings: Some(timings) };
        let mut pause = Pause::new(self.options.patience);
        loop {
            match self.client.report(request.clone()).await {
                Ok(reply) => {
                    let reply = reply.into_inner();
                    if reply.verdict() != v1::report_reply::Verdict::Committed {
                        tracing::warn!("the report was not taken: {}", reply.reason);
                    }
                    break;
                }
                Err(status) if is_passing(&status) => self.wait(&mut pause, &status).await?,
                Err(status) => {
                    tracing::warn!("the report was refused: {}", status.message());
                    break;
                }
            }
        }
        self.last_report = began.elapsed().as_secs_f64();
        Ok(())
    }

    /// Says that this worker leaves.
    pub(super) async fn drain(&mut self) {
        let request = v1::DrainRequest { worker: self.options.name.clone(), epoch: self.registered.epoch };
        // If it cannot be said, the lease runs out instead.
        let said = self.client.drain(request);
        tokio::time::timeout(Duration::from_secs(5), said).await.ok();
    }
}

/// Whether the call may succeed later.
fn is_passing(status: &Status) -> bool {
    !matches!(
        status.code(),
        Code::FailedPrecondition | Code::InvalidArgument | Code::Unauthenticated | Code::Unimplemented | Code::PermissionDenied
    )
}

/// Growing pauses, with jitter from the process id so that a fleet does not come back in step.
struct Pause {
    until: Instant,
    next: Duration,
}

impl Pause {
    fn new(patience: Duration) -> Self {
        Self { until: Instant::now() + patience, next: FIRST_PAUSE }
    }

    /// Waits; false if the patience is at its end.
    async fn next(&mut self) -> bool {
        if Instant::now() >= self.until {
            return false;
        }
        let jitter = 1.0 + f64::from(std::process::id() % 100) / 200.0;
        tokio::time::sleep(self.next.mul_f64(jitter)).await;
        self.next = (self.next * 2).min(LONGEST_PAUSE);
        true
    }
}
