//! A landscape: small weights that the real engine builds, and tasks whose items are right or wrong by a smooth function of them.
//!
//! Task t is solved with probability `q_t(w) = 1/3 + 0.6 exp(-f(w - o_t) / s)`, with `f` one of the usual test functions, `o_t` the task's optimum and `s` such
//! that an expert of middling reach and noise would stand at 0.85 of the way up. Item j is right where a smooth random field over weights, standard normal at each point, is below the normal
//! quantile of q: weights that are near each other are right on mostly the same items.

use std::{collections::HashMap, sync::Arc};

use evolver_common::{
    checkpoint::{Row, Space, SpaceTensor},
    digest::Digest,
    merge::{Engine, InMemory, Leaf, Options},
    recipe::Recipe,
    rng::normal_pair,
    score::{Portion, Scores, TaskScore, normal},
};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

pub(crate) const TASKS: usize = 4;
pub(crate) const ITEMS: usize = 100;
const LAYERS: usize = 4;
const SIDE: usize = 4;
pub(crate) const DIMENSION: usize = LAYERS * 2 * SIDE * SIDE;
/// Directions that the fields of items vary in, and how many of them each item uses.
const WAVES: usize = 48;
const USED: usize = 8;
/// Distance over which outcomes of items change.
const LENGTH: f64 = 3.0;

pub(crate) const FUNCTIONS: [&str; 5] = ["sphere", "ellipsoid", "rastrigin", "ridge", "powers"];

/// Everything that a landscape consists of; the Python programs read it.
#[derive(Serialize)]
pub(crate) struct Landscape {
    pub(crate) function: &'static str,
    /// The models that a search starts from; the base is zero.
    pub(crate) experts: Vec<Vec<f64>>,
    optima: Vec<Vec<f64>>,
    scale: Vec<f64>,
    waves: Vec<Vec<f64>>,
    /// For each task and item: the waves that it uses, and their phases.
    used: Vec<Vec<Vec<usize>>>,
    phases: Vec<Vec<Vec<f64>>>,
}

fn normal_number(random: &mut ChaCha8Rng) -> f64 {
    normal_pair(random.random(), random.random()).0
}

fn normals(length: usize, deviation: f64, random: &mut ChaCha8Rng) -> Vec<f64> {
    (0..length).map(|_| deviation * normal_number(random)).collect()
}

impl Landscape {
    pub(crate) fn new(function: &'static str, seed: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        // Optima share a direction, as fine-tuned models of one base do.
        let common = normals(DIMENSION, 0.7, &mut random);
        let near = |random: &mut ChaCha8Rng, around: &[f64], deviation: f64| -> Vec<f64> {
            around.iter().map(|x| x + deviation * normal_number(random)).collect()
        };
        let optima: Vec<_> = (0..TASKS).map(|_| near(&mut random, &common, 0.7)).collect();
        // Experts are unequally good, and stop short of their optima or go beyond them.
        let expert = |random: &mut ChaCha8Rng, optimum: &Vec<f64>| -> Vec<f64> {
            let (reach, deviation) = (0.7 + 0.5 * random.random::<f64>(), 0.1 + 0.5 * random.random::<f64>());
            near(random, optimum, deviation).into_iter().map(|x| reach * x).collect()
        };
        let experts: Vec<_> = optima.iter().map(|optimum| expert(&mut random, optimum)).collect();
        let waves = (0..WAVES).map(|_| normals(DIMENSION, 1.0 / LENGTH, &mut random)).collect();
        let used: Vec<Vec<Vec<usize>>> = (0..TASKS)
            .map(|_| (0..ITEMS).map(|_| (0..USED).map(|_| random.random_range(0..WAVES as u64) as usize).collect()).collect())
            .collect();
        let phase = |random: &mut ChaCha8Rng| 2.0 * std::f64::consts::PI * random.random::<f64>();
        let phases = (0..TASKS).map(|_| (0..ITEMS).map(|_| (0..USED).map(|_| phase(&mut random)).collect()).collect()).collect();
        let mut this = Self { function, experts, optima, scale: vec![1.0; TASKS], waves, used, phases };
        for task in 0..TASKS {
            let middling: Vec<f64> = near(&mut random, &this.optima[task], 0.35).into_iter().map(|x| 0.95 * x).collect();
            this.scale[task] = this.height(&middling, task) / -(0.85f64.ln());
        }
        this
    }

