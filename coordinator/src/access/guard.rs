//! In front of every call: who it is, whether they may, whether they come too often. Everything is denied that is not allowed.

use std::{
    convert::Infallible,
    future::Future,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use http::{Request, Response, header::AUTHORIZATION};
use tonic::{Code, Status, body::Body};
use tower_layer::Layer;
use tower_service::Service;

use super::{Principal, Role, audit::Audit, tls::Tls};
use crate::service::busy;

/// Calls a second that one connection may keep up, and those that it may make at once.
const RATE: f64 = 500.0;
const BURST: f64 = 1000.0;
/// What who comes too often is asked to wait.
const PAUSE: Duration = Duration::from_millis(500);

/// The other side of a connection.
#[derive(Clone)]
pub(crate) struct Peer {
    pub(super) address: SocketAddr,
    /// Whose certificate it has shown.
    pub(super) principal: Option<Principal>,
    /// `None` in plain text.
    pub(super) tls: Option<Arc<Tls>>,
    pub(super) bucket: Arc<Bucket>,
}

/// How often a connection has called.
pub(super) struct Bucket(Mutex<(f64, Instant)>);

impl Bucket {
    pub(super) fn new() -> Self {
        Self(Mutex::new((BURST, Instant::now())))
    }

    fn take(&self) -> bool {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (left, since) = *state;
        let left = (left + RATE * since.elapsed().as_secs_f64()).min(BURST);
        let taken = left >= 1.0;
        *state = (if taken { left - 1.0 } else { left }, Instant::now());
        taken
    }
}

/// Who calls, for the calls themselves.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    /// Name of the certificate or token; `None` in plain text.
    pub(crate) name: Option<String>,
    pub(crate) address: String,
}

impl Caller {
    /// The name that a worker of this caller is known by: nobody speaks for a worker of another certificate.
    pub(crate) fn qualify(&self, worker: &mut String) {
        if let Some(name) = &self.name {
            let own = worker.strip_prefix(name.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
            if !own {
                *worker = format!("{name}/{worker}");
            }
        }
    }
}

/// Who may call what. What is not in the table is nobody's.
fn allowed(path: &str, role: Role) -> bool {
    let Some(method) = path.strip_prefix("/evolver.v1.Evolver/") else {
        return path.starts_with("/grpc.health.v1.Health/");
    };
    match method {
        "Register" | "Lease" | "Heartbeat" | "Report" | "Drain" => role == Role::Worker,
        "Watch" => matches!(role, Role::Viewer | Role::Operator),
        "Operate" => role == Role::Operator,
        _ => false,
    }
}

/// Puts a [`Guard`] before a service.
#[derive(Clone)]
pub(crate) struct GuardLayer {
    audit: Arc<Audit>,
}

impl GuardLayer {
    pub(crate) fn new(audit: Arc<Audit>) -> Self {
        Self { audit }
    }
}

impl<S> Layer<S> for GuardLayer {
    type Service = Guard<S>;

