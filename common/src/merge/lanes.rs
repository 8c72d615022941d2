//! Blocks walked a fixed number of elements at a time, so that element-wise formulas become vector code.
//!
//! A formula is written over [`Lanes`], one loop for each step of it, and works on all lanes even at a block's end, where those beyond it are zero and their
//! results go nowhere. Sums keep a partial sum for each lane, whatever the machine: chunks add to them in order, and the lanes are added in order at the end.

use std::ops::Range;

use super::{Inputs, round, task_vector};
use crate::{
    checkpoint::{Row, narrow_bf16, padded},
    simd,
};

/// Elements that are walked at a time.
pub(super) const LANES: usize = 64;

/// One number for each element of a chunk.
pub(super) type Lanes = [f64; LANES];

/// One value for each element of a chunk, as it is stored.
pub(super) type Values = [f32; LANES];

/// Some elements of a block.
pub(super) struct Chunk<'a> {
    inputs: &'a Inputs<'a>,
    start: usize,
    count: usize,
}

impl Chunk<'_> {
    #[inline(always)]
    fn load(&self, row: Row<'_>) -> Values {
        row.load(self.start..self.start + self.count)
    }

    /// The base's values.
    #[inline(always)]
    pub(super) fn base(&self) -> Lanes {
        widen(&self.base_values())
    }

    /// A model's values.
    #[inline(always)]
    pub(super) fn model(&self, model: usize) -> Lanes {
        widen(&self.values(model))
    }

    /// The base's values, as they are stored.
    #[inline(always)]
    pub(super) fn base_values(&self) -> Values {
        self.load(self.inputs.base)
    }

    /// A model's values, as they are stored.
    #[inline(always)]
    pub(super) fn values(&self, model: usize) -> Values {
        self.load(self.inputs.models[model])
    }

    /// A model's differences to the base.
    #[inline(always)]
    pub(super) fn delta(&self, model: usize) -> Lanes {
        widen(&self.task_vector(model))
    }

    /// A model's differences to the base, as they are stored.
    #[inline(always)]
    pub(super) fn task_vector(&self, model: usize) -> Values {
        let (model, base) = (self.values(model), self.base_values());
        let mut delta = [0.0; LANES];
        for l in 0..LANES {
            delta[l] = task_vector(model[l], base[l]);
        }
        delta
    }

    /// The chunk's part of a row that begins at element `start` of the block.
    #[inline(always)]
    pub(super) fn behind(&self, start: usize, row: &[f64]) -> Lanes {
        padded(&row[self.start - start..self.start - start + self.count])
    }

    /// The chunk's word of bits that begin at element `start` of the block, a whole number of chunks before it.
    #[inline(always)]
    pub(super) fn word(&self, start: usize, bits: &[u64]) -> u64 {
        bits[(self.start - start) / LANES]
    }

    /// 1 for the elements of the block, and 0 beyond its end.
    #[inline(always)]
    pub(super) fn inside(&self) -> Lanes {
        let mut inside = [0.0; LANES];
        inside[..self.count].fill(1.0);
        inside
    }

    /// How many models there are.
    #[inline(always)]
    pub(super) fn models(&self) -> usize {
        self.inputs.models.len()
    }

    /// Writes values, rounded once, into a row that is as long as the block.
    #[inline(always)]
    pub(super) fn store(&self, values: &Lanes, row: &mut [f32]) {
        self.put(&values.map(round), row);
    }

    /// Writes values into a row that is as long as the block.
    #[inline(always)]
    pub(super) fn put<T: Copy>(&self, values: &[T; LANES], row: &mut [T]) {
        let out = &mut row[self.start..self.start + self.count];
        match <&mut [T; LANES]>::try_from(&mut *out) {
            Ok(out) => *out = *values,
            Err(_) => out.copy_from_slice(&values[..self.count]),
        }
    }
}

/// A word with a bit for each lane: what `holds` says of it.
#[inline(always)]
pub(super) fn bits<T: Copy>(values: &[T; LANES], holds: impl Fn(T) -> bool) -> u64 {
    let mut bits = [0; LANES];
    for l in 0..LANES {
        bits[l] = u64::from(holds(values[l])) << l;
    }
    bits.iter().fold(0, |word, bit| word | bit)
}

/// The lanes whose bits are set, in order.
#[inline(always)]
pub(super) fn set(mut word: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let lane = word.trailing_zeros() as usize;
        (word != 0).then(|| {
            word &= word - 1;
            lane
        })
    })
}

/// What a formula gives for each lane of two rows.
#[inline(always)]
pub(super) fn each(a: &Lanes, b: &Lanes, formula: impl Fn(f64, f64) -> f64) -> Lanes {
    let mut out = [0.0; LANES];
    for l in 0..LANES {
        out[l] = formula(a[l], b[l]);
    }
    out
}

