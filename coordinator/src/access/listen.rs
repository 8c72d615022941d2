//! Connections: accepted, protected, limited.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::Sleep,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use super::{
    Principal,
    audit::Audit,
    guard::{Bucket, Peer},
    tls::{self, Tls},
};

/// Connections at once.
const CONNECTIONS_MAX: usize = 16_384;
/// Connections of one address at once, loopback excepted.
const CONNECTIONS_OF_ONE_MAX: usize = 2048;
/// Handshakes at once.
const HANDSHAKES_MAX: usize = 256;
/// Longest handshake, and longest time until the protocol's first bytes.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// The bytes that open every HTTP/2 connection.
const PREFACE: usize = 24;

/// Where a connection's bytes come from.
enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// A connection that may speak.
pub(crate) struct Connection {
    stream: Stream,
    peer: Peer,
    /// Bytes read, until the first ones are there.
    read: usize,
    deadline: Pin<Box<Sleep>>,
    /// The files that the connection was accepted by, and their state then.
    rules: Option<(Arc<Tls>, u64)>,
    _permit: OwnedSemaphorePermit,
    _place: Place,
}

/// One of an address's connections.
struct Place {
    places: Arc<Mutex<HashMap<IpAddr, usize>>>,
    address: IpAddr,
}

impl Place {
    fn take(places: &Arc<Mutex<HashMap<IpAddr, usize>>>, address: IpAddr) -> Option<Self> {
        let mut taken = places.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(address).or_default();
        if *count >= CONNECTIONS_OF_ONE_MAX && !address.is_loopback() {
            return None;
        }
        *count += 1;
        Some(Self { places: Arc::clone(places), address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.address);
            }
        }
    }
}

/// The connections of a listener, until what is returned is dropped.
pub(crate) fn incoming(
    listener: TcpListener,
    tls: Option<Arc<Tls>>,
    audit: Arc<Audit>,
) -> ReceiverStream<io::Result<Connection>> {
    let (send, receive) = mpsc::channel(64);
    tokio::spawn(async move {
        let (connections, handshakes) = (Arc::new(Semaphore::new(CONNECTIONS_MAX)), Arc::new(Semaphore::new(HANDSHAKES_MAX)));
        let places = Arc::new(Mutex::new(HashMap::new()));
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = send.closed() => return,
            };
            let (stream, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors, for instance: that passes.
                    tracing::warn!("a connection cannot be accepted: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let full = |what: &str| audit.note("", &address.to_string(), "connect", what);
            let Ok(permit) = Arc::clone(&connections).try_acquire_owned() else {
                full("refused: too many connections");
                continue;
            };
            let Some(place) = Place::take(&places, address.ip()) else {
                full("refused: too many connections of this address");
                continue;
            };
            stream.set_nodelay(true).ok();
            let Some(tls) = &tls else {
                let connection = Connection::new(Stream::Plain(stream), address, None, None, permit, place);
                if send.send(Ok(connection)).await.is_err() {
                    return;
                }
                continue;
            };
            let Ok(handshake) = Arc::clone(&handshakes).try_acquire_owned() else {
                full("refused: too many handshakes");
                continue;
            };
            let (tls, send, audit) = (Arc::clone(tls), send.clone(), Arc::clone(&audit));
            tokio::spawn(async move {
                let generation = tls.generation();
                let accepting = TlsAcceptor::from(tls.config()).accept(stream);
                let accepted = tokio::time::timeout(HANDSHAKE_TIMEOUT, accepting).await;
                drop(handshake);
                let refused = |what: &dyn ToString| {
                    audit.note("", &address.to_string(), "handshake", &format!("refused: {}", what.to_string()))
                };
                let stream = match accepted {
                    Ok(Ok(stream)) => stream,
                    Ok(Err(error)) => return refused(&error),
                    Err(_) => return refused(&"it took too long"),
                };
                let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
                let principal = match certificate.map(tls::principal) {
                    // Our authority signed it, and yet it names nobody and no role.
                    Some(None) => return refused(&"the certificate has no name and role"),
                    Some(Some(principal)) => Some(principal),
                    None => None,
                };
                let stream = Stream::Tls(Box::new(stream));
                let connection = Connection::new(stream, address, principal, Some((tls, generation)), permit, place);
                send.send(Ok(connection)).await.ok();
            });
        }
    });
    ReceiverStream::new(receive)
}

impl Connection {
    fn new(
        stream: Stream,
        address: SocketAddr,
        principal: Option<Principal>,
        rules: Option<(Arc<Tls>, u64)>,
        permit: OwnedSemaphorePermit,
        place: Place,
    ) -> Self {
        let tls = rules.as_ref().map(|(tls, _)| Arc::clone(tls));
        let peer = Peer { address, principal, tls, bucket: Arc::new(Bucket::new()) };
        let deadline = Box::pin(tokio::time::sleep(HANDSHAKE_TIMEOUT));
        Self { stream, peer, read: 0, deadline, rules, _permit: permit, _place: place }
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buffer.filled().len();
        let polled = match &mut this.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Stream::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        };
        if polled.is_pending() && this.read < PREFACE {
            // Who connects and says nothing is not kept.
            ready!(this.deadline.as_mut().poll(context));
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        ready!(polled)?;
        this.read = this.read.saturating_add(buffer.filled().len() - before);
        if this.rules.as_ref().is_some_and(|(tls, generation)| tls.generation() != *generation) {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionReset, "certificates have changed")));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(context),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
