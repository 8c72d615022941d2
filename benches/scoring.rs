//! Items per second of the real dev set, here and by PyTorch.
//!
//!     cargo bench --bench scoring                                     # this program, with 1 and 2 threads
//!     EVOLVER_TORCH=venv/bin/python cargo bench --bench scoring       # and PyTorch on the same items, in the same run
//!
//! The environment is that of `quickstart/requirements.txt`. Tokens are made beforehand in both.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement fails as a test does, and prints")]

#[path = "../tests/quickstart/mod.rs"]
mod quickstart;

use std::{ops::ControlFlow, path::Path, process::Command, sync::Arc, time::Duration};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use evolver_common::{
    checkpoint::Checkpoint,
    data::{self, Fields},
    score::Split,
};
use evolver_worker::{
    evaluate::{Candidate, Evaluator as _, Setup, TaskInput, classification::Classification},
    models::ModelWeights,
};

const BATCH_TOKENS: usize = 4096;
const DOMAINS: [&str; 4] = ["tweets", "movies", "products", "editorials"];
const LABELS: [&str; 3] = ["negative", "neutral", "positive"];

fn tasks(folder: &Path) -> Vec<TaskInput> {
    let fields = Fields { text: "text".into(), text_pair: None, label: "label".into() };
    let read = |domain: &str| TaskInput {
        name: domain.to_owned(),
        labels: LABELS.len(),
        max_length: 128,
        dev: data::read_items(&folder.join(format!("data/{domain}.dev.jsonl")), &fields, &LABELS.map(String::from)).unwrap(),
        test: Vec::new(),
    };
    DOMAINS.into_iter().map(read).collect()
}

fn scoring(criterion: &mut Criterion) {
    let folder = quickstart::folder();
    let tasks = tasks(&folder);
    let items: usize = tasks.iter().map(|task| task.dev.len()).sum();
    let model = Arc::new(Checkpoint::open(&folder.join("experts/products")).unwrap());
    let setup = Setup { folder: model.folder().to_owned(), config: model.config().unwrap(), batch_tokens: BATCH_TOKENS };
    let mut evaluator = Classification::open(&setup, tasks).unwrap();
    let mut group = criterion.benchmark_group("scoring");
    group.sample_size(10).warm_up_time(Duration::from_secs(1)).throughput(Throughput::Elements(items as u64));
    for threads in [1, 2] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        group.bench_function(format!("{threads} threads"), |bencher| {
            bencher.iter(|| {
                let candidate = Candidate { shared: ModelWeights::of(&model), heads: Vec::new() };
                pool.install(|| evaluator.evaluate(candidate, Split::Dev.into(), &mut |_, _| ControlFlow::Continue(()))).unwrap()
            });
        });
        if let Some(python) = std::env::var_os("EVOLVER_TORCH") {
            let output = Command::new(python)
                .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/benches/scoring.py"))
                .arg(&folder)
                .args([threads, BATCH_TOKENS, 5].map(|number| number.to_string()))
                .output()
                .unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!(answer["items"], items);
            let mut seconds: Vec<f64> =
                answer["seconds"].as_array().unwrap().iter().filter_map(serde_json::Value::as_f64).collect();
            seconds.sort_by(f64::total_cmp);
            #[expect(clippy::cast_precision_loss, reason = "a count of items")]
            let rate = items as f64 / seconds[seconds.len() / 2];
            println!("PyTorch/{threads} threads      {rate:.0} items/s, the median of {} rounds", seconds.len());
        }
    }
    group.finish();
}

criterion_group!(benches, scoring);
criterion_main!(benches);
