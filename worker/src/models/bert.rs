//! BERT encoders (Devlin et al., 2019) with pooler and classification head, as `transformers`' `BertForSequenceClassification`.

use candle_core::{Device, Tensor};
use serde::Deserialize;
use serde_json::Value;

use super::{
    ops::{Attention, BiasGelu, ResidualNorm},
    weights::{ModelError, ModelWeights, Values},
};

/// What of `config.json` the network needs.
#[derive(Clone, Debug, Deserialize)]
pub struct BertConfig {
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    vocab_size: usize,
    /// Longest sequence that there are positions for.
    pub max_position_embeddings: usize,
    #[serde(default = "two")]
    type_vocab_size: usize,
    #[serde(default = "epsilon")]
    layer_norm_eps: f32,
    #[serde(default = "gelu")]
    hidden_act: String,
    #[serde(default = "absolute")]
    position_embedding_type: String,
}

fn two() -> usize {
    2
}
fn epsilon() -> f32 {
    1e-12
}
fn gelu() -> String {
    "gelu".into()
}
fn absolute() -> String {
    "absolute".into()
}

impl BertConfig {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// If it is not a BERT that can be run.
    pub fn new(config: Value) -> Result<Self, ModelError> {
        let model_type = config.get("model_type").and_then(Value::as_str).unwrap_or("missing").to_owned();
        let refuse = |key: &str, found: &str, supported: &str| {
            Err(ModelError::Config(format!("{key} is {found:?}, and only {supported:?} can be scored here")))
        };
        if model_type != "bert" {
            return refuse("model_type", &model_type, "bert");
        }
        let this: Self = serde_json::from_value(config).map_err(|error| ModelError::Config(error.to_string()))?;
        if this.hidden_act != "gelu" {
            return refuse("hidden_act", &this.hidden_act, "gelu");
        }
        if this.position_embedding_type != "absolute" {
            return refuse("position_embedding_type", &this.position_embedding_type, "absolute");
        }
        if this.num_attention_heads == 0 || !this.hidden_size.is_multiple_of(this.num_attention_heads) {
            return Err(ModelError::Config(format!(
                "hidden_size {} is not a multiple of num_attention_heads {}",
                this.hidden_size, this.num_attention_heads
            )));
        }
        Ok(this)
    }
}

/// Rows that every matrix product has at least, those missing being zeros.
///
/// The gemm crate (0.19) sums in another order where a product has a single row, or at most 256 elements, or at most 64 rows and columns; with more
/// rows than that a row's bits depend on nothing but the row.
const ROWS_MIN: usize = 257;

/// The encoder.
pub struct Bert {
    config: BertConfig,
    device: Device,
    words: Values,
    positions: Values,
    types: Values,
    embedding_norm: ResidualNorm,
    layers: Vec<Layer>,
}

struct Layer {
    qkv: [Tensor; 3],
    qkv_bias: [Vec<f32>; 3],
    attention_out: Tensor,
    attention_norm: ResidualNorm,
    up: Tensor,
    up_gelu: BiasGelu,
    down: Tensor,
    down_norm: ResidualNorm,
}

/// Pooler and classifier.
pub struct Head {
    pooler: Tensor,
    pooler_bias: Tensor,
    classifier: Tensor,
    classifier_bias: Tensor,
}

/// A layer norm with the bias of the linear layer before it.
fn norm(weights: &mut ModelWeights, name: &str, bias: Vec<f32>, width: usize, epsilon: f32) -> Result<ResidualNorm, ModelError> {
    Ok(ResidualNorm {
        bias,
        gain: weights.vector(&format!("{name}.weight"), width)?,
        shift: weights.vector(&format!("{name}.bias"), width)?,
        epsilon,
    })
}

impl Bert {
    /// Takes the encoder's tensors out of `weights`.
    ///
    /// # Errors
    /// If one is missing or has another shape than the config says.
    pub fn load(config: &BertConfig, weights: &mut ModelWeights, device: &Device) -> Result<Self, ModelError> {
        let hidden = config.hidden_size;
        let embeddings = "bert.embeddings";
        let layers = (0..config.num_hidden_layers).map(|index| Layer::load(config, weights, index, device));
        let layers = layers.collect::<Result<_, _>>()?;
        let mut table = |name: &str, rows: usize| weights.take(&format!("{embeddings}.{name}.weight"), &[rows, hidden]);
        Ok(Self {
            words: table("word_embeddings", config.vocab_size)?,
            positions: table("position_embeddings", config.max_position_embeddings)?,
            types: table("token_type_embeddings", config.type_vocab_size)?,
            embedding_norm: norm(weights, &format!("{embeddings}.LayerNorm"), vec![], hidden, config.layer_norm_eps)?,
            layers,
            device: device.clone(),
            config: config.clone(),
        })
    }

    /// Runs packed sequences of (token, type) pairs and gives the hidden state of each sequence's first token: `sequences x hidden`.
    ///
    /// # Errors
    /// If the tensor library fails, or a token is outside the vocabulary.
    pub fn forward(&self, sequences: &[&[(u32, u32)]]) -> Result<Tensor, ModelError> {
        let mut offsets = vec![0];
        for sequence in sequences {
            offsets.push(offsets[offsets.len() - 1] + sequence.len());
        }
        let mut x = self.embed(sequences, offsets[sequences.len()])?;
        for layer in &self.layers {
            x = layer.forward(&x, self.config.num_attention_heads, &offsets)?;
        }
        let first: Vec<_> = offsets[..sequences.len()].iter().map(|&row| u32::try_from(row).unwrap_or(u32::MAX)).collect();
        Ok(x.index_select(&Tensor::new(first, &self.device)?, 0)?)
    }

