//! One HTTP/1.1 request at a time, over a connection of its own, without proxies: a metadata service is on the machine's own link.

use std::{io, time::Duration};

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{Method, Request, body::Bytes, client::conn::http1, header::HeaderMap};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Longest answer that is read.
const BODY_MAX: usize = 256 << 10;

pub(super) struct Http {
    address: String,
    timeout: Duration,
}

/// What was answered.
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: String,
}

impl Reply {
    /// A header as text, empty if it is not there.
    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The answer as an error.
    pub(super) fn unexpected(&self) -> io::Error {
        io::Error::other(format!("it answered with status {}", self.status))
    }
}

impl Http {
    pub(super) fn new(address: &str, timeout: Duration) -> Self {
        Self { address: address.to_owned(), timeout }
    }

    pub(super) async fn get(&self, path: &str, headers: &[(&'static str, &str)]) -> io::Result<Reply> {
        self.send(Method::GET, path, headers, self.timeout).await
    }

    pub(super) async fn put(&self, path: &str, headers: &[(&'static str, &str)]) -> io::Result<Reply> {
        self.send(Method::PUT, path, headers, self.timeout).await
    }

    /// As [`Http::get`], where the service holds the answer back for up to `held`.
    pub(super) async fn get_held(&self, path: &str, headers: &[(&'static str, &str)], held: Duration) -> io::Result<Reply> {
        self.send(Method::GET, path, headers, self.timeout + held).await
    }

    async fn send(&self, method: Method, path: &str, headers: &[(&'static str, &str)], limit: Duration) -> io::Result<Reply> {
        let exchange = async {
            let stream = TcpStream::connect(&self.address).await?;
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
            let host = self.address.split(':').next().unwrap_or_default();
            let mut request = Request::builder().method(method).uri(path).header("host", host);
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            let request = request.body(Empty::<Bytes>::new()).map_err(io::Error::other)?;
            let answer = async {
                let (head, body) = sender.send_request(request).await.map_err(io::Error::other)?.into_parts();
                let body = Limited::new(body, BODY_MAX).collect().await.map_err(io::Error::other)?.to_bytes();
                let body = String::from_utf8_lossy(&body).into_owned();
                Ok(Reply { status: head.status.as_u16(), headers: head.headers, body })
            };
            tokio::pin!(answer, connection);
            tokio::select! {
                answer = &mut answer => answer,
                ended = &mut connection => match ended {
                    // The whole answer may be there although the connection is closed.
                    Ok(()) => answer.await,
                    Err(error) => Err(io::Error::other(error)),
                },
            }
        };
        let late = || io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {} s", limit.as_secs_f64()));
        tokio::time::timeout(limit, exchange).await.unwrap_or_else(|_| Err(late()))
    }
}
