//! People who should not be there: each is refused by a status and an audit line, and the service goes on.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod world;

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use evolver_coordinator::{
    access::{Role, Security, certs::Authority},
    service::{Coordinator, Options, ServeError, serve},
};
use evolver_proto::{PROTOCOL, v1, v1::evolver_client::EvolverClient};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::JoinHandle,
};
use tonic::{
    Code, Request, Status,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

use self::world::{Worker, resolved, right};

/// A coordinator that serves over TLS.
struct Fortress {
    folder: tempfile::TempDir,
    authority: Authority,
    port: u16,
    stop: oneshot::Sender<()>,
    server: JoinHandle<Coordinator>,
}

impl Fortress {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::open(&folder.path().join("certs")).unwrap();
        let own = authority.coordinator(&["127.0.0.1".into(), "localhost".into()], 30).unwrap();
        let dir = folder.path().join("search");
        let coordinator = Coordinator::start(&Options { dir, resolved: resolved(|_| ()), compare: false }).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (stop, stopped) = oneshot::channel::<()>();
        let server = tokio::spawn(async move {
            let stopped = async {
                stopped.await.ok();
            };
            serve(&coordinator, listener, &Security::Tls(own), stopped).await.unwrap();
            coordinator
        });
        Self { folder, authority, port, stop, server }
    }

    fn member(&self, name: &str, role: Role) -> PathBuf {
        self.authority.member(name, role, 30).unwrap()
    }

    fn endpoint(&self) -> Endpoint {
        Endpoint::from_shared(format!("https://127.0.0.1:{}", self.port)).unwrap().connect_timeout(Duration::from_secs(5))
    }

    /// A client that shows the certificate of a folder, if it is given one.
    fn client(&self, shows: Option<&Path>) -> EvolverClient<Channel> {
        let read = |path: PathBuf| std::fs::read(path).unwrap();
        let ca = read(self.folder.path().join("certs/ca/ca.pem"));
        let mut config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca));
        if let Some(folder) = shows {
            config = config.identity(Identity::from_pem(read(folder.join("cert.pem")), read(folder.join("key.pem"))));
        }
        EvolverClient::new(self.endpoint().tls_config(config).unwrap().connect_lazy())
    }

    /// The audit lines that hold all of these words.
    fn audited(&self, words: &[&str]) -> usize {
        let text = std::fs::read_to_string(self.folder.path().join("search/audit.jsonl")).unwrap_or_default();
        text.lines().filter(|line| words.iter().all(|word| line.contains(word))).count()
    }

    /// Waits for an audit line that the server writes beside its answer.
    async fn await_audit(&self, words: &[&str]) {
        let until = Instant::now() + Duration::from_secs(10);
        while self.audited(words) == 0 {
            assert!(Instant::now() < until, "no audit line says {words:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A worker with a certificate works as if nothing had happened.
    async fn is_well(&self, worker: &Path) {
        let mut worker = Worker { client: self.client(Some(worker)), name: "any".into(), epoch: 0 };
        worker.epoch = worker.register(PROTOCOL).await.unwrap().epoch;
        let assignment = worker.lease().await;
        assert_eq!(worker.finish(&assignment).await.verdict(), v1::report_reply::Verdict::Committed);
    }

    async fn end(self) {
        self.stop.send(()).ok();
        let coordinator = self.server.await.unwrap();
        tokio::task::spawn_blocking(|| coordinator.join()).await.unwrap().unwrap();
    }
}

async fn register(client: &mut EvolverClient<Channel>) -> Result<v1::RegisterReply, Status> {
    let request = v1::RegisterRequest {
        protocol: PROTOCOL,
        worker: "w".into(),
        host: "h".into(),
        threads: 1,
        version: "x".into(),
        ..v1::RegisterRequest::default()
    };
    client.register(request).await.map(tonic::Response::into_inner)
}

async fn operate(client: &mut EvolverClient<Channel>) -> Result<v1::OperateReply, Status> {
    let action = Some(v1::operate_request::Action::Resume(v1::Resume {}));
    client.operate(v1::OperateRequest { action }).await.map(tonic::Response::into_inner)
}

#[tokio::test]
async fn a_plain_listener_beyond_loopback_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options { dir: folder.path().into(), resolved: resolved(|_| ()), compare: false };
    let coordinator = Coordinator::start(&options).unwrap();
    let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let error = serve(&coordinator, listener, &Security::Loopback, std::future::ready(())).await.unwrap_err();
    assert!(matches!(error, ServeError::Exposed(_)) && error.to_string().contains("--tls"), "{error}");
    let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
    serve(&coordinator, listener, &Security::Insecure, std::future::ready(())).await.unwrap();
}

#[tokio::test]
async fn certificates_that_are_missing_foreign_expired_or_of_another_purpose_are_refused() {
    let fortress = Fortress::new().await;
    let good = fortress.member("good", Role::Worker);
    fortress.is_well(&good).await;

    assert!(register(&mut fortress.client(None)).await.is_err());
    fortress.await_audit(&["handshake", "refused", "certificate"]).await;

    let other = tempfile::tempdir().unwrap();
    let foreign = Authority::open(other.path()).unwrap().member("good", Role::Operator, 30).unwrap();
    assert!(register(&mut fortress.client(Some(&foreign))).await.is_err());

    let expired = fortress.authority.member("late", Role::Worker, -1).unwrap();
    assert!(register(&mut fortress.client(Some(&expired))).await.is_err());
    fortress.await_audit(&["handshake", "refused", "xpired"]).await;

    // The coordinator's own certificate is for serving.
    let server = fortress.folder.path().join("certs/coordinator");
    assert!(register(&mut fortress.client(Some(&server))).await.is_err());
    // A client that trusts another authority does not speak to this coordinator at all.
    let misled = {
        let ca = std::fs::read(other.path().join("ca/ca.pem")).unwrap();
        let config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca));
        fortress.endpoint().tls_config(config).unwrap()
    };
    assert!(misled.connect().await.is_err());
    assert!(fortress.audited(&["handshake", "refused"]) >= 4);
    fortress.is_well(&good).await;
    fortress.end().await;
}

