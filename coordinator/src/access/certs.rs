//! A certificate authority in a folder, for one fleet:
//!
//! - `ca/`: the authority's certificate and key, and `issued.jsonl`, what it has issued. Stays where it was made.
//! - `coordinator/`: `cert.pem`, `key.pem`, `ca.pem`, `crl.pem`, `tokens`: what a coordinator is started with.
//! - `<name>/`: `cert.pem`, `key.pem`, `ca.pem`: copied to the machine of that worker, operator or viewer.

use std::{
    fs, io,
    io::Write as _,
    path::{Path, PathBuf},
};

use evolver_common::digest::Digest;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyIdMethod, KeyPair, KeyUsagePurpose, RevocationReason, RevokedCertParams, SerialNumber,
};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use time::{Duration, OffsetDateTime};

use super::{Role, is_name};

const COORDINATOR: &str = "coordinator";
const AUTHORITY: &str = "ca";
const AUTHORITY_DAYS: i64 = 3650;
/// Clocks of a fleet may differ by this much.
const SKEW: Duration = Duration::hours(1);

/// What an authority cannot do.
#[derive(Debug, Error)]
pub enum CertsError {
    /// A file cannot be read or written.
    #[error("{path}: {source}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A key or certificate cannot be made.
    #[error("a certificate cannot be made: {0}")]
    Make(#[from] rcgen::Error),
    /// What was asked cannot be.
    #[error("{0}")]
    Asked(String),
}

/// An authority.
pub struct Authority {
    folder: PathBuf,
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

/// What was issued.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Issued {
    name: String,
    role: String,
    serial: String,
    /// Seconds since 1970.
    until: i64,
    revoked: bool,
}

impl Authority {
    /// Opens the authority of a folder, making it if there is none.
    ///
    /// # Errors
    /// See [`CertsError`].
    pub fn open(folder: &Path) -> Result<Self, CertsError> {
        let own = folder.join(AUTHORITY);
        let (certificate, key) = (own.join("ca.pem"), own.join("ca.key"));
        if !key.exists() {
            let mut params = params("evolver", AUTHORITY_DAYS)?;
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            let pair = KeyPair::generate()?;
            let made = params.self_signed(&pair)?;
            write(&certificate, made.pem().as_bytes(), false)?;
            write(&key, pair.serialize_pem().as_bytes(), true)?;
        }
        let certificate = read(&certificate)?;
        let issuer = Issuer::from_ca_cert_pem(&certificate, KeyPair::from_pem(&read(&key)?)?)?;
        Ok(Self { folder: folder.to_owned(), issuer, certificate })
    }

    /// Issues the coordinator's certificate for the names and addresses that workers will connect to. The folder that holds it.
    ///
    /// # Errors
    /// See [`CertsError`].
    pub fn coordinator(&self, hosts: &[String], days: i64) -> Result<PathBuf, CertsError> {
        if hosts.is_empty() {
            return Err(CertsError::Asked("name at least one host that workers will connect to".into()));
        }
        let mut params = params(COORDINATOR, days)?;
        params.subject_alt_names = CertificateParams::new(hosts)?.subject_alt_names;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.issue(COORDINATOR, COORDINATOR, params)?;
        self.write_revoked()?;
        Ok(self.folder.join(COORDINATOR))
    }

    /// Issues a certificate to someone who calls. The folder that holds it.
    ///
    /// # Errors
    /// See [`CertsError`].
    pub fn member(&self, name: &str, role: Role, days: i64) -> Result<PathBuf, CertsError> {
        check_name(name)?;
        let mut params = params(name, days)?;
        params.distinguished_name.push(DnType::OrganizationalUnitName, role.to_string());
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(name, &role.to_string(), params)?;
        Ok(self.folder.join(name))
    }

    /// Makes a bearer token; its digest goes to the coordinator's folder, and itself nowhere but to the caller.
    ///
    /// # Errors
    /// See [`CertsError`].
    pub fn token(&self, name: &str, role: Role) -> Result<String, CertsError> {
        check_name(name)?;
        let token = hex::encode(random()?);
        let path = self.folder.join(COORDINATOR).join("tokens");
        let mut lines = if path.exists() { read(&path)? } else { String::new() };
        lines.push_str(&format!("{role} {name} {}\n", Digest::of(token.as_bytes())));
        write(&path, lines.as_bytes(), true)?;
        Ok(token)
    }

