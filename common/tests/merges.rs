//! Merge methods against golden values of an independent NumPy reference; every method: the same bits for any block size and thread count, and as a node
//! inside a recipe.
#![expect(clippy::unwrap_used, reason = "a test's helper fails as its test does")]

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{Arc, Mutex},
};

use evolver_common::{
    checkpoint::{
        Checkpoint, DigestCache, Dtype, Row, Space, SpaceTensor,
        write::{Announced, WeightsWriter},
    },
    digest::Digest,
    merge::{Built, CheckpointLeaf, Engine, InMemory, Layers, Leaf, METHODS, Method, Options, Sink, normalize},
    recipe::{Granularity, Input, Merge, Op, Parameters, Recipe, Shape, Value, decode, encode, parse},
    rng::Stream,
    simd::{self, Level},
};
use serde::Deserialize;
use serde_json::Map;

#[derive(Deserialize)]
struct Tensor {
    shape: Vec<usize>,
    hex: String,
}

impl Tensor {
    fn values(&self) -> Vec<f32> {
        let bytes = hex::decode(&self.hex).unwrap();
        bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    }
}

type Model = BTreeMap<String, Tensor>;

/// Files of statistics by their digests.
type Files = Vec<(Digest, Arc<Checkpoint>)>;

#[derive(Deserialize)]
struct Set {
    base: Model,
    models: Vec<Model>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    method: String,
    set: String,
    with_base: bool,
    parameters: Parameters,
    model_parameters: Vec<Parameters>,
    expected: Model,
    /// Of each model, for the methods that read any.
    #[serde(default)]
    statistics: Vec<Model>,
}

#[derive(Deserialize)]
struct Family {
    sets: BTreeMap<String, Set>,
    cases: Vec<Case>,
}

struct Memory(InMemory);

impl Leaf for Memory {
    fn read(&self, tensor: usize, elements: Range<usize>, out: &mut [f32]) -> Result<(), String> {
        out.copy_from_slice(&self.0[tensor][elements]);
        Ok(())
    }

    fn borrow(&self, _: usize) -> Option<Row<'_>> {
        None
    }
}

fn leaf(n: usize) -> Recipe {
    Recipe::checkpoint(Digest::of(&n.to_le_bytes()))
}

/// An engine over these tensors with these models as the leaves 0, 1, 2, …
fn engine(shapes: &[(String, Vec<usize>)], models: &[InMemory], block: usize) -> Engine {
    let tensor = |(name, shape): &(String, Vec<usize>)| SpaceTensor {
        name: name.clone(),
        shape: shape.clone(),
        elements: shape.iter().product(),
    };
    let mut engine = Engine::new(Arc::new(Space { tensors: shapes.iter().map(tensor).collect() }), Options { block });
    for (index, model) in models.iter().enumerate() {
        engine.insert(leaf(index).id(), Arc::new(Memory(model.clone())));
    }
    engine
}

fn build(engine: &Engine, recipe: &Recipe, threads: usize) -> InMemory {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let mut out = InMemory::new();
    pool.install(|| engine.build(recipe, &mut out)).unwrap();
    out
}

/// Blocks as they come.
struct Collected(Mutex<InMemory>);

impl Sink for Collected {
    fn write(&self, tensor: usize, offset: usize, values: &[f32]) -> std::io::Result<()> {
        self.0.lock().unwrap()[tensor][offset..offset + values.len()].copy_from_slice(values);
        Ok(())
    }
}

fn stream(engine: &Engine, recipe: &Recipe) -> InMemory {
    let tensors = engine.space().tensors.iter();
    let collected = Collected(Mutex::new(tensors.map(|tensor| vec![f32::NAN; tensor.elements]).collect()));
    engine.stream(recipe, &collected).unwrap();
    collected.0.into_inner().unwrap()
}

fn families() -> Vec<Family> {
    let files = [
        include_str!("golden/mergekit.json"),
        include_str!("golden/pcb.json"),
        include_str!("golden/recent.json"),
        include_str!("golden/measured.json"),
    ];
    files.into_iter().map(|file| serde_json::from_str(file).unwrap()).collect()
}

