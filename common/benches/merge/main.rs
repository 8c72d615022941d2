//! Merges beside a copy and beside a read of the same bytes, in one run.
//!
//! ```text
//! cargo bench -p evolver-common --bench merge -- all                        # every method, base and 3 models of 270 M BF16
//! cargo bench -p evolver-common --bench merge -- all --only ties,pcb        # some of them
//! cargo bench -p evolver-common --bench merge -- pcb                        # PCB over 8 models of 110 M F32
//! cargo bench -p evolver-common --bench merge -- offspring                  # crossover and differential, in memory
//! cargo bench -p evolver-common --bench merge -- offspring --only "BF16 d"   # those whose names have this in them
//! cargo bench -p evolver-common --bench merge -- scale [--only ties,pcb]    # cost per parameter from 10 M to 2700 M (sparse files, the result dropped), and memory
//! cargo bench -p evolver-common --bench merge -- once METHOD BASE MODEL...  # seconds of one merge, for benches/merge.py
//! ```
//!
//! Rounds alternate: a copy, then each method once. The least of the rounds counts. Outputs are not synced, and deleted outside the measured time. Memory is the
//! largest `RssAnon` seen: mapped inputs do not count. `EVOLVER_BENCH_DIR` names the folder for the models (8 GB for everything), which are kept there;
//! `EVOLVER_BENCH_ROUNDS` the rounds (3).
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement fails as a test does, and prints")]

mod models;

use std::{
    collections::BTreeMap,
    env, fs, hint, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use evolver_common::{
    checkpoint::{
        Checkpoint, Dtype, Patterns, SpaceTensor, fit,
        write::{Announced, WeightsWriter},
    },
    digest::Digest,
    merge::{Built, CheckpointLeaf, Engine, METHODS, Method, Options, Sink, normalize},
    recipe::{Granularity, Input, Merge, Op, Parameters, Recipe, Value},
};
use rayon::prelude::*;
use serde_json::Map;

use self::models::Wanted;

const MIB: f64 = 1_048_576.0;

fn main() {
    let arguments: Vec<String> = env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    println!("{} threads, {}", rayon::current_num_threads(), evolver_common::simd::level());
    match words.as_slice() {
        ["all", rest @ ..] => all(rest),
        ["pcb"] => pcb(),
        ["offspring", rest @ ..] => offspring(option(rest, "--only").unwrap_or_default()),
        ["scale", rest @ ..] => scale(rest),
        ["once", method, models @ ..] => once(method, models),
        // What `cargo bench` without words runs: small, so that it ends soon.
        [] => all(&["--millions", "20"]),
        other => panic!("unknown words {other:?}: see the head of common/benches/merge/main.rs"),
    }
}

/// The folder that models are kept in.
fn folder() -> PathBuf {
    env::var_os("EVOLVER_BENCH_DIR").map_or_else(|| env::temp_dir().join("evolver-bench"), PathBuf::from)
}

fn rounds() -> usize {
    env::var("EVOLVER_BENCH_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(3)
}

/// Opened models, and an engine over them.
struct Opened {
    engine: Engine,
    models: Vec<Arc<Checkpoint>>,
    leaves: Vec<Recipe>,
}

impl Opened {
    fn new(folders: &[PathBuf]) -> Self {
        let models: Vec<_> = folders.iter().map(|folder| Arc::new(Checkpoint::open(folder).unwrap())).collect();
        let named: Vec<_> = models[1..].iter().map(|model| ("model", &**model)).collect();
        let space = Arc::new(fit(&models[0], &named, &Patterns::default()).unwrap());
        let mut engine = Engine::new(Arc::clone(&space), Options::default());
        let mut leaves = Vec::new();
        for (number, model) in models.iter().enumerate() {
            let leaf = Recipe::checkpoint(Digest::of(&number.to_le_bytes()));
            engine.insert(leaf.id(), Arc::new(CheckpointLeaf::new(Arc::clone(model), Arc::clone(&space))));
            leaves.push(leaf);
        }
        Self { engine, models, leaves }
    }

    /// A merge of as many models as the method takes, with the parameters that the comparison with mergekit has.
    fn merge(&self, method: &dyn Method) -> Recipe {
        let mut parameters = Parameters::new();
        for spec in method.parameters() {
            let value = match (spec.name, method.name()) {
                ("weight", "pcb") => continue,
                ("weight", _) => 0.4,
                ("density", "breadcrumbs" | "breadcrumbs_ties") => 0.9,
                ("density" | "select_topk", _) => 0.2,
                ("epsilon", "della" | "della_linear") => 0.1,
                ("iterations", _) => 2.0,
                _ => continue,
            };
            parameters.insert(spec.name.into(), Value::Number(value));
        }
        let merge = |count: usize| {
            let input = |leaf: &Recipe| Input { recipe: leaf.clone(), parameters: Parameters::new() };
            normalize(Merge {
                method: method.name().into(),
                base: Some(self.leaves[0].clone()),
                models: self.leaves[1..].iter().take(count).map(input).collect(),
                parameters: parameters.clone(),
            })
        };
        let found = [usize::MAX, 2, 1].into_iter().find_map(|count| merge(count).ok());
        Recipe::new(Op::Merge(found.unwrap()))
    }

    /// Bytes of the models that a recipe reads.
    fn input_bytes(&self, recipe: &Recipe) -> u64 {
        let nodes = recipe.nodes();
        self.leaves.iter().zip(&self.models).filter(|(leaf, _)| nodes.contains(leaf)).map(|(_, model)| model.bytes()).sum()
    }

    /// Streams a recipe into a new file, without statistics of earlier rounds, and gives the seconds.
    fn write(&self, recipe: &Recipe, out: &Path) -> f64 {
        self.engine.forget();
        let started = Instant::now();
        let tensors = self.models[0].tensors().iter();
        let announced: Vec<_> =
            tensors.map(|(name, info)| Announced { name: name.clone(), dtype: info.dtype, shape: info.shape.clone() }).collect();
        let writer = WeightsWriter::create(out, &announced, &Map::new()).unwrap();
        self.engine.stream(recipe, &To(&writer)).unwrap();
        writer.finish(false).unwrap();
        let seconds = started.elapsed().as_secs_f64();
        fs::remove_file(out).unwrap();
        seconds
    }
}

/// Takes values and drops them.
struct Nowhere;

impl Sink for Nowhere {
    fn write(&self, _: usize, _: usize, values: &[f32]) -> io::Result<()> {
        hint::black_box(values);
        Ok(())
    }
}

struct To<'a>(&'a WeightsWriter);

impl Sink for To<'_> {
    fn write(&self, tensor: usize, offset: usize, values: &[f32]) -> io::Result<()> {
        self.0.values(tensor, offset, values).map_err(io::Error::other)
    }
}

