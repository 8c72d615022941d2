//! Gaussian steps of a recipe's `perturb`: full, sparse, or of low rank. Each element's step is a pure function of the seed, the tensor's name and
//! the element's place, so that any block can be built alone.

use crate::{
    recipe::Shape,
    rng::{self, LANES, Stream},
};

/// First group of the numbers that say which elements a sparse step touches, far beyond those of the steps themselves.
const MASK: u64 = 1 << 60;
/// First group of a low-rank step's right factor.
const RIGHT: u64 = 1 << 61;

/// The steps of one tensor.
pub(super) struct Steps {
    pub(super) stream: Stream,
    /// Standard deviation of a touched element's step.
    pub(super) deviation: f64,
    pub(super) shape: Shape,
}

impl Steps {
    /// Adds the steps to `out`, the elements from `start` on of a tensor of these `sides`. Blocks start at multiples of 4096, so
    /// whole groups of four numbers line up.
    pub(super) fn add(&self, sides: &[usize], start: usize, out: &mut [f32]) {
        match (self.shape, sides) {
            (Shape::LowRank { rank }, [_, columns]) if *columns > 0 => self.low_rank(rank as usize, *columns, start, out),
            (Shape::Sparse { density }, _) => {
                let threshold = rng::threshold(density);
                self.each(start, out, |group| self.stream.group(MASK + group).map(|draw| u64::from(draw) < threshold));
            }
            _ => self.each(start, out, |_| [true; LANES]),
        }
    }

    fn each(&self, start: usize, out: &mut [f32], touched: impl Fn(u64) -> [bool; LANES]) {
        let first = (start / LANES) as u64;
        for (group, out) in (first..).zip(out.chunks_mut(LANES)) {
            let steps = self.normals(group);
            for ((out, step), _) in out.iter_mut().zip(steps).zip(touched(group)).filter(|(_, touched)| *touched) {
                *out = super::round(f64::from(*out) + self.deviation * step);
            }
        }
    }

    /// Element (i, j) moves by `deviation / sqrt(rank) * sum_k a_ik b_jk`, whose standard deviation is `deviation`.
    fn low_rank(&self, rank: usize, columns: usize, start: usize, out: &mut [f32]) {
        #[expect(clippy::cast_precision_loss, reason = "a rank of at most 1024")]
        let scale = self.deviation / (rank as f64).sqrt();
        let row_of = |index: usize, first: u64| {
            // A row's factors start with a group of their own.
            let groups = rank.div_ceil(LANES) as u64;
            let from = first + index as u64 * groups;
            let mut row: Vec<f64> = (from..from + groups).flat_map(|group| self.normals(group)).collect();
            row.truncate(rank);
            row
        };
        let right: Vec<_> = (0..columns).map(|column| row_of(column, RIGHT)).collect();
        let mut place = start;
        let mut out = out;
        while !out.is_empty() {
            let (row, column) = (place / columns, place % columns);
            let length = (columns - column).min(out.len());
            let left = row_of(row, 0);
            let (now, later) = out.split_at_mut(length);
            for (out, right) in now.iter_mut().zip(&right[column..]) {
                let step: f64 = left.iter().zip(right).map(|(a, b)| a * b).sum();
                *out = super::round(f64::from(*out) + scale * step);
            }
            (out, place) = (later, place + length);
        }
    }

    /// The four standard normal numbers of a group.
    fn normals(&self, group: u64) -> [f64; LANES] {
        let [a, b, c, d] = self.stream.group(group);
        let ((w, x), (y, z)) = (rng::normal_pair(a, b), rng::normal_pair(c, d));
        [w, x, y, z]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn built(shape: Shape, sides: &[usize], cut: usize) -> Vec<f32> {
        let steps = Steps { stream: Stream::new(3, "t"), deviation: 0.5, shape };
        let mut out = vec![1.0; sides.iter().product()];
        let (first, second) = out.split_at_mut(cut);
        steps.add(sides, 0, first);
        steps.add(sides, cut, second);
        out
    }

    #[test]
    fn steps_have_their_deviation_whatever_the_shape_and_the_blocks() {
        for shape in [Shape::Full, Shape::Sparse { density: 0.25 }, Shape::LowRank { rank: 3 }] {
            let whole = built(shape, &[150, 70], 0);
            assert_eq!(whole, built(shape, &[150, 70], 4096), "{shape:?}");
            let moved: Vec<f64> = whole.iter().filter(|value| **value != 1.0).map(|value| f64::from(*value) - 1.0).collect();
            let share = moved.len() as f64 / whole.len() as f64;
            let expected = if shape == (Shape::Sparse { density: 0.25 }) { 0.25 } else { 1.0 };
            assert!((share - expected).abs() < 0.02, "{shape:?}: {share}");
            let deviation = (moved.iter().map(|step| step * step).sum::<f64>() / moved.len() as f64).sqrt();
            assert!((deviation - 0.5).abs() < 0.08, "{shape:?}: {deviation}");
        }
    }

    #[test]
    fn a_low_rank_step_has_its_rank() {
        let (rows, columns) = (6, 5);
        let step = built(Shape::LowRank { rank: 2 }, &[rows, columns], 0);
        // Gaussian elimination with full pivoting: what is left after two pivots is rounding.
        let mut matrix: Vec<Vec<f64>> =
            step.chunks(columns).map(|row| row.iter().map(|v| f64::from(*v) - 1.0).collect()).collect();
        let largest = |matrix: &[Vec<f64>]| {
            let places = (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column)));
            places.max_by(|a, b| matrix[a.0][a.1].abs().total_cmp(&matrix[b.0][b.1].abs())).unwrap_or((0, 0))
        };
        for pivot in 0..2 {
            let (row, column) = largest(&matrix);
            assert!(matrix[row][column].abs() > 1e-3, "pivot {pivot}");
            let (base, value) = (matrix[row].clone(), matrix[row][column]);
            for other in &mut matrix {
                let factor = other[column] / value;
                other.iter_mut().zip(&base).for_each(|(o, b)| *o -= factor * b);
            }
        }
        let (row, column) = largest(&matrix);
        assert!(matrix[row][column].abs() < 1e-6);
    }
}
