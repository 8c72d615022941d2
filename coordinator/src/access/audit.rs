//! Audit lines: who was refused what and why, and what operators did; JSON lines in the search's folder.
//!
//! Never more than the disk can bear: so many a second, and two files of limited size. No line holds a key, a token or a score.

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use serde_json::json;

const FILE: &str = "audit.jsonl";
const OLDER: &str = "audit.older.jsonl";
/// Size at which a file is put aside, in bytes.
const SIZE_MAX: u64 = 8 << 20;
/// Lines a second.
const RATE: u32 = 20;
/// Longest text of a line's part, in bytes.
const TEXT_MAX: usize = 300;

/// Writes audit lines; what cannot be written is logged instead.
pub(crate) struct Audit {
    folder: PathBuf,
    state: Mutex<State>,
}

struct State {
    file: Option<File>,
    second: Instant,
    lines: u32,
    dropped: u64,
}

impl Audit {
    pub(crate) fn open(folder: &Path) -> Self {
        let state = State { file: None, second: Instant::now(), lines: 0, dropped: 0 };
        Self { folder: folder.to_owned(), state: Mutex::new(state) }
    }

    /// Notes that `who` at `peer` tried `what`, and what came of it.
    pub(crate) fn note(&self, who: &str, peer: &str, what: &str, outcome: &str) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.second.elapsed().as_secs() >= 1 {
            (state.second, state.lines) = (Instant::now(), 0);
        }
        if state.lines >= RATE {
            state.dropped += 1;
            return;
        }
        state.lines += 1;
        let cut = |text: &str| text[..text.floor_char_boundary(TEXT_MAX)].to_owned();
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let mut line = json!({ "time": seconds, "who": cut(who), "peer": peer, "what": cut(what), "outcome": cut(outcome) });
        if state.dropped > 0 {
            line["dropped_before"] = state.dropped.into();
            state.dropped = 0;
        }
        if let Err(error) = self.write(&mut state, &format!("{line}\n")) {
            tracing::warn!("the audit line {line} cannot be written: {error}");
        }
    }

    fn write(&self, state: &mut State, line: &str) -> std::io::Result<()> {
        let path = self.folder.join(FILE);
        let full = |file: &File| file.metadata().is_ok_and(|metadata| metadata.len() >= SIZE_MAX);
        if state.file.as_ref().is_some_and(full) {
            state.file = None;
            fs::rename(&path, self.folder.join(OLDER))?;
        }
        let file = match &mut state.file {
            Some(file) => file,
            empty => empty.insert(File::options().append(true).create(true).open(&path)?),
        };
        file.write_all(line.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_lines_is_counted_and_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let audit = Audit::open(folder.path());
        for turn in 0..1000 {
            audit.note("someone", "peer", "Lease", &format!("{turn} {}", "x".repeat(10_000)));
        }
        std::thread::sleep(std::time::Duration::from_millis(1100));
        audit.note("someone", "peer", "Lease", "last");
        let text = fs::read_to_string(folder.path().join(FILE)).unwrap();
        let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!((21..=60).contains(&lines.len()), "{}", lines.len());
        let dropped: u64 = lines.iter().filter_map(|line| line["dropped_before"].as_u64()).sum();
        assert_eq!(lines.len() as u64 + dropped, 1001);
        assert!(text.len() < 60 * 600);
    }
}
