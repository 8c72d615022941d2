//! AWS: spot instance interruption notices by the instance metadata service, version 2.
//!
//! A session token is put for first, and shown with every request; `spot/instance-action` is 404 until two minutes before the end, then says what
//! will happen and when.

use std::io;

use serde::Deserialize;

use super::{Answer, Service, http::Http};

const TOKEN: &str = "/latest/api/token";
const ACTION: &str = "/latest/meta-data/spot/instance-action";
/// Seconds that a session token holds; the longest that there is.
const TTL: &str = "21600";

pub(super) struct Aws {
    http: Http,
    token: Option<String>,
}

#[derive(Deserialize)]
struct Action {
    action: String,
    time: String,
}

impl Aws {
    pub(super) fn new(http: Http) -> Self {
        Self { http, token: None }
    }

    async fn token(&mut self) -> io::Result<String> {
        if let Some(token) = &self.token {
            return Ok(token.clone());
        }
        let reply = self.http.put(TOKEN, &[("x-aws-ec2-metadata-token-ttl-seconds", TTL)]).await?;
        if reply.status != 200 || reply.body.is_empty() {
            return Err(reply.unexpected());
        }
        self.token = Some(reply.body.clone());
        Ok(reply.body)
    }

    async fn action(&mut self) -> io::Result<Option<String>> {
        let token = self.token().await?;
        let reply = self.http.get(ACTION, &[("x-aws-ec2-metadata-token", &token)]).await?;
        match reply.status {
            200 => {
                let action: Action = serde_json::from_str(&reply.body)?;
                Ok(Some(format!("AWS will {} this instance at {}", action.action, action.time)))
            }
            404 => Ok(None),
            401 => {
                // The session has run out: the next question begins another.
                self.token = None;
                Err(reply.unexpected())
            }
            _ => Err(reply.unexpected()),
        }
    }
}

impl Service for Aws {
    fn present(&mut self) -> Answer<'_, bool> {
        Box::pin(async { Ok(self.token().await.is_ok()) })
    }

    fn notice(&mut self) -> Answer<'_, Option<String>> {
        Box::pin(self.action())
    }
}