/// Copies a model's file block by block through its map, as a merge of one model without arithmetic would, and gives the seconds.
fn copy(from: &Path, to: &Path) -> f64 {
    let started = Instant::now();
    let source = fs::File::open(from.join("model.safetensors")).unwrap();
    let length = source.metadata().unwrap().len();
    let target = fs::File::create(to).unwrap();
    target.set_len(length).unwrap();
    let step = 1 << 20;
    (0..length.div_ceil(step)).into_par_iter().for_each_init(
        || vec![0; 1 << 20],
        |buffer, block| {
            use std::os::unix::fs::FileExt as _;
            let start = block * step;
            let buffer = &mut buffer[..usize::try_from(step.min(length - start)).unwrap()];
            source.read_exact_at(buffer, start).unwrap();
            target.write_all_at(buffer, start).unwrap();
        },
    );
    let seconds = started.elapsed().as_secs_f64();
    drop(target);
    fs::remove_file(to).unwrap();
    seconds
}

/// Watches the private memory of this process.
struct Watch {
    stop: Arc<AtomicBool>,
    peak: Arc<AtomicU64>,
}

impl Watch {
    fn start() -> Self {
        let (stop, peak) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, highest) = (Arc::clone(&stop), Arc::clone(&peak));
        thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                highest.fetch_max(private_kib(), Ordering::Relaxed);
                thread::sleep(Duration::from_millis(5));
            }
        });
        Self { stop, peak }
    }

    fn peak_mib(&self) -> f64 {
        self.stop.store(true, Ordering::Relaxed);
        self.peak.load(Ordering::Relaxed) as f64 / 1024.0
    }
}

fn private_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").trim().parse().ok()).unwrap_or(0)
}

/// What a measured merge took at best.
struct Best {
    seconds: f64,
    peak_mib: f64,
}

impl Best {
    const NONE: Self = Self { seconds: f64::INFINITY, peak_mib: 0.0 };

    fn join(&mut self, seconds: f64, peak_mib: f64) {
        self.seconds = self.seconds.min(seconds);
        self.peak_mib = self.peak_mib.max(peak_mib);
    }
}

/// The value after a word among the arguments.
fn option<'a>(arguments: &[&'a str], word: &str) -> Option<&'a str> {
    arguments.iter().position(|argument| *argument == word).and_then(|at| arguments.get(at + 1).copied())
}

