//! Random choices with the same bits on every machine: whole numbers from the generator, functions from `libm`.

use evolver_common::rng::normal_pair;
use rand::{
    RngExt as _, SeedableRng as _,
    distr::{Distribution as _, Uniform},
};
use rand_chacha::ChaCha8Rng;

/// A stream beside those of the offspring, for what several offspring share; `purpose` keeps such streams apart.
pub(super) fn shared(seed: u64, purpose: u64, number: u64) -> ChaCha8Rng {
    let mut random = ChaCha8Rng::seed_from_u64(seed ^ purpose);
    random.set_stream(number);
    random
}

/// A whole number below `size`, which is above 0.
pub(super) fn index(size: usize, random: &mut ChaCha8Rng) -> usize {
    Uniform::new(0, size).map_or(0, |uniform| uniform.sample(random))
}

/// A uniform draw from `0..size` without the `taken`; 0 if nothing is left.
pub(super) fn other(size: usize, taken: &[usize], random: &mut ChaCha8Rng) -> usize {
    let free: Vec<_> = (0..size).filter(|index| !taken.contains(index)).collect();
    if free.is_empty() { 0 } else { free[index(free.len(), random)] }
}

/// A standard normal number.
pub(super) fn normal(random: &mut ChaCha8Rng) -> f64 {
    normal_pair(random.random(), random.random()).0
}

/// A vector of standard normal numbers.
pub(super) fn normals(length: usize, random: &mut ChaCha8Rng) -> Vec<f64> {
    (0..length).map(|_| normal(random)).collect()
}

/// A number of the Cauchy distribution about `location`.
pub(super) fn cauchy(location: f64, scale: f64, random: &mut ChaCha8Rng) -> f64 {
    let uniform = random.random::<f64>();
    location + scale * libm::tan(std::f64::consts::PI * (uniform - 0.5))
}

/// A place drawn with probability in proportion to its weight; weights below 0 or NaN count as 0. Uniform where all are 0.
pub(super) fn weighted(weights: &[f64], random: &mut ChaCha8Rng) -> usize {
    let weight = |weight: &f64| if *weight > 0.0 { *weight } else { 0.0 };
    let total: f64 = weights.iter().map(weight).sum();
    if !(total > 0.0 && total.is_finite()) {
        return index(weights.len(), random);
    }
    let mut left = random.random::<f64>() * total;
    for (place, one) in weights.iter().enumerate() {
        left -= weight(one);
        if left < 0.0 {
            return place;
        }
    }
    weights.len() - 1
}

/// A random order of `0..size` (Fisher and Yates).
pub(super) fn permutation(size: usize, random: &mut ChaCha8Rng) -> Vec<usize> {
    let mut order: Vec<_> = (0..size).collect();
    for last in (1..size).rev() {
        order.swap(last, index(last + 1, random));
    }
    order
}
