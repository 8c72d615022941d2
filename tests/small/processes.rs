//! Processes of a run: who there is, and signals to them.

use std::{
    fs,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// Living processes whose parent is one of these.
pub(crate) fn children_of(parents: &[u32]) -> Vec<u32> {
    let alive_child = |pid: u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let mut fields = stat[stat.rfind(')')? + 1..].split_whitespace();
        let state = fields.next()?;
        let parent: u32 = fields.next()?.parse().ok()?;
        (state != "Z" && parents.contains(&parent)).then_some(pid)
    };
    let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter_map(alive_child).collect()
}

/// The building and scoring processes of a run: its agents' children.
pub(crate) fn scorers_of(run: u32) -> Vec<u32> {
    children_of(&children_of(&[run]))
}

/// Whether the signal, such as `-KILL`, reached a process.
pub(crate) fn signal(pid: u32, name: &str) -> bool {
    Command::new("kill").args([name, &pid.to_string()]).stderr(Stdio::null()).status().unwrap().success()
}

/// Looks again and again until there is something; a test that waits for ever fails.
pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
