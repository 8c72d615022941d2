//! Which tensors belong to which part of the network, and which of them stand in its stack of layers. Told from the names alone, so that no
//! architecture has to be known.

use std::collections::{BTreeMap, BTreeSet};

use evolver_common::{checkpoint::Checkpoint, merge::numbered};

use crate::config::Module;

/// Names that mergekit has for parts of networks, and what they are called in tensors' names.
const ALIASES: [(&str, &[&str]); 4] = [
    ("text_decoder", &["language_model", "text_model"]),
    ("vision_tower", &["vision_tower", "visual", "vision_model"]),
    ("vision_model", &["vision_model", "visual", "vision_tower"]),
    ("multi_modal_projector", &["multi_modal_projector", "projector", "merger"]),
];

/// A part of the network.
#[derive(Debug, Default)]
pub(super) struct Tensors {
    /// All its tensors.
    pub(super) names: BTreeSet<String>,
}

impl Tensors {
    /// The stacks among the tensors: texts before layers' numbers, with how many layers they have.
    pub(super) fn stacks(&self) -> BTreeMap<&str, BTreeSet<usize>> {
        let mut stacks: BTreeMap<&str, BTreeSet<usize>> = BTreeMap::new();
        for name in &self.names {
            if let Some((stack, number)) = numbered(name) {
                stacks.entry(stack).or_default().insert(number);
            }
        }
        // Numbers that start at 0 and leave none out are layers; the 0 and 3 of a classifier made of a Sequential are not.
        stacks.retain(|_, numbers| numbers.iter().copied().eq(0..numbers.len()));
        let deep: Vec<_> = stacks.iter().filter(|(_, numbers)| numbers.len() > 1).map(|(stack, _)| *stack).collect();
        if !deep.is_empty() {
            stacks.retain(|stack, _| deep.contains(stack));
        }
        stacks
    }
}

/// The tensors of each module of the definition.
///
/// # Errors
/// Names a module that no tensor belongs to.
pub(super) fn split(modules: &[Module], layout: &Checkpoint) -> Result<Vec<Tensors>, String> {
    let mut parts: Vec<Tensors> = modules.iter().map(|_| Tensors::default()).collect();
    let whole = matches!(modules, [module] if module.name.as_deref().is_none_or(|name| name == "default"));
    for tensor in layout.tensors().keys() {
        let owner = |module: &Module| module.name.as_deref().is_some_and(|name| owns(name, tensor));
        let owned = modules.iter().position(owner);
        // What no module's name stands in goes with the text, or else with the first.
        let text = || modules.iter().position(|module| module.name.as_deref() == Some("text_decoder")).unwrap_or(0);
        let index = if whole { 0 } else { owned.unwrap_or_else(text) };
        parts[index].names.insert(tensor.clone());
    }
    for (module, part) in modules.iter().zip(&parts) {
        if part.names.is_empty() {
            let name = module.name.as_deref().unwrap_or_default();
            let known: BTreeSet<_> = layout.tensors().keys().filter_map(|tensor| tensor.split('.').next()).collect();
            let known: Vec<_> = known.into_iter().collect();
            return Err(format!(
                "modules.{name}: no tensor of {} has this in its name; there are {}",
                layout.path().display(),
                known.join(", ")
            ));
        }
    }
    Ok(parts)
}

fn owns(module: &str, tensor: &str) -> bool {
    let alias = ALIASES.iter().find(|(name, _)| *name == module).map(|(_, names)| *names);
    let mut components = tensor.split('.');
    components.any(|component| component == module || alias.is_some_and(|names| names.contains(&component)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stacks_are_told_from_numbers() {
        let tensors = |names: &[&str]| Tensors { names: names.iter().map(|name| (*name).to_owned()).collect() };
        let deep = tensors(&["model.layers.0.q", "model.layers.1.q", "head.0.w", "head.3.w", "norm"]);
        assert_eq!(deep.stacks().into_iter().map(|(name, n)| (name, n.len())).collect::<Vec<_>>(), [("model.layers.", 2)]);
        let single = tensors(&["h.0.q", "norm"]);
        assert_eq!(single.stacks().keys().copied().collect::<Vec<_>>(), ["h."]);
        let two = tensors(&["encoder.block.0.a", "encoder.block.1.a", "decoder.block.0.a", "decoder.block.1.a"]);
        assert_eq!(two.stacks().len(), 2);
    }

    #[test]
    fn modules_own_tensors_by_their_names() {
        assert!(owns("text_decoder", "language_model.model.layers.0.q") && owns("encoder", "encoder.block.0.a"));
        assert!(!owns("encoder", "decoder.block.0.a") && owns("vision_tower", "visual.patch_embed.proj.weight"));
    }
}
