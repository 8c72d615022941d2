//! Sums and inner products per tensor, added in the same order whatever the blocks and threads.

use std::ops::Range;

use super::{
    lanes::{self, Chunk, Sum, Values},
    pass::{CHUNK, Inputs, Pass},
    task_vector,
};
use crate::simd;

/// Partial sums that one dot product keeps apart, so that it vectorises; a fixed number, so that its bits are the same everywhere.
const LANES: usize = 8;

/// `width` sums for each tensor: `[tensor][sum]`. `part` adds one chunk's terms (a range of the block's elements) to its sums.
pub(super) fn sums(pass: &Pass<'_>, width: usize, part: impl Fn(&Inputs<'_>, Range<usize>, &mut [f64]) + Sync) -> Vec<Vec<f64>> {
    sums_by(pass, |_| CHUNK, width, part)
}

/// `width` sums over all tensors.
pub(super) fn totals(pass: &Pass<'_>, width: usize, part: impl Fn(&Inputs<'_>, Range<usize>, &mut [f64]) + Sync) -> Vec<f64> {
    let mut totals = vec![0.0; width];
    for row in sums(pass, width, part) {
        totals.iter_mut().zip(row).for_each(|(total, sum)| *total += sum);
    }
    totals
}

/// As [`sums`], with chunks of as many elements as `chunk` says of a tensor's shape: a divisor or a multiple of every block.
pub(super) fn sums_by(
    pass: &Pass<'_>,
    chunk: impl Fn(&[usize]) -> usize + Sync,
    width: usize,
    part: impl Fn(&Inputs<'_>, Range<usize>, &mut [f64]) + Sync,
) -> Vec<Vec<f64>> {
    let mut totals = vec![vec![0.0; width]; pass.elements().len()];
    let add = |tensor: usize, sums: Vec<f64>| totals[tensor].iter_mut().zip(sums).for_each(|(total, sum)| *total += sum);
    gather(pass, chunk, width, part, add);
    totals
}

/// Takes the sums of every chunk and hands them over in order, each with its tensor.
fn gather(
    pass: &Pass<'_>,
    chunk: impl Fn(&[usize]) -> usize + Sync,
    width: usize,
    part: impl Fn(&Inputs<'_>, Range<usize>, &mut [f64]) + Sync,
    mut add: impl FnMut(usize, Vec<f64>),
) {
    for jobs in pass.batches() {
        let mut parts = pass.with(jobs).fold(
            None,
            Vec::new,
            |parts: &mut Vec<(usize, usize, Vec<f64>)>, inputs| {
                let length = inputs.models.first().map_or(0, |model| model.len());
                let chunk = chunk(inputs.shape).max(1);
                for start in (0..length).step_by(chunk) {
                    let mut sums = vec![0.0; width];
                    part(inputs, start..length.min(start + chunk), &mut sums);
                    parts.push((inputs.tensor, inputs.offset + start, sums));
                }
            },
            |mut a, mut b| {
                a.append(&mut b);
                a
            },
        );
        parts.sort_unstable_by_key(|(tensor, offset, _)| (*tensor, *offset));
        parts.into_iter().for_each(|(tensor, _, sums)| add(tensor, sums));
    }
}

/// Which vectors a geometric method works on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Vectors {
    /// The models.
    Models,
    /// The base, then the models.
    BaseAndModels,
    /// The models' differences to the base.
    Deltas,
}

impl Vectors {
    /// A chunk of vector `index`.
    #[inline(always)]
    pub(super) fn values(self, chunk: &Chunk<'_>, index: usize) -> Values {
        match (self, index) {
            (Self::Models, _) => chunk.values(index),
            (Self::Deltas, _) => chunk.task_vector(index),
            (Self::BaseAndModels, 0) => chunk.base_values(),
            (Self::BaseAndModels, _) => chunk.values(index - 1),
        }
    }

    /// Writes elements of every vector, in F64.
    pub(super) fn fill(self, inputs: &Inputs<'_>, elements: &(impl Iterator<Item = usize> + Clone), out: &mut Vec<Vec<f64>>) {
        let base = (self == Self::BaseAndModels).then_some(inputs.base);
        let rows = base.into_iter().chain(inputs.models.iter().copied());
        out.resize(rows.clone().count(), Vec::new());
        for (out, row) in out.iter_mut().zip(rows) {
            out.clear();
            if self == Self::Deltas {
                out.extend(elements.clone().map(|element| f64::from(task_vector(row.at(element), inputs.base.at(element)))));
            } else {
                out.extend(elements.clone().map(|element| f64::from(row.at(element))));
            }
        }
    }
}

/// Inner products of some vectors.
#[derive(Clone, Debug)]
pub(super) struct Gram {
    size: usize,
    /// Of the pairs i <= j.
    products: Vec<f64>,
}

impl Gram {
    /// The inner products of `vectors`.
    pub(super) fn of(vectors: &[Vec<f64>]) -> Self {
        let size = vectors.len();
        let mut products = Vec::with_capacity(size * (size + 1) / 2);
        for j in 0..size {
            products.extend((0..=j).map(|i| dot(&vectors[i], &vectors[j])));
        }
        Self { size, products }
    }

    /// The inner products of a tensor's vectors.
    pub(super) fn of_tensor(pass: &Pass<'_>, tensor: usize, vectors: Vectors) -> Self {
        let size = pass.models() + usize::from(vectors == Vectors::BaseAndModels);
        let mut products = vec![0.0; size * (size + 1) / 2];
        let part = |inputs: &Inputs<'_>, elements, sums: &mut [f64]| {
            if size == 2 {
                products_of_two(vectors, inputs, elements, sums);
            } else {
                products_of(vectors, size, inputs, elements, sums);
            }
        };
        let width = products.len();
        let add = |_, sums: Vec<f64>| products.iter_mut().zip(sums).for_each(|(total, sum)| *total += sum);
        gather(&pass.over(tensor), |_| CHUNK, width, part, add);
        Self { size, products }
    }

    /// How many vectors there are.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// The inner product of vectors `i` and `j`.
    pub(super) fn dot(&self, i: usize, j: usize) -> f64 {
        let (i, j) = (i.min(j), i.max(j));
        self.products[j * (j + 1) / 2 + i]
    }

    /// The length of vector `i`.
    pub(super) fn norm(&self, i: usize) -> f64 {
        self.dot(i, i).sqrt()
    }

    /// The inner product of two linear combinations of the vectors.
    pub(super) fn dot_of(&self, a: &[f64], b: &[f64]) -> f64 {
        let mut sum = 0.0;
        for (i, a) in a.iter().enumerate() {
            for (j, b) in b.iter().enumerate() {
                sum += a * b * self.dot(i, j);
            }
        }
        sum
    }

    /// The length of a linear combination.
    pub(super) fn norm_of(&self, a: &[f64]) -> f64 {
        self.dot_of(a, a).max(0.0).sqrt()
    }
}

