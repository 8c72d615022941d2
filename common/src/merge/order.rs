//! Exact order statistics by counting.
//!
//! A float's bits, with the sign folded in, order like the float. One pass counts the upper 16 bits, a second the lower 16 within the bins that
//! the wanted ranks fall into: two reads of the data and no sort, whatever its size. Where values are dear, a sample says beforehand which bins these will be,
//! and the first pass counts in them too: the second is then only for guesses that were wrong. Tensors of few elements are gathered and partitioned instead.

use std::sync::{Mutex, PoisonError};

use super::{
    lanes::{self, LANES},
    pass::{Inputs, Pass},
};
use crate::{checkpoint::padded, simd};

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

/// Of so many blocks one is looked at for a guess, if there are enough.
const SAMPLED: usize = 16;
const ENOUGH: usize = 4;

/// What it takes to write the rows that are searched.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Cost {
    /// About as much as to count them.
    Low,
    /// Much more: a pass is worth a sample.
    High,
}

/// A row, and the upper bits of some of its values.
type Bin = (usize, u32);

/// What a pass counts.
#[derive(Default)]
struct Counted {
    /// Of each row asked for: the upper bits, and the smallest and largest key.
    upper: Vec<Box<Counts>>,
    extremes: Vec<[u32; 2]>,
    /// Of each bin asked for: the lower bits.
    lower: Vec<Box<Counts>>,
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
        (cost, fill): (Cost, impl Fn(&Inputs<'_>, &mut [Vec<f32>]) + Sync),
    ) -> Vec<Vec<f32>> {
        if ranks.iter().all(Vec::is_empty) {
            return vec![Vec::new(); ranks.len()];
        }
        let few = pass.count(tensor) <= FEW;
        if few { Self::partition(pass, tensor, ranks, fill) } else { self.count(pass, tensor, ranks, (cost, fill)) }
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
        (cost, fill): (Cost, impl Fn(&Inputs<'_>, &mut [Vec<f32>]) + Sync),
    ) -> Vec<Vec<f32>> {
        let counting = Counting { selector: self, pass, tensor, ranks, fill: &fill };
        // The rows that something is wanted of.
        let rows: Vec<_> = (0..ranks.len()).filter(|row| !ranks[*row].is_empty()).collect();
        let guessed = if cost == Cost::High { counting.guess(&rows) } else { Vec::new() };
        let counted = counting.pass(&rows, &guessed);
        // The smallest and the largest value are known without a search.
        let last = counting.last();
        let place = |at: usize, row: usize, rank: u64| match rank {
            0 => Place::Key(counted.extremes[at][0]),
            rank if rank >= last => Place::Key(counted.extremes[at][1]),
            rank => {
                let (bin, inside) = locate(&counted.upper[at][..], rank);
                Place::Inside((row, bin), inside)
            }
        };
        let places = |(at, row): (usize, &usize)| ranks[*row].iter().map(|rank| place(at, *row, *rank)).collect();
        let places: Vec<Vec<_>> = rows.iter().enumerate().map(places).collect();
        let bins = places.iter().flatten().filter_map(|place| match place {
            Place::Inside(bin, _) => Some(*bin),
            Place::Key(_) => None,
        });
        let mut missed: Vec<_> = bins.filter(|bin| guessed.binary_search(bin).is_err()).collect();
        missed.sort_unstable();
        missed.dedup();
        let again = if missed.is_empty() { Counted::default() } else { counting.pass(&[], &missed) };
        let lower = |bin: &Bin| match guessed.binary_search(bin) {
            Ok(slot) => &counted.lower[slot],
            Err(_) => &again.lower[missed.partition_point(|missed| missed < bin)],
        };
        let found = |place: &Place| match place {
            Place::Key(key) => value(*key),
            Place::Inside(bin, inside) => value(bin.1 << 16 | locate(&lower(bin)[..], *inside).0),
        };
        let mut values = vec![Vec::new(); ranks.len()];
        for (row, places) in rows.iter().zip(&places) {
            values[*row] = places.iter().map(found).collect();
        }
        [counted.upper, counted.lower, again.lower].into_iter().for_each(|tables| self.give_back(tables));
        values
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

/// Where a wanted rank stands.
enum Place {
    /// Its value's key is known.
    Key(u32),
    /// At this rank inside a bin.
    Inside(Bin, u64),
}

/// One search by counting.
struct Counting<'a, F> {
    selector: &'a Selector,
    pass: &'a Pass<'a>,
    tensor: Option<usize>,
    ranks: &'a [Vec<u64>],
    fill: &'a F,
}

impl<F: Fn(&Inputs<'_>, &mut [Vec<f32>]) + Sync> Counting<'_, F> {
    /// The rank of the largest value.
    fn last(&self) -> u64 {
        self.pass.count(self.tensor).saturating_sub(1) as u64
    }

    /// The bins, in order, that the wanted ranks of these rows are likely to fall into.
    fn guess(&self, rows: &[usize]) -> Vec<Bin> {
        let jobs = self.pass.sample(self.tensor, SAMPLED);
        if jobs.len() < ENOUGH {
            return Vec::new();
        }
        let sample = self.pass.with(&jobs);
        let (sampled, total) = (sample.count(None) as u64, self.pass.count(self.tensor) as u64);
        let counted = Counting { pass: &sample, tensor: None, ..*self }.pass(rows, &[]);
        let mut bins = Vec::new();
        for (row, table) in rows.iter().zip(&counted.upper) {
            for rank in self.ranks[*row].iter().filter(|rank| (1..self.last()).contains(*rank)) {
                let scaled = u128::from(*rank) * u128::from(sampled) / u128::from(total);
                let (bin, _) = locate(&table[..], u64::try_from(scaled).unwrap_or(0));
                bins.extend((bin.saturating_sub(1)..=bin + 1).map(|bin| (*row, bin)));
            }
        }
        self.selector.give_back(counted.upper);
        bins.sort_unstable();
        bins.dedup();
        bins
    }

    /// Counts the upper bits of rows, and the lower bits inside bins.
    fn pass(&self, rows: &[usize], bins: &[Bin]) -> Counted {
        let last = self.last();
        let tables = |count: usize| (0..count).map(|_| self.selector.take()).collect();
        let start = || {
            let extremes = vec![[u32::MAX, 0]; rows.len()];
            let values = vec![Vec::new(); self.ranks.len()];
            (Counted { upper: tables(rows.len()), extremes, lower: tables(bins.len()) }, values)
        };
        let step = |(counted, values): &mut (Counted, Vec<Vec<f32>>), inputs: &Inputs<'_>| {
            size(values, inputs);
            (self.fill)(inputs, values);
            for ((row, table), extremes) in rows.iter().zip(&mut counted.upper).zip(&mut counted.extremes) {
                count_upper(&values[*row], table);
                if self.ranks[*row].iter().any(|rank| *rank == 0 || *rank >= last) {
                    widen(&values[*row], extremes);
                }
            }
            let mut tables = counted.lower.as_mut_slice();
            for bins in bins.chunk_by(|(row, bin), next| (*row, bin + 1) == *next) {
                let (here, rest) = std::mem::take(&mut tables).split_at_mut(bins.len());
                tables = rest;
                count_lower(&values[bins[0].0], bins[0].1, here);
            }
        };
        let join = |(mut a, values): (Counted, _), (b, _): (Counted, _)| {
            for (a, b) in a.upper.iter_mut().zip(&b.upper).chain(a.lower.iter_mut().zip(&b.lower)) {
                a.iter_mut().zip(&b[..]).for_each(|(a, b)| *a += b);
            }
            for (a, b) in a.extremes.iter_mut().zip(&b.extremes) {
                *a = [a[0].min(b[0]), a[1].max(b[1])];
            }
            [b.upper, b.lower].into_iter().for_each(|tables| self.selector.give_back(tables));
            (a, values)
        };
        self.pass.fold(self.tensor, start, step, join).0
    }
}

/// Gives rows the block's length.
fn size(rows: &mut [Vec<f32>], inputs: &Inputs<'_>) {
    let length = inputs.models.first().map_or(0, |model| model.len());
    rows.iter_mut().for_each(|row| row.resize(length, 0.0));
}

/// The magnitudes of every model's task vector.
pub(super) fn magnitudes(inputs: &Inputs<'_>, rows: &mut [Vec<f32>]) {
    for (model, row) in rows.iter_mut().enumerate() {
        lanes::walk(
            inputs,
            0..inputs.base.len(),
            #[inline(always)]
            |chunk| chunk.put(&chunk.task_vector(model).map(f32::abs), row),
        );
    }
}

/// The keys of the first values; beyond the last they are that of 0.
#[inline(always)]
fn keys(values: &[f32]) -> [u32; LANES] {
    padded::<_, LANES>(values).map(key)
}

fn count_upper(values: &[f32], table: &mut Counts) {
    simd::dispatch(
        #[inline(always)]
        || {
            for values in values.chunks(LANES) {
                let bins = keys(values).map(|key| (key >> 16) as u16);
                for bin in &bins[..values.len()] {
                    table[usize::from(*bin)] += 1;
                }
            }
        },
    );
}

/// Widens a span of keys by those of some values.
fn widen(values: &[f32], span: &mut [u32; 2]) {
    simd::dispatch(
        #[inline(always)]
        || {
            let [mut low, mut high] = *span;
            for value in values {
                let key = key(*value);
                low = low.min(key);
                high = high.max(key);
            }
            *span = [low, high];
        },
    );
}

/// Counts the lower bits inside as many bins from `first` on as there are tables.
#[expect(clippy::cast_possible_truncation, reason = "there are 2^16 bins")]
fn count_lower(values: &[f32], first: u32, tables: &mut [Box<Counts>]) {
    let (start, length) = (first << 16, (tables.len() as u32) << 16);
    simd::dispatch(
        #[inline(always)]
        || {
            for values in values.chunks(LANES) {
                let keys = keys(values);
                let inside = lanes::bits(&keys, |key| key.wrapping_sub(start) < length);
                for lane in lanes::set(inside).take_while(|lane| *lane < values.len()) {
                    let place = (keys[lane] - start) as usize;
                    tables[place / BINS][place % BINS] += 1;
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
