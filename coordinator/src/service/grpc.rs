//! The RPCs: they translate between messages and the owner thread, and know nothing else.

use std::{future::Future, pin::Pin, time::Duration};

use evolver_proto::{
    DESCRIPTORS, MESSAGE_BYTES_MAX,
    v1::{self, evolver_server},
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot, watch},
};
use tokio_stream::{Stream, StreamExt as _, wrappers::WatchStream};
use tonic::{
    Request, Response, Status,
    transport::{Server, server::TcpIncoming},
};

use super::core::{Command, Coordinator, Reply};

const STREAMS_MAX: u32 = 256;
const KEEPALIVE: Duration = Duration::from_secs(20);
/// Longer than the longest wait of a lease request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

struct Service {
    commands: mpsc::Sender<Command>,
    status: watch::Receiver<v1::Status>,
}

impl Service {
    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, Status> {
        let (reply, answer) = oneshot::channel();
        let gone = || Status::unavailable("the coordinator has stopped");
        self.commands.send(command(reply)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())
    }
}

#[tonic::async_trait]
impl evolver_server::Evolver for Service {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<v1::Status, Status>> + Send>>;

    async fn register(&self, request: Request<v1::RegisterRequest>) -> Result<Response<v1::RegisterReply>, Status> {
        let answer = self.ask(|reply| Command::Register(request.into_inner(), reply)).await?;
        answer.map(Response::new).map_err(Status::failed_precondition)
    }

    async fn lease(&self, request: Request<v1::LeaseRequest>) -> Result<Response<v1::LeaseReply>, Status> {
        let answer = self.ask(|reply| Command::Lease(request.into_inner(), reply)).await?;
        answer.map(Response::new).map_err(Status::unauthenticated)
    }

    async fn heartbeat(&self, request: Request<v1::HeartbeatRequest>) -> Result<Response<v1::HeartbeatReply>, Status> {
        self.ask(|reply| Command::Heartbeat(request.into_inner(), reply)).await.map(Response::new)
    }

    async fn report(&self, request: Request<v1::ReportRequest>) -> Result<Response<v1::ReportReply>, Status> {
        let answer = self.ask(|reply| Command::Report(Box::new(request.into_inner()), reply)).await?;
        answer.map(Response::new).map_err(Status::invalid_argument)
    }

    async fn drain(&self, request: Request<v1::DrainRequest>) -> Result<Response<v1::DrainReply>, Status> {
        self.ask(|reply| Command::Drain(request.into_inner(), reply)).await.map(Response::new)
    }

    async fn watch(&self, _: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let stream = WatchStream::new(self.status.clone()).map(Ok);
        Ok(Response::new(Box::pin(stream)))
    }
}

/// Serves a coordinator's RPCs on a bound listener until `shutdown` resolves.
///
/// # Errors
/// If the transport fails.
pub async fn serve(
    coordinator: &Coordinator,
    listener: TcpListener,
    shutdown: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    let service = Service { commands: coordinator.commands.clone(), status: coordinator.status() };
    let service = evolver_server::EvolverServer::new(service)
        .max_decoding_message_size(coordinator.request_bytes)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let (health, health_service) = tonic_health::server::health_reporter();
    // The journal has been folded before a coordinator exists.
    health.set_serving::<evolver_server::EvolverServer<Service>>().await;
    let reflection = tonic_reflection::server::Builder::configure().register_encoded_file_descriptor_set(DESCRIPTORS).build_v1();
    let mut server = Server::builder()
        .timeout(REQUEST_TIMEOUT)
        .max_concurrent_streams(STREAMS_MAX)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE));
    let mut router = server.add_service(service).add_service(health_service);
    if let Ok(reflection) = reflection {
        router = router.add_service(reflection);
    }
    // The server's own setting does not reach a listener that was bound before it; without it every answer waits 40 ms for a delayed ack.
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    router.serve_with_incoming_shutdown(incoming, shutdown).await
}
