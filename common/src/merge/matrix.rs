//! Dense matrices for the methods that work on a tensor's rows and columns: products, the singular value decomposition and linear equations, in F64,
//! in plain arithmetic whose order is fixed by the source, so that every machine and every number of threads gives the same bits. (The libraries that are faster choose
//! their order of sums by the machine's vector units.)

use std::ops::Range;

use rayon::prelude::*;

use super::{
    Combine, Default, Inputs, Kind, ParameterSpec, Pass, Scope, Settings, linear::WEIGHT, round, statistics::dot,
    task_arithmetic::LAMBDA, task_vector,
};
use crate::simd;

/// Singular values below this share of the largest count as zero, and their vectors as none.
const NULL: f64 = 1e-10;
/// Cosine between two vectors from which on they count as orthogonal.
const ORTHOGONAL: f64 = 1e-14;
/// A pivot below this share of its diagonal element comes of rounding: the matrix is singular.
const TINY: f64 = 1e-13;
/// Rows and columns of a tile, of which the processor's cache holds a few.
const TILE: usize = 32;
/// Columns that are solved at a time.
const SLAB: usize = 64;
/// Most sweeps over all pairs; fewer than ten are usual.
const SWEEPS: usize = 60;

/// A matrix by rows.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Matrix {
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) values: Vec<f64>,
}

/// `sum of u_i s_i v_i^T`, largest first, without what is null.
#[derive(Clone, Debug)]
pub(super) struct Svd {
    /// One row for each singular value.
    pub(super) u: Matrix,
    pub(super) s: Vec<f64>,
    /// One row for each singular value.
    pub(super) v: Matrix,
}

impl Matrix {
    pub(super) fn zeros(rows: usize, columns: usize) -> Self {
        Self { rows, columns, values: vec![0.0; rows * columns] }
    }

    pub(super) fn row(&self, row: usize) -> &[f64] {
        &self.values[row * self.columns..(row + 1) * self.columns]
    }

    pub(super) fn transposed(&self) -> Self {
        let mut out = Self::zeros(self.columns, self.rows);
        for row in 0..self.rows {
            for (column, value) in self.row(row).iter().enumerate() {
                out.values[column * self.rows + row] = *value;
            }
        }
        out
    }

    /// `self * other`: every element's terms are added in order, so that threads and tiles do not show.
    pub(super) fn times(&self, other: &Self) -> Self {
        let mut out = Self::zeros(self.rows, other.columns);
        let width = other.columns.max(1);
        out.values.par_chunks_mut(TILE * width).enumerate().for_each(|(tile, targets)| {
            for inner in 0..self.columns {
                for (row, target) in (tile * TILE..).zip(targets.chunks_mut(width)) {
                    add_scaled(target, self.values[row * self.columns + inner], other.row(inner));
                }
            }
        });
        out
    }

    /// `self^-1 * right` for a symmetric positive definite matrix, by its Cholesky decomposition; NaN if it is not positive definite.
    pub(super) fn solve_positive(mut self, right: &Self) -> Self {
        let side = self.rows;
        for panel in (0..side).step_by(TILE) {
            let end = side.min(panel + TILE);
            // What earlier columns give to these, for all rows below: rows are independent of each other.
            let (above, below) = self.values.split_at_mut(end * side);
            for row in panel..end {
                let (earlier, own) = above.split_at_mut(row * side);
                reduce(&mut own[..side], earlier, side, panel..row);
                let pivot = own[row] - dot(&own[..row], &own[..row]);
                own[row] = if pivot > TINY * own[row] { pivot.sqrt() } else { f64::NAN };
            }
            below.par_chunks_mut(side).for_each(|own| reduce(own, above, side, panel..end));
        }
        self.substitute(right)
    }

    /// Solves with the lower triangle L of `self`: `L L^T x = right`.
    fn substitute(&self, right: &Self) -> Self {
        let (side, width) = (self.rows, right.columns);
        let slabs: Vec<_> = (0..width).step_by(SLAB).map(|start| start..width.min(start + SLAB)).collect();
        let solve = |columns: &Range<usize>| {
            let count = columns.len();
            let mut slab: Vec<f64> = (0..side).flat_map(|row| &right.row(row)[columns.clone()]).copied().collect();
            for row in 0..side {
                let (earlier, rest) = slab.split_at_mut(row * count);
                let own = &mut rest[..count];
                earlier.chunks(count).zip(self.row(row)).for_each(|(values, factor)| add_scaled(own, -factor, values));
                own.iter_mut().for_each(|value| *value /= self.row(row)[row]);
            }
            for row in (0..side).rev() {
                let (earlier, rest) = slab.split_at_mut(row * count);
                let own = &mut rest[..count];
                own.iter_mut().for_each(|value| *value /= self.row(row)[row]);
                earlier.chunks_mut(count).zip(self.row(row)).for_each(|(values, factor)| add_scaled(values, -factor, own));
            }
            slab
        };
        let solved: Vec<_> = slabs.par_iter().map(solve).collect();
        let mut out = Self::zeros(side, width);
        for (columns, slab) in slabs.iter().zip(&solved) {
            for (row, values) in slab.chunks(columns.len()).enumerate() {
                out.values[row * width..][columns.clone()].copy_from_slice(values);
            }
        }
        out
    }

