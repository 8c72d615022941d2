//! Power loss: everything that the journal writes and syncs is recorded, and cut at every place, with any part of what was not synced by then.
//!
//! A process that appends is watched by `strace`, so what is replayed is what the system was asked for, not what we believe. `EVOLVER_CUTS=100000` makes
//! more cuts. Where `strace` cannot run, the test says so.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use evolver_common::{
    digest::Digest,
    score::{Scores, classification},
};
use evolver_coordinator::journal::{Journal, Log as _, Record, Timings};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

/// Groups that are appended: enough for the write-ahead log to be copied into the database more than once.
const GROUPS: usize = 90;
/// Cuts of an ordinary run.
const CUTS: u64 = 800;
/// What a disk writes whole.
const SECTOR: usize = 512;

fn group(index: usize) -> Vec<Record> {
    let truth: Vec<_> = (0..2500 + 37 * index % 900).map(|item| item % 3).collect();
    let predicted: Vec<_> = truth.iter().map(|label| (label + index % 2) % 3).collect();
    let result = |part: usize| Record::Result {
        number: (3 * index + part) as u64,
        recipe: Digest::of(&[index as u8, part as u8]),
        scores: Scores { tasks: vec![classification("t", &truth, &predicted, 3)] },
        worker: "w".repeat(1 + index % 50),
        attempt: 1,
        timings: Timings::default(),
        elapsed: index as f64,
    };
    (0..1 + index % 3).map(result).collect()
}

/// The process that is watched; not a test of its own.
#[test]
#[ignore = "started by the test below"]
fn append_and_say_so() {
    let Some(folder) = std::env::var_os("EVOLVER_RECORDED") else { return };
    let (mut journal, _) = Journal::open(Path::new(&folder)).unwrap();
    for index in 0..GROUPS {
        journal.append(&group(index)).unwrap();
        // The acknowledgement, in the record of what was asked of the system.
        let mut said = std::io::stdout().lock();
        said.write_all(b"ACKNOWLEDGED\n").unwrap();
        said.flush().unwrap();
    }
}

/// What the system was asked for.
#[derive(Clone, Debug)]
enum Step {
    Create(String),
    Write(String, usize, Vec<u8>),
    Truncate(String, usize),
    Sync(String),
    SyncFolder,
    Unlink(String),
    Acknowledged,
}