/// A file of statistics with these tensors. It stays mapped when its folder is gone.
fn statistics(tensors: &Model) -> (Digest, Arc<Checkpoint>) {
    let folder = tempfile::tempdir().unwrap();
    let announced: Vec<_> = tensors
        .iter()
        .map(|(name, tensor)| Announced { name: name.clone(), dtype: Dtype::F32, shape: tensor.shape.clone() })
        .collect();
    let path = folder.path().join("statistics.safetensors");
    let writer = WeightsWriter::create(&path, &announced, &Map::new()).unwrap();
    tensors.values().enumerate().for_each(|(index, tensor)| writer.values(index, 0, &tensor.values()).unwrap());
    writer.finish(false).unwrap();
    let file = Checkpoint::open(&path).unwrap();
    (file.digest(&DigestCache::in_memory()).unwrap(), Arc::new(file))
}

/// Statistics of a model of these tensors: for the method that wants them, plausible numbers under every name that it may ask for.
fn any_statistics(method: &str, shapes: &[(String, Vec<usize>)], seed: usize) -> (Digest, Arc<Checkpoint>) {
    let hex = |values: Vec<f32>| hex::encode(values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>());
    let number = |place: usize| f32::from(Digest::of(format!("{seed} {place}").as_bytes()).as_bytes()[0]) / 256.0;
    let tensor = |(name, shape): &(String, Vec<usize>)| match (method, shape.as_slice()) {
        ("regmean", [_, inputs]) => {
            let rows: Vec<Vec<f32>> =
                (0..2 * inputs).map(|row| (0..*inputs).map(|k| number(row * inputs + k) - 0.5).collect()).collect();
            let product = |i: usize, j: usize| rows.iter().map(|row| row[i] * row[j]).sum::<f32>();
            let values = (0..inputs * inputs).map(|at| product(at / inputs, at % inputs)).collect();
            Some((name.clone(), Tensor { shape: vec![*inputs; 2], hex: hex(values) }))
        }
        ("regmean", _) => None,
        _ => Some((name.clone(), Tensor { shape: shape.clone(), hex: hex((0..shape.iter().product()).map(number).collect()) })),
    };
    statistics(&shapes.iter().filter_map(tensor).collect())
}

fn values(model: &Model) -> InMemory {
    model.values().map(Tensor::values).collect()
}

#[test]
fn merges_agree_with_the_reference() {
    for family in families() {
        for case in family.cases {
            let set = &family.sets[&case.set];
            let files: Vec<_> = case.statistics.iter().map(statistics).collect();
            let inputs = (1..).zip(&case.model_parameters).enumerate().map(|(model, (index, parameters))| {
                let mut parameters = parameters.clone();
                if let Some((digest, _)) = files.get(model) {
                    parameters.insert("statistics".into(), Value::Text(digest.to_string()));
                }
                Input { recipe: leaf(index), parameters }
            });
            let merge = Merge {
                method: case.method.clone(),
                base: case.with_base.then(|| leaf(0)),
                models: inputs.collect(),
                parameters: case.parameters.clone(),
            };
            let recipe = Recipe::new(Op::Merge(normalize(merge).unwrap()));
            // What travels builds the same.
            let recipe = decode(&encode(&parse(&recipe.to_string()).unwrap())).unwrap();
            let shapes: Vec<_> = set.base.iter().map(|(name, tensor)| (name.clone(), tensor.shape.clone())).collect();
            let models: Vec<_> = std::iter::once(&set.base).chain(&set.models).map(values).collect();
            let mut engine = engine(&shapes, &models, 4096);
            files.into_iter().for_each(|(digest, file)| engine.insert_statistics(digest, file));
            let built = build(&engine, &recipe, 1);
            for (tensor, (name, expected)) in built.iter().zip(&case.expected) {
                for (element, (found, expected)) in tensor.iter().zip(expected.values()).enumerate() {
                    let error = (found - expected).abs() / expected.abs().max(1e-6);
                    assert!(error <= 1e-6, "{}: {name}[{element}] is {found}, and {expected} is expected", case.name);
                }
            }
        }
    }
}