    pub(super) fn add(&mut self, factor: f64, other: &Self) {
        add_scaled(&mut self.values, factor, &other.values);
    }

    /// The first rows.
    pub(super) fn take_rows(mut self, rows: usize) -> Self {
        self.rows = self.rows.min(rows);
        self.values.truncate(self.rows * self.columns);
        self
    }

    /// The rows of `other` below one's own.
    pub(super) fn stack(&mut self, other: &Self) {
        self.rows += other.rows;
        self.values.extend_from_slice(&other.values);
    }

    /// One-sided Jacobi (Hestenes 1958): pairs of the shorter side's vectors are rotated until all are orthogonal.
    pub(super) fn svd(&self) -> Svd {
        if self.rows > self.columns {
            let Svd { u, s, v } = self.transposed().svd();
            return Svd { u: v, s, v: u };
        }
        let count = self.rows;
        let mut work = self.clone();
        let mut turned = Self::zeros(count, count);
        (0..count).for_each(|i| turned.values[i * count + i] = 1.0);
        for _ in 0..SWEEPS {
            let mut rotated = false;
            for i in 0..count {
                for j in i + 1..count {
                    rotated |= orthogonalize(&mut work, &mut turned, i, j);
                }
            }
            if !rotated {
                break;
            }
        }
        let norms: Vec<_> = (0..count).map(|row| dot(work.row(row), work.row(row)).sqrt()).collect();
        let mut order: Vec<_> = (0..count).collect();
        order.sort_by(|a, b| norms[*b].total_cmp(&norms[*a]));
        let largest = order.first().map_or(0.0, |first| norms[*first]);
        order.retain(|row| norms[*row] > NULL * largest);
        let mut svd = Svd { u: Self::zeros(0, count), s: Vec::new(), v: Self::zeros(0, self.columns) };
        for row in order {
            svd.s.push(norms[row]);
            svd.u.values.extend_from_slice(turned.row(row));
            svd.v.values.extend(work.row(row).iter().map(|x| x / norms[row]));
        }
        (svd.u.rows, svd.v.rows) = (svd.s.len(), svd.s.len());
        svd
    }

    /// The nearest matrix with orthonormal rows or columns: all singular values become 1.
    pub(super) fn polar(&self) -> Self {
        let svd = self.svd();
        svd.u.transposed().times(&svd.v)
    }
}

fn add_scaled(target: &mut [f64], factor: f64, values: &[f64]) {
    simd::dispatch(
        #[inline(always)]
        || {
            for (target, value) in target.iter_mut().zip(values) {
                *target += factor * value;
            }
        },
    );
}

/// Turns these columns of a row of a symmetric matrix into the row's columns of its Cholesky factor, whose earlier rows are complete.
fn reduce(own: &mut [f64], earlier: &[f64], side: usize, columns: Range<usize>) {
    for column in columns {
        let other = &earlier[column * side..][..=column];
        own[column] = (own[column] - dot(&own[..column], &other[..column])) / other[column];
    }
}

/// Rotates rows `i` < `j` of both matrices so that those of `work` become orthogonal; says whether they were not.
fn orthogonalize(work: &mut Matrix, turned: &mut Matrix, i: usize, j: usize) -> bool {
    let (a, b, c) = (dot(work.row(i), work.row(i)), dot(work.row(j), work.row(j)), dot(work.row(i), work.row(j)));
    if c == 0.0 || c.abs() <= ORTHOGONAL * (a * b).sqrt() {
        return false;
    }
    let zeta = (b - a) / (2.0 * c);
    let tangent = zeta.signum() / (zeta.abs() + (1.0 + zeta * zeta).sqrt());
    let cos = 1.0 / (1.0 + tangent * tangent).sqrt();
    let sin = cos * tangent;
    for matrix in [work, turned] {
        let (head, tail) = matrix.values.split_at_mut(j * matrix.columns);
        let first = &mut head[i * matrix.columns..(i + 1) * matrix.columns];
        for (x, y) in first.iter_mut().zip(&mut tail[..matrix.columns]) {
            (*x, *y) = (cos * *x - sin * *y, sin * *x + cos * *y);
        }
    }
    true
}

impl Svd {
    /// `sum of u_i s_i v_i^T` with these values in place of the singular ones.
    pub(super) fn with(&self, s: &[f64]) -> Matrix {
        let mut scaled = self.u.clone();
        for (row, s) in scaled.values.chunks_mut(scaled.columns.max(1)).zip(s) {
            row.iter_mut().for_each(|x| *x *= s);
        }
        scaled.transposed().times(&self.v)
    }
}

