//! Bytes from outside, bent at random over a kept corpus: recipes, reports, journal records. Nothing panics, and what is taken is what was meant.
//!
//! `EVOLVER_FUZZ=1000000` bends each seed so often. What once went wrong is kept as a line in `tests/corpus`.
#![expect(clippy::unwrap_used, reason = "a test's helper fails as its test does")]

use std::{fs, path::Path};

use evolver_common::{
    digest::Digest,
    recipe::{Recipe, decode, encode},
    rng::Stream,
};
use evolver_coordinator::journal::Record;
use evolver_proto::{scores_from_wire, v1, work_of};
use prost::Message as _;

const ROUNDS: u64 = 4000;

fn rounds() -> u64 {
    std::env::var("EVOLVER_FUZZ").ok().and_then(|text| text.parse().ok()).unwrap_or(ROUNDS)
}

/// The lines of a corpus file, in hexadecimal.
fn corpus(name: &str) -> Vec<Vec<u8>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(name);
    let seeds: Vec<_> = fs::read_to_string(path).unwrap().lines().map(hex).collect();
    assert!(seeds.len() >= 3);
    seeds
}

fn hex(line: &str) -> Vec<u8> {
    (0..line.len()).step_by(2).map(|at| u8::from_str_radix(&line[at..at + 2], 16).unwrap()).collect()
}

/// Every seed as it is, and then bent.
fn bent(name: &str, mut each: impl FnMut(&[u8])) {
    let seeds = corpus(name);
    for (number, seed) in (0..).zip(&seeds) {
        each(seed);
        let stream = Stream::new(number, name);
        let mut turn = 0;
        let mut draw = |below: usize| {
            turn += 1;
            stream.element(turn) as usize % below.max(1)
        };
        for _ in 0..rounds() {
            let mut bytes = seed.clone();
            for _ in 0..=draw(3) {
                let at = draw(bytes.len());
                match draw(7) {
                    0 if !bytes.is_empty() => bytes[at] ^= 1 << draw(8),
                    1 if !bytes.is_empty() => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][draw(5)],
                    2 => bytes.truncate(at),
                    3 => bytes.insert(at.min(bytes.len()), draw(256) as u8),
                    4 if !bytes.is_empty() => drop(bytes.remove(at)),
                    5 => {
                        let other = &seeds[draw(seeds.len())];
                        let from = draw(other.len());
                        bytes.truncate(at);
                        bytes.extend_from_slice(&other[from.min(other.len())..]);
                    }
                    _ => {
                        let part = bytes[at.min(bytes.len())..].to_vec();
                        bytes.extend(part);
                    }
                }
            }
            each(&bytes);
        }
    }
}

#[test]
fn a_recipe_is_refused_or_is_the_one_whose_encoding_it_is() {
    let mut taken = 0_u64;
    bent("recipes", |bytes| {
        if let Ok(recipe) = decode(bytes) {
            assert_eq!(encode(&recipe), bytes, "one recipe has one encoding");
            let text = recipe.to_string();
            assert!(!text.is_empty());
            taken += 1;
        }
    });
    assert!(taken >= 3);
}

#[test]
fn scores_of_a_message_are_finite_and_in_their_range_or_refused() {
    let (mut taken, mut refused) = (0_u64, 0_u64);
    bent("reports", |bytes| {
        let Ok(report) = v1::ReportRequest::decode(bytes) else { return };
        let Some(v1::report_request::Result::Scores(scores)) = report.result else { return };
        match scores_from_wire(scores) {
            Ok(scores) => {
                for task in &scores.tasks {
                    assert!(task.credits.iter().all(|credit| (0.0..=1.0).contains(credit)));
                    assert!(task.metrics.values().all(|value| value.is_finite()));
                }
                taken += 1;
            }
            Err(error) => {
                assert!(!error.to_string().is_empty());
                refused += 1;
            }
        }
    });
    assert!(taken > 100 && refused > 10, "{taken} taken, {refused} refused");
}

