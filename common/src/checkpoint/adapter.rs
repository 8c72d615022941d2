//! PEFT LoRA adapters as views over their base: `W + scale * B A`, computed block by block and never as a whole.
//!
//! The scale is `alpha / r`, or `alpha / sqrt(r)` with rank-stabilised LoRA (`use_rslora`). Products are summed in F64, ranks in order, and the
//! result is rounded to F32 once.

use std::{collections::BTreeMap, path::Path};

use serde::Deserialize;

use super::open::{Checkpoint, OpenError, read_json};

pub(super) const WEIGHTS: &str = "adapter_model.safetensors";
const CONFIG: &str = "adapter_config.json";
const PREFIX: &str = "base_model.model.";

/// The low-rank change of one weight matrix.
#[derive(Debug)]
pub(super) struct Adapter {
    /// `rank x columns`.
    a: Vec<f32>,
    /// `rows x rank`.
    b: Vec<f32>,
    rank: usize,
    columns: usize,
    scale: f64,
    /// The base stores `in x out` (GPT-2's Conv1D): the change is transposed.
    transposed: bool,
}

/// What an adapter changes, by tensor name of the base.
pub(super) struct Plan {
    pub(super) adapted: Vec<(String, Adapter)>,
    /// Base tensor, and the adapter file's tensor that stands for it.
    pub(super) replaced: Vec<(String, String)>,
}

#[derive(Deserialize)]
struct Config {
    peft_type: String,
    r: usize,
    lora_alpha: f64,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    use_dora: bool,
    #[serde(default)]
    fan_in_fan_out: bool,
    #[serde(default)]
    rank_pattern: BTreeMap<String, usize>,
    #[serde(default)]
    alpha_pattern: BTreeMap<String, f64>,
}

/// Whether the folder is a PEFT adapter.
pub(super) fn is_adapter(path: &Path) -> bool {
    path.join(CONFIG).is_file() && path.join(WEIGHTS).is_file()
}

/// Reads the adapter's config and pairs its tensors with the base's.
pub(super) fn plan(path: &Path, parts: &Checkpoint, base: &Checkpoint) -> Result<Plan, OpenError> {
    let bad = |what: String| OpenError::Side { path: path.join(CONFIG), what };
    let config: Config = serde_json::from_value(read_json(&path.join(CONFIG))?)
        .map_err(|error| bad(format!("not a LoRA adapter's config: {error}")))?;
    if config.peft_type != "LORA" || config.use_dora {
        let kind = if config.use_dora { "DoRA" } else { &config.peft_type };
        return Err(bad(format!("the adapter is {kind}, and only LORA can be read")));
    }
    let misfit = |what: String| OpenError::Side { path: path.join(WEIGHTS), what };
    let mut plan = Plan { adapted: Vec::new(), replaced: Vec::new() };
    for name in parts.tensors().keys() {
        let plain = name.strip_prefix(PREFIX).ok_or_else(|| misfit(format!("tensor {name:?} does not start with {PREFIX:?}")))?;
        if let Some(module) = plain.strip_suffix(".lora_A.weight") {
            let target = format!("{module}.weight");
            let other = format!("{PREFIX}{module}.lora_B.weight");
            let adapter = pair(parts, name, &other, &config, module).map_err(&misfit)?;
            adapter.check_target(&target, base).map_err(&misfit)?;
            plan.adapted.push((target, adapter));
        } else if plain.ends_with(".lora_B.weight") {
            let other = name.replace(".lora_B.", ".lora_A.");
            if !parts.tensors().contains_key(&other) {
                return Err(misfit(format!("tensor {name:?} stands without {other:?}")));
            }
        } else if plain.contains(".lora_") {
            return Err(misfit(format!("tensor {name:?} is of a kind of adapter that cannot be read")));
        } else {
            let target = plain.replace(".modules_to_save.default.", ".").replace(".modules_to_save.", ".");
            if !base.tensors().contains_key(&target) {
                return Err(misfit(format!("it replaces tensor {target:?}, which the base lacks")));
            }
            plan.replaced.push((target, name.clone()));
        }
    }
    Ok(plan)
}

