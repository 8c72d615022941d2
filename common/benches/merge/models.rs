//! Llama-shaped models on disk, drawn at random or sparse.

use std::{fs, path::Path, path::PathBuf};

use evolver_common::{
    checkpoint::{
        Dtype,
        write::{Announced, WeightsWriter},
    },
    rng::Stream,
};
use rayon::prelude::*;
use serde_json::{Map, json};

/// Elements that one step draws.
const STEP: usize = 1 << 16;

/// The tensors of a Llama of about `millions` of parameters.
fn tensors(millions: usize, dtype: Dtype) -> (Vec<Announced>, serde_json::Value) {
    // The vocabulary and the width grow with the model, as they do in the family.
    let (vocabulary, width, layers) = match millions {
        0..=20 => (8_000, 256, millions.max(4) - 3),
        21..=200 => (32_000, 768, (millions.saturating_sub(49) / 7).max(2)),
        201..=1000 => (32_000, 1024, (millions.saturating_sub(65) / 12).max(2)),
        _ => (32_000, 2560, (millions.saturating_sub(164) / 80).max(2)),
    };
    let inner = width * 11 / 4;
    let mut shapes = vec![
        ("lm_head.weight".to_owned(), vec![vocabulary, width]),
        ("model.embed_tokens.weight".to_owned(), vec![vocabulary, width]),
        ("model.norm.weight".to_owned(), vec![width]),
    ];
    for layer in 0..layers {
        let mut add = |name: &str, shape: &[usize]| shapes.push((format!("model.layers.{layer}.{name}.weight"), shape.to_vec()));
        add("input_layernorm", &[width]);
        add("post_attention_layernorm", &[width]);
        ["q", "k", "v", "o"].iter().for_each(|side| add(&format!("self_attn.{side}_proj"), &[width, width]));
        add("mlp.gate_proj", &[inner, width]);
        add("mlp.up_proj", &[inner, width]);
        add("mlp.down_proj", &[width, inner]);
    }
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": vocabulary, "hidden_size": width, "intermediate_size": inner,
        "num_hidden_layers": layers, "num_attention_heads": width / 64, "num_key_value_heads": width / 64, "tie_word_embeddings": false,
    });
    (shapes.into_iter().map(|(name, shape)| Announced { name, dtype, shape }).collect(), config)
}

/// Which models are wanted.
#[derive(Clone, Copy)]
pub(crate) struct Wanted {
    /// Parameters, in millions.
    pub(crate) millions: usize,
    /// Type of their elements.
    pub(crate) dtype: Dtype,
    /// How many there are besides the base.
    pub(crate) experts: usize,
    /// Holes instead of numbers: all zero, and no space on the disk.
    pub(crate) sparse: bool,
}

/// The folders of the base and the experts, made unless they are there.
pub(crate) fn make(folder: &Path, wanted: Wanted) -> Vec<PathBuf> {
    (0..=wanted.experts).map(|number| model(folder, wanted, number)).collect()
}

fn model(folder: &Path, wanted: Wanted, number: usize) -> PathBuf {
    let Wanted { millions, dtype, sparse, .. } = wanted;
    let kind = if sparse { "sparse" } else { "drawn" };
    let name = if number == 0 { "base".to_owned() } else { format!("expert-{number}") };
    let path = folder.join(format!("{millions}-{}-{kind}", dtype.name())).join(name);
    if path.join("config.json").is_file() {
        return path;
    }
    fs::remove_dir_all(&path).ok();
    fs::create_dir_all(&path).unwrap();
    let (tensors, config) = tensors(millions, dtype);
    let writer = WeightsWriter::create(&path.join("model.safetensors"), &tensors, &Map::new()).unwrap();
    if !sparse {
        for (index, tensor) in tensors.iter().enumerate() {
            let elements: usize = tensor.shape.iter().product();
            (0..elements.div_ceil(STEP)).into_par_iter().for_each(|step| {
                let start = step * STEP;
                let values = draw(&tensor.name, number, start, (elements - start).min(STEP));
                writer.values(index, start, &values).unwrap();
            });
        }
    }
    writer.finish(false).unwrap();
    fs::write(path.join("config.json"), config.to_string()).unwrap();
    path
}

/// Weights of deviation 0.02, and differences of deviation 0.001 of which a tenth is zero.
fn draw(name: &str, number: usize, start: usize, count: usize) -> Vec<f32> {
    let numbers = |seed| {
        let mut numbers = vec![0; count];
        Stream::new(seed, name).fill(start as u64, &mut numbers);
        numbers
    };
    // The sum of four uniform bytes is near enough to normal; 148 is its standard deviation.
    let normal = |n: u32| n.to_le_bytes().iter().map(|byte| f32::from(*byte) - 127.5).sum::<f32>() / 148.0;
    let mut values: Vec<_> = numbers(0).into_iter().map(|n| 0.02 * normal(n)).collect();
    if number > 0 {
        for (value, (n, fine)) in values.iter_mut().zip(numbers(number as u64).into_iter().zip(numbers(1000 + number as u64))) {
            // The finer part keeps magnitudes apart from each other.
            let step = 0.001 * (normal(n) + fine as f32 / 4.3e11);
            *value += if fine % 10 == 0 { 0.0 } else { step };
        }
    }
    values
}
