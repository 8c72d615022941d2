//! One coordinator a folder: an operating-system lock that a dead process loses at once.

use std::{
    fs::{File, TryLockError},
    io::{Read as _, Seek as _, Write as _},
    path::{Path, PathBuf},
};

use thiserror::Error;

/// A folder that is in use.
#[derive(Debug, Error)]
pub enum LockError {
    /// Another coordinator has it.
    #[error("{path} is in use by another coordinator ({holder}): stop it first, or use another --dir", path = path.display())]
    Held {
        /// The folder.
        path: PathBuf,
        /// What the other says of itself.
        holder: String,
    },
    /// The lock file cannot be used.
    #[error("cannot lock {path}: {source}", path = path.display())]
    Io {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// Takes the folder's lock; it is held as long as the file is open.
pub(super) fn lock(folder: &Path) -> Result<File, LockError> {
    let io = |source| LockError::Io { path: folder.to_owned(), source };
    let path = folder.join("lock");
    let mut file = File::options().read(true).write(true).create(true).truncate(false).open(&path).map_err(io)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            file.read_to_string(&mut holder).map_err(io)?;
            return Err(LockError::Held { path: folder.to_owned(), holder: holder.trim().to_owned() });
        }
        Err(TryLockError::Error(source)) => return Err(io(source)),
    }
    let mut write = || {
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "process {}", std::process::id())
    };
    write().map_err(io)?;
    Ok(file)
}