    fn embed(&self, sequences: &[&[(u32, u32)]], rows: usize) -> Result<Tensor, ModelError> {
        let hidden = self.config.hidden_size;
        let rows = rows.max(ROWS_MIN);
        let mut out = vec![0.0; rows * hidden];
        let mut scratch = Vec::new();
        let tokens = sequences.iter().flat_map(|sequence| sequence.iter().enumerate());
        for ((position, &(token, kind)), row) in tokens.zip(out.chunks_mut(hidden)) {
            let (token, kind) = (token as usize, kind as usize);
            let limits = [
                (token, self.config.vocab_size, "the vocabulary"),
                (position, self.config.max_position_embeddings, "the positions"),
                (kind, self.config.type_vocab_size, "the token types"),
            ];
            if let Some((found, limit, what)) = limits.into_iter().find(|(found, limit, _)| found >= limit) {
                return Err(ModelError::Config(format!("a text has number {found} among {what}, and the model has {limit}")));
            }
            for (table, at) in [(&self.words, token), (&self.types, kind), (&self.positions, position)] {
                table.add_to(at * hidden, row, &mut scratch)?;
            }
            self.embedding_norm.row(row);
        }
        Ok(Tensor::from_vec(out, (rows, hidden), &self.device)?)
    }
}

impl Layer {
    fn load(config: &BertConfig, weights: &mut ModelWeights, index: usize, device: &Device) -> Result<Self, ModelError> {
        let (hidden, inner, epsilon) = (config.hidden_size, config.intermediate_size, config.layer_norm_eps);
        let name = |part: &str| format!("bert.encoder.layer.{index}.{part}");
        let mut matrix =
            |part: &str, rows: usize, columns: usize| weights.tensor(&format!("{}.weight", name(part)), &[rows, columns], device);
        let qkv = [
            matrix("attention.self.query", hidden, hidden)?,
            matrix("attention.self.key", hidden, hidden)?,
            matrix("attention.self.value", hidden, hidden)?,
        ];
        let attention_out = matrix("attention.output.dense", hidden, hidden)?;
        let up = matrix("intermediate.dense", inner, hidden)?;
        let down = matrix("output.dense", hidden, inner)?;
        let mut bias = |part: &str, length: usize| weights.vector(&format!("{}.bias", name(part)), length);
        let qkv_bias =
            [bias("attention.self.query", hidden)?, bias("attention.self.key", hidden)?, bias("attention.self.value", hidden)?];
        let attention_bias = bias("attention.output.dense", hidden)?;
        let up_gelu = BiasGelu { bias: bias("intermediate.dense", inner)? };
        let down_bias = bias("output.dense", hidden)?;
        Ok(Self {
            qkv,
            qkv_bias,
            attention_out,
            attention_norm: norm(weights, &name("attention.output.LayerNorm"), attention_bias, hidden, epsilon)?,
            up,
            up_gelu,
            down,
            down_norm: norm(weights, &name("output.LayerNorm"), down_bias, hidden, epsilon)?,
        })
    }

    fn forward(&self, x: &Tensor, heads: usize, offsets: &[usize]) -> Result<Tensor, ModelError> {
        let [q, k, v] = [x.matmul(&self.qkv[0].t()?)?, x.matmul(&self.qkv[1].t()?)?, x.matmul(&self.qkv[2].t()?)?];
        let attention = Attention { heads, offsets, biases: &self.qkv_bias };
        let mixed = attention.run(&q, &k, &v)?.matmul(&self.attention_out.t()?)?;
        let x = self.attention_norm.run(&mixed, x)?;
        let inner = self.up_gelu.run(&x.matmul(&self.up.t()?)?)?;
        Ok(self.down_norm.run(&inner.matmul(&self.down.t()?)?, &x)?)
    }
}

impl Head {
    /// The tensors of a head.
    pub const TENSORS: [&str; 4] = ["bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias"];

    /// Takes pooler and classifier out of `weights`.
    ///
    /// # Errors
    /// If a tensor is missing or of another shape, for instance a classifier of another width than `labels`.
    pub fn load(config: &BertConfig, weights: &mut ModelWeights, labels: usize, device: &Device) -> Result<Self, ModelError> {
        let hidden = config.hidden_size;
        let [pooler, pooler_bias, classifier, classifier_bias] = Self::TENSORS;
        Ok(Self {
            pooler: weights.tensor(pooler, &[hidden, hidden], device)?,
            pooler_bias: weights.tensor(pooler_bias, &[hidden], device)?,
            classifier: weights.tensor(classifier, &[labels, hidden], device)?,
            classifier_bias: weights.tensor(classifier_bias, &[labels], device)?,
        })
    }

    /// Logits of first-token states: `sequences x labels`.
    ///
    /// # Errors
    /// If the tensor library fails.
    pub fn logits(&self, first: &Tensor) -> Result<Vec<Vec<f32>>, ModelError> {
        let sequences = first.dim(0)?;
        let first = first.pad_with_zeros(0, 0, ROWS_MIN.saturating_sub(sequences))?;
        let pooled = first.matmul(&self.pooler.t()?)?.broadcast_add(&self.pooler_bias)?.tanh()?;
        let logits = pooled.matmul(&self.classifier.t()?)?.broadcast_add(&self.classifier_bias)?;
        Ok(logits.narrow(0, 0, sequences)?.to_vec2()?)
    }
}