    /// The test function at a task's distance from its optimum; 0 at the optimum.
    fn height(&self, weights: &[f64], task: usize) -> f64 {
        let x = || weights.iter().zip(&self.optima[task]).map(|(w, o)| w - o);
        let place = |i: usize| i as f64 / (DIMENSION - 1) as f64;
        match self.function {
            "sphere" => x().map(|x| x * x).sum(),
            "ellipsoid" => x().enumerate().map(|(i, x)| 100f64.powf(place(i)) * x * x).sum(),
            "rastrigin" => x().map(|x| x * x + 0.3 * (1.0 - (2.0 * std::f64::consts::PI * x).cos())).sum(),
            "ridge" => {
                let along: f64 =
                    x().enumerate().map(|(i, x)| if i % 2 == 0 { x } else { -x }).sum::<f64>() / (DIMENSION as f64).sqrt();
                let all: f64 = x().map(|x| x * x).sum();
                along * along + 4.0 * (all - along * along).max(0.0).sqrt()
            }
            _ => x().enumerate().map(|(i, x)| x.abs().powf(1.5 + 2.0 * place(i))).sum(),
        }
    }

    /// The true probability of a right answer.
    fn quality(&self, weights: &[f64], task: usize) -> f64 {
        1.0 / 3.0 + 0.6 * (-self.height(weights, task) / self.scale[task]).exp()
    }

    /// The true objective: the mean over tasks.
    pub(crate) fn truth(&self, weights: &[f64]) -> f64 {
        (0..TASKS).map(|task| self.quality(weights, task)).sum::<f64>() / TASKS as f64
    }

    pub(crate) fn scores(&self, weights: &[f64], portion: Portion) -> Scores {
        let along: Vec<f64> = self.waves.iter().map(|wave| wave.iter().zip(weights).map(|(a, w)| a * w).sum()).collect();
        let task = |task: usize| {
            let name = format!("t{task}");
            let threshold = normal::quantile(self.quality(weights, task));
            let credit = |item: usize| {
                let field: f64 = self.used[task][item]
                    .iter()
                    .zip(&self.phases[task][item])
                    .map(|(wave, phase)| (along[*wave] + phase).cos())
                    .sum();
                f32::from(u8::from(field * (2.0 / USED as f64).sqrt() < threshold))
            };
            TaskScore::of_credits(&name, portion.items(&name, ITEMS).into_iter().map(credit).collect())
        };
        Scores { tasks: (0..TASKS).map(task).collect() }
    }
}

struct Memory(InMemory);

impl Leaf for Memory {
    fn read(&self, tensor: usize, elements: std::ops::Range<usize>, out: &mut [f32]) -> Result<(), String> {
        out.copy_from_slice(&self.0[tensor][elements]);
        Ok(())
    }

    fn borrow(&self, tensor: usize) -> Option<Row<'_>> {
        Some(Row::F32(&self.0[tensor]))
    }
}

/// Builds recipes over a landscape's models; what was built once is a leaf of what is built of it.
pub(crate) struct Builder {
    engine: Engine,
    built: HashMap<Digest, Vec<f64>>,
}

pub(crate) fn leaf(name: &str) -> Recipe {
    Recipe::checkpoint(Digest::of(name.as_bytes()))
}

impl Builder {
    pub(crate) fn new(landscape: &Landscape) -> Self {
        let parts = ["attention", "output"];
        let names = (0..LAYERS).flat_map(|layer| parts.map(|part| format!("encoder.layer.{layer}.{part}.weight")));
        let tensors = names.map(|name| SpaceTensor { name, shape: vec![SIDE, SIDE], elements: SIDE * SIDE }).collect();
        let mut engine = Engine::new(Arc::new(Space { tensors }), Options::default());
        #[expect(clippy::cast_possible_truncation, reason = "weights are F32")]
        let model = |weights: &[f64]| -> InMemory {
            weights.chunks(SIDE * SIDE).map(|part| part.iter().map(|w| *w as f32).collect()).collect()
        };
        engine.insert(leaf("base").id(), Arc::new(Memory(model(&[0.0; DIMENSION]))));
        for (index, expert) in landscape.experts.iter().enumerate() {
            engine.insert(leaf(&format!("expert{index}")).id(), Arc::new(Memory(model(expert))));
        }
        Self { engine, built: HashMap::new() }
    }

    pub(crate) fn weights(&mut self, recipe: &Recipe) -> Vec<f64> {
        if let Some(built) = self.built.get(&recipe.id()) {
            return built.clone();
        }
        let mut out = InMemory::new();
        self.engine.build(recipe, &mut out).unwrap();
        let weights: Vec<f64> = out.iter().flatten().map(|w| f64::from(*w)).collect();
        self.engine.insert(recipe.id(), Arc::new(Memory(out)));
        self.built.insert(recipe.id(), weights.clone());
        weights
    }
}