/// Reads the two factors of one module.
fn pair(parts: &Checkpoint, a: &str, b: &str, config: &Config, module: &str) -> Result<Adapter, String> {
    let read = |name: &str| -> Result<(Vec<usize>, Vec<f32>), String> {
        let info = parts.tensors().get(name).ok_or_else(|| format!("tensor {name:?} is missing"))?;
        let mut values = vec![0.0; info.elements()];
        parts.read(name, 0..values.len(), &mut values).map_err(|error| error.to_string())?;
        Ok((info.shape.clone(), values))
    };
    let ((a_shape, a_values), (b_shape, b_values)) = (read(a)?, read(b)?);
    let rank = pattern(&config.rank_pattern, module).unwrap_or(config.r);
    let ([a_rank, columns], [_, b_rank]) = (a_shape.as_slice(), b_shape.as_slice()) else {
        return Err(format!("{a:?} and {b:?} must be matrices, and have shapes {a_shape:?} and {b_shape:?}"));
    };
    if *a_rank != rank || *b_rank != rank || rank == 0 {
        return Err(format!("{a:?} and {b:?} have shapes {a_shape:?} and {b_shape:?}, which do not fit rank {rank}"));
    }
    let alpha = pattern(&config.alpha_pattern, module).unwrap_or(config.lora_alpha);
    #[expect(clippy::cast_precision_loss, reason = "ranks are small")]
    let rank_number = rank as f64;
    let divisor = if config.use_rslora { rank_number.sqrt() } else { rank_number };
    Ok(Adapter { a: a_values, b: b_values, rank, columns: *columns, scale: alpha / divisor, transposed: config.fan_in_fan_out })
}

/// The value of the pattern that names the module, as PEFT matches: the whole name or its end after a dot.
fn pattern<T: Copy>(patterns: &BTreeMap<String, T>, module: &str) -> Option<T> {
    patterns.iter().find(|(key, _)| module == key.as_str() || module.ends_with(&format!(".{key}"))).map(|(_, value)| *value)
}

impl Adapter {
    fn rows(&self) -> usize {
        self.b.len() / self.rank
    }

    fn check_target(&self, target: &str, base: &Checkpoint) -> Result<(), String> {
        let info = base.tensors().get(target).ok_or_else(|| format!("it changes tensor {target:?}, which the base lacks"))?;
        let expected = if self.transposed { [self.columns, self.rows()] } else { [self.rows(), self.columns] };
        if info.shape != expected || !info.dtype.is_float() {
            return Err(format!(
                "it changes tensor {target:?} as if its shape were {expected:?}, but the base's is {:?}",
                info.shape
            ));
        }
        Ok(())
    }

    /// Adds the change to `out`, which holds the base's elements from flat index `start` on.
    pub(super) fn add(&self, start: usize, out: &mut [f32]) {
        let width = if self.transposed { self.rows() } else { self.columns };
        let mut sums = vec![0.0f64; width];
        let mut done = 0;
        while done < out.len() {
            let (row, first) = ((start + done) / width, (start + done) % width);
            let count = (width - first).min(out.len() - done);
            let sums = &mut sums[..count];
            sums.fill(0.0);
            for k in 0..self.rank {
                if self.transposed {
                    let factor = f64::from(self.a[k * self.columns + row]);
                    for (sum, column) in sums.iter_mut().zip(first..) {
                        *sum += factor * f64::from(self.b[column * self.rank + k]);
                    }
                } else {
                    let factor = f64::from(self.b[row * self.rank + k]);
                    let a = &self.a[k * self.columns + first..][..count];
                    for (sum, a) in sums.iter_mut().zip(a) {
                        *sum += factor * f64::from(*a);
                    }
                }
            }
            for (value, sum) in out[done..done + count].iter_mut().zip(sums) {
                #[expect(clippy::cast_possible_truncation, reason = "the one rounding to F32")]
                let rounded = (f64::from(*value) + self.scale * *sum) as f32;
                *value = rounded;
            }
            done += count;
        }
    }
}
