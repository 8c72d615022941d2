//! Items per second of the real dev set, here and by PyTorch.
//!
//!     cargo bench --bench scoring                                     # this program, with 1 and 2 threads
//!     EVOLVER_TORCH=venv/bin/python cargo bench --bench scoring       # and PyTorch on the same items, in the same run
//!     EVOLVER_DECODER=smollm2 … cargo bench --bench scoring           # a decoder too: the folder that tests/real/smollm2.py wrote
//!
//! The environment is that of `quickstart/requirements.txt`. Tokens are made beforehand in both.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement fails as a test does, and prints")]

#[path = "../tests/quickstart/mod.rs"]
mod quickstart;

use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use evolver_common::{checkpoint::Checkpoint, data, score::Split};
use evolver_worker::{
    evaluate::{self, Candidate, Classification, Evaluator as _, Setup, Subject, TaskInput},
    models::ModelWeights,
};

const BATCH_TOKENS: usize = 4096;
/// Texts of each domain's dev set: enough batches of every length, and a run of a few minutes.
const TEXTS: usize = 200;
/// Texts that the decoder reads.
const DECODER_ITEMS: usize = 60;
const DOMAINS: [&str; 4] = ["tweets", "movies", "products", "editorials"];
const LABELS: [&str; 3] = ["negative", "neutral", "positive"];

fn scoring(criterion: &mut Criterion) {
    let folder = quickstart::folder();
    let model = Arc::new(Checkpoint::open(&folder.join("experts/products")).unwrap());
    let setup = Setup::new(model.folder().to_owned(), model.config().unwrap(), BATCH_TOKENS);
    let open = |domain: &str| {
        let dev = folder.join(format!("data/{domain}.dev.jsonl"));
        let input = TaskInput {
            task: serde_json::from_value(serde_json::json!({ "name": domain, "dev": dev })).unwrap(),
            labels: LABELS.map(String::from).to_vec(),
            dev: data::read(&dev).unwrap().into_iter().take(TEXTS).collect(),
            test: Vec::new(),
        };
        Classification::open(&setup, &input).unwrap()
    };
    let mut evaluators = DOMAINS.map(open);
    let items: usize = evaluators.iter().map(|evaluator| evaluator.items(Split::Dev)).sum();
    let mut group = criterion.benchmark_group("scoring");
    // One pass takes seconds, so every sample is one pass.
    group
        .sampling_mode(SamplingMode::Flat)
        .sample_size(10)
        .warm_up_time(Duration::from_secs(1))
        .throughput(Throughput::Elements(items as u64));
    for threads in [1, 2] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        group.bench_function(format!("{threads} threads"), |bencher| {
            bencher.iter(|| {
                let candidate = Candidate { shared: ModelWeights::of(&model), heads: Vec::new() };
                let mut subject = Subject::new(&setup, candidate);
                pool.install(|| {
                    for evaluator in &mut evaluators {
                        let all: Vec<_> = (0..evaluator.items(Split::Dev)).collect();
                        evaluator.evaluate(&mut subject, Split::Dev, &all, &mut |_| ControlFlow::Continue(())).unwrap();
                    }
                });
            });
        });
        let arguments =
            [folder.to_string_lossy().into_owned(), threads.to_string(), BATCH_TOKENS.to_string(), TEXTS.to_string(), "5".into()];
        beside("scoring.py", &arguments, threads, items);
    }
    group.finish();
}

/// What PyTorch does with the same items, if `EVOLVER_TORCH` names a Python that has it.
fn beside(script: &str, arguments: &[String], threads: usize, items: usize) {
    let Some(python) = std::env::var_os("EVOLVER_TORCH") else {
        return;
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches").join(script);
    let output = Command::new(python).arg(script).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["items"], items);
    let mut seconds: Vec<f64> = answer["seconds"].as_array().unwrap().iter().filter_map(serde_json::Value::as_f64).collect();
    seconds.sort_by(f64::total_cmp);
    #[expect(clippy::cast_precision_loss, reason = "a count of items")]
    let rate = items as f64 / seconds[seconds.len() / 2];
    println!("PyTorch/{threads} threads      {rate:.1} items/s, the median of {} rounds", seconds.len());
}

/// Texts' log-likelihoods by a decoder.
fn decoder(criterion: &mut Criterion) {
    let Some(model) = std::env::var_os("EVOLVER_DECODER").map(PathBuf::from) else {
        return;
    };
    let data = quickstart::folder().join("data/movies.dev.jsonl");
    let texts = model.join("bench.jsonl");
    let lines: Vec<String> = std::fs::read_to_string(data).unwrap().lines().take(DECODER_ITEMS).map(str::to_owned).collect();
    std::fs::write(&texts, lines.join("\n")).unwrap();
    let checkpoint = Arc::new(Checkpoint::open(&model).unwrap());
    let setup = Setup::new(model.clone(), checkpoint.config().unwrap(), BATCH_TOKENS);
    let task =
        serde_json::json!({ "name": "t", "evaluator": "perplexity", "metric": "likelihood", "dev": texts, "max_length": 512 });
    let input = TaskInput {
        task: serde_json::from_value(task).unwrap(),
        labels: Vec::new(),
        dev: data::read(&texts).unwrap(),
        test: Vec::new(),
    };
    let mut evaluator = evaluate::open(&setup, &input).unwrap();
    let all: Vec<_> = (0..evaluator.items(Split::Dev)).collect();
    let mut group = criterion.benchmark_group("decoder");
    group.sampling_mode(SamplingMode::Flat).sample_size(10).warm_up_time(Duration::from_secs(1));
    group.throughput(Throughput::Elements(all.len() as u64));
    let threads = 2;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let mut subject = Subject::new(&setup, Candidate { shared: ModelWeights::of(&checkpoint), heads: Vec::new() });
    group.bench_function(format!("{threads} threads"), |bencher| {
        bencher.iter(|| {
            let go = &mut |_| ControlFlow::Continue(());
            pool.install(|| evaluator.evaluate(&mut subject, Split::Dev, &all, go)).unwrap()
        });
    });
    let paths = [&model, &texts].map(|path| path.to_string_lossy().into_owned());
    let numbers = [threads, BATCH_TOKENS, 3].map(|number| number.to_string());
    beside("decoder.py", &[paths.as_slice(), &numbers].concat(), threads, all.len());
    group.finish();
}

criterion_group!(benches, scoring, decoder);
criterion_main!(benches);
