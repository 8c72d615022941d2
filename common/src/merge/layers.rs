//! Where each tensor stands in its model's stack of layers, told from the names alone.
//!
//! A name's first component that is a number is its layer, and what precedes it names the stack: `model.layers.7.mlp.up_proj.weight` is layer 7 of
//! `model.layers`. Numbers that never follow each other (the 0 and 3 of a classifier made of a `Sequential`) are no stack. The depth of layer
//! k of n is `k / (n - 1)`; what stands outside a stack (embeddings, final norm, output layer) has depth 0, both as in mergekit.

use std::collections::{BTreeMap, BTreeSet};

use crate::checkpoint::Space;

/// The place of every tensor of a space.
#[derive(Clone, Debug, Default)]
pub struct Layers {
    places: Vec<Place>,
}

#[derive(Clone, Debug)]
struct Place {
    name: String,
    layer: Option<Layer>,
    depth: f64,
}

/// A layer of one of the model's stacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Layer {
    /// Index of the stack among the sorted names of stacks.
    stack: usize,
    /// Number of the layer, from 0.
    number: usize,
}

impl Layers {
    /// The places of the tensors of `space`.
    #[must_use]
    pub fn new(space: &Space) -> Self {
        let mut stacks: BTreeMap<&str, BTreeSet<usize>> = BTreeMap::new();
        for tensor in &space.tensors {
            if let Some((stack, number)) = numbered(&tensor.name) {
                stacks.entry(stack).or_default().insert(number);
            }
        }
        stacks.retain(|_, numbers| numbers.iter().any(|number| numbers.contains(&(number + 1))));
        let place = |name: &String| {
            let found = numbered(name).and_then(|(stack, number)| {
                let index = stacks.keys().position(|known| *known == stack)?;
                let last = *stacks[stack].last()?;
                #[expect(clippy::cast_precision_loss, reason = "numbers of layers")]
                Some((Layer { stack: index, number }, number as f64 / last as f64))
            });
            let depth = found.map_or(0.0, |(_, depth)| depth);
            Place { name: name.clone(), layer: found.map(|(layer, _)| layer), depth }
        };
        Self { places: space.tensors.iter().map(|tensor| place(&tensor.name)).collect() }
    }

    /// The places of the tensors of a part of a model: layers of one `stack` (the text before their numbers) have depths relative to the first and
    /// last of the part, as mergekit has them in a slice, where a single layer has depth 1.
    #[must_use]
    pub fn of_stack(space: &Space, stack: &str) -> Self {
        let number = |name: &str| numbered(name).filter(|(found, _)| *found == stack).map(|(_, number)| number);
        let numbers = || space.tensors.iter().filter_map(|tensor| number(&tensor.name));
        let (first, last) = (numbers().min().unwrap_or(0), numbers().max().unwrap_or(0));
        let place = |name: &String| {
            let layer = number(name).map(|number| Layer { stack: 0, number });
            #[expect(clippy::cast_precision_loss, reason = "numbers of layers")]
            let relative = |number: usize| (number - first) as f64 / (last - first) as f64;
            let depth = layer.map_or(0.0, |layer| if first == last { 1.0 } else { relative(layer.number) });
            Place { name: name.clone(), layer, depth }
        };
        Self { places: space.tensors.iter().map(|tensor| place(&tensor.name)).collect() }
    }

    /// How many tensors there are.
    #[must_use]
    pub fn tensors(&self) -> usize {
        self.places.len()
    }

    /// A tensor's name.
    #[must_use]
    pub fn name(&self, tensor: usize) -> &str {
        &self.places[tensor].name
    }

    /// A tensor's relative depth, from 0 (first layer, or outside any stack) to 1 (last layer).
    #[must_use]
    pub fn depth(&self, tensor: usize) -> f64 {
        self.places[tensor].depth
    }

    /// The tensors of each layer, and those outside any stack as a group of their own.
    #[must_use]
    pub fn groups(&self) -> Vec<Vec<usize>> {
        let mut groups: BTreeMap<Option<Layer>, Vec<usize>> = BTreeMap::new();
        for (tensor, place) in self.places.iter().enumerate() {
            groups.entry(place.layer).or_default().push(tensor);
        }
        groups.into_values().collect()
    }
}

/// The stack (the text before the number) and the number of the layer that `name` names.
#[must_use]
pub fn numbered(name: &str) -> Option<(&str, usize)> {
    let mut start = 0;
    for component in name.split('.') {
        if !component.is_empty() && component.bytes().all(|byte| byte.is_ascii_digit()) {
            return Some((&name[..start], component.parse().ok()?));
        }
        start += component.len() + 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::SpaceTensor;

    #[test]
    fn layers_are_told_from_names() {
        let names = [
            "classifier.0.weight",
            "classifier.3.weight",
            "decoder.block.0.layer.0.q.weight",
            "decoder.block.1.layer.2.wo.weight",
            "embed.weight",
            "encoder.block.0.layer.0.q.weight",
            "encoder.block.1.layer.1.wi.weight",
            "encoder.block.4.layer.0.q.weight",
        ];
        let tensor = |name: &str| SpaceTensor { name: name.into(), shape: vec![1], elements: 1 };
        let layers = Layers::new(&Space { tensors: names.into_iter().map(tensor).collect() });
        let depths: Vec<_> = (0..layers.tensors()).map(|tensor| layers.depth(tensor)).collect();
        assert_eq!(depths, [0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.25, 1.0]);
        assert_eq!(layers.groups(), [vec![0, 1, 4], vec![2], vec![3], vec![5], vec![6], vec![7]]);
    }

    #[test]
    fn a_part_of_a_stack_has_depths_of_its_own() {
        let depths = |names: &[&str]| -> Vec<f64> {
            let tensor = |name: &&str| SpaceTensor { name: (*name).into(), shape: vec![1], elements: 1 };
            let layers = Layers::of_stack(&Space { tensors: names.iter().map(tensor).collect() }, "h.");
            (0..layers.tensors()).map(|tensor| layers.depth(tensor)).collect()
        };
        assert_eq!(depths(&["embed", "h.4.q", "h.5.q", "h.8.q"]), [0.0, 0.0, 0.25, 1.0]);
        assert_eq!(depths(&["h.4.q", "norm"]), [1.0, 0.0]);
    }
}