/// Models of three layers, with rows that no block ends at, tensors of several blocks and of one element, and equal values.
fn models() -> (Vec<(String, Vec<usize>)>, Vec<InMemory>) {
    let shapes = [
        ("embed.weight", vec![130, 67]),
        ("h.0.mlp.weight", vec![33, 24]),
        ("h.1.mlp.weight", vec![24, 33]),
        ("h.1.conv", vec![3, 5, 7]),
        ("h.2.norm", vec![1]),
        ("h.2.scale", vec![]),
        ("head.bias", vec![9001]),
    ];
    let shapes: Vec<_> = shapes.into_iter().map(|(name, shape)| (name.to_owned(), shape)).collect();
    let draw = |model: usize, tensor: usize, element: usize| {
        let digest = Digest::of(format!("{model} {tensor} {element}").as_bytes());
        let bytes = digest.as_bytes();
        f32::from(i16::from_le_bytes([bytes[0], bytes[1]])) / 65536.0
    };
    let model = |model: usize| -> InMemory {
        let tensor = |(tensor, (_, shape)): (usize, &(String, Vec<usize>))| {
            let value = |element| {
                let base = draw(0, tensor, element);
                // A tenth of the differences is zero, and the others are few distinct values.
                let step = (draw(model, tensor, element) * 10.0).round() / 1024.0;
                if model == 0 { base } else { base + step }
            };
            (0..shape.iter().product()).map(value).collect()
        };
        shapes.iter().enumerate().map(tensor).collect()
    };
    let models = (0..4).map(model).collect();
    (shapes, models)
}

/// A merge by every method, with as many models as it takes and parameters that differ by layer where they may.
fn every_merge() -> Vec<(Recipe, Files)> {
    let (shapes, _) = models();
    let merge = |method: &dyn Method| {
        let mut parameters = Parameters::new();
        let measured = method.parameters().iter().any(|spec| spec.name == "statistics");
        let files: Files = (0..3).filter(|_| measured).map(|model| any_statistics(method.name(), &shapes, model)).collect();
        for spec in method.parameters() {
            match spec.name {
                _ if !spec.kind.varies() => {}
                "density" => drop(parameters.insert("density".into(), Value::Numbers(vec![0.5, 0.7]))),
                "select_topk" | "t" => drop(parameters.insert(spec.name.into(), Value::Numbers(vec![0.2, 0.4]))),
                _ => {}
            }
        }
        let merge = |count: usize| {
            let input = |index: usize| {
                let digest = files.get(index - 1).map(|(digest, _)| ("statistics".to_owned(), Value::Text(digest.to_string())));
                Input { recipe: leaf(index), parameters: digest.into_iter().collect() }
            };
            normalize(Merge {
                method: method.name().into(),
                base: Some(leaf(0)),
                models: (1..=count).map(input).collect(),
                parameters: parameters.clone(),
            })
        };
        let merge = merge(3).or_else(|_| merge(2)).or_else(|_| merge(1)).unwrap();
        (Recipe::new(Op::Merge(merge)), files)
    };
    METHODS.iter().map(|method| merge(*method)).collect()
}

#[test]
fn every_method_gives_the_same_bits_whatever_the_blocks_threads_and_vector_instructions() {
    let (shapes, models) = models();
    for (recipe, files) in every_merge() {
        let build = |block: usize, threads: usize| {
            let mut engine = engine(&shapes, &models, block);
            files.iter().for_each(|(digest, file)| engine.insert_statistics(*digest, Arc::clone(file)));
            build(&engine, &recipe, threads)
        };
        let built = build(4096, 1);
        for (block, threads) in [(1, 3), (8192, 2), (1 << 20, 1)] {
            assert!(built == build(block, threads), "blocks of {block}: {recipe}");
        }
        // Other tests that run meanwhile do not mind: no result depends on the level.
        for level in [Level::Baseline, Level::V3, Level::V4] {
            simd::limit(level);
            assert!(built == build(4096, 1), "{level}: {recipe}");
        }
    }
}

