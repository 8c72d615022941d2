//! Exact order statistics by counting.
//!
//! A float's bits, with the sign folded in, order like the float. One pass counts the upper 16 bits, a second the lower 16 within the bins that
//! the wanted ranks fall into: two reads of the data and no sort, whatever its size.

use super::pass::{Inputs, Pass};

const BINS: usize = 1 << 16;

/// The bits of `value`, mapped so that unsigned order is the floats' order.
fn key(value: f32) -> u32 {
    // -0.0 counts as 0.0.
    let bits = (value + 0.0).to_bits();
    if bits >> 31 == 1 { !bits } else { bits | 1 << 31 }
}

fn value(key: u32) -> f32 {
    f32::from_bits(if key >> 31 == 1 { key & !(1 << 31) } else { !key })
}

/// The elements of rank `ranks[row]` (0 is the smallest) of each of several rows.
///
/// `fill` writes every row's values for a block into the emptied rows. `tensor` limits the rows to one tensor. Ranks lie below the rows' length.
pub(super) fn select(
    pass: &Pass<'_>,
    tensor: Option<usize>,
    ranks: &[Vec<u64>],
    fill: impl Fn(&Inputs<'_>, &mut [Vec<f32>]) + Sync,
) -> Vec<Vec<f32>> {
    let rows = ranks.len();
    let count = |tables: usize, step: &(dyn Fn(&mut [u64], usize, f32) + Sync)| {
        pass.fold(
            tensor,
            || (vec![0u64; tables * BINS], vec![Vec::new(); rows]),
            |(table, values), inputs| {
                values.iter_mut().for_each(Vec::clear);
                fill(inputs, values);
                for (row, values) in values.iter().enumerate() {
                    for &value in values {
                        step(table, row, value);
                    }
                }
            },
            |(mut a, values), (b, _)| {
                a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
                (a, values)
            },
        )
        .0
    };
    let upper = count(rows, &|table, row, value| table[row * BINS + (key(value) >> 16) as usize] += 1);
    // For every wanted rank: its row, its bin, and its rank inside the bin.
    let mut wanted = Vec::new();
    for (row, ranks) in ranks.iter().enumerate() {
        for &rank in ranks {
            let (bin, inside) = locate(&upper[row * BINS..(row + 1) * BINS], rank);
            wanted.push((row, bin, inside));
        }
    }
    let mut bins: Vec<_> = wanted.iter().map(|(row, bin, _)| (*row, *bin)).collect();
    bins.sort_unstable();
    bins.dedup();
    let lower = count(bins.len(), &|table, row, value| {
        let key = key(value);
        for (slot, &(wanted_row, bin)) in bins.iter().enumerate() {
            if wanted_row == row && bin == key >> 16 {
                table[slot * BINS + (key & 0xffff) as usize] += 1;
            }
        }
    });
    let mut found = ranks.iter().map(|_| Vec::new()).collect::<Vec<_>>();
    for (row, bin, inside) in wanted {
        let slot = bins.partition_point(|place| *place < (row, bin));
        let (low, _) = locate(&lower[slot * BINS..(slot + 1) * BINS], inside);
        found[row].push(value(bin << 16 | low));
    }
    found
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