#[tokio::test]
async fn roles_are_kept_apart() {
    let fortress = Fortress::new().await;
    let folders = [Role::Worker, Role::Viewer, Role::Operator].map(|role| fortress.member(&role.to_string(), role));
    let [mut worker, mut viewer, mut operator] = folders.clone().map(|folder| fortress.client(Some(&folder)));
    for client in [&mut worker, &mut viewer] {
        assert_eq!(operate(client).await.unwrap_err().code(), Code::PermissionDenied);
    }
    fortress.await_audit(&["\"who\":\"viewer\"", "Operate", "refused"]).await;
    for client in [&mut viewer, &mut operator] {
        assert_eq!(register(client).await.unwrap_err().code(), Code::PermissionDenied);
        client.watch(v1::WatchRequest {}).await.unwrap();
    }
    assert_eq!(worker.watch(v1::WatchRequest {}).await.err().unwrap().code(), Code::PermissionDenied);
    operate(&mut operator).await.unwrap();
    fortress.await_audit(&["\"who\":\"operator\"", "Operate", "work is handed out"]).await;
    fortress.is_well(&folders[0]).await;
    drop((worker, viewer, operator));
    fortress.end().await;
}

#[tokio::test]
async fn a_revoked_certificate_is_refused_without_a_restart_and_a_renewed_one_served() {
    let fortress = Fortress::new().await;
    let (stolen, good) = (fortress.member("stolen", Role::Worker), fortress.member("good", Role::Worker));
    let mut thief = fortress.client(Some(&stolen));
    register(&mut thief).await.unwrap();
    assert_eq!(fortress.authority.revoke("stolen").unwrap(), 1);
    let until = Instant::now() + Duration::from_secs(15);
    // The open connection ends, and no new one is made.
    while register(&mut thief).await.is_ok() {
        assert!(Instant::now() < until, "a revoked certificate is still served");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(register(&mut thief).await.is_err());
    fortress.await_audit(&["handshake", "refused", "evoked"]).await;
    fortress.is_well(&good).await;
    // A new certificate of the same name is another certificate; so is a new one of the coordinator.
    fortress.authority.coordinator(&["127.0.0.1".into()], 30).unwrap();
    let renewed = fortress.member("stolen", Role::Worker);
    tokio::time::sleep(Duration::from_millis(1200)).await;
    fortress.is_well(&renewed).await;
    assert!(fortress.authority.revoke("nobody").is_err());
    drop(thief);
    fortress.end().await;
}

fn with_token<T>(message: T, token: &str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    request
}

#[tokio::test]
async fn tokens_open_to_their_role_and_wrong_ones_to_nothing() {
    let fortress = Fortress::new().await;
    let token = fortress.authority.token("eyes", Role::Viewer).unwrap();
    tokio::time::sleep(Duration::from_millis(1200)).await;
    let mut client = fortress.client(None);
    client.watch(with_token(v1::WatchRequest {}, &token)).await.unwrap();
    for wrong in ["", "0", &token[1..], &token.to_uppercase()] {
        let status = client.watch(with_token(v1::WatchRequest {}, wrong)).await.err().unwrap();
        assert_eq!(status.code(), Code::Unauthenticated, "{wrong:?}");
    }
    assert_eq!(register(&mut client).await.unwrap_err().code(), Code::Unauthenticated);
    let action = Some(v1::operate_request::Action::Pause(v1::Pause {}));
    let status = client.operate(with_token(v1::OperateRequest { action }, &token)).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    fortress.await_audit(&["the token is unknown"]).await;
    // Neither file holds the token, nor does what an operator sees.
    for entry in ["certs/coordinator/tokens", "search/audit.jsonl"] {
        assert!(!std::fs::read_to_string(fortress.folder.path().join(entry)).unwrap().contains(&token), "{entry}");
    }
    assert_eq!(fortress.authority.revoke("eyes").unwrap(), 1);
    let until = Instant::now() + Duration::from_secs(15);
    while client.watch(with_token(v1::WatchRequest {}, &token)).await.is_ok() {
        assert!(Instant::now() < until);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    drop(client);
    fortress.end().await;
}

#[tokio::test]
async fn nobody_speaks_for_another_and_forged_tokens_commit_nothing() {
    let fortress = Fortress::new().await;
    let (honest, other) = (fortress.member("honest", Role::Worker), fortress.member("other", Role::Worker));
    let mut honest = Worker { client: fortress.client(Some(&honest)), name: "honest".into(), epoch: 0 };
    honest.epoch = honest.register(PROTOCOL).await.unwrap().epoch;
    let assignment = honest.lease().await;
    // Under the other's name: it is another worker all the same, which does not hold this token.
    let mut thief = Worker { client: fortress.client(Some(&other)), name: "honest".into(), epoch: honest.epoch };
    thief.register(PROTOCOL).await.unwrap();
    assert_eq!(thief.finish(&assignment).await.verdict(), v1::report_reply::Verdict::Superseded);
    fortress.await_audit(&["\"who\":\"other/honest\"", "Report", "was not given"]).await;
    let real = assignment.token.unwrap();
    let forged = [
        v1::Token { attempt: 2, ..real },
        v1::Token { epoch: real.epoch + 1, ..real },
        v1::Token { epoch: 0, ..real },
        v1::Token { spec: 1 << 60, ..real },
        v1::Token { attempt: u32::MAX, spec: u64::MAX, epoch: u64::MAX },
    ];
    for token in forged {
        for worker in [&mut honest, &mut thief] {
            assert_eq!(worker.report(Some(token), right(&assignment)).await.verdict(), v1::report_reply::Verdict::Superseded);
            assert!(!worker.heartbeat(Some(token)).await.valid);
        }
    }
    // A heartbeat or a drain of the thief's ends nothing of the honest one's.
    thief.client.drain(v1::DrainRequest { worker: "honest".into(), epoch: honest.epoch }).await.unwrap();
    assert!(honest.heartbeat(assignment.token).await.valid);
    assert_eq!(honest.finish(&assignment).await.verdict(), v1::report_reply::Verdict::Committed);
    // Replayed, it commits nothing more.
    assert_eq!(honest.finish(&assignment).await.verdict(), v1::report_reply::Verdict::Superseded);
    drop((honest, thief));
    fortress.end().await;
}

#[tokio::test]
async fn malformed_oversized_and_endless_input_is_answered_or_cut_and_the_service_goes_on() {
    let fortress = Fortress::new().await;
    let good = fortress.member("good", Role::Worker);
    let mut client = fortress.client(Some(&good));
    let names = ["../../etc/passwd\0", "a\nb", "\u{1b}[2J", ""];
    for worker in names {
        let request = v1::RegisterRequest {
            protocol: PROTOCOL,
            worker: worker.into(),
            host: "h".into(),
            threads: 1,
            version: "x".into(),
            ..v1::RegisterRequest::default()
        };
        let answer = client.register(request).await;
        // A certificate's holder has its own name before it: only what a name may never hold is refused.
        assert_eq!(answer.is_err(), worker.chars().any(char::is_control), "{worker:?}");
    }
    let large = v1::RegisterRequest {
        protocol: PROTOCOL,
        worker: "w".repeat(3 << 20),
        host: "h".into(),
        threads: 1,
        version: "x".into(),
        ..v1::RegisterRequest::default()
    };
    assert_eq!(client.register(large).await.unwrap_err().code(), Code::OutOfRange);
    fortress.await_audit(&["Register", "refused"]).await;
    let mut request = Request::new(v1::WatchRequest {});
    request.metadata_mut().insert("x-bomb", "b".repeat(60_000).parse().unwrap());
    // The refusal may come with the stream's first message.
    if let Ok(stream) = client.watch(request).await {
        assert!(stream.into_inner().message().await.is_err());
    }
    // What is no TLS, and what is nothing at all.
    for bytes in [b"GET / HTTP/1.1\r\n\r\n".as_slice(), &[0x16, 3, 1, 255, 255, 0], &[0xff; 4096]] {
        let mut stream = TcpStream::connect(("127.0.0.1", fortress.port)).await.unwrap();
        stream.write_all(bytes).await.ok();
        let mut answer = Vec::new();
        tokio::time::timeout(Duration::from_secs(15), stream.read_to_end(&mut answer)).await.unwrap().ok();
    }
    fortress.is_well(&good).await;
    drop(client);
    fortress.end().await;
}

#[tokio::test]
async fn who_connects_and_says_nothing_is_put_out_and_others_are_served_meanwhile() {
    let fortress = Fortress::new().await;
    let good = fortress.member("good", Role::Worker);
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(TcpStream::connect(("127.0.0.1", fortress.port)).await.unwrap());
    }
    fortress.is_well(&good).await;
    let mut byte = [0];
    for stream in &mut silent {
        let end = tokio::time::timeout(Duration::from_secs(20), stream.read(&mut byte)).await;
        assert!(matches!(end, Ok(Ok(0) | Err(_))), "the connection is still open");
    }
    fortress.await_audit(&["handshake", "it took too long"]).await;
    fortress.end().await;
}

#[tokio::test]
async fn a_plain_connection_that_never_speaks_the_protocol_is_put_out() {
    let folder = tempfile::tempdir().unwrap();
    let served = world::Served::start(folder.path(), &resolved(|_| ())).await;
    let address = served.address.trim_start_matches("http://").to_owned();
    let mut slow = TcpStream::connect(&address).await.unwrap();
    slow.write_all(b"PRI * HTTP/2.0").await.unwrap();
    let mut rest = Vec::new();
    tokio::time::timeout(Duration::from_secs(20), slow.read_to_end(&mut rest)).await.unwrap().ok();
    Worker::join(&served.address, "w").await.work().await;
    served.end().await.unwrap();
}

#[tokio::test]
async fn a_flood_is_asked_to_wait() {
    let folder = tempfile::tempdir().unwrap();
    let served = world::Served::start(folder.path(), &resolved(|_| ())).await;
    let flooder = Worker::join(&served.address, "flood").await;
    let mut calls = Vec::new();
    for _ in 0..3000 {
        let mut client = flooder.client.clone();
        let request = v1::HeartbeatRequest { worker: "flood".into(), epoch: flooder.epoch, ..v1::HeartbeatRequest::default() };
        calls.push(tokio::spawn(async move { client.heartbeat(request).await.err() }));
    }
    let mut refused = 0;
    for call in calls {
        // Who does not stop is cut off in the end, by a status of the transport's.
        if let Some(status) = call.await.unwrap().filter(|status| status.metadata().contains_key(evolver_proto::PUSHBACK)) {
            assert_eq!(status.code(), Code::ResourceExhausted);
            refused += 1;
        }
    }
    assert!(refused > 100, "{refused} of 3000 were refused");
    // Another connection is not the flooder's.
    Worker::join(&served.address, "w").await.work().await;
    drop(flooder);
    served.end().await.unwrap();
}
