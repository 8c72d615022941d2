//! Exact order statistics by counting.
//!
//! A float's bits, with the sign folded in, order like the float. One pass counts the upper 16 bits, a second the lower 16 within the bins that
//! the wanted ranks fall into: two reads of the data and no sort, whatever its size. Tensors of few elements are gathered and partitioned instead.

use std::sync::{Mutex, PoisonError};

use super::{
    lanes::{self, LANES},
    pass::{Inputs, Pass},
    task_vector,
};
use crate::simd;

const BINS: usize = 1 << 16;
/// Elements up to which a tensor's rows are gathered: about what clearing and searching the tables would cost.
const FEW: usize = 1 << 15;

type Counts = [u64; BINS];

/// The bits of `value`, mapped so that unsigned order is the floats' order.
#[inline(always)]
fn key(value: f32) -> u32 {
    // -0.0 counts as 0.0.
    let bits = (value + 0.0).to_bits();
    if bits >> 31 == 1 { !bits } else { bits | 1 << 31 }
}

fn value(key: u32) -> f32 {
    f32::from_bits(if key >> 31 == 1 { key & !(1 << 31) } else { !key })
}

/// Finds order statistics of rows, and keeps its tables from one search to the next.
#[derive(Default)]
pub(super) struct Selector {
    pool: Mutex<Vec<Box<Counts>>>,
}

/// One thread's counts and values.
struct State {
    tables: Vec<Box<Counts>>,
    rows: Vec<Vec<f32>>,
}

