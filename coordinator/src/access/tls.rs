//! The server's side of TLS 1.3: its certificate, whose certificates it accepts, which of them are revoked, and which bearer tokens it knows.
//!
//! The files are looked at about once a second and read anew when one has changed, so that certificates are renewed and revoked without a restart. A
//! connection that was made before a change ends at its next message and is made again under the new rules.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use evolver_common::digest::Digest;
use thiserror::Error;
use tokio_rustls::rustls::{
    self, RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{Principal, Role, is_name};

const FILES: [&str; 5] = ["cert.pem", "key.pem", "ca.pem", "crl.pem", "tokens"];
const LOOK: Duration = Duration::from_secs(1);

/// Files that do not make a secure server.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file is missing or unreadable.
    #[error("{path}: {what}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// They do not fit each other.
    #[error("the certificates in {path} cannot be used: {what}", path = path.display())]
    Misfit {
        /// The folder.
        path: PathBuf,
        /// Why.
        what: String,
    },
}

/// One reading of the files.
#[derive(Clone)]
struct Reading {
    config: Arc<ServerConfig>,
    tokens: Arc<HashMap<Digest, Principal>>,
}

/// The files of a folder, as they are now.
pub(crate) struct Tls {
    folder: PathBuf,
    state: Mutex<State>,
    generation: AtomicU64,
}

struct State {
    looked: Instant,
    stamps: Vec<Option<(SystemTime, u64)>>,
    reading: Reading,
}

impl Tls {
    pub(crate) fn open(folder: &Path) -> Result<Self, TlsError> {
        let stamps = stamps(folder);
        let reading = read(folder)?;
        let state = Mutex::new(State { looked: Instant::now(), stamps, reading });
        Ok(Self { folder: folder.to_owned(), state, generation: AtomicU64::new(0) })
    }

    fn current(&self) -> Reading {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.looked.elapsed() >= LOOK {
            state.looked = Instant::now();
            let stamps = stamps(&self.folder);
            if stamps != state.stamps {
                match read(&self.folder) {
                    Ok(reading) => {
                        tracing::info!("certificates and tokens in {} were read anew", self.folder.display());
                        (state.reading, state.stamps) = (reading, stamps);
                        self.generation.fetch_add(1, Ordering::Relaxed);
                    }
                    // They may be half written: the old ones hold, and the next look tries again.
                    Err(error) => tracing::warn!("the old certificates still hold: {error}"),
                }
            }
        }
        state.reading.clone()
    }

    pub(super) fn config(&self) -> Arc<ServerConfig> {
        self.current().config
    }

    /// Rises with every change of the files.
    pub(super) fn generation(&self) -> u64 {
        self.current();
        self.generation.load(Ordering::Relaxed)
    }

    /// Whose token this is. Found by its digest, so that the time it takes says nothing about it.
    pub(super) fn token(&self, token: &str) -> Option<Principal> {
        self.current().tokens.get(&Digest::of(token.as_bytes())).cloned()
    }
}

/// Name and role of a certificate: its common name and its organizational unit.
pub(super) fn principal(certificate: &CertificateDer<'_>) -> Option<Principal> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    let role = subject.iter_organizational_unit().next()?.as_str().ok()?.parse().ok()?;
    is_name(&name).then_some(Principal { name, role })
}

fn stamps(folder: &Path) -> Vec<Option<(SystemTime, u64)>> {
    let stamp = |name: &str| {
        let metadata = fs::metadata(folder.join(name)).ok()?;
        Some((metadata.modified().ok()?, metadata.len()))
    };
    FILES.iter().map(|name| stamp(name)).collect()
}

fn read(folder: &Path) -> Result<Reading, TlsError> {
    let path = |name: &str| folder.join(name);
    let file = |name: &str, what: &dyn ToString| TlsError::File { path: path(name), what: what.to_string() };
    let certificates = |name: &str| -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path(name)).map_err(|error| file(name, &error))?.collect();
        let found = found.map_err(|error| file(name, &error))?;
        if found.is_empty() { Err(file(name, &"it holds no certificate")) } else { Ok(found) }
    };
    let misfit = |what: &dyn ToString| TlsError::Misfit { path: folder.to_owned(), what: what.to_string() };
    let mut roots = RootCertStore::empty();
    for root in certificates("ca.pem")? {
        roots.add(root).map_err(|error| file("ca.pem", &error))?;
    }
    let provider = Arc::new(ring::default_provider());
    let mut verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    if path("crl.pem").exists() {
        let lists: Result<Vec<_>, _> =
            CertificateRevocationListDer::pem_file_iter(path("crl.pem")).map_err(|error| file("crl.pem", &error))?.collect();
        verifier = verifier.with_crls(lists.map_err(|error| file("crl.pem", &error))?).only_check_end_entity_revocation();
    }
    let tokens = tokens(&path("tokens")).map_err(|error| file("tokens", &error))?;
    if !tokens.is_empty() {
        // Who has a token needs no certificate.
        verifier = verifier.allow_unauthenticated();
    }
    let verifier = verifier.build().map_err(|error| misfit(&error))?;
    let key = PrivateKeyDer::from_pem_file(path("key.pem")).map_err(|error| file("key.pem", &error))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| misfit(&error))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates("cert.pem")?, key)
        .map_err(|error| misfit(&error))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    // A resumed session would be one whose certificate is not looked at again.
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Reading { config: Arc::new(config), tokens: Arc::new(tokens) })
}

/// Lines of role, name and the token's digest. No file is no tokens.
fn tokens(path: &Path) -> io::Result<HashMap<Digest, Principal>> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(HashMap::new()),
        Err(error) => return Err(error),
    };
    let mut tokens = HashMap::new();
    for (line, words) in (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()) {
        let bad = || io::Error::other(format!("line {line}: a role, a name and a token's digest are expected"));
        let words: Vec<_> = words.split_whitespace().collect();
        let [role, name, digest] = words[..] else { return Err(bad()) };
        let role: Role = role.parse().map_err(|_| bad())?;
        let digest = digest.parse().map_err(|_| bad())?;
        if !is_name(name) {
            return Err(bad());
        }
        tokens.insert(digest, Principal { name: name.to_owned(), role });
    }
    Ok(tokens)
}
