//! PEFT adapters as views over their base, computed block by block and never as a whole: LoRA (`W + scale * B A`, over linear layers, convolutions
//! and embeddings) and (IA)³ (rows or columns times learned factors).
//!
//! LoRA's scale is `alpha / r`, or `alpha / sqrt(r)` with rank-stabilised LoRA (`use_rslora`).
//!
//! - [`config`]: the adapter's `adapter_config.json`.
//! - [`change`]: what is done to a tensor.

mod change;
mod config;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

pub(super) use self::change::Change;
use self::{
    change::{LowRank, Scaled},
    config::{Config, Kind},
};
use super::open::{Checkpoint, OpenError, TensorInfo, read_json};

const WEIGHTS: &str = "adapter_model.safetensors";
const PREFIX: &str = "base_model.model.";

/// What an adapter changes, by tensor name of the base.
pub(super) struct Plan {
    pub(super) changed: Vec<(String, Change)>,
    /// Base tensor, and the adapter file's tensor that stands for it.
    pub(super) replaced: BTreeMap<String, String>,
}

/// Whether the folder is a PEFT adapter.
#[must_use]
pub fn is_adapter(path: &Path) -> bool {
    path.join(config::FILE).is_file() && !path.join("config.json").is_file()
        || path.join(config::FILE).is_file() && path.join(WEIGHTS).is_file()
}

/// The base that an adapter's own config names.
///
/// # Errors
/// If the config cannot be read.
pub fn adapter_base(path: &Path) -> Result<Option<String>, OpenError> {
    let config = read_json(&path.join(config::FILE))?;
    Ok(config.get("base_model_name_or_path").and_then(|name| name.as_str()).map(str::to_owned))
}

/// The file of an adapter's tensors.
pub(super) fn weights(path: &Path) -> Result<PathBuf, OpenError> {
    let file = path.join(WEIGHTS);
    if file.is_file() {
        return Ok(file);
    }
    let pickled = path.join("adapter_model.bin").exists();
    let hint = if pickled { ": adapter_model.bin is a pickle, so save the adapter as safetensors" } else { "" };
    Err(OpenError::Side { path: file, what: format!("is missing{hint}") })
}

/// The learned vectors of an (IA)³ adapter.
#[derive(Debug)]
pub struct Vectors {
    /// The vectors by their names in the adapter.
    pub checkpoint: Checkpoint,
    /// Names of those that scale a module's inputs, and not its outputs.
    pub of_inputs: BTreeSet<String>,
}

/// Opens the learned vectors of an (IA)³ adapter as they are, without a base.
///
/// # Errors
/// As [`Checkpoint::open`], or if it is another kind of adapter, or has tensors that are no such vectors.
pub fn open_vectors(path: &Path) -> Result<Vectors, OpenError> {
    let wrong = |what: String| OpenError::Side { path: path.to_owned(), what };
    if !is_adapter(path) {
        return Err(wrong("is no PEFT adapter, and the vectors of (IA)³ adapters are merged".into()));
    }
    let Kind::Ia3 { feedforward } = Config::open(path)?.kind else {
        return Err(wrong("is a LoRA adapter, whose factors have no meaning one by one: merge base+adapter instead".into()));
    };
    let checkpoint = Checkpoint::open(&weights(path)?)?;
    let mut of_inputs = BTreeSet::new();
    for name in checkpoint.tensors().keys() {
        let Some(module) = name.strip_suffix(".ia3_l") else {
            let sentence =
                format!("tensor {name:?} is no (IA)³ vector, and has no ones to start from: merge base+adapter instead");
            return Err(wrong(sentence));
        };
        if feedforward.contains(plain(module).map_err(wrong)?) {
            of_inputs.insert(name.clone());
        }
    }
    Ok(Vectors { checkpoint, of_inputs })
}

/// Whether a text is an adapter's config that can be read, for those who check files from outside.
///
/// # Errors
/// The sentence.
pub fn check_adapter_config(text: &[u8]) -> Result<(), String> {
    let tree = serde_json::from_slice(text).map_err(|error| format!("not JSON: {error}"))?;
    Config::from_tree(tree).map(drop)
}

