//! `certs`: certificates and tokens of a fleet.

use std::io::Write as _;

use evolver_coordinator::access::certs::{Authority, CertsError};

use crate::{
    cli::{self, Issue},
    fail::refuse,
};

pub(crate) fn certs(options: &cli::Certs) -> anyhow::Result<()> {
    let asked = |error: CertsError| match error {
        CertsError::Asked(_) => refuse(error),
        other => other.into(),
    };
    let authority = Authority::open(&options.dir).map_err(asked)?;
    let mut out = std::io::stdout();
    match &options.what {
        Issue::Coordinator { hosts, days } => {
            let folder = authority.coordinator(hosts, *days).map_err(asked)?;
            writeln!(out, "{}: start the coordinator with --tls and this folder", folder.display())?;
        }
        Issue::Member { name, role, days } => {
            let folder = authority.member(name, *role, *days).map_err(asked)?;
            writeln!(
                out,
                "{}: copy this folder to the machine of {name} ({role}), and name it there by --tls",
                folder.display()
            )?;
        }
        Issue::Token { name, role } => writeln!(out, "{}", authority.token(name, *role).map_err(asked)?)?,
        Issue::Revoke { name } => {
            let count = authority.revoke(name).map_err(asked)?;
            writeln!(
                out,
                "{count} revoked; a coordinator that runs with {}/coordinator heeds it within seconds",
                options.dir.display()
            )?;
        }
    }
    Ok(())
}
