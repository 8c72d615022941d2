//! The limits that a child sets itself before it opens anything: what goes beyond them costs one attempt and not the machine.

use evolver_common::definition::Evaluator;

/// Applies the definition's limits to this process.
///
/// # Errors
/// If the system refuses, a sentence.
#[cfg(unix)]
pub(super) fn apply(settings: &Evaluator) -> Result<(), String> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let set = |resource, limit: u64, key: &str| {
        // A hard limit that is lower already holds.
        let maximum = getrlimit(resource).maximum;
        let limit = maximum.map_or(limit, |maximum| limit.min(maximum));
        setrlimit(resource, Rlimit { current: Some(limit), maximum: Some(limit) })
            .map_err(|error| format!("{key} cannot be set to {limit}: {error}"))
    };
    // A core file of a process that maps checkpoints fills disks.
    set(Resource::Core, 0, "the size of core files")?;
    if settings.memory_bytes > 0 {
        // The data limit counts private memory, and not files mapped for reading, which can be far larger than the machine's memory.
        set(Resource::Data, settings.memory_bytes, "evaluator.memory_bytes")?;
    }
    if settings.open_files > 0 {
        set(Resource::Nofile, settings.open_files, "evaluator.open_files")?;
    }
    Ok(())
}

#[cfg(not(unix))]
pub(super) fn apply(_: &Evaluator) -> Result<(), String> {
    Ok(())
}
