//! Google Cloud: the `preempted` value of an instance, by the metadata server's wait for a change.
//!
//! Every question carries `Metadata-Flavor: Google`, and every answer of the real server does too.

use std::{io, time::Duration};

use super::{Answer, Service, http::Http};

const PREEMPTED: &str = "/computeMetadata/v1/instance/preempted";
const FLAVOR: (&str, &str) = ("metadata-flavor", "Google");
/// How long the server is asked to hold its answer back.
const HELD: Duration = Duration::from_secs(30);

pub(super) struct Gcp {
    http: Http,
    /// Tag of the last value that was seen.
    etag: Option<String>,
}

impl Gcp {
    pub(super) fn new(http: Http) -> Self {
        Self { http, etag: None }
    }

    async fn preempted(&mut self) -> io::Result<Option<String>> {
        let reply = match &self.etag {
            None => self.http.get(PREEMPTED, &[FLAVOR]).await?,
            Some(etag) => {
                let path = format!("{PREEMPTED}?wait_for_change=true&timeout_sec={}&last_etag={etag}", HELD.as_secs());
                self.http.get_held(&path, &[FLAVOR], HELD).await?
            }
        };
        if reply.status != 200 || reply.header(FLAVOR.0) != FLAVOR.1 {
            self.etag = None;
            return Err(reply.unexpected());
        }
        self.etag = Some(reply.header("etag").to_owned()).filter(|etag| !etag.is_empty());
        Ok((reply.body.trim() == "TRUE").then(|| "Google Cloud preempts this instance in 30 seconds".to_owned()))
    }
}

impl Service for Gcp {
    fn present(&mut self) -> Answer<'_, bool> {
        Box::pin(async { Ok(self.preempted().await.is_ok()) })
    }

    fn notice(&mut self) -> Answer<'_, Option<String>> {
        Box::pin(self.preempted())
    }
}
