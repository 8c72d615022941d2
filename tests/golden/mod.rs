//! Made-up weights: what the scripts in this folder make as well, so that no weights are stored.

use std::collections::BTreeMap;

use evolver_worker::models::{ModelWeights, Values};

/// Uniform in [-0.25, 0.25) by splitmix64 from the name's FNV-1a hash; vectors of weights, which are gains, about 1.
pub(crate) fn values(name: &str, shape: &[usize]) -> Vec<f32> {
    let seed = name.bytes().fold(0xCBF2_9CE4_8422_2325u64, |seed, byte| (seed ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3));
    let gain = if shape.len() == 1 && name.ends_with(".weight") { 1.0 } else { 0.0 };
    let count: usize = shape.iter().product();
    let value = |index: usize| {
        let mut x = seed.wrapping_add((index as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^= x >> 31;
        #[expect(clippy::cast_precision_loss, reason = "24 bits")]
        let unit = (x >> 40) as f32 / (1u32 << 23) as f32 - 1.0;
        gain + 0.25 * unit
    };
    (0..count).map(value).collect()
}

/// Tensors of these shapes.
pub(crate) fn weights(shapes: &BTreeMap<String, Vec<usize>>) -> ModelWeights {
    let mut weights = ModelWeights::default();
    for (name, shape) in shapes {
        weights.insert(name, shape, Values::Owned(values(name, shape).into()));
    }
    weights
}
