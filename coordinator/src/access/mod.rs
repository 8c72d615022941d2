//! Who may do what: certificates, tokens, roles, and the lines that say who tried.
//!
//! - [`certs`]: a certificate authority in a folder, and what it issues.
//! - [`tls`]: the server's side of TLS, read anew when its files change.
//! - [`guard`]: who calls, whether they may, and how often.
//! - [`listen`]: connections, with limits on their number and on how long they may say nothing.
//! - [`audit`]: what was refused, and what operators did.

mod audit;
pub mod certs;
mod guard;
mod listen;
mod tls;

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

pub use self::tls::TlsError;
pub(crate) use self::{
    audit::Audit,
    guard::{Caller, GuardLayer},
    listen::incoming,
};

/// How a coordinator's address is protected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Security {
    /// Plain text, for this machine alone: a listener beyond loopback is refused.
    Loopback,
    /// Plain text, for everyone who reaches the address, with every right.
    Insecure,
    /// TLS with what is in this folder: `cert.pem`, `key.pem`, `ca.pem`, and where they are there `crl.pem` and `tokens`.
    Tls(PathBuf),
}

/// Opens the server's side of TLS.
pub(crate) fn open_tls(folder: &Path) -> Result<Arc<tls::Tls>, TlsError> {
    tls::Tls::open(folder).map(Arc::new)
}

/// What a caller may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Lease and report.
    Worker,
    /// Watch and steer.
    Operator,
    /// Watch.
    Viewer,
}

impl Role {
    /// Every role with its name.
    pub const NAMES: [(&'static str, Role); 3] =
        [("worker", Role::Worker), ("operator", Role::Operator), ("viewer", Role::Viewer)];
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::NAMES.iter().find(|(_, role)| role == self).map_or("", |(name, _)| name);
        f.write_str(name)
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::NAMES.iter().find(|(name, _)| *name == text);
        found.map(|(_, role)| *role).ok_or_else(|| format!("{text:?} is not a role: worker, operator or viewer"))
    }
}

/// A caller that has shown who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Principal {
    pub(crate) name: String,
    pub(crate) role: Role,
}

/// Whether a text can be the name of a certificate or token: part of file names and of workers' names.
pub(crate) fn is_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    (1..=64).contains(&name.len()) && name.chars().all(plain) && !name.starts_with('.')
}