    /// Revokes every certificate and token of a name; the coordinator heeds it within seconds. How many there were.
    ///
    /// # Errors
    /// If there is none, and see [`CertsError`].
    pub fn revoke(&self, name: &str) -> Result<usize, CertsError> {
        let mut issued = self.issued()?;
        let mut count = 0;
        for entry in issued.iter_mut().filter(|entry| entry.name == name && !entry.revoked) {
            entry.revoked = true;
            count += 1;
        }
        let path = self.folder.join(COORDINATOR).join("tokens");
        if path.exists() {
            let lines = read(&path)?;
            let of_name = |line: &&str| line.split_whitespace().nth(1) == Some(name);
            let kept: String = lines.lines().filter(|line| !of_name(line)).map(|line| format!("{line}\n")).collect();
            count += lines.lines().filter(of_name).count();
            write(&path, kept.as_bytes(), true)?;
        }
        if count == 0 {
            return Err(CertsError::Asked(format!("{name:?} has neither a certificate nor a token that could be revoked")));
        }
        self.write_issued(&issued)?;
        self.write_revoked()?;
        Ok(count)
    }

    fn issue(&self, name: &str, role: &str, mut params: CertificateParams) -> Result<(), CertsError> {
        let serial = random()?[..16].to_vec();
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let until = params.not_after.unix_timestamp();
        let pair = KeyPair::generate()?;
        let made = params.signed_by(&pair, &self.issuer)?;
        let folder = self.folder.join(name);
        // The key first: a certificate without its key is what a reload would trip over.
        write(&folder.join("key.pem"), pair.serialize_pem().as_bytes(), true)?;
        write(&folder.join("ca.pem"), self.certificate.as_bytes(), false)?;
        write(&folder.join("cert.pem"), made.pem().as_bytes(), false)?;
        let mut issued = self.issued()?;
        issued.push(Issued { name: name.into(), role: role.into(), serial: hex::encode(serial), until, revoked: false });
        self.write_issued(&issued)
    }

    fn issued(&self) -> Result<Vec<Issued>, CertsError> {
        let path = self.folder.join(AUTHORITY).join("issued.jsonl");
        if !path.exists() {
            return Ok(Vec::new());
        }
        let bad = |error: serde_json::Error| CertsError::File { path: path.clone(), source: error.into() };
        read(&path)?.lines().map(|line| serde_json::from_str(line).map_err(bad)).collect()
    }

    fn write_issued(&self, issued: &[Issued]) -> Result<(), CertsError> {
        let line = |entry: &Issued| serde_json::to_string(entry).map(|line| line + "\n");
        let lines: Result<String, _> = issued.iter().map(line).collect();
        let path = self.folder.join(AUTHORITY).join("issued.jsonl");
        let lines = lines.map_err(|error| CertsError::File { path: path.clone(), source: error.into() })?;
        write(&path, lines.as_bytes(), false)
    }

    fn write_revoked(&self) -> Result<(), CertsError> {
        let now = OffsetDateTime::now_utc();
        let revoked = self.issued()?.into_iter().filter(|entry| entry.revoked).filter_map(|entry| {
            Some(RevokedCertParams {
                serial_number: SerialNumber::from_slice(&hex::decode(&entry.serial).ok()?),
                revocation_time: now,
                reason_code: Some(RevocationReason::PrivilegeWithdrawn),
                invalidity_date: None,
            })
        });
        let list = CertificateRevocationListParams {
            this_update: now - SKEW,
            next_update: now + Duration::days(AUTHORITY_DAYS),
            crl_number: SerialNumber::from_slice(&now.unix_timestamp().to_be_bytes()),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&self.issuer)?;
        write(&self.folder.join(COORDINATOR).join("crl.pem"), list.pem()?.as_bytes(), false)
    }
}

fn check_name(name: &str) -> Result<(), CertsError> {
    if is_name(name) && name != COORDINATOR && name != AUTHORITY {
        return Ok(());
    }
    Err(CertsError::Asked(format!(
        "{name:?} cannot be a name here: letters, digits, dots, dashes and underscores, at most 64, and neither {COORDINATOR:?} nor {AUTHORITY:?}"
    )))
}

fn params(name: &str, days: i64) -> Result<CertificateParams, CertsError> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let now = OffsetDateTime::now_utc();
    params.not_before = now - SKEW;
    params.not_after =
        now.checked_add(Duration::days(days)).ok_or_else(|| CertsError::Asked(format!("{days} days are too many")))?;
    Ok(params)
}

fn random() -> Result<[u8; 32], CertsError> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|error| CertsError::Asked(format!("the system gives no randomness: {error}")))?;
    // A serial number is positive.
    bytes[0] &= 0x7f;
    Ok(bytes)
}

fn read(path: &Path) -> Result<String, CertsError> {
    fs::read_to_string(path).map_err(|source| CertsError::File { path: path.to_owned(), source })
}

/// Whole or not at all; a secret is its owner's alone from its first byte on.
fn write(path: &Path, bytes: &[u8], secret: bool) -> Result<(), CertsError> {
    let write = || {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let partial = path.with_extension("partial");
        fs::remove_file(&partial).ok();
        let mut options = fs::File::options();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, if secret { 0o600 } else { 0o644 });
        let mut file = options.open(&partial)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&partial, path)
    };
    write().map_err(|source| CertsError::File { path: path.to_owned(), source })
}
