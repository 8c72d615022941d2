//! Values as they are stored: read where they are used, so that they pass through no buffer on the way.

use std::ops::Range;

use super::{dtype::widen_bf16, map::prefetch};
use crate::simd;

/// Bytes that values are fetched ahead of their use.
const AHEAD: usize = 2048;
/// Bytes of a line of memory.
const LINE: usize = 64;

/// Some of a tensor's values: a checkpoint's own bytes, or what was computed.
#[derive(Clone, Copy, Debug)]
pub enum Row<'a> {
    /// As everything is computed.
    F32(&'a [f32]),
    /// BF16, little-endian, at any address.
    Bf16(&'a [[u8; 2]]),
}

impl<'a> Row<'a> {
    /// No values.
    pub const EMPTY: Self = Self::F32(&[]);

    /// How many values there are.
    #[must_use]
    #[inline]
    pub fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::Bf16(values) => values.len(),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Some of them.
    #[must_use]
    #[inline]
    pub fn part(self, elements: Range<usize>) -> Self {
        match self {
            Self::F32(values) => Self::F32(&values[elements]),
            Self::Bf16(values) => Self::Bf16(&values[elements]),
        }
    }

    /// One of them.
    #[must_use]
    #[inline]
    pub fn at(self, element: usize) -> f32 {
        match self {
            Self::F32(values) => values[element],
            Self::Bf16(values) => widen_bf16(values[element]),
        }
    }

    /// Writes all of them over `out`, which is as long.
    pub fn read(self, out: &mut [f32]) {
        match self {
            Self::F32(values) => out.copy_from_slice(values),
            Self::Bf16(values) => simd::dispatch(
                #[inline(always)]
                || out.iter_mut().zip(values).for_each(|(out, value)| *out = widen_bf16(*value)),
            ),
        }
    }

    /// All of them as F32; `buffer` holds them where they are stored otherwise.
    #[must_use]
    pub fn floats<'b>(self, buffer: &'b mut Vec<f32>) -> &'b [f32]
    where
        'a: 'b,
    {
        if let Self::F32(values) = self {
            return values;
        }
        buffer.resize(self.len(), 0.0);
        self.read(buffer);
        buffer
    }

    /// Has the processor fetch the `N` values that are wanted [`AHEAD`] of those that are read at `start`. It does so of itself within a page of memory
    /// only, and sees no further than some hundred instructions, which a formula's few elements take.
    #[inline(always)]
    pub(crate) fn prefetch<const N: usize>(self, start: usize) {
        match self {
            Self::F32(values) => fetch::<_, N>(values, start),
            Self::Bf16(values) => fetch::<_, N>(values, start),
        }
    }

    /// At most `N` of them, and zero beyond.
    #[inline(always)]
    pub(crate) fn load<const N: usize>(self, elements: Range<usize>) -> [f32; N] {
        match self {
            Self::F32(values) => padded(&values[elements]),
            Self::Bf16(values) => padded(&values[elements]).map(widen_bf16),
        }
    }
}

#[inline(always)]
fn fetch<T, const N: usize>(values: &[T], start: usize) {
    let start = start + AHEAD / size_of::<T>();
    if let Some(values) = values.get(start..start + N) {
        values.iter().step_by(LINE / size_of::<T>()).for_each(prefetch);
    }
}

/// The first values, zero beyond the last.
#[inline(always)]
pub(crate) fn padded<T: Copy + Default, const N: usize>(values: &[T]) -> [T; N] {
    if let Some(whole) = values.first_chunk() {
        return *whole;
    }
    let mut lanes = [T::default(); N];
    lanes[..values.len()].copy_from_slice(values);
    lanes
}
