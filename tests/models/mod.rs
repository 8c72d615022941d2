//! Small Llama-like models on disk, for tests of whole commands.
#![allow(dead_code, reason = "each test file uses a part")]

use std::{collections::BTreeMap, fs, path::Path};

use evolver_common::checkpoint::Checkpoint;
use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};

/// Elements of a row.
pub const HIDDEN: usize = 4;

/// A model before it is written.
#[derive(Clone)]
pub struct Model {
    pub tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
    pub dtype: Dtype,
    pub config: Value,
    pub tokens: Vec<String>,
}

impl Model {
    /// A model of some layers over tokens, with values drawn from `seed`.
    pub fn new(seed: u32, layers: usize, tokens: &[&str]) -> Self {
        let mut shapes = vec![
            ("model.embed_tokens.weight".to_owned(), vec![tokens.len(), HIDDEN]),
            ("model.norm.weight".to_owned(), vec![HIDDEN]),
            ("lm_head.weight".to_owned(), vec![tokens.len(), HIDDEN]),
        ];
        for layer in 0..layers {
            shapes.push((format!("model.layers.{layer}.self_attn.q_proj.weight"), vec![HIDDEN, HIDDEN]));
            shapes.push((format!("model.layers.{layer}.mlp.up_proj.weight"), vec![6, HIDDEN]));
        }
        let tensors = shapes.into_iter().map(|(name, shape)| {
            let count = shape.iter().product::<usize>();
            let values = (0..count).map(|element| draw(seed, &name, element)).collect();
            (name, (shape, values))
        });
        let config = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": layers, "hidden_size": HIDDEN,
            "vocab_size": tokens.len(), "torch_dtype": "float32", "tie_word_embeddings": false, "eos_token_id": 0,
        });
        let tokens = tokens.iter().map(|token| (*token).to_owned()).collect();
        Self { tensors: tensors.collect(), dtype: Dtype::F32, config, tokens }
    }

    pub fn row(&self, tensor: &str, row: usize) -> &[f32] {
        &self.tensors[tensor].1[row * HIDDEN..][..HIDDEN]
    }

    pub fn values(&self, tensor: &str) -> &[f32] {
        &self.tensors[tensor].1
    }

    /// Writes weights in one file, config, generation config and tokenizer.
    pub fn write(&self, folder: &Path) {
        self.write_sides(folder);
        let names: Vec<_> = self.tensors.keys().cloned().collect();
        self.write_file(&folder.join("model.safetensors"), &names);
    }

    /// Writes each tensor into a shard of its own.
    pub fn write_sharded(&self, folder: &Path) {
        self.write_sides(folder);
        let mut map = BTreeMap::new();
        for (number, name) in (1..).zip(self.tensors.keys()) {
            let shard = format!("model-{number:05}-of-{:05}.safetensors", self.tensors.len());
            self.write_file(&folder.join(&shard), std::slice::from_ref(name));
            map.insert(name, shard);
        }
        let index = json!({ "metadata": {}, "weight_map": map });
        fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
    }

    pub fn write_sides(&self, folder: &Path) {
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join("config.json"), self.config.to_string()).unwrap();
        fs::write(folder.join("generation_config.json"), json!({ "eos_token_id": 0 }).to_string()).unwrap();
        let vocab: BTreeMap<_, _> = self.tokens.iter().zip(0..).collect();
        let tokenizer = json!({
            "version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": { "type": "WhitespaceSplit" }, "post_processor": null,
            "decoder": null, "truncation": null, "padding": null,
            "model": { "type": "WordLevel", "vocab": vocab, "unk_token": self.tokens[0] },
        });
        fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
        let config =
            json!({ "tokenizer_class": "PreTrainedTokenizerFast", "chat_template": format!("{{{{ '{}' }}}}", self.tokens[0]) });
        fs::write(folder.join("tokenizer_config.json"), config.to_string()).unwrap();
    }

    pub fn write_file(&self, path: &Path, names: &[String]) {
        let bytes: Vec<(String, Vec<usize>, Vec<u8>)> = names
            .iter()
            .map(|name| {
                let (shape, values) = &self.tensors[name];
                let bytes = values.iter().flat_map(|value| match self.dtype {
                    Dtype::F32 => value.to_le_bytes().to_vec(),
                    // The upper half.
                    _ => value.to_le_bytes()[2..].to_vec(),
                });
                (name.clone(), shape.clone(), bytes.collect())
            })
            .collect();
        let view = |(name, shape, bytes)| {
            let (name, shape, bytes): (&String, &Vec<usize>, &Vec<u8>) = (name, shape, bytes);
            (name.clone(), TensorView::new(self.dtype, shape.clone(), bytes).unwrap())
        };
        let views = bytes.iter().map(|(name, shape, bytes)| view((name, shape, bytes)));
        fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
    }
}

/// A number between -1 and 1 with few digits, so that sums of halves are exact.
fn draw(seed: u32, name: &str, element: usize) -> f32 {
    let digest = evolver_common::digest::Digest::of(format!("{seed} {name} {element}").as_bytes());
    f32::from(i16::from_le_bytes([digest.as_bytes()[0], digest.as_bytes()[1]]) >> 6) / 512.0
}

/// All values of a tensor of a written model.
pub fn read(folder: &Path, tensor: &str) -> Vec<f32> {
    let checkpoint = Checkpoint::open(folder).unwrap_or_else(|error| panic!("{error}"));
    let view = checkpoint.view(tensor).unwrap_or_else(|error| panic!("{error}"));
    let mut values = vec![0.0; view.elements()];
    view.read(0..values.len(), &mut values).unwrap();
    values
}

pub fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}