#[test]
fn a_sample_that_misleads_costs_no_bits() {
    // With blocks of 4096 every sixteenth of the 71 is sampled, with one large block there is no sample.
    let elements = 70 * 4096 + 5;
    let shapes = [("w".to_owned(), vec![elements])];
    let model = |model: u64, misleading: f32| -> InMemory {
        let mut numbers = vec![0; elements];
        Stream::new(model, "w").fill(0, &mut numbers);
        let scale = |element: usize| if element / 4096 % 16 == 8 { misleading } else { 1.0 };
        let value = |(element, number): (usize, &u32)| scale(element) * (*number as f32 / 2f32.powi(32) - 0.5);
        vec![numbers.iter().enumerate().map(value).collect()]
    };
    for misleading in [1.0, 64.0, 0.0] {
        let models: Vec<_> = [vec![vec![0.0; elements]]].into_iter().chain((1..4).map(|seed| model(seed, misleading))).collect();
        for variant in ["paper", "script"] {
            let input = |index| Input { recipe: leaf(index), parameters: Parameters::new() };
            let merge = Merge {
                method: "pcb".into(),
                base: Some(leaf(0)),
                models: (1..4).map(input).collect(),
                parameters: [("variant".to_owned(), Value::Text(variant.into()))].into_iter().collect(),
            };
            let recipe = Recipe::new(Op::Merge(normalize(merge).unwrap()));
            let of_blocks = |block| build(&engine(&shapes, &models, block), &recipe, 2);
            let (sampled, whole) = (of_blocks(4096), of_blocks(1 << 20));
            assert!(sampled[0].iter().zip(&whole[0]).all(|(a, b)| a.to_bits() == b.to_bits()), "{variant}, {misleading}");
        }
    }
}

#[test]
fn statistics_are_shared_between_merges_and_processes_without_a_change_of_bits() {
    let (shapes, models) = models();
    let folder = tempfile::tempdir().unwrap();
    for (merge, files) in every_merge() {
        let engine = || {
            let mut engine = engine(&shapes, &models, 4096);
            files.iter().for_each(|(digest, file)| engine.insert_statistics(*digest, Arc::clone(file)));
            engine.share_statistics(folder.path());
            engine
        };
        // Another merge over the same inputs, which differs in coefficients alone, comes first.
        let Op::Merge(mut other) = merge.op().clone() else { panic!("a merge") };
        let weighted = other.models.iter_mut().filter(|input| input.parameters.contains_key("weight"));
        weighted.for_each(|input| drop(input.parameters.insert("weight".into(), Value::Number(0.25))));
        let (first, later) = (engine(), engine());
        build(&first, &Recipe::new(Op::Merge(other)), 2);
        let (shared, read) = (build(&first, &merge, 2), build(&later, &merge, 1));
        first.forget();
        assert!(shared == read && shared == build(&first, &merge, 1), "{merge}");
    }
    assert!(std::fs::read_dir(folder.path()).unwrap().count() > 5, "no statistics were kept");
}

#[test]
fn every_method_works_inside_a_recipe() {
    let (shapes, models) = models();
    for (merge, files) in every_merge() {
        let parent = Recipe::new(Op::Perturb { parent: leaf(1), deviation: 1e-3, seed: 5, shape: Shape::Full });
        let child = Recipe::new(Op::Crossover {
            target: merge.clone(),
            donor: parent.clone(),
            rate: 0.4,
            seed: 3,
            per: Granularity::Parameter,
        });
        // A merge of what was crossed over, so that its statistics are those of an inner node.
        let Op::Merge(mut outer) = merge.op().clone() else { panic!("a merge") };
        outer.models[0].recipe = child.clone();
        let outer = Recipe::new(Op::Merge(outer));
        let mut engine = engine(&shapes, &models, 4096);
        files.into_iter().for_each(|(digest, file)| engine.insert_statistics(digest, file));
        let whole = build(&engine, &outer, 2);
        let (merged, other, crossed) = (build(&engine, &merge, 1), build(&engine, &parent, 1), build(&engine, &child, 1));
        for ((merged, other), crossed) in merged.iter().flatten().zip(other.iter().flatten()).zip(crossed.iter().flatten()) {
            assert!(crossed == merged || crossed == other, "{merge}");
        }
        assert!(crossed != merged && crossed != other, "{merge}");
        engine.insert(child.id(), Arc::new(Memory(crossed)));
        assert!(whole == build(&engine, &outer, 1), "{merge}");
    }
}

