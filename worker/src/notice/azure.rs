//! Azure: scheduled events of the instance metadata service. A spot machine's end is an event `Preempt`, a scale set's `Terminate`; events name the
//! machines that they are of.

use std::io;

use serde::Deserialize;

use super::{Answer, Service, http::Http};

const NAME: &str = "/metadata/instance/compute/name?api-version=2021-02-01&format=text";
const EVENTS: &str = "/metadata/scheduledevents?api-version=2020-07-01";
const METADATA: (&str, &str) = ("metadata", "true");

pub(super) struct Azure {
    http: Http,
    name: Option<String>,
}

#[derive(Deserialize)]
struct Document {
    #[serde(rename = "Events")]
    events: Vec<Event>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Event {
    event_type: String,
    #[serde(default)]
    resources: Vec<String>,
    /// Empty once it has started.
    #[serde(default)]
    not_before: String,
}

impl Azure {
    pub(super) fn new(http: Http) -> Self {
        Self { http, name: None }
    }

    async fn name(&mut self) -> io::Result<String> {
        if let Some(name) = &self.name {
            return Ok(name.clone());
        }
        let reply = self.http.get(NAME, &[METADATA]).await?;
        if reply.status != 200 || reply.body.is_empty() {
            return Err(reply.unexpected());
        }
        self.name = Some(reply.body.clone());
        Ok(reply.body)
    }

    async fn event(&mut self) -> io::Result<Option<String>> {
        let name = self.name().await?;
        let reply = self.http.get(EVENTS, &[METADATA]).await?;
        if reply.status != 200 {
            return Err(reply.unexpected());
        }
        let document: Document = serde_json::from_str(&reply.body)?;
        let ends =
            |event: &&Event| ["Preempt", "Terminate"].contains(&event.event_type.as_str()) && event.resources.contains(&name);
        let when =
            |event: &Event| if event.not_before.is_empty() { "now".to_owned() } else { format!("at {}", event.not_before) };
        Ok(document
            .events
            .iter()
            .find(ends)
            .map(|event| format!("Azure ends this machine {} ({})", when(event), event.event_type)))
    }
}

impl Service for Azure {
    fn present(&mut self) -> Answer<'_, bool> {
        Box::pin(async { Ok(self.name().await.is_ok()) })
    }

    fn notice(&mut self) -> Answer<'_, Option<String>> {
        Box::pin(self.event())
    }
}