impl Selector {
    /// The elements of rank `ranks[row]` (0 is the smallest) of each of several rows.
    ///
    /// `fill` writes every row's values for a block into rows of its length; rows without ranks it may leave alone. `tensor` limits the rows to one
    /// tensor. Ranks lie below the rows' length.
    pub(super) fn select(
        &self,
        pass: &Pass<'_>,
        tensor: Option<usize>,
        ranks: &[Vec<u64>],
        fill: impl Fn(&Inputs<'_>, &mut [Vec<f32>]) + Sync,
    ) -> Vec<Vec<f32>> {
        if ranks.iter().all(Vec::is_empty) {
            return vec![Vec::new(); ranks.len()];
        }
        let few = pass.count(tensor) <= FEW;
        if few { Self::partition(pass, tensor, ranks, fill) } else { self.count(pass, tensor, ranks, fill) }
    }

    fn partition(
        pass: &Pass<'_>,
        tensor: Option<usize>,
        ranks: &[Vec<u64>],
        fill: impl Fn(&Inputs<'_>, &mut [Vec<f32>]) + Sync,
    ) -> Vec<Vec<f32>> {
        let start = || (vec![Vec::new(); ranks.len()], vec![Vec::new(); ranks.len()]);
        let step = |(keys, rows): &mut (Vec<Vec<u32>>, Vec<Vec<f32>>), inputs: &Inputs<'_>| {
            size(rows, inputs);
            fill(inputs, rows);
            keys.iter_mut().zip(rows).for_each(|(keys, row)| keys.extend(row.iter().map(|value| key(*value))));
        };
        let (mut keys, _) = pass.fold(tensor, start, step, |(mut a, rows), (b, _)| {
            a.iter_mut().zip(b).for_each(|(a, b)| a.extend(b));
            (a, rows)
        });
        let found = |(keys, ranks): (&mut Vec<u32>, &Vec<u64>)| {
            let at = |rank: &u64| usize::try_from(*rank).ok().filter(|rank| *rank < keys.len());
            // A rank beyond the row is only met where a pass failed half-way; the failure is reported by the engine.
            let ranks: Vec<_> = ranks.iter().map(at).collect();
            ranks.into_iter().map(|rank| rank.map_or(0.0, |rank| value(*keys.select_nth_unstable(rank).1))).collect()
        };
        keys.iter_mut().zip(ranks).map(found).collect()
    }

    fn count(
        &self,
        pass: &Pass<'_>,
        tensor: Option<usize>,
        ranks: &[Vec<u64>],
        fill: impl Fn(&Inputs<'_>, &mut [Vec<f32>]) + Sync,
    ) -> Vec<Vec<f32>> {
        // The rows that something is wanted of.
        let rows: Vec<_> = (0..ranks.len()).filter(|row| !ranks[*row].is_empty()).collect();
        let upper = self.tables(pass, tensor, ranks.len(), rows.len(), &fill, |values, tables| {
            rows.iter().zip(tables).for_each(|(row, table)| count_upper(&values[*row], table));
        });
        // For every wanted rank: its row, its bin, and its rank inside the bin.
        let mut wanted = Vec::new();
        for (row, table) in rows.iter().zip(&upper) {
            for &rank in &ranks[*row] {
                let (bin, inside) = locate(&table[..], rank);
                wanted.push((*row, bin, inside));
            }
        }
        self.give_back(upper);
        let mut bins: Vec<_> = wanted.iter().map(|(row, bin, _)| (*row, *bin)).collect();
        bins.sort_unstable();
        bins.dedup();
        let lower = self.tables(pass, tensor, ranks.len(), bins.len(), &fill, |values, tables| {
            bins.iter().zip(tables).for_each(|((row, bin), table)| count_lower(&values[*row], *bin, table));
        });
        let mut found = vec![Vec::new(); ranks.len()];
        for (row, bin, inside) in wanted {
            let slot = bins.partition_point(|place| *place < (row, bin));
            let (low, _) = locate(&lower[slot][..], inside);
            found[row].push(value(bin << 16 | low));
        }
        self.give_back(lower);
        found
    }

    /// Tables that `count` has filled from every block's rows.
    fn tables(
        &self,
        pass: &Pass<'_>,
        tensor: Option<usize>,
        rows: usize,
        tables: usize,
        fill: &(impl Fn(&Inputs<'_>, &mut [Vec<f32>]) + Sync),
        count: impl Fn(&[Vec<f32>], &mut [Box<Counts>]) + Sync,
    ) -> Vec<Box<Counts>> {
        let start = || State { tables: (0..tables).map(|_| self.take()).collect(), rows: vec![Vec::new(); rows] };
        let step = |state: &mut State, inputs: &Inputs<'_>| {
            size(&mut state.rows, inputs);
            fill(inputs, &mut state.rows);
            count(&state.rows, &mut state.tables);
        };
        let join = |mut a: State, b: State| {
            for (a, b) in a.tables.iter_mut().zip(&b.tables) {
                a.iter_mut().zip(&b[..]).for_each(|(a, b)| *a += b);
            }
            self.give_back(b.tables);
            a
        };
        pass.fold(tensor, start, step, join).tables
    }

    /// A table of zeros.
    fn take(&self) -> Box<Counts> {
        let pooled = self.pool.lock().unwrap_or_else(PoisonError::into_inner).pop();
        pooled.unwrap_or_else(|| {
            let zeros = vec![0; BINS].into_boxed_slice();
            zeros.try_into().unwrap_or_else(|_| unreachable!("the slice has {BINS} elements"))
        })
    }

    fn give_back(&self, mut tables: Vec<Box<Counts>>) {
        tables.iter_mut().for_each(|table| table.fill(0));
        self.pool.lock().unwrap_or_else(PoisonError::into_inner).append(&mut tables);
    }
}

/// Gives rows the block's length.
fn size(rows: &mut [Vec<f32>], inputs: &Inputs<'_>) {
    let length = inputs.models.first().map_or(0, |model| model.len());
    rows.iter_mut().for_each(|row| row.resize(length, 0.0));
}

/// The magnitudes of every model's task vector.
pub(super) fn magnitudes(inputs: &Inputs<'_>, rows: &mut [Vec<f32>]) {
    simd::dispatch(
        #[inline(always)]
        || {
            for (row, model) in rows.iter_mut().zip(inputs.models) {
                for ((out, model), base) in row.iter_mut().zip(*model).zip(inputs.base) {
                    *out = task_vector(*model, *base).abs();
                }
            }
        },
    );
}

/// The bins of the first values; those beyond the last have none.
#[inline(always)]
fn bins(values: &[f32]) -> [u16; LANES] {
    lanes::load(values).map(|value| (key(value) >> 16) as u16)
}

fn count_upper(values: &[f32], table: &mut Counts) {
    simd::dispatch(
        #[inline(always)]
        || {
            for values in values.chunks(LANES) {
                for bin in &bins(values)[..values.len()] {
                    table[usize::from(*bin)] += 1;
                }
            }
        },
    );
}

#[expect(clippy::cast_possible_truncation, reason = "there are 2^16 bins")]
fn count_lower(values: &[f32], wanted: u32, table: &mut Counts) {
    let wanted = wanted as u16;
    simd::dispatch(
        #[inline(always)]
        || {
            for values in values.chunks(LANES) {
                let inside = lanes::bits(&bins(values), |bin| bin == wanted);
                for value in lanes::set(inside).filter_map(|lane| values.get(lane)) {
                    table[(key(*value) & 0xffff) as usize] += 1;
                }
            }
        },
    );
}

/// The bin that holds `rank`, and the rank inside it.
#[expect(clippy::cast_possible_truncation, reason = "there are 2^16 bins")]
fn locate(table: &[u64], rank: u64) -> (u32, u64) {
    let mut before = 0;
    for (bin, &count) in table.iter().enumerate() {
        if rank < before + count {
            return (bin as u32, rank - before);
        }
        before += count;
    }
    // Only reached where a pass failed half-way; the failure is reported by the engine.
    (0, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_order_like_floats() {
        let values = [f32::NEG_INFINITY, -3.5, -1e-40, -0.0, 0.0, 1e-40, 2.0, f32::INFINITY];
        for pair in values.windows(2) {
            assert!(key(pair[0]) <= key(pair[1]));
            assert_eq!(value(key(pair[1])), pair[1]);
        }
        assert_eq!(key(-0.0), key(0.0));
    }
}