fn unescape(text: &str) -> Vec<u8> {
    let digit = |c: u8| (c as char).to_digit(16).unwrap() as u8;
    let bytes: Vec<_> = text.bytes().collect();
    assert!(bytes.len() % 4 == 0, "strace wrote {text:.60}");
    bytes.chunks(4).map(|escape| digit(escape[2]) << 4 | digit(escape[3])).collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Reads strace's lines; names are those of files in `folder`.
fn parse(trace: &str, folder: &Path) -> Vec<Step> {
    let mut open = BTreeMap::<(String, i64), String>::new();
    let mut steps = Vec::new();
    let mut known = std::collections::BTreeSet::new();
    for line in trace.lines() {
        let Some((thread, call)) = line.split_once(' ') else { continue };
        // Threads share their files.
        let process = String::new();
        let call = call.trim();
        assert!(!call.contains("<unfinished"), "two threads at once: {thread} {call:.80}");
        let Some((name, rest)) = call.split_once('(') else { continue };
        let Some((arguments, result)) = rest.rsplit_once(" = ") else { continue };
        let result: i64 = result.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(-1);
        let arguments = arguments.trim_end().trim_end_matches(')');
        let quoted = || {
            let from = arguments.find('"').unwrap() + 1;
            let to = from + arguments[from..].find('"').unwrap();
            (unescape(&arguments[from..to]), &arguments[to + 1..])
        };
        let number = |text: &str| text.trim().trim_start_matches(',').trim().parse::<i64>().unwrap();
        let file = |open: &BTreeMap<(String, i64), String>| {
            let descriptor: i64 = arguments.split(',').next().unwrap().trim().parse().unwrap();
            open.get(&(process.clone(), descriptor)).cloned()
        };
        match name {
            "openat" if result >= 0 => {
                let path = PathBuf::from(text(&quoted().0));
                if path == folder {
                    open.insert((process, result), ".".into());
                } else if path.parent() == Some(folder) {
                    let name = path.file_name().unwrap().to_string_lossy().into_owned();
                    if arguments.contains("O_CREAT") && known.insert(name.clone()) {
                        steps.push(Step::Create(name.clone()));
                    }
                    open.insert((process, result), name);
                } else {
                    open.remove(&(process, result));
                }
            }
            "close" => {
                let descriptor = number(arguments);
                open.remove(&(process, descriptor));
            }
            "pwrite64" if result >= 0 => {
                if let Some(file) = file(&open) {
                    let (bytes, rest) = quoted();
                    let at = number(rest.rsplit(',').next().unwrap());
                    assert_eq!(bytes.len() as i64, result);
                    steps.push(Step::Write(file, usize::try_from(at).unwrap(), bytes));
                }
            }
            "write" if result >= 0 => {
                let (bytes, _) = quoted();
                if bytes == b"ACKNOWLEDGED\n" {
                    steps.push(Step::Acknowledged);
                } else if let Some(file) = file(&open) {
                    // Head and lock are small and always written from their beginning.
                    steps.push(Step::Write(file, 0, bytes));
                }
            }
            "ftruncate" if result == 0 => {
                if let Some(file) = file(&open) {
                    steps.push(Step::Truncate(file, usize::try_from(number(arguments.rsplit(',').next().unwrap())).unwrap()));
                }
            }
            "fsync" | "fdatasync" if result == 0 => match file(&open).as_deref() {
                Some(".") => steps.push(Step::SyncFolder),
                Some(file) => steps.push(Step::Sync(file.into())),
                None => {}
            },
            "unlink" if result == 0 => {
                let path = PathBuf::from(text(&quoted().0));
                if path.parent() == Some(folder) {
                    let name = path.file_name().unwrap().to_string_lossy().into_owned();
                    known.remove(&name);
                    steps.push(Step::Unlink(name));
                }
            }
            _ => {}
        }
    }
    steps
}

fn record() -> Option<Vec<Step>> {
    let folder = tempfile::tempdir().unwrap();
    let search = folder.path().join("search");
    let trace = folder.path().join("trace");
    let calls = "trace=openat,close,write,pwrite64,ftruncate,fsync,fdatasync,unlink";
    let watched = Command::new("strace")
        .args(["-f", "-xx", "-s", "2000000", "-e", calls, "-o"])
        .arg(&trace)
        .arg(std::env::current_exe().unwrap())
        .args(["append_and_say_so", "--exact", "--ignored", "--nocapture", "--test-threads=1"])
        .env("EVOLVER_RECORDED", &search)
        .output();
    let Ok(watched) = watched else { return None };
    if !trace.exists() {
        return None;
    }
    assert!(watched.status.success(), "{}", String::from_utf8_lossy(&watched.stderr));
    Some(parse(&fs::read_to_string(&trace).unwrap(), &search))
}

/// A file on a disk: what is surely there, and what may be.
#[derive(Clone, Default)]
struct File {
    durable: Vec<u8>,
    /// Whether its name outlasts a power loss.
    named: bool,
    /// Whether its name was taken away, which a power loss may undo.
    unlinked: bool,
    pending: Vec<Step>,
}

fn apply(bytes: &mut Vec<u8>, step: &Step, mut kept: impl FnMut() -> bool) {
    match step {
        Step::Write(_, at, new) => {
            for (index, sector) in new.chunks(SECTOR).enumerate() {
                if kept() {
                    let from = at + index * SECTOR;
                    if bytes.len() < from + sector.len() {
                        bytes.resize(from + sector.len(), 0);
                    }
                    bytes[from..from + sector.len()].copy_from_slice(sector);
                }
            }
        }
        Step::Truncate(_, length) if kept() => bytes.resize(*length, 0),
        _ => {}
    }
}

/// The disk after the first `count` steps.
fn disk(steps: &[Step]) -> (BTreeMap<String, File>, usize) {
    let mut files = BTreeMap::<String, File>::new();
    let mut acknowledged = 0;
    for step in steps {
        match step {
            Step::Create(name) => {
                files.insert(name.clone(), File::default());
            }
            Step::Write(name, ..) | Step::Truncate(name, _) => files.entry(name.clone()).or_default().pending.push(step.clone()),
            Step::Sync(name) => {
                let file = files.entry(name.clone()).or_default();
                for step in std::mem::take(&mut file.pending) {
                    apply(&mut file.durable, &step, || true);
                }
            }
            Step::SyncFolder => {
                files.retain(|_, file| !file.unlinked);
                files.values_mut().for_each(|file| file.named = true);
            }
            Step::Unlink(name) => files.entry(name.clone()).or_default().unlinked = true,
            Step::Acknowledged => acknowledged += 1,
        }
    }
    (files, acknowledged)
}

/// Leaves on `folder` what a power loss may leave.
fn lose(files: &BTreeMap<String, File>, random: &mut ChaCha8Rng, folder: &Path) {
    // All, nothing, or any part of what was not synced.
    let share = [0.0, 1.0, 0.5, 0.1, 0.9][random.random_range(0..5)];
    for (name, file) in files.iter().filter(|(name, _)| !name.ends_with("-shm") && *name != "lock") {
        if (!file.named || file.unlinked) && random.random_bool(0.5) {
            continue;
        }
        let mut bytes = file.durable.clone();
        for step in &file.pending {
            apply(&mut bytes, step, || random.random_bool(share));
        }
        fs::write(folder.join(name), bytes).unwrap();
    }
}

#[test]
fn after_any_power_loss_the_journal_opens_with_all_that_was_acknowledged_and_goes_on() {
    let Some(steps) = record() else {
        println!("skipped: strace cannot run here");
        return;
    };
    let count = |what: fn(&Step) -> bool| steps.iter().filter(|step| what(step)).count();
    assert_eq!(count(|step| matches!(step, Step::Acknowledged)), GROUPS);
    assert!(count(|step| matches!(step, Step::Sync(name) if name.ends_with("-wal"))) >= GROUPS, "every append syncs the log");
    let copied = count(|step| matches!(step, Step::Sync(name) if name.ends_with("sqlite")));
    assert!(copied >= 2, "the log was copied into the database {copied} times");
    let all: Vec<Vec<Record>> = (0..GROUPS).map(group).collect();
    let whole: Vec<Record> = all.concat();
    let cuts: u64 = std::env::var("EVOLVER_CUTS").ok().and_then(|text| text.parse().ok()).unwrap_or(CUTS);
    let (next, wrong, lost) = (AtomicU64::new(0), Mutex::new(None::<String>), AtomicU64::new(0));
    let work = || {
        // In memory: what is tested is the model of a disk, not this one.
        let place = if Path::new("/dev/shm").is_dir() { "/dev/shm".into() } else { std::env::temp_dir() };
        loop {
            let cut = next.fetch_add(1, Ordering::Relaxed);
            if cut >= cuts || wrong.lock().unwrap().is_some() {
                return;
            }
            let mut random = ChaCha8Rng::seed_from_u64(cut);
            // Many cuts cover every place; few are spread over all of them.
            let at = if cuts > steps.len() as u64 && cut <= steps.len() as u64 {
                usize::try_from(cut).unwrap()
            } else {
                random.random_range(0..=steps.len())
            };
            let (files, acknowledged) = disk(&steps[..at]);
            let folder = tempfile::tempdir_in(&place).unwrap();
            lose(&files, &mut random, folder.path());
            let due: usize = all[..acknowledged].iter().map(Vec::len).sum();
            let outcome = check(folder.path(), due, &whole, &lost);
            if let Err(error) = outcome {
                *wrong.lock().unwrap() = Some(format!("cut {cut}, after step {at} of {}: {error}", steps.len()));
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from).min(8) {
            scope.spawn(work);
        }
    });
    if let Some(error) = wrong.into_inner().unwrap() {
        panic!("{error}");
    }
    println!(
        "{cuts} cuts of {} steps; in {} of them something that was not acknowledged was there",
        steps.len(),
        lost.into_inner()
    );
}

fn check(folder: &Path, due: usize, whole: &[Record], more: &AtomicU64) -> Result<(), String> {
    let (mut journal, records) = Journal::open(folder).map_err(|error| format!("it does not open: {error}"))?;
    if records.len() < due {
        return Err(format!("{due} records were acknowledged, and {} are there", records.len()));
    }
    if records != whole[..records.len()] {
        return Err("the records are not those that were written".into());
    }
    more.fetch_add(u64::from(records.len() > due), Ordering::Relaxed);
    let after = Record::Stop { number: 7, reason: "after".into() };
    journal.append(std::slice::from_ref(&after)).map_err(|error| format!("it does not go on: {error}"))?;
    drop(journal);
    let (_, again) = Journal::open(folder).map_err(|error| format!("it does not open again: {error}"))?;
    if again.len() != records.len() + 1 || again.last() != Some(&after) {
        return Err("what was appended afterwards is not there".into());
    }
    Ok(())
}