fn all(arguments: &[&str]) {
    let millions = option(arguments, "--millions").map_or(270, |millions| millions.parse().unwrap());
    let only = option(arguments, "--only").map(|only| only.split(',').collect::<Vec<_>>());
    let folders = models::make(&folder(), Wanted { millions, dtype: Dtype::Bf16, experts: 3, sparse: false });
    let opened = Opened::new(&folders);
    // Methods that decompose matrices take minutes at this size; they are named by --only.
    let slow = ["tsv", "iso_c", "iso_cts", "knots", "wudi", "regmean", "regmeanpp", "fisher"];
    let wanted =
        |method: &&&dyn Method| only.as_ref().map_or(!slow.contains(&method.name()), |only| only.contains(&method.name()));
    let merges: Vec<_> = METHODS.iter().filter(wanted).map(|method| (method.name(), opened.merge(*method))).collect();
    let out = folder().join("out.safetensors");
    let mut copied = Best::NONE;
    let mut best: BTreeMap<&str, Best> = BTreeMap::new();
    for _ in 0..rounds() {
        for (name, merge) in &merges {
            copied.join(copy(&folders[0], &out), 0.0);
            let watch = Watch::start();
            let seconds = opened.write(merge, &out);
            best.entry(name).or_insert(Best::NONE).join(seconds, watch.peak_mib());
        }
    }
    let size = opened.models[0].bytes();
    let bandwidth = |bytes: u64, seconds: f64| bytes as f64 / seconds / 1e9;
    println!(
        "copy of {:.0} MB: {:.3} s, {:.1} GB/s read and written",
        size as f64 / 1e6,
        copied.seconds,
        bandwidth(2 * size, copied.seconds)
    );
    println!("{:<18}{:>9}{:>9}{:>12}{:>14}{:>12}", "method", "seconds", "x copy", "GB/s", "of the copy's", "RssAnon MB");
    for (name, merge) in &merges {
        let found = &best[name];
        let moved = bandwidth(opened.input_bytes(merge) + size, found.seconds);
        println!(
            "{name:<18}{:>9.3}{:>9.2}{moved:>12.1}{:>13.0}%{:>12.0}",
            found.seconds,
            found.seconds / copied.seconds,
            100.0 * moved / bandwidth(2 * size, copied.seconds),
            found.peak_mib * MIB / 1e6,
        );
    }
}

fn pcb() {
    let folders = models::make(&folder(), Wanted { millions: 110, dtype: Dtype::F32, experts: 8, sparse: false });
    let opened = Opened::new(&folders);
    let out = folder().join("out.safetensors");
    let elements = opened.engine.space().elements() as f64;
    let method = evolver_common::merge::find("pcb").unwrap();
    for variant in ["script", "nlp", "vision", "vision_es", "paper"] {
        let Op::Merge(mut merge) = opened.merge(method).op().clone() else { panic!("a merge") };
        merge.parameters.insert("variant".into(), Value::Text(variant.into()));
        let recipe = Recipe::new(Op::Merge(merge));
        let mut best = Best::NONE;
        for _ in 0..rounds() {
            let watch = Watch::start();
            best.join(opened.write(&recipe, &out), watch.peak_mib());
        }
        println!(
            "pcb {variant:<10} 8 x {:.0} M F32: {:.2} s, {:.2} ns per element and model, {:.0} MB private",
            elements / 1e6,
            best.seconds,
            best.seconds * 1e9 / elements / 8.0,
            best.peak_mib * MIB / 1e6,
        );
    }
}