#[test]
fn a_splice_takes_the_lower_layers_of_one_model_and_the_upper_ones_of_the_other() {
    let (shapes, values) = models();
    let engine = engine(&shapes, &values, 4096);
    let layers = Layers::new(engine.space());
    let mut taken = std::collections::BTreeSet::new();
    for at in [0.0, 0.5, 1.0] {
        let built = build(&engine, &Recipe::new(Op::Splice { first: leaf(0), second: leaf(1), at }), 2);
        for (tensor, built) in built.iter().enumerate() {
            let from = usize::from(layers.depth(tensor) >= at);
            assert_eq!(built, &values[from][tensor], "split at {at}, {}", layers.name(tensor));
            taken.insert((tensor, from));
        }
    }
    assert!(taken.len() > shapes.len(), "the split point decides");
}

#[test]
fn a_lineage_streams_as_its_steps_would_one_by_one() {
    let (shapes, values) = models();
    let donor = Recipe::new(Op::Differential { target: leaf(0), plus: leaf(1), minus: leaf(2), scale: 0.5 });
    let child =
        Recipe::new(Op::Crossover { target: leaf(0), donor: donor.clone(), rate: 0.3, seed: 9, per: Granularity::Parameter });
    let grandchild = Recipe::new(Op::Perturb { parent: child.clone(), deviation: 1e-3, seed: 5, shape: Shape::Full });
    let mut engine = engine(&shapes, &values, 4096);
    let whole = build(&engine, &grandchild, 2);
    let built_child = build(&engine, &child, 2);
    let (mut taken, mut all) = (0.0, 0.0);
    for (tensor, child) in built_child.iter().enumerate() {
        for (element, &value) in child.iter().enumerate() {
            let (a, b, c) = (values[0][tensor][element], values[1][tensor][element], values[2][tensor][element]);
            let mutated = a + 0.5 * (b - c);
            assert!(value == a || value == mutated);
            taken += f64::from(u8::from(value == mutated && value != a));
            all += f64::from(u8::from(mutated != a));
        }
    }
    assert!((taken / all - 0.3f64).abs() < 0.03, "{taken} of {all}");
    // A cached node in the graph's place gives the same bits.
    engine.insert(child.id(), Arc::new(Memory(built_child)));
    assert_eq!(whole, build(&engine, &grandchild, 1));
    assert_ne!(whole, build(&engine, &child, 1));
}

/// A checkpoint of these values in BF16. It stays mapped when its folder is gone.
fn stored(shapes: &[(String, Vec<usize>)], model: &InMemory) -> Arc<Checkpoint> {
    let folder = tempfile::tempdir().unwrap();
    let announced =
        |(name, shape): &(String, Vec<usize>)| Announced { name: name.clone(), dtype: Dtype::Bf16, shape: shape.clone() };
    let announced: Vec<_> = shapes.iter().map(announced).collect();
    let path = folder.path().join("model.safetensors");
    let writer = WeightsWriter::create(&path, &announced, &Map::new()).unwrap();
    model.iter().enumerate().for_each(|(tensor, values)| writer.values(tensor, 0, values).unwrap());
    writer.finish(false).unwrap();
    Arc::new(Checkpoint::open(&path).unwrap())
}

/// An engine over the same tensors whose leaves are checkpoints in BF16.
fn engine_of_stored(shapes: &[(String, Vec<usize>)], models: &[InMemory], block: usize) -> Engine {
    let mut engine = engine(shapes, &[], block);
    let space = Arc::new(engine.space().clone());
    for (index, model) in models.iter().enumerate() {
        engine.insert(leaf(index).id(), Arc::new(CheckpointLeaf::new(stored(shapes, model), Arc::clone(&space))));
    }
    engine
}

fn rounded(models: Vec<InMemory>) -> Vec<InMemory> {
    let round = |values: Vec<f32>| values.into_iter().map(|value| half::bf16::from_f32(value).to_f32()).collect();
    models.into_iter().map(|model| model.into_iter().map(round).collect()).collect()
}