/// Adds the inner products of some elements of `size` vectors to their sums.
fn products_of(vectors: Vectors, size: usize, inputs: &Inputs<'_>, elements: Range<usize>, sums: &mut [f64]) {
    let mut rows = vec![[0.0; lanes::LANES]; size];
    lanes::sum(
        inputs,
        elements,
        sums,
        #[inline(always)]
        |chunk, sums| {
            for (index, row) in rows.iter_mut().enumerate() {
                *row = vectors.values(chunk, index);
            }
            let pairs = rows.iter().enumerate().flat_map(|(j, b)| rows[..=j].iter().map(move |a| (a, b)));
            for (sum, (a, b)) in sums.iter_mut().zip(pairs) {
                sum.add_products_of(a, b);
            }
        },
    );
}

/// The same of two vectors, with the same bits: all three products in one loop, which costs a fraction.
fn products_of_two(vectors: Vectors, inputs: &Inputs<'_>, elements: Range<usize>, sums: &mut [f64]) {
    lanes::sum(
        inputs,
        elements,
        sums,
        #[inline(always)]
        |chunk, sums| {
            let [Sum(aa), Sum(ab), Sum(bb)] = sums else { return };
            let (a, b) = (vectors.values(chunk, 0), vectors.values(chunk, 1));
            for l in 0..lanes::LANES {
                let (a, b) = (f64::from(a[l]), f64::from(b[l]));
                aa[l] += a * a;
                ab[l] += a * b;
                bb[l] += b * b;
            }
        },
    );
}

/// The sum of some numbers.
pub(super) fn total(values: &[f64]) -> f64 {
    simd::dispatch(
        #[inline(always)]
        || {
            let (values, rest) = values.as_chunks::<LANES>();
            let mut lanes = [0.0; LANES];
            for values in values {
                for (lane, value) in lanes.iter_mut().zip(values) {
                    *lane += value;
                }
            }
            rest.iter().fold(lanes.iter().sum(), |sum: f64, value| sum + value)
        },
    )
}

/// The inner product of two vectors of the same length.
pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    simd::dispatch(
        #[inline(always)]
        || dot_here(a, b),
    )
}

#[inline(always)]
fn dot_here(a: &[f64], b: &[f64]) -> f64 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut lanes = [0.0; LANES];
    for (a, b) in a.iter().zip(b) {
        for (lane, (a, b)) in lanes.iter_mut().zip(a.iter().zip(b)) {
            *lane += a * b;
        }
    }
    let mut sum: f64 = lanes.iter().sum();
    for (a, b) in a_rest.iter().zip(b_rest) {
        sum += a * b;
    }
    sum
}
