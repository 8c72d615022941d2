//! Merge methods against golden values of an independent NumPy reference, and the same bits for any block size and thread count.
#![expect(clippy::unwrap_used, reason = "a test's helper fails as its test does")]

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use evolver_common::{
    checkpoint::{Space, SpaceTensor},
    digest::Digest,
    merge::{Engine, InMemory, Leaf, Options, normalize},
    recipe::{Granularity, Input, Merge, Op, Parameters, Recipe},
};
use serde::Deserialize;

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

#[derive(Deserialize)]
struct Case {
    name: String,
    method: String,
    parameters: Parameters,
    model_parameters: Vec<Parameters>,
    base: Model,
    models: Vec<Model>,
    expected: Model,
}

struct Memory(InMemory);

impl Leaf for Memory {
    fn read(&self, tensor: usize, elements: Range<usize>, out: &mut [f32]) -> Result<(), String> {
        out.copy_from_slice(&self.0[tensor][elements]);
        Ok(())
    }

    fn borrow(&self, _: usize) -> Option<&[f32]> {
        None
    }
}

fn leaf(n: usize) -> Recipe {
    Recipe::checkpoint(Digest::of(&n.to_le_bytes()))
}

fn engine(models: &[&Model], block: usize) -> Engine {
    let tensors = models[0].iter().map(|(name, tensor)| SpaceTensor {
        name: name.clone(),
        shape: tensor.shape.clone(),
        elements: tensor.shape.iter().product(),
    });
    let mut engine = Engine::new(Arc::new(Space { tensors: tensors.collect() }), Options { block });
    for (index, model) in models.iter().enumerate() {
        engine.insert(leaf(index).id(), Arc::new(Memory(model.values().map(Tensor::values).collect())));
    }
    engine
}

fn build(engine: &Engine, recipe: &Recipe, threads: usize) -> InMemory {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let mut out = InMemory::new();
    pool.install(|| engine.build(recipe, &mut out, &[])).unwrap();
    out
}

fn cases() -> Vec<Case> {
    serde_json::from_str(include_str!("golden/merges.json")).unwrap()
}

#[test]
fn merges_agree_with_the_reference_whatever_the_blocks_and_threads() {
    for case in cases() {
        let models: Vec<_> = std::iter::once(&case.base).chain(&case.models).collect();
        let inputs = (1..)
            .zip(&case.model_parameters)
            .map(|(index, parameters)| Input { recipe: leaf(index), parameters: parameters.clone() });
        let merge = Merge {
            method: case.method.clone(),
            base: Some(leaf(0)),
            models: inputs.collect(),
            parameters: case.parameters.clone(),
        };
        let recipe = Recipe::new(Op::Merge(normalize(merge).unwrap()));
        let built = build(&engine(&models, 4096), &recipe, 1);
        for (tensor, (name, expected)) in built.iter().zip(&case.expected) {
            for (element, (found, expected)) in tensor.iter().zip(expected.values()).enumerate() {
                let error = (found - expected).abs() / expected.abs().max(1e-6);
                assert!(error <= 1e-6, "{}: {name}[{element}] is {found}, and {expected} is expected", case.name);
            }
        }
        for (block, threads) in [(1, 3), (8192, 2), (1 << 20, 1)] {
            assert_eq!(built, build(&engine(&models, block), &recipe, threads), "{} with blocks of {block}", case.name);
        }
    }
}

#[test]
fn a_lineage_streams_as_its_steps_would_one_by_one() {
    let case = &cases()[0];
    let models: Vec<_> = case.models.iter().collect();
    let donor = Recipe::new(Op::Differential { target: leaf(0), plus: leaf(1), minus: leaf(2), scale: 0.5 });
    let child =
        Recipe::new(Op::Crossover { target: leaf(0), donor: donor.clone(), rate: 0.3, seed: 9, per: Granularity::Parameter });
    let grandchild = Recipe::new(Op::Perturb { parent: child.clone(), deviation: 1e-3, seed: 5 });
    let mut engine = engine(&models, 4096);
    let whole = build(&engine, &grandchild, 2);
    let values: Vec<InMemory> = models.iter().map(|model| model.values().map(Tensor::values).collect()).collect();
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