/// The lanes to the power of a whole number.
#[inline(always)]
pub(super) fn power(values: &Lanes, mut exponent: usize) -> Lanes {
    let (mut square, mut power) = (*values, [1.0; LANES]);
    while exponent > 0 {
        if exponent % 2 == 1 {
            power = each(&power, &square, |a, b| a * b);
        }
        square = each(&square, &square, |a, b| a * b);
        exponent /= 2;
    }
    power
}

#[inline(always)]
fn widen(values: &Values) -> Lanes {
    let mut wide = [0.0; LANES];
    for l in 0..LANES {
        wide[l] = f64::from(values[l]);
    }
    wide
}

/// Walks some elements of a block. Give `step` as `#[inline(always)] |chunk| …`.
#[inline]
pub(super) fn walk(inputs: &Inputs<'_>, elements: Range<usize>, mut step: impl FnMut(&Chunk<'_>)) {
    simd::dispatch(
        #[inline(always)]
        || {
            for start in elements.clone().step_by(LANES) {
                inputs.base.prefetch::<LANES>(start);
                inputs.models.iter().for_each(|row| row.prefetch::<LANES>(start));
                step(&Chunk { inputs, start, count: (elements.end - start).min(LANES) });
            }
        },
    );
}

/// Writes what `formula` gives for every element of a block, rounded once. Give it as `#[inline(always)] |chunk| …`.
#[inline]
pub(super) fn map(inputs: &Inputs<'_>, out: &mut [f32], mut formula: impl FnMut(&Chunk<'_>) -> Lanes) {
    walk(
        inputs,
        0..out.len(),
        #[inline(always)]
        |chunk| chunk.store(&formula(chunk), out),
    );
}

/// An element type that the blend of some rows can be written in.
pub(super) trait Stored: Copy {
    /// Values in this type, and whether all are known to be finite.
    fn of(values: &Values) -> ([Self; LANES], bool);
}

/// As it is computed; whether it is finite is not looked at.
impl Stored for f32 {
    #[inline(always)]
    fn of(values: &Values) -> (Values, bool) {
        (*values, false)
    }
}

/// Bits of BF16, rounded to the nearest, ties to even.
impl Stored for u16 {
    #[inline(always)]
    fn of(values: &Values) -> ([Self; LANES], bool) {
        (values.map(narrow_bf16), values.iter().fold(true, |finite, value| finite & value.is_finite()))
    }
}

/// Writes what `formula` gives for [`LANES`] elements of some rows at a time, from this element on; rows are as long as `out`. Says whether all values are known
/// to be finite. Give the formula as `#[inline(always)] |start, rows| …`.
#[inline]
pub(super) fn zip<T: Stored, const ROWS: usize>(
    rows: [Row<'_>; ROWS],
    out: &mut [T],
    formula: impl Fn(usize, [Values; ROWS]) -> Values,
) -> bool {
    let inputs = Inputs { base: Row::EMPTY, models: &rows, tensor: 0, shape: &[], offset: 0 };
    let mut finite = true;
    walk(
        &inputs,
        0..out.len(),
        #[inline(always)]
        |chunk| {
            let mut values = [[0.0; LANES]; ROWS];
            for (values, row) in values.iter_mut().zip(rows) {
                *values = chunk.load(row);
            }
            let (stored, are_finite) = T::of(&formula(chunk.start, values));
            chunk.put(&stored, out);
            finite &= are_finite;
        },
    );
    finite
}

/// The sum of some elements' terms, lane by lane.
pub(super) struct Sum(pub(super) Lanes);

impl Sum {
    pub(super) const ZERO: Self = Self([0.0; LANES]);

    /// Adds a chunk's terms.
    #[inline(always)]
    pub(super) fn add(&mut self, terms: &Lanes) {
        self.0.iter_mut().zip(terms).for_each(|(sum, term)| *sum += term);
    }

    /// Adds the products of two chunks' lanes.
    #[inline(always)]
    pub(super) fn add_products(&mut self, a: &Lanes, b: &Lanes) {
        self.0.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (a, b))| *sum += a * b);
    }

    /// Adds the products of two chunks' values, which are widened on their way from memory: that costs less than to keep them wide.
    #[inline(always)]
    pub(super) fn add_products_of(&mut self, a: &Values, b: &Values) {
        self.0.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (a, b))| *sum += f64::from(*a) * f64::from(*b));
    }

    pub(super) fn total(&self) -> f64 {
        self.0.iter().sum()
    }
}

/// Adds the terms of some elements of a block to `sums`, each a sum of its own.
#[inline]
pub(super) fn sum(inputs: &Inputs<'_>, elements: Range<usize>, sums: &mut [f64], mut terms: impl FnMut(&Chunk<'_>, &mut [Sum])) {
    let mut parts: Vec<Sum> = sums.iter().map(|_| Sum::ZERO).collect();
    walk(
        inputs,
        elements,
        #[inline(always)]
        |chunk| terms(chunk, &mut parts),
    );
    sums.iter_mut().zip(parts).for_each(|(sum, parts)| *sum += parts.total());
}