/// Reads the adapter's config and pairs its tensors with the base's.
pub(super) fn plan(path: &Path, parts: &Checkpoint, base: &Checkpoint) -> Result<Plan, OpenError> {
    let config = Config::open(path)?;
    let planner = Planner { parts, base, config: &config };
    planner.plan().map_err(|what| OpenError::Side { path: path.join(WEIGHTS), what })
}

struct Planner<'a> {
    parts: &'a Checkpoint,
    base: &'a Checkpoint,
    config: &'a Config,
}

impl Planner<'_> {
    fn plan(&self) -> Result<Plan, String> {
        let replaced = self.replaced()?;
        let mut plan = Plan { changed: Vec::new(), replaced };
        for name in self.parts.tensors().keys() {
            let plain = plain(name)?;
            let low_rank = [(".lora_A.weight", ".lora_B.weight", false), (".lora_embedding_A", ".lora_embedding_B", true)];
            if let Some((module, b, embedding)) =
                low_rank.iter().find_map(|(a, b, embedding)| Some((plain.strip_suffix(a)?, b, *embedding)))
            {
                let target = format!("{module}.weight");
                let change = self.low_rank(module, name, &format!("{PREFIX}{module}{b}"), embedding)?;
                let info = self.target(&target, &plan.replaced)?;
                change.check(&target, info)?;
                plan.changed.push((target, Change::LowRank(change)));
            } else if let Some(module) = plain.strip_suffix(".ia3_l") {
                self.scaled(module, name, &mut plan)?;
            } else if let Some((module, _)) = low_rank.iter().find_map(|(a, b, _)| Some((plain.strip_suffix(b)?, a))) {
                let other = name.replace("_B", "_A");
                if !self.parts.tensors().contains_key(&other) {
                    return Err(format!("tensor {name:?} of module {module:?} stands without {other:?}"));
                }
            } else if plain.contains(".lora_") {
                return Err(format!("tensor {name:?} is of a kind of adapter that cannot be read"));
            }
        }
        Ok(plan)
    }

    /// Tensors that stand for the base's: `modules_to_save`, trained biases, and embeddings that were saved along.
    fn replaced(&self) -> Result<BTreeMap<String, String>, String> {
        let mut replaced = BTreeMap::new();
        for name in self.parts.tensors().keys() {
            let plain = plain(name)?;
            if plain.contains(".lora_") || plain.ends_with(".ia3_l") {
                continue;
            }
            let target =
                plain.replace(".modules_to_save.default.", ".").replace(".modules_to_save.", ".").replace(".base_layer.", ".");
            if self.base.tensors().contains_key(&target) {
                replaced.insert(target, name.clone());
            } else if !self.is_tied_copy(name, &target)? {
                return Err(format!("it replaces tensor {target:?}, which the base lacks"));
            }
        }
        Ok(replaced)
    }

    /// Whether a tensor is output embeddings saved along although they are tied to the input embeddings: the same values twice.
    fn is_tied_copy(&self, name: &str, target: &str) -> Result<bool, String> {
        let Some(stem) = target.strip_suffix("lm_head.weight") else { return Ok(false) };
        let input =
            self.parts.tensors().keys().find(|other| other.starts_with(PREFIX) && other.ends_with(".embed_tokens.weight"));
        let bytes = |name: &str| self.parts.view(name).ok().and_then(|view| view.bytes());
        match input.map(|input| bytes(input)) {
            Some(input) if input == bytes(name) => Ok(true),
            _ => Err(format!(
                "it replaces tensor \"{stem}lm_head.weight\", and the base's output embeddings are tied to its input embeddings: untie the base first"
            )),
        }
    }

    /// Type and shape of what is changed: the base's tensor, or what replaces it.
    fn target(&self, target: &str, replaced: &BTreeMap<String, String>) -> Result<&TensorInfo, String> {
        let info = match replaced.get(target) {
            Some(part) => self.parts.tensors().get(part),
            None => self.base.tensors().get(target),
        };
        info.ok_or_else(|| {
            let tied = if target.ends_with("lm_head.weight") {
                ": its output embeddings are tied to its input embeddings, so untie it first"
            } else {
                ""
            };
            format!("it changes tensor {target:?}, which the base lacks{tied}")
        })
    }

    fn read(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>), String> {
        let info = self.parts.tensors().get(name).ok_or_else(|| format!("tensor {name:?} is missing"))?;
        let mut values = vec![0.0; info.elements()];
        self.parts.read(name, 0..values.len(), &mut values).map_err(|error| error.to_string())?;
        Ok((info.shape.clone(), values))
    }

    /// Reads the two factors of one module.
    fn low_rank(&self, module: &str, a: &str, b: &str, embedding: bool) -> Result<LowRank, String> {
        let Kind::Lora { rank, alpha, stabilised, ranks, alphas } = &self.config.kind else {
            return Err(format!("tensor {a:?} is LoRA's, and the config says IA3"));
        };
        let ((a_shape, a_values), (b_shape, b_values)) = (self.read(a)?, self.read(b)?);
        #[expect(clippy::cast_precision_loss, reason = "ranks are small")]
        let rank_number = config::find(ranks, module).unwrap_or(*rank as f64);
        // A convolution's factors: A with the kernel's sides, B with sides of 1.
        let (&[a_rank, ..], &[_, b_rank, ref ones @ ..]) = (a_shape.as_slice(), b_shape.as_slice()) else {
            return Err(format!("{a:?} and {b:?} must be matrices, and have shapes {a_shape:?} and {b_shape:?}"));
        };
        #[expect(clippy::cast_precision_loss, reason = "ranks are small")]
        let fits = a_rank as f64 == rank_number && a_rank == b_rank && a_rank > 0 && !a_values.is_empty() && !b_values.is_empty();
        if !fits || ones.iter().any(|side| *side != 1) || ones.len() + 2 != a_shape.len() {
            return Err(format!("{a:?} and {b:?} have shapes {a_shape:?} and {b_shape:?}, which do not fit rank {rank_number}"));
        }
        let alpha = config::find(alphas, module).unwrap_or(*alpha);
        let divisor = if *stabilised { rank_number.sqrt() } else { rank_number };
        let columns = a_values.len() / a_rank;
        let transposed = embedding || self.config.fan_in_fan_out;
        Ok(LowRank { a: a_values, b: b_values, rank: a_rank, columns, scale: alpha / divisor, transposed })
    }

    /// Reads the factors of one module, which scale its inputs or its outputs.
    fn scaled(&self, module: &str, name: &str, plan: &mut Plan) -> Result<(), String> {
        let Kind::Ia3 { feedforward } = &self.config.kind else {
            return Err(format!("tensor {name:?} is (IA)³'s, and the config says LORA"));
        };
        let (shape, factors) = self.read(name)?;
        let target = format!("{module}.weight");
        let info = self.target(&target, &plan.replaced)?;
        let inputs = feedforward.contains(module);
        // The side of the weight that the factors belong to: outputs first, unless the base stores the transpose.
        let side = usize::from(inputs != self.config.fan_in_fan_out);
        if info.shape.get(side) != Some(&factors.len()) || factors.is_empty() || !info.dtype.is_float() {
            let which = if inputs { "inputs" } else { "outputs" };
            return Err(format!(
                "tensor {name:?} has shape {shape:?}, which does not fit the {which} of tensor {target:?} with shape {:?}",
                info.shape
            ));
        }
        let stride = info.shape[side + 1..].iter().product();
        let bias = format!("{module}.bias");
        let of_bias = self
            .target(&bias, &plan.replaced)
            .ok()
            .filter(|info| !inputs && info.shape == [factors.len()] && info.dtype.is_float());
        if of_bias.is_some() {
            plan.changed.push((bias, Change::Scaled(Scaled { factors: factors.clone(), stride: 1 })));
        }
        plan.changed.push((target, Change::Scaled(Scaled { factors, stride })));
        Ok(())
    }
}

/// A tensor's name without what PEFT puts before it.
fn plain(name: &str) -> Result<&str, String> {
    name.strip_prefix(PREFIX).ok_or_else(|| format!("tensor {name:?} does not start with {PREFIX:?}"))
}

impl LowRank {
    fn check(&self, target: &str, info: &TensorInfo) -> Result<(), String> {
        let (rows, columns) = if self.transposed { (self.columns, self.rows()) } else { (self.rows(), self.columns) };
        let fits = info.shape.first() == Some(&rows) && info.elements() == rows * columns && info.shape.len() >= 2;
        if !fits || !info.dtype.is_float() {
            return Err(format!(
                "it changes tensor {target:?} as if its shape were {:?}, but the base's is {:?}",
                [rows, columns],
                info.shape
            ));
        }
        Ok(())
    }
}
