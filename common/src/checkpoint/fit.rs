//! Whether experts fit their base, and which tensors evolve.

use std::{fmt, path::Path};

use globset::{Glob, GlobSet, GlobSetBuilder};

use super::open::{Checkpoint, TensorInfo};

/// Glob patterns over tensor names.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Patterns {
    /// Tensors that each task keeps its own of.
    pub heads: Vec<String>,
    /// Tensors that stay the base's.
    pub frozen: Vec<String>,
}

/// The tensors that evolve, sorted by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Space {
    /// The tensors.
    pub tensors: Vec<SpaceTensor>,
}

/// One tensor that evolves.
#[derive(Clone, Debug, PartialEq)]
pub struct SpaceTensor {
    /// Its name.
    pub name: String,
    /// Its sides.
    pub shape: Vec<usize>,
    /// Its number of elements.
    pub elements: usize,
}

impl Space {
    /// Elements of all tensors.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.tensors.iter().map(|tensor| tensor.elements).sum()
    }
}

/// One way in which an expert does not fit its base, as a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference(String);

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Patterns {
    /// The head tensors that `checkpoint` brings.
    #[must_use]
    pub fn heads_of(&self, checkpoint: &Checkpoint) -> Vec<String> {
        let heads = compile("models.heads", &self.heads, checkpoint, &mut Vec::new());
        checkpoint.tensors().keys().filter(|name| heads.is_match(name)).cloned().collect()
    }
}

/// Which tensors each pattern list names.
struct Matcher {
    heads: GlobSet,
    frozen: GlobSet,
}

/// Compares each expert with the base, tensor by tensor, and finds the tensors that evolve: the base's float tensors that are neither heads nor
/// frozen.
///
/// # Errors
/// Every difference at once.
pub fn fit(base: &Checkpoint, experts: &[(&str, &Checkpoint)], patterns: &Patterns) -> Result<Space, Vec<Difference>> {
    let mut differences = Vec::new();
    let matcher = Matcher {
        heads: compile("models.heads", &patterns.heads, base, &mut differences),
        frozen: compile("models.frozen", &patterns.frozen, base, &mut differences),
    };
    for (name, expert) in experts {
        compare(base, name, expert, &matcher, &mut differences);
    }
    if !differences.is_empty() {
        return Err(differences);
    }
    let tensors: Vec<_> = base
        .tensors()
        .iter()
        .filter(|(name, info)| info.dtype.is_float() && !matcher.heads.is_match(name) && !matcher.frozen.is_match(name))
        .map(|(name, info)| SpaceTensor { name: name.clone(), shape: info.shape.clone(), elements: info.elements() })
        .collect();
    if tensors.is_empty() {
        return Err(vec![Difference("models.heads and models.frozen together leave no tensor that could evolve".into())]);
    }
    Ok(Space { tensors })
}

fn compile(key: &str, patterns: &[String], base: &Checkpoint, differences: &mut Vec<Difference>) -> GlobSet {
    let mut builder = GlobSetBuilder::new();
    for pattern in patterns {
        match Glob::new(pattern) {
            Ok(glob) => {
                let matcher = glob.compile_matcher();
                if !base.tensors().keys().any(|name| matcher.is_match(name)) {
                    differences.push(Difference(format!("{key}: no tensor of the base matches {pattern:?}")));
                }
                builder.add(glob);
            }
            Err(error) => differences.push(Difference(format!("{key}: {error}"))),
        }
    }
    builder.build().unwrap_or_default()
}

fn compare(base: &Checkpoint, name: &str, expert: &Checkpoint, matcher: &Matcher, differences: &mut Vec<Difference>) {
    let mut say = |sentence: String| differences.push(Difference(format!("expert {name}: {sentence}")));
    for (tensor, info) in base.tensors() {
        // A frozen tensor is never read from an expert, and neither is an integer buffer.
        if matcher.frozen.is_match(tensor) || !info.dtype.is_float() {
            continue;
        }
        match expert.tensors().get(tensor) {
            None => say(format!("tensor {tensor:?} of the base is missing")),
            Some(other) if other.shape != info.shape => {
                if !matcher.heads.is_match(tensor) {
                    say(shape_sentence(tensor, info, other));
                }
            }
            Some(other) if !other.dtype.is_float() => {
                say(format!("tensor {tensor:?} holds integers, and the base's holds {}", info.dtype));
            }
            // What an adapter saves along takes its base's type, as when peft puts it there.
            Some(other) if other.dtype != info.dtype && !expert.is_over_a_base() => {
                say(format!("tensor {tensor:?} is {}, and the base's is {}: save both in one type", other.dtype, info.dtype));
            }
            Some(_) => {}
        }
    }
    for (tensor, info) in expert.tensors() {
        if info.dtype.is_float() && !base.tensors().contains_key(tensor) && !matcher.heads.is_match(tensor) {
            say(format!("tensor {tensor:?} is not in the base: the expert seems to come from another base"));
        }
    }
    compare_vocabularies(base, expert, &mut say);
}

fn shape_sentence(tensor: &str, base: &TensorInfo, expert: &TensorInfo) -> String {
    let head = tensor.rsplit_once('.').map_or(tensor, |(module, _)| module);
    let heads = ["classifier", "score", "lm_head", "qa_outputs", "head"];
    let mut sentence = format!("tensor {tensor:?} has shape {:?}, and the base's is {:?}", expert.shape, base.shape);
    if heads.iter().any(|name| head.contains(name)) {
        sentence.push_str(&format!("; a head of its own width needs models.heads = [\"{head}.*\"]"));
    } else if tensor.contains("embed") {
        sentence.push_str("; the vocabulary differs, and merging needs the same one");
    }
    sentence
}

/// Same vocabulary size is not the same vocabulary: the tokenizers are compared where both are there.
fn compare_vocabularies(base: &Checkpoint, expert: &Checkpoint, say: &mut impl FnMut(String)) {
    let read = |folder: &Path, file: &str| std::fs::read(folder.join(file)).ok();
    if base.folder() == expert.folder() {
        return;
    }
    if let (Some(ours), Some(theirs)) = (
        read(base.folder(), "tokenizer.json").and_then(|json| vocabulary(&json)),
        read(expert.folder(), "tokenizer.json").and_then(|json| vocabulary(&json)),
    ) && ours != theirs
    {
        say("its tokenizer.json has another vocabulary than the base's: token ids would mean other words".into());
    }
}

fn vocabulary(json: &[u8]) -> Option<serde_json::Value> {
    let tokenizer: serde_json::Value = serde_json::from_slice(json).ok()?;
    tokenizer.get("model")?.get("vocab").cloned()
}
