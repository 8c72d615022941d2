//! Products of rows with a matrix of weights, on the CPU.
//!
//! The kernels are faer's. A row's bits depend on nothing but the row and the weights, whatever rows it is with and however they are shared among threads:
//! where the kernels would sum in another order, because there is little to do, rows of zeros fill up.

use faer::{Accum, MatMut, MatRef, Par, linalg::matmul::matmul, reborrow::ReborrowMut};

/// Rows that a thread takes at a time, at most: enough for what the kernels do once for each product, and few enough that the next layer finds them near.
const CHUNK: usize = 512;
/// Rows at least that the gemm crate, which faer goes to on machines that it has no kernels of its own for, wants: below it sums in another order where a
/// product has a single row, or at most 256 elements, or at most 64 rows and columns.
const ROWS_ELSEWHERE: usize = 257;
/// Outputs that are computed at once: twice the widest kernel's. With more, faer goes over a few hundred rows in an order that takes a third longer.
const OUTPUTS: usize = 192;
/// Multiplications up to which faer has other kernels.
const SMALL: usize = 16 * 16 * 16;

/// Whether faer has kernels of its own for this machine.
fn at_home() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma");
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

/// Rows of a product at least, so that they are summed as those of a large one.
fn rows_min(outputs: usize, columns: usize) -> usize {
    let narrowest = if outputs.is_multiple_of(OUTPUTS) { OUTPUTS } else { outputs % OUTPUTS };
    // A single row is summed in another way by all.
    if at_home() { (SMALL / (narrowest * columns) + 1).max(2) } else { ROWS_ELSEWHERE }
}

/// Rows of a share, where `rows` are shared among all threads.
pub(super) fn share(rows: usize) -> usize {
    let shares = rows.div_ceil(CHUNK).next_multiple_of(rayon::current_num_threads());
    rows.div_ceil(shares.max(1)).max(if at_home() { 16 } else { ROWS_ELSEWHERE })
}

/// `out = x W^T` in this thread: `x` in rows of `columns`, `weights` a row of `columns` for each column of `out`.
pub(super) fn product(out: &mut [f32], x: &[f32], weights: &[f32], columns: usize) {
    let (rows, outputs) = (x.len() / columns, weights.len() / columns);
    let least = rows_min(outputs, columns);
    if rows >= least {
        return multiply(out, x, weights, columns);
    }
    let (mut filled, mut all) = (vec![0.0; least * columns], vec![0.0; least * outputs]);
    filled[..x.len()].copy_from_slice(x);
    multiply(&mut all, &filled, weights, columns);
    out.copy_from_slice(&all[..out.len()]);
}

fn multiply(out: &mut [f32], x: &[f32], weights: &[f32], columns: usize) {
    let (rows, outputs) = (x.len() / columns, weights.len() / columns);
    let x = MatRef::from_row_major_slice(x, rows, columns);
    let weights = MatRef::from_row_major_slice(weights, outputs, columns);
    let mut out = MatMut::from_row_major_slice_mut(out, rows, outputs);
    for first in (0..outputs).step_by(OUTPUTS) {
        let count = OUTPUTS.min(outputs - first);
        let (out, weights) = (out.rb_mut().subcols_mut(first, count), weights.subrows(first, count));
        matmul(out, Accum::Replace, x, weights.transpose(), 1.0, Par::Seq);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_does_not_depend_on_its_company() {
        let mut state = 1u32;
        let mut noise = |count: usize| -> Vec<f32> {
            let mut next = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                f32::from(u16::try_from(state >> 16).unwrap()) / 32768.0 - 1.0
            };
            (0..count).map(|_| next()).collect()
        };
        let shapes = [
            (1, 384),
            (2, 384),
            (3, 384),
            (3, 768),
            (5, 7),
            (64, 64),
            (17, 2048),
            (384, 131),
            (193, 384),
            (385, 7),
            (1536, 96),
            (4099, 40),
            (2, 1),
        ];
        for (outputs, columns) in shapes {
            let rows = 700;
            let (x, weights) = (noise(rows * columns), noise(outputs * columns));
            let mut whole = vec![0.0; rows * outputs];
            product(&mut whole, &x, &weights, columns);
            for row in [0, rows - 1] {
                for output in 0..outputs.min(20) {
                    let terms = x[row * columns..].iter().zip(&weights[output * columns..][..columns]);
                    let exact: f64 = terms.map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                    let found = f64::from(whole[row * outputs + output]);
                    assert!((found - exact).abs() < 1e-6 * columns as f64, "{outputs} x {columns}: {found} and {exact}");
                }
            }
            for (first, count) in
                [(0, 1), (5, 1), (3, 2), (0, 3), (7, 5), (2, 16), (1, 31), (0, 64), (10, 65), (11, 256), (3, 257), (1, 600)]
            {
                let mut out = vec![0.0; count * outputs];
                product(&mut out, &x[first * columns..][..count * columns], &weights, columns);
                let same = out.iter().zip(&whole[first * outputs..]).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "{count} rows of {outputs} x {columns}");
            }
        }
    }
}
