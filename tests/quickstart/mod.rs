//! The quickstart's real model and data, fetched once into the target folder.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The prepared folder: `base`, `experts`, `data`. Tests and test programs that need it at once wait for each other.
pub(crate) fn folder() -> PathBuf {
    let root = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let folder = root.join("quickstart");
    let lock = fs::File::create(root.join("quickstart.lock")).unwrap();
    lock.lock().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_evolver"))
        .args(["quickstart", "--prepare-only", "--dir"])
        .arg(&folder)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    folder
}
