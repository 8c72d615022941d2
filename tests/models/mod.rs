//! Small Llama-like models on disk, for tests of whole commands.
#![allow(dead_code, reason = "each test file uses a part")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use evolver_common::checkpoint::Checkpoint;
use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};

/// Elements of a row.
pub(crate) const HIDDEN: usize = 4;

/// A model before it is written.
#[derive(Clone)]
pub(crate) struct Model {
    pub(crate) tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
    pub(crate) dtype: Dtype,
    pub(crate) config: Value,
    pub(crate) tokens: Vec<String>,
}

impl Model {
    /// A model of some layers over tokens, with values drawn from `seed`.
    pub(crate) fn new(seed: u32, layers: usize, tokens: &[&str]) -> Self {
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

    pub(crate) fn row(&self, tensor: &str, row: usize) -> &[f32] {
        &self.tensors[tensor].1[row * HIDDEN..][..HIDDEN]
    }

    pub(crate) fn values(&self, tensor: &str) -> &[f32] {
        &self.tensors[tensor].1
    }

    /// Writes weights in one file, config, generation config and tokenizer.
    pub(crate) fn write(&self, folder: &Path) {
        self.write_sides(folder);
        let names: Vec<_> = self.tensors.keys().cloned().collect();
        self.write_file(&folder.join("model.safetensors"), &names);
    }

    /// Writes each tensor into a shard of its own.
    pub(crate) fn write_sharded(&self, folder: &Path) {
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

    pub(crate) fn write_sides(&self, folder: &Path) {
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

    pub(crate) fn write_file(&self, path: &Path, names: &[String]) {
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

/// A folder with models, in which definitions are written and merged.
pub(crate) struct Bench(tempfile::TempDir);

impl Bench {
    pub(crate) fn new(models: &[(&str, &Model)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, model) in models {
            model.write(&folder.path().join(name));
        }
        Self(folder)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_evolver")).args(arguments).current_dir(self.0.path()).output().unwrap()
    }

    /// Merges by this definition into `out`, and expects it to work.
    pub(crate) fn merge(&self, yaml: &str, out: &str, arguments: &[&str]) -> PathBuf {
        fs::write(self.path("merge.yaml"), yaml).unwrap();
        let output = self.run(&[&["merge", "merge.yaml", "--out", out], arguments].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        self.path(out)
    }

    /// Runs a command that must be refused with exit code 2; gives what it says.
    pub(crate) fn refusal(&self, arguments: &[&str]) -> String {
        let before = self.names();
        let output = self.run(arguments);
        let sentence = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {sentence}");
        assert!(!sentence.contains("panicked"), "{sentence}");
        assert_eq!(self.names(), before, "a refused command writes nothing");
        sentence
    }

    /// As [`Bench::refusal`], for a merge by this definition.
    pub(crate) fn refuses(&self, yaml: &str, arguments: &[&str]) -> String {
        fs::write(self.path("merge.yaml"), yaml).unwrap();
        self.refusal(&[&["merge", "merge.yaml", "--out", "out"], arguments].concat())
    }

    /// Names of all that lies in the folder.
    fn names(&self) -> Vec<std::ffi::OsString> {
        let mut names: Vec<_> = fs::read_dir(self.0.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort_unstable();
        names
    }
}

/// A number between -1 and 1 with few digits, so that sums of halves are exact.
pub(crate) fn draw(seed: u32, name: &str, element: usize) -> f32 {
    let digest = evolver_common::digest::Digest::of(format!("{seed} {name} {element}").as_bytes());
    f32::from(i16::from_le_bytes([digest.as_bytes()[0], digest.as_bytes()[1]]) >> 6) / 512.0
}

/// All values of a tensor of a written model.
pub(crate) fn read(folder: &Path, tensor: &str) -> Vec<f32> {
    let checkpoint = Checkpoint::open(folder).unwrap_or_else(|error| panic!("{error}"));
    let view = checkpoint.view(tensor).unwrap_or_else(|error| panic!("{error}"));
    let mut values = vec![0.0; view.elements()];
    view.read(0..values.len(), &mut values).unwrap();
    values
}

pub(crate) fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}
