//! The RPCs: they translate between messages and the owner thread, and know nothing else. What the owner cannot take now is answered by a time to come
//! again; nothing waits in memory without a bound.

use std::{future::Future, net::SocketAddr, path::PathBuf, pin::Pin, sync::Arc, time::Duration};

use evolver_proto::{
    DESCRIPTORS, MESSAGE_BYTES_MAX,
    v1::{self, evolver_server},
};
use prost::Message as _;
use thiserror::Error;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, mpsc, oneshot, watch},
};
use tokio_stream::{Stream, StreamExt as _, wrappers::WatchStream};
use tonic::{Request, Response, Status, transport::Server};

use super::{
    coordinator::Coordinator,
    core::{Command, Reply, busy},
};
use crate::access::{Audit, Caller, GuardLayer, Security, TlsError, incoming, open_tls};

/// Calls of one connection at once; a worker needs three.
const STREAMS_MAX: u32 = 64;
const KEEPALIVE: Duration = Duration::from_secs(20);
/// Longer than the longest wait of a lease request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// Reports in memory at once, in bytes.
const REPORT_BYTES_MAX: usize = 64 << 20;
/// Headers of one call, in bytes.
const HEADER_BYTES_MAX: u32 = 16 << 10;
/// Bytes of a message that are sent before they are asked for.
const WINDOW: u32 = 128 << 10;
/// What who finds the queue full is asked to wait.
const PAUSE: Duration = Duration::from_millis(250);

/// An address that cannot be served.
#[derive(Debug, Error)]
pub enum ServeError {
    /// Everyone in the network could read and write everything.
    #[error(
        "{0} can be reached from other machines: name a folder of `evolver certs` by --tls, or say --insecure on a network that you trust"
    )]
    Exposed(SocketAddr),
    /// The folder of certificates cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The system refuses.
    #[error("the address cannot be served: {0}")]
    System(#[from] std::io::Error),
    /// The transport failed.
    #[error(transparent)]
    Transport(#[from] tonic::transport::Error),
}

struct Service {
    commands: mpsc::Sender<Command>,
    status: watch::Receiver<v1::Status>,
    report_bytes: Arc<Semaphore>,
    audit: Arc<Audit>,
}

impl Service {
    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<Response<T>, Status> {
        let (reply, answer) = oneshot::channel();
        let gone = || Status::unavailable("the coordinator has stopped");
        self.commands.try_send(command(reply)).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => busy("the coordinator has too much to do", PAUSE),
            mpsc::error::TrySendError::Closed(_) => gone(),
        })?;
        answer.await.map_err(|_| gone())?.map(Response::new)
    }
}

/// The message, with the name that its worker is known by.
fn named<T>(mut request: Request<T>, worker: impl FnOnce(&mut T) -> &mut String) -> T {
    let caller = request.extensions_mut().remove::<Caller>();
    let mut message = request.into_inner();
    if let Some(caller) = caller {
        caller.qualify(worker(&mut message));
    }
    message
}

#[tonic::async_trait]
impl evolver_server::Evolver for Service {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<v1::Status, Status>> + Send>>;

    async fn register(&self, request: Request<v1::RegisterRequest>) -> Result<Response<v1::RegisterReply>, Status> {
        let message = named(request, |message| &mut message.worker);
        self.ask(|reply| Command::Register(message, reply)).await
    }

    async fn lease(&self, request: Request<v1::LeaseRequest>) -> Result<Response<v1::LeaseReply>, Status> {
        let message = named(request, |message| &mut message.worker);
        self.ask(|reply| Command::Lease(message, reply)).await
    }

    async fn heartbeat(&self, request: Request<v1::HeartbeatRequest>) -> Result<Response<v1::HeartbeatReply>, Status> {
        let message = named(request, |message| &mut message.worker);
        self.ask(|reply| Command::Heartbeat(message, reply)).await
    }

    async fn report(&self, request: Request<v1::ReportRequest>) -> Result<Response<v1::ReportReply>, Status> {
        let message = named(request, |message| &mut message.worker);
        let bytes = u32::try_from(message.encoded_len()).unwrap_or(u32::MAX);
        let Ok(_room) = self.report_bytes.try_acquire_many(bytes) else {
            return Err(busy("too many reports at once", PAUSE));
        };
        self.ask(|reply| Command::Report(Box::new(message), reply)).await
    }

    async fn drain(&self, request: Request<v1::DrainRequest>) -> Result<Response<v1::DrainReply>, Status> {
        let message = named(request, |message| &mut message.worker);
        self.ask(|reply| Command::Drain(message, reply)).await
    }

    async fn watch(&self, _: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let stream = WatchStream::new(self.status.clone()).map(Ok);
        Ok(Response::new(Box::pin(stream)))
    }

    async fn operate(&self, request: Request<v1::OperateRequest>) -> Result<Response<v1::OperateReply>, Status> {
        let caller = request.extensions().get::<Caller>().cloned();
        let answer = self.ask(|reply| Command::Operate(request.into_inner(), reply)).await;
        let outcome = answer.as_ref().map_or_else(|status| status.message().to_owned(), |reply| reply.get_ref().done.clone());
        let who = caller.as_ref().and_then(|caller| caller.name.as_deref()).unwrap_or_default();
        self.audit.note(who, caller.as_ref().map_or("", |caller| &caller.address), "Operate", &outcome);
        answer
    }
}

/// Serves a coordinator's RPCs on a bound listener until `shutdown` resolves.
///
/// # Errors
/// If the listener is not protected as it must be, its files cannot be used, or the transport fails.
pub async fn serve(
    coordinator: &Coordinator,
    listener: TcpListener,
    security: &Security,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let address = listener.local_addr()?;
    let tls: Option<&PathBuf> = match security {
        Security::Loopback if !address.ip().is_loopback() => return Err(ServeError::Exposed(address)),
        Security::Loopback | Security::Insecure => None,
        Security::Tls(folder) => Some(folder),
    };
    let tls = tls.map(|folder| open_tls(folder)).transpose()?;
    let plain = tls.is_none();
    let audit = Arc::clone(&coordinator.audit);
    let service = Service {
        commands: coordinator.commands.clone(),
        status: coordinator.status(),
        report_bytes: Arc::new(Semaphore::new(REPORT_BYTES_MAX)),
        audit: Arc::clone(&audit),
    };
    let service = evolver_server::EvolverServer::new(service)
        .max_decoding_message_size(coordinator.request_bytes)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let (health, health_service) = tonic_health::server::health_reporter();
    // The journal has been folded before a coordinator exists.
    health.set_serving::<evolver_server::EvolverServer<Service>>().await;
    let mut server = Server::builder()
        .timeout(REQUEST_TIMEOUT)
        .max_concurrent_streams(STREAMS_MAX)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(2 * WINDOW)
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .layer(GuardLayer::new(Arc::clone(&audit)));
    let mut router = server.add_service(service).add_service(health_service);
    // Over TLS nobody is told what there is.
    if plain
        && let Ok(reflection) =
            tonic_reflection::server::Builder::configure().register_encoded_file_descriptor_set(DESCRIPTORS).build_v1()
    {
        router = router.add_service(reflection);
    }
    router.serve_with_incoming_shutdown(incoming(listener, tls, audit), shutdown).await?;
    Ok(())
}
