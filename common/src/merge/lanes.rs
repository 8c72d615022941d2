//! Blocks walked a fixed number of elements at a time, so that element-wise formulas become vector code.
//!
//! A formula is written over [`Lanes`], one loop for each step of it, and works on all lanes even at a block's end, where those beyond it are zero and their
//! results go nowhere. Sums keep as many partial sums as [`PARTS`] says, whatever the machine: lane l of a chunk adds to part l mod [`PARTS`], chunks in
//! order, and the parts are added in order at the end.

use std::ops::Range;

use super::{Inputs, round, task_vector};
use crate::simd;

/// Elements that are walked at a time.
pub(super) const LANES: usize = 64;
/// Partial sums that a sum keeps apart.
const PARTS: usize = 8;

/// One number for each element of a chunk.
pub(super) type Lanes = [f64; LANES];

/// Some elements of a block.
pub(super) struct Chunk<'a> {
    inputs: &'a Inputs<'a>,
    start: usize,
    count: usize,
}

impl Chunk<'_> {
    #[inline(always)]
    fn load(&self, values: &[f32]) -> [f32; LANES] {
        if let Some(whole) = values[self.start..].first_chunk() {
            return *whole;
        }
        let mut lanes = [0.0; LANES];
        lanes[..self.count].copy_from_slice(&values[self.start..self.start + self.count]);
        lanes
    }

    /// The base's values.
    #[inline(always)]
    pub(super) fn base(&self) -> Lanes {
        widen(&self.load(self.inputs.base))
    }

    /// A model's values.
    #[inline(always)]
    pub(super) fn model(&self, model: usize) -> Lanes {
        widen(&self.load(self.inputs.models[model]))
    }

    /// A model's differences to the base.
    #[inline(always)]
    pub(super) fn delta(&self, model: usize) -> Lanes {
        let (model, base) = (self.load(self.inputs.models[model]), self.load(self.inputs.base));
        let mut delta = [0.0; LANES];
        for l in 0..LANES {
            delta[l] = f64::from(task_vector(model[l], base[l]));
        }
        delta
    }

    /// How many models there are.
    #[inline(always)]
    pub(super) fn models(&self) -> usize {
        self.inputs.models.len()
    }

    /// 1 for the elements of the block, and 0 beyond its end.
    #[inline(always)]
    pub(super) fn inside(&self) -> Lanes {
        let mut inside = [0.0; LANES];
        inside[..self.count].fill(1.0);
        inside
    }
}

#[inline(always)]
fn widen(values: &[f32; LANES]) -> Lanes {
    let mut wide = [0.0; LANES];
    for l in 0..LANES {
        wide[l] = f64::from(values[l]);
    }
    wide
}

/// Walks some elements of a block.
#[inline(always)]
fn each<'a>(inputs: &'a Inputs<'a>, elements: Range<usize>, mut step: impl FnMut(&Chunk<'a>)) {
    for start in elements.clone().step_by(LANES) {
        step(&Chunk { inputs, start, count: (elements.end - start).min(LANES) });
    }
}

/// Writes what `formula` gives for every element of a block, rounded once. Give it as `#[inline(always)] |chunk| …`.
#[inline]
pub(super) fn map(inputs: &Inputs<'_>, out: &mut [f32], formula: impl Fn(&Chunk<'_>) -> Lanes) {
    simd::dispatch(
        #[inline(always)]
        || {
            each(
                inputs,
                0..out.len(),
                #[inline(always)]
                |chunk| {
                    let merged = formula(chunk);
                    let out = &mut out[chunk.start..chunk.start + chunk.count];
                    if let Ok(out) = <&mut [f32; LANES]>::try_from(&mut *out) {
                        for l in 0..LANES {
                            out[l] = round(merged[l]);
                        }
                    } else {
                        out.iter_mut().zip(merged).for_each(|(out, merged)| *out = round(merged));
                    }
                },
            );
        },
    );
}

/// The same for several F32 rows: `formula` writes row r of a chunk to its r-th place.
#[inline]
pub(super) fn rows<const ROWS: usize>(
    inputs: &Inputs<'_>,
    out: &mut [&mut [f32]; ROWS],
    formula: impl Fn(&Chunk<'_>) -> [Lanes; ROWS],
) {
    let length = out.first().map_or(0, |row| row.len());
    simd::dispatch(
        #[inline(always)]
        || {
            each(
                inputs,
                0..length,
                #[inline(always)]
                |chunk| {
                    for (out, row) in out.iter_mut().zip(formula(chunk)) {
                        let out = &mut out[chunk.start..chunk.start + chunk.count];
                        out.iter_mut().zip(row).for_each(|(out, value)| *out = round(value));
                    }
                },
            );
        },
    );
}

/// Sums of some elements' terms.
pub(super) struct Sum([f64; PARTS]);

impl Sum {
    pub(super) const ZERO: Self = Self([0.0; PARTS]);

    /// Adds a chunk's terms.
    #[inline(always)]
    pub(super) fn add(&mut self, terms: &Lanes) {
        for group in terms.as_chunks::<PARTS>().0 {
            for (part, term) in self.0.iter_mut().zip(group) {
                *part += term;
            }
        }
    }

    /// Adds the products of two chunks' lanes.
    #[inline(always)]
    pub(super) fn add_products(&mut self, a: &Lanes, b: &Lanes) {
        for (a, b) in a.as_chunks::<PARTS>().0.iter().zip(b.as_chunks::<PARTS>().0) {
            for (part, (a, b)) in self.0.iter_mut().zip(a.iter().zip(b)) {
                *part += a * b;
            }
        }
    }

    pub(super) fn total(&self) -> f64 {
        self.0.iter().sum()
    }
}

/// Adds the terms of some elements of a block to `sums`, each a sum of its own.
#[inline]
pub(super) fn sum(inputs: &Inputs<'_>, elements: Range<usize>, sums: &mut [f64], terms: impl Fn(&Chunk<'_>, &mut [Sum])) {
    let mut parts: Vec<Sum> = sums.iter().map(|_| Sum::ZERO).collect();
    simd::dispatch(
        #[inline(always)]
        || {
            each(
                inputs,
                elements,
                #[inline(always)]
                |chunk| terms(chunk, &mut parts),
            );
        },
    );
    sums.iter_mut().zip(parts).for_each(|(sum, parts)| *sum += parts.total());
}
