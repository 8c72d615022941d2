//! The way to a coordinator: addresses, certificates, tokens.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use evolver_proto::{MESSAGE_BYTES_MAX, v1::evolver_client::EvolverClient};
use thiserror::Error;
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

/// A client of a coordinator.
pub type Client = EvolverClient<InterceptedService<Channel, Bearer>>;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection that is half open is noticed after at most these two together.
const KEEPALIVE: Duration = Duration::from_secs(15);
const KEEPALIVE_ANSWER: Duration = Duration::from_secs(10);

/// Where coordinators are, and what they are shown.
#[derive(Clone, Debug, Default)]
pub struct Target {
    /// Coordinators of one search, as `host:port`: the one in service and those that stand by.
    pub addresses: Vec<String>,
    /// Folder with `ca.pem`, and `cert.pem` and `key.pem` if this side has a certificate; read anew for every connection.
    pub tls: Option<PathBuf>,
    /// File with a bearer token; read anew for every connection.
    pub token: Option<PathBuf>,
}

/// A coordinator that cannot be asked at all.
#[derive(Debug, Error)]
pub enum TargetError {
    /// Not `host:port`.
    #[error("{0:?} is not an address: host:port is expected")]
    Address(String),
    /// A file of ours cannot be read or used.
    #[error("{path}: {source}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The certificates do not make a connection.
    #[error("the certificates in {path} cannot be used: {source}", path = path.display())]
    Certificates {
        /// Their folder.
        path: PathBuf,
        /// Why.
        source: tonic::transport::Error,
    },
    /// A token would be readable by everyone on the way.
    #[error("a token travels over TLS only: name the folder with the coordinator's ca.pem by --tls")]
    TokenInTheClear,
}

impl Target {
    /// The addresses of a comma-separated list.
    #[must_use]
    pub fn split(list: &str) -> Vec<String> {
        list.split(',').map(str::trim).filter(|address| !address.is_empty()).map(str::to_owned).collect()
    }

    /// A client of the address with this index, counted around; it connects when it is first used.
    ///
    /// # Errors
    /// See [`TargetError`].
    pub fn client(&self, index: usize) -> Result<Client, TargetError> {
        let address = self.address(index);
        let endpoint = self.endpoint(address)?;
        Ok(EvolverClient::with_interceptor(endpoint.connect_lazy(), self.bearer()?)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX))
    }

    /// The address with this index, counted around.
    #[must_use]
    pub fn address(&self, index: usize) -> &str {
        if self.addresses.is_empty() { "" } else { &self.addresses[index % self.addresses.len()] }
    }

    fn endpoint(&self, address: &str) -> Result<Endpoint, TargetError> {
        let bare = address.trim_start_matches("http://").trim_start_matches("https://");
        if bare.is_empty() || !bare.contains(':') {
            return Err(TargetError::Address(address.to_owned()));
        }
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let endpoint =
            Endpoint::from_shared(format!("{scheme}://{bare}")).map_err(|_| TargetError::Address(address.to_owned()))?;
        let endpoint = endpoint
            .tcp_nodelay(true)
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE_ANSWER)
            .keep_alive_while_idle(true);
        let Some(folder) = &self.tls else {
            return Ok(endpoint);
        };
        let mut config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(&folder.join("ca.pem"))?));
        let (certificate, key) = (folder.join("cert.pem"), folder.join("key.pem"));
        if certificate.exists() {
            config = config.identity(Identity::from_pem(read(&certificate)?, read(&key)?));
        }
        endpoint.tls_config(config).map_err(|source| TargetError::Certificates { path: folder.clone(), source })
    }

    fn bearer(&self) -> Result<Bearer, TargetError> {
        let Some(path) = &self.token else {
            return Ok(Bearer(None));
        };
        if self.tls.is_none() {
            return Err(TargetError::TokenInTheClear);
        }
        let text = String::from_utf8_lossy(&read(path)?).trim().to_owned();
        let bad = || TargetError::File { path: path.clone(), source: io::Error::other("it holds no token") };
        let mut value: MetadataValue<Ascii> = format!("Bearer {text}").parse().map_err(|_| bad())?;
        value.set_sensitive(true);
        Ok(Bearer(Some(value)))
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TargetError> {
    fs::read(path).map_err(|source| TargetError::File { path: path.to_owned(), source })
}

/// Adds the token to every call.
#[derive(Clone, Debug)]
pub struct Bearer(Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", token.clone());
        }
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_addresses_is_split_and_walked_around() {
        let target = Target { addresses: Target::split("a:1, b:2,,"), ..Target::default() };
        assert_eq!((target.address(0), target.address(1), target.address(2)), ("a:1", "b:2", "a:1"));
        for wrong in ["", "host", "http://"] {
            let target = Target { addresses: vec![wrong.into()], ..Target::default() };
            assert!(matches!(target.client(0), Err(TargetError::Address(_))), "{wrong:?}");
        }
    }

    #[tokio::test]
    async fn a_token_never_travels_in_the_clear() {
        let folder = tempfile::tempdir().unwrap();
        let token = folder.path().join("token");
        fs::write(&token, "secret\n").unwrap();
        let target = Target { addresses: vec!["h:1".into()], token: Some(token), ..Target::default() };
        assert!(matches!(target.client(0), Err(TargetError::TokenInTheClear)));
        assert!(
            !format!(
                "{:?}",
                Bearer(Some({
                    let mut value: MetadataValue<Ascii> = "Bearer secret".parse().unwrap();
                    value.set_sensitive(true);
                    value
                }))
            )
            .contains("secret")
        );
    }
}