/// Which tensors are taken as matrices.
pub(super) const MATRICES: ParameterSpec = ParameterSpec {
    name: "matrices",
    scope: Scope::Merge,
    kind: Kind::Flag,
    default: Default::Flag(true),
    doc: "Take tensors with two sides as matrices; others, and where this is false, get the mean of their task vectors.",
};

/// What the methods over matrices share besides their own parameters.
pub(super) const COMMON: [ParameterSpec; 3] = [WEIGHT, LAMBDA, MATRICES];

/// The merged task vector of a tensor with two sides from the weighted ones of the models.
type Rule = Box<dyn Fn(usize, Vec<Matrix>) -> Matrix + Send + Sync>;

/// A rule for matrices, the mean of the task vectors for other tensors, times lambda, on top of the base.
pub(super) struct Matrices {
    rule: Rule,
    matrices: Vec<bool>,
    /// `[tensor][model]`.
    weights: Vec<Vec<f64>>,
    lambda: Vec<f64>,
}

impl Matrices {
    pub(super) fn prepare(settings: &Settings, _pass: &Pass<'_>, rule: Rule) -> Box<dyn Combine> {
        let (matrices, weights) = (settings.flags("matrices"), settings.per_model("weight"));
        Box::new(Self { rule, matrices, weights, lambda: settings.per_tensor("lambda") })
    }
}

impl Combine for Matrices {
    #[expect(clippy::cast_precision_loss, reason = "a count of models")]
    fn block(&self, inputs: &Inputs<'_>, out: &mut [f32]) {
        let weights = &self.weights[inputs.tensor];
        let delta = |model: usize, element: usize| {
            weights[model] * f64::from(task_vector(inputs.models[model].at(element), inputs.base.at(element)))
        };
        let models = 0..inputs.models.len();
        let merged: Vec<f64> = match inputs.shape {
            &[rows, columns] if self.matrices[inputs.tensor] => {
                let matrix = |model| Matrix { rows, columns, values: (0..out.len()).map(|e| delta(model, e)).collect() };
                (self.rule)(inputs.tensor, models.map(matrix).collect()).values
            }
            _ => {
                let count = inputs.models.len() as f64;
                (0..out.len()).map(|element| models.clone().map(|model| delta(model, element)).sum::<f64>() / count).collect()
            }
        };
        for (element, (out, merged)) in out.iter_mut().zip(merged).enumerate() {
            *out = round(f64::from(inputs.base.at(element)) + self.lambda[inputs.tensor] * merged);
        }
    }

    fn unit(&self, tensor: usize, shape: &[usize]) -> usize {
        if self.matrices[tensor] && shape.len() == 2 { shape.iter().product() } else { 1 }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matrix(rows: usize, columns: usize, values: &[f64]) -> Matrix {
        Matrix { rows, columns, values: values[..rows * columns].to_vec() }
    }

    proptest! {
        #[test]
        fn equations_are_solved(side in 1usize..80, columns in 1usize..5, seed: u64) {
            let draw = |stream: &str, rows: usize, columns: usize| {
                let mut numbers = vec![0; rows * columns];
                crate::rng::Stream::new(seed, stream).fill(0, &mut numbers);
                Matrix { rows, columns, values: numbers.into_iter().map(|n| f64::from(n) / 4e9 - 0.5).collect() }
            };
            let (inputs, expected) = (draw("inputs", 2 * side, side), draw("solution", side, columns));
            let gram = inputs.transposed().times(&inputs);
            let solved = gram.clone().solve_positive(&gram.times(&expected));
            for (a, b) in solved.values.iter().zip(&expected.values) {
                prop_assert!((a - b).abs() < 1e-9, "{a} {b}");
            }
            let singular = Matrix { values: vec![1.0; (side + 1) * (side + 1)], rows: side + 1, columns: side + 1 };
            prop_assert!(singular.solve_positive(&Matrix::zeros(side + 1, 1)).values.iter().any(|value| value.is_nan()));
        }

        #[test]
        fn singular_vectors_are_orthonormal_and_rebuild_the_matrix(
            rows in 1usize..7,
            columns in 1usize..7,
            values in proptest::collection::vec(prop_oneof![Just(0.0), -1.0..1.0f64], 36),
        ) {
            let matrix = matrix(rows, columns, &values);
            let svd = matrix.svd();
            let rebuilt = svd.with(&svd.s);
            for (a, b) in matrix.values.iter().zip(&rebuilt.values) {
                prop_assert!((a - b).abs() < 1e-12);
            }
            for side in [&svd.u, &svd.v] {
                for i in 0..side.rows {
                    for j in 0..side.rows {
                        let expected = f64::from(u8::from(i == j));
                        prop_assert!((dot(side.row(i), side.row(j)) - expected).abs() < 1e-9, "{:?}", svd.s);
                    }
                }
            }
            prop_assert!(svd.s.is_sorted_by(|a, b| a >= b));
        }
    }
}
