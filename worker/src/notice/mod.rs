//! Notices of the clouds that a machine is about to be taken away: each asked as its documentation says, over plain HTTP to the link-local address
//! that only the machine itself reaches.
//!
//! One file a cloud, listed in [`CLOUDS`]. What one says is a sentence; who hears it drains the worker.

mod aws;
mod azure;
mod gcp;
mod http;

use std::{future::Future, io, pin::Pin, time::Duration};

use self::http::Http;

/// How often a cloud is asked, unless it holds the answer back by itself.
pub const INTERVAL: Duration = Duration::from_secs(2);
/// Longest wait for the answer of a metadata service that is there.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait while it is not known which cloud this is.
const PROBE_TIMEOUT: Duration = Duration::from_millis(1500);

type Answer<'a, T> = Pin<Box<dyn Future<Output = io::Result<T>> + Send + 'a>>;

/// A cloud's metadata service.
trait Service: Send {
    /// Whether this machine is in that cloud.
    fn present(&mut self) -> Answer<'_, bool>;
    /// The notice, if there is one by now.
    fn notice(&mut self) -> Answer<'_, Option<String>>;
}

/// A cloud that gives notice.
struct Cloud {
    name: &'static str,
    /// Host and port of the metadata service.
    address: &'static str,
    open: fn(Http) -> Box<dyn Service>,
}

const CLOUDS: &[Cloud] = &[
    Cloud { name: "aws", address: "169.254.169.254:80", open: |http| Box::new(aws::Aws::new(http)) },
    Cloud { name: "gcp", address: "metadata.google.internal:80", open: |http| Box::new(gcp::Gcp::new(http)) },
    Cloud { name: "azure", address: "169.254.169.254:80", open: |http| Box::new(azure::Azure::new(http)) },
];

/// The names of the clouds.
pub fn names() -> impl Iterator<Item = &'static str> {
    CLOUDS.iter().map(|cloud| cloud.name)
}

/// Waits for a cloud's notice, as long as it takes. `name` is one of [`names`], or `auto` for whichever answers; `address` replaces the service's
/// own (`host:port`). Never ends where no cloud answers.
pub async fn wait(name: &str, address: Option<&str>, interval: Duration) -> String {
    let mut service = loop {
        if let Some((cloud, service)) = find(name, address).await {
            tracing::info!("{cloud} is asked for its notices");
            break service;
        }
        if name == "auto" {
            // Nobody is there, and nobody will be.
            tracing::info!("no cloud's metadata service answers: no notices are expected");
            std::future::pending::<()>().await;
        }
        tracing::warn!("{name}'s metadata service does not answer; it is asked again");
        tokio::time::sleep(interval * 5).await;
    };
    loop {
        match service.notice().await {
            Ok(Some(notice)) => return notice,
            Ok(None) => {}
            Err(error) => tracing::warn!("the metadata service: {error}"),
        }
        tokio::time::sleep(interval).await;
    }
}

async fn find(name: &str, address: Option<&str>) -> Option<(&'static str, Box<dyn Service>)> {
    for cloud in CLOUDS.iter().filter(|cloud| name == "auto" || cloud.name == name) {
        let address = address.unwrap_or(cloud.address);
        let mut probe = (cloud.open)(Http::new(address, PROBE_TIMEOUT));
        if matches!(probe.present().await, Ok(true)) {
            return Some((cloud.name, (cloud.open)(Http::new(address, TIMEOUT))));
        }
    }
    None
}

#[cfg(test)]
mod tests;