    fn layer(&self, inner: S) -> Guard<S> {
        Guard { inner, audit: Arc::clone(&self.audit) }
    }
}

/// Lets calls through, or answers them.
#[derive(Clone)]
pub(crate) struct Guard<S> {
    inner: S,
    audit: Arc<Audit>,
}

/// Finds the caller, or says why there is none.
fn admit(peer: Option<&Peer>, request: &Request<Body>) -> Result<Caller, (String, Status)> {
    let path = request.uri().path();
    let Some(peer) = peer else {
        return Err((String::new(), Status::internal("the connection is unknown")));
    };
    let caller = |name| Caller { name, address: peer.address.to_string() };
    if !peer.bucket.take() {
        let name = peer.principal.as_ref().map_or(String::new(), |principal| principal.name.clone());
        return Err((name, busy("too many calls", PAUSE)));
    }
    let Some(tls) = &peer.tls else {
        return Ok(caller(None));
    };
    let principal = match request.headers().get(AUTHORIZATION) {
        Some(header) => {
            let token = header.to_str().ok().and_then(|header| header.strip_prefix("Bearer "));
            let found = token.and_then(|token| tls.token(token));
            Some(found.ok_or_else(|| (String::new(), Status::unauthenticated("the token is unknown")))?)
        }
        None => peer.principal.clone(),
    };
    let Some(principal) = principal else {
        if path.starts_with("/grpc.health.v1.Health/") {
            return Ok(caller(None));
        }
        return Err((String::new(), Status::unauthenticated("a certificate or a token is needed")));
    };
    if !allowed(path, principal.role) {
        let status = Status::permission_denied(format!("{} is a {}, which may not call this", principal.name, principal.role));
        return Err((principal.name, status));
    }
    Ok(caller(Some(principal.name)))
}

impl<S> Service<Request<Body>> for Guard<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let peer = request.extensions().get::<Peer>().cloned();
        let path = request.uri().path().to_owned();
        let audit = Arc::clone(&self.audit);
        let address = peer.as_ref().map_or(String::new(), |peer| peer.address.to_string());
        match admit(peer.as_ref(), &request) {
            Err((name, status)) => {
                audit.note(&name, &address, &path, &format!("refused: {}", status.message()));
                Box::pin(std::future::ready(Ok(status.into_http())))
            }
            Ok(caller) => {
                let name = caller.name.clone().unwrap_or_default();
                request.extensions_mut().insert(caller);
                // The clone that was polled is the one that is called.
                let mut inner = self.inner.clone();
                std::mem::swap(&mut self.inner, &mut inner);
                Box::pin(async move {
                    let response = inner.call(request).await?;
                    if let Some(status) = Status::from_header_map(response.headers()).filter(is_refusal) {
                        audit.note(&name, &address, &path, &format!("refused: {}", status.message()));
                    }
                    Ok(response)
                })
            }
        }
    }
}

/// Whether an answer says that the call itself was wrong. A worker that must register again is no attack.
fn is_refusal(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::InvalidArgument
            | Code::OutOfRange
            | Code::PermissionDenied
            | Code::FailedPrecondition
            | Code::Internal
            | Code::Unimplemented
            | Code::ResourceExhausted
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_are_kept_apart_and_what_is_unknown_is_nobodys() {
        let path = |method: &str| format!("/evolver.v1.Evolver/{method}");
        let rights = [
            (Role::Worker, ["Register", "Lease", "Heartbeat", "Report", "Drain"].as_slice()),
            (Role::Operator, &["Watch", "Operate"]),
            (Role::Viewer, &["Watch"]),
        ];
        let every = ["Register", "Lease", "Heartbeat", "Report", "Drain", "Watch", "Operate", "Erase", ""];
        for (role, may) in rights {
            for method in every {
                assert_eq!(allowed(&path(method), role), may.contains(&method), "{role} {method}");
            }
            assert!(!allowed("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", role));
            assert!(allowed("/grpc.health.v1.Health/Check", role));
        }
    }

    #[test]
    fn a_caller_speaks_for_its_own_workers_only() {
        let qualified = |name: &str, worker: &str| {
            let mut worker = worker.to_owned();
            Caller { name: Some(name.into()), address: String::new() }.qualify(&mut worker);
            worker
        };
        assert_eq!(qualified("a", "a"), "a");
        assert_eq!(qualified("a", "a/1"), "a/1");
        assert_eq!(qualified("a", "b/1"), "a/b/1");
        assert_eq!(qualified("a", "ab"), "a/ab");
        assert_eq!(qualified("a", ""), "a/");
    }

    #[test]
    fn a_burst_is_let_through_and_a_flood_is_not() {
        let bucket = Bucket::new();
        let taken = (0..5000).filter(|_| bucket.take()).count();
        assert!((1000..1500).contains(&taken), "{taken}");
    }
}
