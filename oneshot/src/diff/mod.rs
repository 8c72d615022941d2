//! How two models differ: norms, cosines and signs of what changed, by tensor, layer and module; types and shapes.
//!
//! - [`measure`]: the sums that everything is told from.
//! - [`table`], [`html`]: for people; the same as JSON by [`Diff`]'s serialization.

mod html;
mod measure;
mod table;

use std::{collections::BTreeMap, path::Path, sync::Arc};

use evolver_common::{
    checkpoint::{Checkpoint, TensorInfo, is_adapter},
    merge::numbered,
};
use serde::Serialize;

use self::measure::{Sums, measure};
pub use self::{html::page, measure::Measures, table::text};
use crate::{config::ModelReference, plan::Problems};

/// How two models differ.
#[derive(Debug, Serialize)]
pub struct Diff {
    /// The first model.
    pub a: String,
    /// The second.
    pub b: String,
    /// What both are compared with, if anything.
    pub base: Option<String>,
    /// All tensors that can be compared, together.
    pub total: Measures,
    /// By layer, in their order; what stands outside the layers under `-`.
    pub layers: Vec<Group>,
    /// By module.
    pub modules: Vec<Group>,
    /// Each tensor.
    pub tensors: Vec<Tensor>,
    /// Tensors that only the first has.
    pub only_a: Vec<String>,
    /// Tensors that only the second has.
    pub only_b: Vec<String>,
    /// Tensors whose type or shape differs, as sentences.
    pub changed: Vec<String>,
}

/// Tensors together.
#[derive(Debug, Serialize)]
pub struct Group {
    /// Layer or module.
    pub name: String,
    /// What is told of them.
    #[serde(flatten)]
    pub measures: Measures,
}

/// One tensor.
#[derive(Debug, Serialize)]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// Its layer, if it stands in one.
    pub layer: Option<String>,
    /// Its name without the layer.
    pub module: String,
    /// Its sides.
    pub shape: Vec<usize>,
    /// Its types in both models.
    pub dtypes: [String; 2],
    /// What is told of it.
    #[serde(flatten)]
    pub measures: Measures,
}

/// Opens the models: folders, files, adapters over `base`, or `model+adapter`.
///
/// # Errors
/// What cannot be opened.
fn open(text: &str, base: Option<&Arc<Checkpoint>>) -> Result<Arc<Checkpoint>, String> {
    let reference = ModelReference::parse(text)?;
    let here = Path::new("");
    let path = reference.model.locate(here)?;
    let over = |adapter: &Path, base: &Arc<Checkpoint>| {
        Checkpoint::open_over(adapter, base).map(Arc::new).map_err(|error| error.to_string())
    };
    let full = |path: &Path| Checkpoint::open(path).map(Arc::new).map_err(|error| error.to_string());
    match (&reference.adapter, base) {
        (Some(adapter), _) => over(&adapter.locate(here)?, &full(&path)?),
        (None, Some(base)) if is_adapter(&path) => over(&path, base),
        (None, None) if is_adapter(&path) => Err(format!("{text} is an adapter: name its base by --base, or write base+adapter")),
        (None, _) => full(&path),
    }
}

/// Compares two models, or their differences to a base.
///
/// # Errors
/// What cannot be opened or read.
pub fn diff(a: &str, b: &str, base: Option<&str>) -> Result<Diff, Problems> {
    let mut problems = Vec::new();
    let mut keep = |opened: Result<Arc<Checkpoint>, String>| opened.map_err(|sentence| problems.push(sentence)).ok();
    let of_base = base.and_then(|base| keep(open(base, None)));
    let (first, second) = (keep(open(a, of_base.as_ref())), keep(open(b, of_base.as_ref())));
    let (Some(first), Some(second), true) = (first, second, problems.is_empty()) else {
        return Err(Problems(problems));
    };
    compare([a, b], base, &first, &second, of_base.as_deref()).map_err(|sentence| Problems(vec![sentence]))
}

fn compare(
    names: [&str; 2],
    base_name: Option<&str>,
    a: &Checkpoint,
    b: &Checkpoint,
    base: Option<&Checkpoint>,
) -> Result<Diff, String> {
    let missing = |from: &Checkpoint, of: &Checkpoint| -> Vec<String> {
        of.tensors().keys().filter(|name| !from.tensors().contains_key(*name)).cloned().collect()
    };
    let (only_a, only_b) = (missing(b, a), missing(a, b));
    let mut changed = Vec::new();
    let mut tensors = Vec::new();
    let mut total = Sums::default();
    let (mut layers, mut modules): (BTreeMap<(String, usize), Sums>, BTreeMap<String, Sums>) = Default::default();
    for (name, info) in a.tensors() {
        let Some(other) = b.tensors().get(name) else { continue };
        if info.dtype != other.dtype {
            changed.push(format!("{name}: {} became {}", info.dtype, other.dtype));
        }
        if info.shape != other.shape {
            changed.push(format!("{name}: shape {:?} became {:?}", info.shape, other.shape));
            continue;
        }
        let fits = |base: &TensorInfo| base.shape == info.shape && base.dtype.is_float();
        if base.is_some_and(|base| !base.tensors().get(name).is_some_and(fits)) {
            changed.push(format!("{name}: the base has no such tensor of shape {:?}", info.shape));
            continue;
        }
        if !info.dtype.is_float() || !other.dtype.is_float() {
            continue;
        }
        let sums = measure(name, a, b, base).map_err(|error| error.to_string())?;
        let place = numbered(name);
        let module = match place {
            Some((stack, _)) => name[stack.len()..].split_once('.').map_or("", |(_, rest)| rest),
            None => name,
        };
        let module = module.strip_suffix(".weight").unwrap_or(module).to_owned();
        let layer = place.map(|(stack, number)| format!("{stack}{number}"));
        let key = place.map_or_else(|| ("-".to_owned(), 0), |(stack, number)| (stack.to_owned(), number));
        layers.entry(key).or_default().add(&sums);
        modules.entry(module.clone()).or_default().add(&sums);
        total.add(&sums);
        let dtypes = [info.dtype.to_string(), other.dtype.to_string()];
        tensors.push(Tensor {
            name: name.clone(),
            layer,
            module,
            shape: info.shape.clone(),
            dtypes,
            measures: sums.measures(base.is_some()),
        });
    }
    let over_base = base.is_some();
    let group = |(name, sums): (String, Sums)| Group { name, measures: sums.measures(over_base) };
    let layer_name =
        |((stack, number), sums): ((String, usize), Sums)| (if stack == "-" { stack } else { format!("{stack}{number}") }, sums);
    Ok(Diff {
        a: names[0].to_owned(),
        b: names[1].to_owned(),
        base: base_name.map(str::to_owned),
        total: total.measures(over_base),
        layers: layers.into_iter().map(layer_name).map(group).collect(),
        modules: modules.into_iter().map(group).collect(),
        tensors,
        only_a,
        only_b,
        changed,
    })
}