#[test]
fn bf16_that_is_read_where_it_is_used_gives_the_bits_of_a_copy_in_f32() {
    let (shapes, models) = models();
    let models = rounded(models);
    let crossover = |per| Recipe::new(Op::Crossover { target: leaf(1), donor: leaf(2), rate: 0.4, seed: 5, per });
    let differential = Recipe::new(Op::Differential { target: leaf(1), plus: leaf(2), minus: leaf(3), scale: 0.7 });
    let blends = [
        crossover(Granularity::Parameter),
        crossover(Granularity::Tensor),
        Recipe::new(Op::Perturb { parent: leaf(1), deviation: 1e-3, seed: 5, shape: Shape::Sparse { density: 0.5 } }),
        Recipe::new(Op::Splice { first: leaf(0), second: differential.clone(), at: 0.5 }),
        Recipe::new(Op::Crossover {
            target: leaf(0),
            donor: differential.clone(),
            rate: 0.3,
            seed: 6,
            per: Granularity::Parameter,
        }),
        differential,
    ];
    for (recipe, files) in every_merge().into_iter().chain(blends.map(|recipe| (recipe, Files::new()))) {
        let (mut copied, mut read) = (engine(&shapes, &models, 4096), engine_of_stored(&shapes, &models, 8192));
        for engine in [&mut copied, &mut read] {
            files.iter().for_each(|(digest, file)| engine.insert_statistics(*digest, Arc::clone(file)));
        }
        let full = build(&copied, &recipe, 1);
        // Streamed first, while nothing is known of any tensor.
        assert!(full == stream(&read, &recipe), "streamed: {recipe}");
        assert!(full == build(&read, &recipe, 2), "{recipe}");
        let mut short: Vec<_> = full.iter().map(|values| Built::zeros(Dtype::Bf16, values.len())).collect();
        read.build_into(&recipe, &mut short, &[]).unwrap();
        let expected = |values: &Vec<f32>| Built::Bf16(values.iter().map(|value| half::bf16::from_f32(*value)).collect());
        assert!(short.iter().eq(&full.iter().map(expected).collect::<Vec<_>>()), "in BF16: {recipe}");
    }
}

#[test]
fn what_overflows_is_named_in_bf16_as_in_f32() {
    let shapes = [("a".to_owned(), vec![3]), ("w".to_owned(), vec![9000])];
    let model =
        |value: f32| -> InMemory { vec![vec![0.0; 3], (0..9000).map(|at| if at == 8500 { value } else { 0.5 }).collect()] };
    let mut engine = engine_of_stored(&shapes, &rounded(vec![model(0.5), model(3e38), model(-3e38)]), 4096);
    let recipe = Recipe::new(Op::Differential { target: leaf(0), plus: leaf(1), minus: leaf(2), scale: 0.5 });
    let mut built = [Built::zeros(Dtype::Bf16, 3), Built::zeros(Dtype::Bf16, 9000)];
    let error = engine.build_into(&recipe, &mut built, &[]).unwrap_err().to_string();
    assert!(error.contains("\"w\"") && error.contains("8500"), "{error}");
    engine.allow_non_finite();
    engine.build_into(&recipe, &mut built, &[]).unwrap();
    let Built::Bf16(values) = &built[1] else { panic!("BF16") };
    assert!(values[8500].is_infinite() && values[8499].to_f32() == 0.5);
}

#[test]
fn what_is_built_in_16_bits_is_what_is_built_rounded_once() {
    let (shapes, models) = models();
    let merge = every_merge().swap_remove(0).0;
    let crossed = Recipe::new(Op::Crossover { target: merge, donor: leaf(2), rate: 0.4, seed: 5, per: Granularity::Parameter });
    for block in [4096, 1 << 14] {
        let engine = engine(&shapes, &models, block);
        let full = build(&engine, &crossed, 2);
        let dtype = |tensor: usize| [Dtype::Bf16, Dtype::F16, Dtype::F32][tensor % 3];
        let elements = shapes.iter().map(|(_, shape)| shape.iter().product());
        let mut built: Vec<_> = elements.enumerate().map(|(tensor, elements)| Built::zeros(dtype(tensor), elements)).collect();
        engine.build_into(&crossed, &mut built, &[]).unwrap();
        for (tensor, (built, full)) in built.iter().zip(full).enumerate() {
            let expected = match dtype(tensor) {
                Dtype::Bf16 => Built::Bf16(full.iter().map(|value| half::bf16::from_f32(*value)).collect()),
                Dtype::F16 => Built::F16(full.iter().map(|value| half::f16::from_f32(*value)).collect()),
                _ => Built::F32(full),
            };
            assert!(*built == expected, "{}", shapes[tensor].0);
        }
    }
}
