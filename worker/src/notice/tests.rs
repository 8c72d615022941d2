//! Local servers that answer as the clouds' documentation says.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use http_body_util::Full;
use hyper::{Request, Response, body::Bytes, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use super::wait;

const SOON: Duration = Duration::from_millis(10);

/// What a cloud knows, and what it was asked.
#[derive(Default)]
struct World {
    ending: bool,
    tokens: u32,
    refused: u32,
    asked: Vec<String>,
    held: u32,
}

type Answer = fn(&mut World, &Request<Incoming>) -> (u16, &'static str, String);

async fn serve(answer: Answer) -> (String, Arc<Mutex<World>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let world = Arc::new(Mutex::new(World::default()));
    let shared = Arc::clone(&world);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let world = Arc::clone(&shared);
            tokio::spawn(async move {
                let service = service_fn(move |request: Request<Incoming>| {
                    let mut world = world.lock().unwrap();
                    world.asked.push(format!("{} {}", request.method(), request.uri()));
                    let (status, flavor, body) = answer(&mut world, &request);
                    let response = Response::builder().status(status).header("etag", format!("e{}", world.ending));
                    let response = if flavor.is_empty() { response } else { response.header("metadata-flavor", flavor) };
                    std::future::ready(Ok::<_, Infallible>(response.body(Full::new(Bytes::from(body))).unwrap()))
                });
                http1::Builder::new().serve_connection(TokioIo::new(stream), service).await.ok();
            });
        }
    });
    (address, world)
}

fn header<'a>(request: &'a Request<Incoming>, name: &str) -> &'a str {
    request.headers().get(name).map_or("", |value| value.to_str().unwrap())
}

/// No notice comes while there is none; then it comes.
async fn notice(cloud: &'static str, answer: Answer) -> (String, Arc<Mutex<World>>) {
    let (address, world) = serve(answer).await;
    let waiting = tokio::spawn(async move { wait(cloud, Some(&address), SOON).await });
    tokio::time::sleep(Duration::from_millis(150)).await;
    assert!(!waiting.is_finished());
    assert!(world.lock().unwrap().asked.len() > 3, "it keeps asking");
    world.lock().unwrap().ending = true;
    let notice = tokio::time::timeout(Duration::from_secs(10), waiting).await.unwrap().unwrap();
    (notice, world)
}

fn aws(world: &mut World, request: &Request<Incoming>) -> (u16, &'static str, String) {
    match (request.method().as_str(), request.uri().path()) {
        ("PUT", "/latest/api/token") => {
            let seconds: u32 = header(request, "x-aws-ec2-metadata-token-ttl-seconds").parse().unwrap_or(0);
            if !(1..=21600).contains(&seconds) {
                return (400, "", String::new());
            }
            world.tokens += 1;
            (200, "", format!("token{}", world.tokens))
        }
        ("GET", path) => {
            // The second session ends early.
            let live = format!("token{}", world.tokens);
            if header(request, "x-aws-ec2-metadata-token") != live || (world.tokens == 2 && world.asked.len() == 5) {
                world.refused += 1;
                return (401, "", "Unauthorized".into());
            }
            match (path, world.ending) {
                ("/latest/meta-data/spot/instance-action", true) => {
                    (200, "", r#"{"action": "terminate", "time": "2026-11-24T08:22:00Z"}"#.into())
                }
                _ => (404, "", "Not Found".into()),
            }
        }
        _ => (405, "", String::new()),
    }
}

#[tokio::test]
async fn aws_gives_notice_by_version_2_with_session_tokens() {
    let (notice, world) = notice("aws", aws).await;
    assert_eq!(notice, "AWS will terminate this instance at 2026-11-24T08:22:00Z");
    let world = world.lock().unwrap();
    assert_eq!((world.tokens, world.refused), (3, 1), "a session that ran out is begun anew: {:?}", world.asked);
}

fn gcp(world: &mut World, request: &Request<Incoming>) -> (u16, &'static str, String) {
    if header(request, "metadata-flavor") != "Google" {
        return (403, "", String::new());
    }
    if request.uri().path() != "/computeMetadata/v1/instance/preempted" {
        return (404, "Google", String::new());
    }
    let query = request.uri().query().unwrap_or("");
    if query.contains("wait_for_change=true") && query.contains("last_etag=efalse") {
        world.held += 1;
    }
    (200, "Google", if world.ending { "TRUE" } else { "FALSE" }.into())
}

#[tokio::test]
async fn google_gives_notice_by_a_value_that_is_waited_for() {
    let (notice, world) = notice("gcp", gcp).await;
    assert!(notice.starts_with("Google Cloud preempts this instance"), "{notice}");
    assert!(world.lock().unwrap().held > 0, "the server was asked to hold its answer back");
}

fn azure(world: &mut World, request: &Request<Incoming>) -> (u16, &'static str, String) {
    if header(request, "metadata") != "true" || !request.uri().query().unwrap_or("").contains("api-version=") {
        return (400, "", String::new());
    }
    let event = |kind: &str, machine: &str| {
        format!(
            r#"{{"EventId": "A", "EventType": "{kind}", "ResourceType": "VirtualMachine", "Resources": ["{machine}"],
            "EventStatus": "Scheduled", "NotBefore": "Tue, 24 Nov 2026 18:29:47 GMT", "EventSource": "Platform"}}"#
        )
    };
    match request.uri().path() {
        "/metadata/instance/compute/name" => (200, "", "vm-3".into()),
        "/metadata/scheduledevents" => {
            // Another machine's end, and something that is no end, are not ours.
            let mut events = vec![event("Preempt", "vm-4"), event("Freeze", "vm-3")];
            if world.ending {
                events.push(event("Preempt", "vm-3"));
            }
            (200, "", format!(r#"{{"DocumentIncarnation": 2, "Events": [{}]}}"#, events.join(", ")))
        }
        _ => (404, "", String::new()),
    }
}

#[tokio::test]
async fn azure_gives_notice_by_an_event_of_this_machine() {
    let (notice, _) = notice("azure", azure).await;
    assert_eq!(notice, "Azure ends this machine at Tue, 24 Nov 2026 18:29:47 GMT (Preempt)");
}

#[tokio::test]
async fn whichever_cloud_answers_is_found() {
    for (answer, word) in [(aws as Answer, "AWS"), (gcp, "Google"), (azure, "Azure")] {
        let (notice, _) = notice("auto", answer).await;
        assert!(notice.starts_with(word), "{notice}");
    }
}

#[tokio::test]
async fn a_service_that_is_no_clouds_gives_no_notice() {
    let (address, _) = serve(|_, _| (200, "", "TRUE".into())).await;
    let waiting = wait("gcp", Some(&address), SOON);
    assert!(tokio::time::timeout(Duration::from_millis(200), waiting).await.is_err());
}
