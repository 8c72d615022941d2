//! Methods whose result lies in the span of their inputs, with coefficients that follow from inner products alone: of whole tensors, which are
//! summed in one pass and then applied block by block, or of the lines of a tensor along one of its sides, which need whole tensors.

use std::sync::OnceLock;

use super::{
    Combine, Inputs, Pass,
    lanes::{self, LANES},
    round,
    statistics::{Gram, Vectors},
    task_vector,
};

/// Along which side of a tensor vectors lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Axis {
    /// The tensor is one vector.
    All,
    /// The last side: rows of a matrix.
    Last,
    /// The first side: columns of a matrix.
    First,
}

/// Coefficients of the inputs from the tensor's index and the inner products; the base's comes first where it is one of the vectors.
type Rule = Box<dyn Fn(usize, &Gram) -> Vec<f64> + Send + Sync>;

/// A linear combination of the inputs.
pub(super) struct Span {
    vectors: Vectors,
    axes: Vec<Axis>,
    rule: Rule,
    /// For each tensor that is one vector, as soon as they are known.
    coefficients: Vec<OnceLock<Vec<f64>>>,
}

impl Span {
    /// Coefficients of whole tensors are found one tensor after the other, as they are built; with [`Vectors::Deltas`] the base is added to their combination.
    pub(super) fn prepare(vectors: Vectors, axes: Vec<Axis>, rule: Rule) -> Box<dyn Combine> {
        let coefficients = axes.iter().map(|_| OnceLock::new()).collect();
        Box::new(Self { vectors, axes, rule, coefficients })
    }

    /// The combination at one element, for lines.
    fn combine(&self, inputs: &Inputs<'_>, coefficients: &[f64], element: usize) -> f32 {
        let base = || f64::from(inputs.base.at(element));
        let models = inputs.models.iter().map(|model| model.at(element));
        let (mut sum, coefficients) = match self.vectors {
            Vectors::Models => (0.0, coefficients),
            Vectors::BaseAndModels => (coefficients[0] * base(), &coefficients[1..]),
            Vectors::Deltas => (base(), coefficients),
        };
        for (coefficient, model) in coefficients.iter().zip(models) {
            let value = if self.vectors == Vectors::Deltas { task_vector(model, inputs.base.at(element)) } else { model };
            sum += coefficient * f64::from(value);
        }
        round(sum)
    }
}

/// The elements of each line along `axis` in the first `elements` of a tensor: the first, the step and how many.
fn lines(shape: &[usize], elements: usize, axis: Axis) -> impl Iterator<Item = (usize, usize, usize)> + '_ {
    let (length, step) = match axis {
        Axis::Last => (shape.last().copied().unwrap_or(1), 1),
        Axis::First => {
            let length = shape.first().copied().unwrap_or(1);
            (length, elements / length.max(1))
        }
        Axis::All => (elements, 1),
    };
    let lines = elements / length.max(1);
    (0..lines).map(move |line| (if step == 1 { line * length } else { line }, step, length))
}

impl Combine for Span {
    fn block(&self, inputs: &Inputs<'_>, out: &mut [f32]) {
        let axis = self.axes[inputs.tensor];
        if axis == Axis::All {
            let Some(coefficients) = self.coefficients[inputs.tensor].get() else {
                // Nobody builds a tensor that is not settled; if somebody did, it must not pass for a result.
                return out.fill(f32::NAN);
            };
            return lanes::map(
                inputs,
                out,
                #[inline(always)]
                |chunk| {
                    let mut sum = if self.vectors == Vectors::Deltas { chunk.base() } else { [0.0; LANES] };
                    for (index, coefficient) in coefficients.iter().enumerate() {
                        let values = self.vectors.values(chunk, index);
                        for l in 0..LANES {
                            sum[l] += coefficient * f64::from(values[l]);
                        }
                    }
                    sum
                },
            );
        }
        let mut vectors = Vec::new();
        for (start, step, length) in lines(inputs.shape, out.len(), axis) {
            let elements = (0..length).map(|index| start + index * step);
            self.vectors.fill(inputs, &elements, &mut vectors);
            let coefficients = (self.rule)(inputs.tensor, &Gram::of(&vectors));
            for element in elements {
                out[element] = self.combine(inputs, &coefficients, element);
            }
        }
    }

    fn settle(&self, tensor: usize, pass: &Pass<'_>) {
        let place = &self.coefficients[tensor];
        if self.axes[tensor] == Axis::All && place.get().is_none() {
            // Outside of the lock: a thread that waits for others in the pass may take up a block of the same tensor.
            let coefficients = (self.rule)(tensor, &Gram::of_tensor(pass, tensor, self.vectors));
            if !pass.failed() {
                place.set(coefficients).ok();
            }
        }
    }

    fn unit(&self, tensor: usize, shape: &[usize]) -> usize {
        match self.axes[tensor] {
            Axis::All => 1,
            Axis::Last => shape.last().copied().unwrap_or(1),
            Axis::First => shape.iter().product(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_cover_every_element_once() {
        for shape in [&[2, 3, 4][..], &[5], &[], &[1, 1], &[4, 1], &[1, 4]] {
            for axis in [Axis::All, Axis::First, Axis::Last] {
                let mut elements: Vec<_> = lines(shape, shape.iter().product(), axis)
                    .flat_map(|(start, step, length)| (0..length).map(move |index| start + index * step))
                    .collect();
                elements.sort_unstable();
                let expected: Vec<_> = (0..shape.iter().product()).collect();
                assert_eq!(elements, expected, "{shape:?} {axis:?}");
            }
        }
    }
}