/// Crossover and differential of three experts beside a read of the same inputs.
fn offspring(only: &str) {
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let folders = models::make(&folder(), Wanted { millions: 110, dtype, experts: 3, sparse: false });
        let opened = Opened::new(&folders);
        let leaf = |n: usize| opened.leaves[n].clone();
        let crossover = |per| Recipe::new(Op::Crossover { target: leaf(1), donor: leaf(2), rate: 0.5, seed: 7, per });
        let differential = Recipe::new(Op::Differential { target: leaf(1), plus: leaf(2), minus: leaf(3), scale: 0.5 });
        let interpolation = Recipe::new(Op::Differential { target: leaf(1), plus: leaf(2), minus: leaf(1), scale: 0.5 });
        let evolver = Recipe::new(Op::Crossover {
            target: leaf(1),
            donor: interpolation.clone(),
            rate: 0.5,
            seed: 7,
            per: Granularity::Parameter,
        });
        let recipes = [
            ("crossover by parameter", crossover(Granularity::Parameter)),
            ("crossover by tensor", crossover(Granularity::Tensor)),
            ("differential", differential),
            ("interpolation", interpolation),
            ("interpolation, crossover", evolver),
        ];
        let place = |tensor: &SpaceTensor| Built::zeros(dtype, tensor.elements);
        let mut built: Vec<_> = opened.engine.space().tensors.iter().map(place).collect();
        for (name, recipe) in recipes.into_iter().filter(|(name, _)| format!("{dtype} {name}").contains(only)) {
            let nodes = recipe.nodes();
            let read: Vec<_> = opened
                .leaves
                .iter()
                .zip(&opened.models)
                .filter(|(leaf, _)| nodes.contains(leaf))
                .map(|(_, model)| model)
                .collect();
            let (mut reading, mut building) = (f64::INFINITY, f64::INFINITY);
            for _ in 0..rounds().max(5) {
                let started = Instant::now();
                hint::black_box(read_all(&read));
                reading = reading.min(started.elapsed().as_secs_f64());
                let started = Instant::now();
                opened.engine.build_into(&recipe, &mut built, &[]).unwrap();
                building = building.min(started.elapsed().as_secs_f64());
            }
            let bytes: u64 = read.iter().map(|model| model.bytes()).sum();
            println!(
                "{:<5}{name:<26}{:.3} s; reading its {:.0} MB: {:.3} s; {:.0} % of the bandwidth of reading",
                dtype.name(),
                building,
                bytes as f64 / 1e6,
                reading,
                100.0 * reading / building,
            );
        }
    }
}

/// Adds every word of the models' tensors, in parallel.
fn read_all(models: &[&Arc<Checkpoint>]) -> u64 {
    let views = models.iter().flat_map(|model| model.tensors().keys().map(|name| model.view(name).unwrap().bytes().unwrap()));
    let chunks: Vec<&[u8]> = views.flat_map(|bytes| bytes.chunks(1 << 18)).collect();
    let sum = |bytes: &[u8]| bytes.as_chunks::<8>().0.iter().fold(0u64, |sum, word| sum.wrapping_add(u64::from_le_bytes(*word)));
    chunks.par_iter().map(|bytes| sum(bytes)).reduce(|| 0, u64::wrapping_add)
}

/// Cost per parameter and memory over sizes, with sparse inputs.
fn scale(arguments: &[&str]) {
    let only = option(arguments, "--only");
    let methods = ["linear", "task_arithmetic", "slerp", "ties", "dare_ties", "della", "pcb"];
    let methods = methods.into_iter().filter(|method| only.is_none_or(|only| only.split(',').any(|name| name == *method)));
    // Without a file: what a disk takes to write many gigabytes says nothing about merging. Nor does the first read of the inputs.
    println!("{:<18}{:>10}{:>10}{:>16}{:>12}", "method", "M", "seconds", "ns/parameter", "RssAnon MB");
    for millions in [10, 110, 270, 2700] {
        let folders = models::make(&folder(), Wanted { millions, dtype: Dtype::Bf16, experts: 3, sparse: true });
        let opened = Opened::new(&folders);
        for name in methods.clone() {
            hint::black_box(read_all(&opened.models.iter().collect::<Vec<_>>()));
            let recipe = opened.merge(evolver_common::merge::find(name).unwrap());
            let mut best = Best::NONE;
            for _ in 0..if millions > 1000 { 1 } else { rounds() } {
                let watch = Watch::start();
                opened.engine.forget();
                let started = Instant::now();
                opened.engine.stream(&recipe, &Nowhere).unwrap();
                best.join(started.elapsed().as_secs_f64(), watch.peak_mib());
            }
            let elements = opened.engine.space().elements() as f64;
            println!(
                "{name:<18}{:>10.0}{:>10.3}{:>16.3}{:>12.0}",
                elements / 1e6,
                best.seconds,
                best.seconds * 1e9 / elements,
                best.peak_mib * MIB / 1e6
            );
        }
    }
}

/// One merge of given models, the base first: prints its seconds and nothing else of use.
fn once(method: &str, models: &[&str]) {
    let folders: Vec<_> = models.iter().map(PathBuf::from).collect();
    let opened = Opened::new(&folders);
    let recipe = opened.merge(evolver_common::merge::find(method).unwrap());
    let watch = Watch::start();
    let seconds = opened.write(&recipe, &folders[0].with_extension("out"));
    println!("{seconds} {}", watch.peak_mib());
}
