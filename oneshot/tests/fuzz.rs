//! Readers of files from outside, under mutations of a kept corpus: nothing panics, hangs or is believed that should not be.
//!
//! A short run is an ordinary test. A long one: `PROPTEST_CASES=1000000 cargo test --release -p evolver-oneshot --test fuzz`. What fails is shrunk and
//! printed; put its bytes into the corpus.

use std::{fs, path::Path};

use evolver_common::checkpoint::{check_adapter_config, check_header, check_index};
use evolver_oneshot::{config::MergeConfig, vocabulary::Tokenizer};
use proptest::prelude::*;

/// One step away from a file of the corpus; places are shares of the length.
#[derive(Clone, Debug)]
enum Edit {
    Set(u16, u8),
    Cut(u16),
    Delete(u16, u8),
    Repeat(u16, u8),
    /// A piece that the format has words for.
    Insert(u16, usize),
    /// The number at the place, or the next one, becomes another.
    Number(u16, usize),
    /// Goes on with another file from the same place on.
    Splice(u16, usize),
}

const PIECES: [&str; 24] = [
    "\"",
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    "null",
    "true",
    "-1",
    "1e999",
    "\\u0000",
    "\\ud800",
    "\u{feff}",
    "../",
    "*a",
    "&a ",
    "<<: ",
    "!!binary ",
    "---\n",
    "\t",
    "\r\n",
    "# ",
    "F8_E4M3",
];
const NUMBERS: [&str; 8] =
    ["0", "-1", "1.5", "18446744073709551615", "18446744073709551616", "9223372036854775807", "1e308", "4294967296"];

fn edit() -> impl Strategy<Value = Edit> {
    let place = any::<u16>;
    prop_oneof![
        (place(), any::<u8>()).prop_map(|(at, byte)| Edit::Set(at, byte)),
        place().prop_map(Edit::Cut),
        (place(), any::<u8>()).prop_map(|(at, count)| Edit::Delete(at, count)),
        (place(), any::<u8>()).prop_map(|(at, count)| Edit::Repeat(at, count)),
        (place(), 0..PIECES.len()).prop_map(|(at, piece)| Edit::Insert(at, piece)),
        (place(), 0..NUMBERS.len()).prop_map(|(at, number)| Edit::Number(at, number)),
        (place(), any::<usize>()).prop_map(|(at, other)| Edit::Splice(at, other)),
    ]
}

fn apply(edits: &[Edit], mut bytes: Vec<u8>, corpus: &[Vec<u8>]) -> Vec<u8> {
    for edit in edits {
        let length = bytes.len();
        let at = |share: u16| (usize::from(share) * (length + 1)) >> 16;
        match edit {
            Edit::Set(place, byte) => {
                if let Some(target) = bytes.get_mut(at(*place)) {
                    *target = *byte;
                }
            }
            Edit::Cut(place) => bytes.truncate(at(*place)),
            Edit::Delete(place, count) => drop(bytes.drain(at(*place)..length.min(at(*place) + usize::from(*count)))),
            Edit::Repeat(place, count) => {
                let range = at(*place)..length.min(at(*place) + usize::from(*count));
                let piece = bytes[range.clone()].to_vec();
                bytes.splice(range.end..range.end, piece);
            }
            Edit::Insert(place, piece) => drop(bytes.splice(at(*place)..at(*place), PIECES[*piece].bytes()).collect::<Vec<_>>()),
            Edit::Number(place, number) => {
                let from = at(*place);
                if let Some(start) = bytes[from..].iter().position(u8::is_ascii_digit).map(|start| from + start) {
                    let digits = bytes[start..].iter().take_while(|byte| byte.is_ascii_digit()).count();
                    drop(bytes.splice(start..start + digits, NUMBERS[*number].bytes()).collect::<Vec<_>>());
                }
            }
            Edit::Splice(place, other) => {
                let other = &corpus[other % corpus.len()];
                bytes.truncate(at(*place));
                bytes.extend(other.iter().skip(at(*place)));
            }
        }
    }
    bytes
}

/// The files of one folder of the corpus, by name; those whose names begin with `good` must be accepted and the others refused.
fn corpus(name: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(name);
    let file = |entry: fs::DirEntry| (entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path()).unwrap());
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| file(entry.unwrap())).collect();
    files.sort();
    files
}

/// Runs a reader over the corpus as it is, then over mutations of it. Whether a file is accepted is what `read` gives.
fn fuzz(name: &str, read: impl Fn(&[u8]) -> bool) {
    let files = corpus(name);
    for (file, bytes) in &files {
        assert_eq!(read(bytes), file.starts_with("good"), "{name}/{file}");
    }
    let files: Vec<_> = files.into_iter().map(|(_, bytes)| bytes).collect();
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(3000);
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let strategy = (0..files.len(), proptest::collection::vec(edit(), 1..6));
    let accepted = std::cell::Cell::new(0u32);
    let result = runner.run(&strategy, |(file, edits)| {
        let bytes = apply(&edits, files[file].clone(), &files);
        accepted.set(accepted.get() + u32::from(read(&bytes)));
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
    // Mutations that are all refused at the door would test nothing behind it.
    assert!(accepted.get() > cases / 100, "only {} of {cases} mutations got through", accepted.get());
}

#[test]
fn headers() {
    fuzz("header", |bytes| {
        let Ok(tensors) = check_header(bytes) else { return false };
        // What is let through, the format's own reader has to agree with.
        let file =
            safetensors::SafeTensors::deserialize(bytes).unwrap_or_else(|error| panic!("accepted, and safetensors says {error}"));
        assert_eq!(file.len(), tensors);
        true
    });
}

#[test]
fn indices() {
    fuzz("index", |bytes| check_index(bytes).is_ok());
}

#[test]
fn adapter_configs() {
    fuzz("adapter", |bytes| check_adapter_config(bytes).is_ok());
}

#[test]
fn merge_definitions() {
    fuzz("yaml", |bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else { return false };
        let Ok(config) = MergeConfig::parse(text, Path::new("/d/merge.yaml")) else { return false };
        assert!(!config.models().is_empty() && !config.method.is_empty());
        true
    });
}

#[test]
fn tokenizers() {
    fuzz("tokenizer", |bytes| {
        let Ok(tokenizer) = Tokenizer::parse(bytes) else { return false };
        assert_eq!(tokenizer.by_id().keys().last().map_or(0, |last| last + 1), tokenizer.size());
        true
    });
}
