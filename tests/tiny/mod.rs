//! A BERT of one layer whose outputs are plain to see.

use std::path::Path;

use evolver_common::checkpoint::{
    Dtype,
    write::{Announced, FolderWriter},
};
use serde_json::json;

const HIDDEN: usize = 4;
/// Name and shape of every tensor of the body; all are zeros but the pooler's bias.
const BODY: [(&str, &[usize]); 23] = [
    ("bert.embeddings.word_embeddings.weight", &[3, HIDDEN]),
    ("bert.embeddings.position_embeddings.weight", &[8, HIDDEN]),
    ("bert.embeddings.token_type_embeddings.weight", &[2, HIDDEN]),
    ("bert.embeddings.LayerNorm.weight", &[HIDDEN]),
    ("bert.embeddings.LayerNorm.bias", &[HIDDEN]),
    ("bert.encoder.layer.0.attention.self.query.weight", &[HIDDEN, HIDDEN]),
    ("bert.encoder.layer.0.attention.self.query.bias", &[HIDDEN]),
    ("bert.encoder.layer.0.attention.self.key.weight", &[HIDDEN, HIDDEN]),
    ("bert.encoder.layer.0.attention.self.key.bias", &[HIDDEN]),
    ("bert.encoder.layer.0.attention.self.value.weight", &[HIDDEN, HIDDEN]),
    ("bert.encoder.layer.0.attention.self.value.bias", &[HIDDEN]),
    ("bert.encoder.layer.0.attention.output.dense.weight", &[HIDDEN, HIDDEN]),
    ("bert.encoder.layer.0.attention.output.dense.bias", &[HIDDEN]),
    ("bert.encoder.layer.0.attention.output.LayerNorm.weight", &[HIDDEN]),
    ("bert.encoder.layer.0.attention.output.LayerNorm.bias", &[HIDDEN]),
    ("bert.encoder.layer.0.intermediate.dense.weight", &[6, HIDDEN]),
    ("bert.encoder.layer.0.intermediate.dense.bias", &[6]),
    ("bert.encoder.layer.0.output.dense.weight", &[HIDDEN, 6]),
    ("bert.encoder.layer.0.output.dense.bias", &[HIDDEN]),
    ("bert.encoder.layer.0.output.LayerNorm.weight", &[HIDDEN]),
    ("bert.encoder.layer.0.output.LayerNorm.bias", &[HIDDEN]),
    ("bert.pooler.dense.weight", &[HIDDEN, HIDDEN]),
    ("bert.pooler.dense.bias", &[HIDDEN]),
];

/// A BERT whose pooled state is `tanh(pooled)` for any text, and whose classifier's rows are constants.
pub(crate) fn model(folder: &Path, pooled: f32, rows: &[f32]) {
    let writer = FolderWriter::new(folder).unwrap();
    let announce = |name: &str, shape: &[usize]| Announced { name: name.to_owned(), dtype: Dtype::F32, shape: shape.to_vec() };
    let mut tensors: Vec<_> = BODY.iter().map(|(name, shape)| announce(name, shape)).collect();
    tensors.push(announce("classifier.weight", &[rows.len(), HIDDEN]));
    tensors.push(announce("classifier.bias", &[rows.len()]));
    let weights = writer.weights("model.safetensors", &tensors).unwrap();
    weights.values(BODY.len() - 1, 0, &[pooled; HIDDEN]).unwrap();
    let classifier: Vec<f32> = rows.iter().flat_map(|&value| [value; HIDDEN]).collect();
    weights.values(BODY.len(), 0, &classifier).unwrap();
    weights.finish(false).unwrap();
    let config = json!({
        "model_type": "bert", "architectures": ["BertForSequenceClassification"], "hidden_size": HIDDEN, "num_hidden_layers": 1,
        "num_attention_heads": 2, "intermediate_size": 6, "vocab_size": 3, "max_position_embeddings": 8,
    });
    writer.write("config.json", config.to_string().as_bytes()).unwrap();
    let tokenizer = json!({
        "version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": { "type": "Whitespace" },
        "post_processor": null, "decoder": null, "truncation": null, "padding": null,
        "model": { "type": "WordLevel", "vocab": { "[UNK]": 0, "a": 1, "b": 2 }, "unk_token": "[UNK]" },
    });
    writer.write("tokenizer.json", tokenizer.to_string().as_bytes()).unwrap();
    writer.finish().unwrap();
}