#[test]
fn an_assignment_is_read_or_refused_and_its_work_is_its_own() {
    let mut read = 0_u64;
    bent("assignments", |bytes| {
        let Ok(assignment) = v1::Assignment::decode(bytes) else { return };
        read += 1;
        let another = v1::Assignment {
            token: Some(v1::Token { epoch: 9, spec: 9, attempt: 9 }),
            keep: vec![vec![1]],
            ..assignment.clone()
        };
        assert_eq!(work_of(&assignment), work_of(&another), "the same work under another token");
        let other = v1::Assignment { recipe: [assignment.recipe.as_slice(), b"x"].concat(), ..assignment.clone() };
        assert_ne!(work_of(&assignment), work_of(&other));
    });
    assert!(read > 100);
}

#[test]
fn a_journal_record_is_refused_or_read_as_it_is_written_again() {
    let mut read = 0_u64;
    bent("records", |bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else { return };
        if let Ok(record) = serde_json::from_str::<Record>(text) {
            let again = serde_json::to_string(&record).unwrap();
            assert_eq!(serde_json::from_str::<Record>(&again).unwrap(), record);
            read += 1;
        }
    });
    assert!(read > 100);
}

/// Writes the corpus's first seeds; what was found since is added by hand.
#[test]
#[ignore = "writes tests/corpus"]
fn write_the_corpus() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    fs::create_dir_all(&folder).unwrap();
    let write = |name: &str, seeds: &[Vec<u8>]| {
        let line = |seed: &Vec<u8>| seed.iter().map(|byte| format!("{byte:02x}")).collect::<String>() + "\n";
        fs::write(folder.join(name), seeds.iter().map(line).collect::<String>()).unwrap();
    };
    let records =
        evolver_coordinator::journal::read(&std::path::absolute(std::env::var("EVOLVER_SEARCH").unwrap()).unwrap()).unwrap();
    let replay = evolver_coordinator::service::replay(&records, None).unwrap();
    let mut recipes: Vec<Vec<u8>> = replay.search.population().iter().map(|member| encode(&member.recipe)).collect();
    recipes.extend(replay.search.table().iter().map(|row| encode(&row.recipe)));
    recipes.push(encode(&Recipe::checkpoint(Digest::of(b"a"))));
    recipes.sort_unstable();
    recipes.dedup();
    write("recipes", &recipes);
    let assignments = recipes.iter().map(|recipe| {
        v1::Assignment {
            token: Some(v1::Token { epoch: 1, spec: 7, attempt: 2 }),
            recipe: recipe.clone(),
            split: v1::Split::Dev.into(),
            keep: vec![vec![7; 32]],
            ..v1::Assignment::default()
        }
        .encode_to_vec()
    });
    write("assignments", &assignments.collect::<Vec<_>>());
    let scores = |credits: Vec<f32>| v1::Scores {
        tasks: vec![v1::TaskScore { task: "t".into(), metrics: [("accuracy".to_owned(), 0.5)].into(), credits }],
    };
    let report = |result| {
        let (token, timings) = (Some(v1::Token { epoch: 1, spec: 7, attempt: 2 }), Some(v1::Timings::default()));
        v1::ReportRequest { worker: "w".into(), token, result: Some(result), timings }.encode_to_vec()
    };
    let failure = v1::Failure { class: 3, message: "boom".into() };
    write(
        "reports",
        &[
            report(v1::report_request::Result::Scores(scores(vec![1.0, 0.0, 0.5]))),
            report(v1::report_request::Result::Scores(scores(vec![]))),
            report(v1::report_request::Result::Scores(v1::Scores { tasks: vec![] })),
            report(v1::report_request::Result::Failure(failure)),
            report(v1::report_request::Result::Released(v1::Released { parts: Vec::new() })),
        ],
    );
    let mut kinds = std::collections::BTreeMap::new();
    let more = [
        Record::Compare { number: 3 },
        Record::Check { number: 3, workers: vec!["a".into(), "b".into()] },
        Record::Distrust { worker: "a".into(), reason: "r".into(), numbers: vec![1, 2], epoch: 2 },
        Record::Readmit { worker: "a".into() },
        Record::Stop { number: 9, reason: "stop.seconds".into() },
        Record::Failure { number: 4, reason: "boom".into() },
        Record::Attempt { number: 4, worker: "w".into(), reason: "boom".into() },
    ];
    for record in records.iter().chain(&more).filter(|record| !matches!(record, Record::Definition { .. })) {
        let json = serde_json::to_value(record).unwrap();
        kinds.insert(json["kind"].as_str().unwrap().to_owned(), json.to_string().into_bytes());
    }
    write("records", &kinds.into_values().collect::<Vec<_>>());
}
