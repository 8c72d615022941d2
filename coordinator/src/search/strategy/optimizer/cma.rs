//! CMA-ES (Hansen, The CMA Evolution Strategy: A Tutorial, arXiv 1604.00772), with positive weights; above 100 dimensions its diagonal form (Ros and
//! Hansen 2008). Points may be told late and in any order: the distribution moves whenever a batch of them is complete.

use rand_chacha::ChaCha8Rng;

use super::{super::draws, Optimizer, one_plus_one::reflected};

/// Dimensions above which only the diagonal of the covariance is learnt.
const FULL_MAX: usize = 100;

pub(in super::super) struct Cma {
    mean: Vec<f64>,
    step: f64,
    covariance: Covariance,
    /// Path of the step size and path of the covariance.
    paths: [Vec<f64>; 2],
    weights: Vec<f64>,
    batch: usize,
    rates: Rates,
    /// Points of the batch that is being told, with their values.
    told: Vec<(Vec<f64>, f64)>,
    learnt: u64,
}

/// Learning rates by the tutorial's equations 55 to 58.
struct Rates {
    effective: f64,
    step_path: f64,
    damping: f64,
    path: f64,
    rank_one: f64,
    rank_mu: f64,
    /// Expected length of a standard normal vector.
    length: f64,
}

enum Covariance {
    Full {
        matrix: Vec<Vec<f64>>,
        /// Columns are eigenvectors.
        axes: Vec<Vec<f64>>,
        /// Square roots of the eigenvalues.
        lengths: Vec<f64>,
    },
    Diagonal(Vec<f64>),
}

#[expect(clippy::cast_precision_loss, reason = "counts of coefficients and points")]
impl Cma {
    /// Starts at `first` with this step size; a `batch` of 0 is the tutorial's default.
    pub(in super::super) fn new(first: Vec<f64>, step: f64, batch: usize) -> Self {
        let size = first.len();
        let n = size as f64;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small positive number")]
        let batch = if batch == 0 { 4 + (3.0 * libm::log(n)).floor() as usize } else { batch };
        let parents = batch.div_ceil(2).min(batch - 1).max(1);
        let raw: Vec<f64> = (1..=parents).map(|rank| libm::log((batch as f64 + 1.0) / 2.0) - libm::log(rank as f64)).collect();
        let raw: Vec<f64> = raw.into_iter().filter(|weight| *weight > 0.0).collect();
        let total: f64 = raw.iter().sum();
        let weights: Vec<f64> = raw.iter().map(|weight| weight / total).collect();
        let mu = 1.0 / weights.iter().map(|weight| weight * weight).sum::<f64>();
        let step_path = (mu + 2.0) / (n + mu + 5.0);
        let mut rank_one = 2.0 / ((n + 1.3) * (n + 1.3) + mu);
        let mut rank_mu = (2.0 * (mu - 2.0 + 1.0 / mu) / ((n + 2.0) * (n + 2.0) + mu)).min(1.0 - rank_one);
        if size > FULL_MAX {
            rank_one = (rank_one * (n + 2.0) / 3.0).min(0.5);
            rank_mu = (rank_mu * (n + 2.0) / 3.0).min(1.0 - rank_one);
        }
        let rates = Rates {
            effective: mu,
            step_path,
            damping: 1.0 + 2.0 * (((mu - 1.0) / (n + 1.0)).sqrt() - 1.0).max(0.0) + step_path,
            path: (4.0 + mu / n) / (n + 4.0 + 2.0 * mu / n),
            rank_one,
            rank_mu,
            length: n.sqrt() * (1.0 - 1.0 / (4.0 * n) + 1.0 / (21.0 * n * n)),
        };
        let covariance = if size > FULL_MAX {
            Covariance::Diagonal(vec![1.0; size])
        } else {
            Covariance::Full { matrix: identity(size), axes: identity(size), lengths: vec![1.0; size] }
        };
        let paths = [vec![0.0; size], vec![0.0; size]];
        Self { mean: first, step, covariance, paths, weights, batch, rates, told: Vec::new(), learnt: 0 }
    }

    fn learn(&mut self) {
        let size = self.mean.len();
        let n = size as f64;
        let mut told = std::mem::take(&mut self.told);
        // The better first; of equal ones the earlier.
        told.sort_by(|a, b| b.1.total_cmp(&a.1));
        let steps: Vec<Vec<f64>> = told
            .iter()
            .take(self.weights.len())
            .map(|(point, _)| point.iter().zip(&self.mean).map(|(x, m)| (x - m) / self.step).collect())
            .collect();
        let weighted = |at: usize| self.weights.iter().zip(&steps).map(|(weight, step)| weight * step[at]).sum::<f64>();
        let step: Vec<f64> = (0..size).map(weighted).collect();
        for (mean, step) in self.mean.iter_mut().zip(&step) {
            *mean = (*mean + self.step * step).clamp(0.0, 1.0);
        }
        self.learnt += 1;
        let rates = &self.rates;
        let keep = 1.0 - rates.step_path;
        let push = (rates.step_path * (2.0 - rates.step_path) * rates.effective).sqrt();
        for (path, whitened) in self.paths[0].iter_mut().zip(self.covariance.whiten(&step)) {
            *path = keep * *path + push * whitened;
        }
        let length = self.paths[0].iter().map(|p| p * p).sum::<f64>().sqrt();
        let expected = (1.0 - libm::pow(keep, 2.0 * self.learnt as f64)).sqrt();
        let stalled = length / expected >= (1.4 + 2.0 / (n + 1.0)) * rates.length;
        let keep = 1.0 - rates.path;
        let push = if stalled { 0.0 } else { (rates.path * (2.0 - rates.path) * rates.effective).sqrt() };
        for (path, step) in self.paths[1].iter_mut().zip(&step) {
            *path = keep * *path + push * step;
        }
        let missing = if stalled { rates.rank_one * rates.path * (2.0 - rates.path) } else { 0.0 };
        let old = 1.0 - rates.rank_one - rates.rank_mu + missing;
        self.covariance.update(old, (rates.rank_one, &self.paths[1]), (rates.rank_mu, &self.weights, &steps));
        self.step *= libm::exp((rates.step_path / rates.damping) * (length / rates.length - 1.0));
        self.step = self.step.clamp(1e-6, 1.0);
    }
}

impl Covariance {
    /// A step of this distribution from standard normal numbers.
    fn colour(&self, normals: &[f64]) -> Vec<f64> {
        match self {
            Self::Full { axes, lengths, .. } => {
                let row =
                    |axes: &Vec<f64>| axes.iter().zip(lengths).zip(normals).map(|((axis, length), z)| axis * length * z).sum();
                axes.iter().map(row).collect()
            }
            Self::Diagonal(variances) => variances.iter().zip(normals).map(|(variance, z)| variance.sqrt() * z).collect(),
        }
    }

    /// `C^(-1/2) step`.
    fn whiten(&self, step: &[f64]) -> Vec<f64> {
        match self {
            Self::Full { axes, lengths, .. } => {
                let along = |axis: usize| axes.iter().zip(step).map(|(row, step)| row[axis] * step).sum::<f64>() / lengths[axis];
                let along: Vec<f64> = (0..step.len()).map(along).collect();
                axes.iter().map(|row| row.iter().zip(&along).map(|(axis, along)| axis * along).sum()).collect()
            }
            Self::Diagonal(variances) => step.iter().zip(variances).map(|(step, variance)| step / variance.sqrt()).collect(),
        }
    }

    fn update(&mut self, old: f64, (rank_one, path): (f64, &[f64]), (rank_mu, weights, steps): (f64, &[f64], &[Vec<f64>])) {
        let of = |i: usize, j: usize, was: f64| {
            let spread: f64 = weights.iter().zip(steps).map(|(weight, step)| weight * step[i] * step[j]).sum();
            old * was + rank_one * path[i] * path[j] + rank_mu * spread
        };
        match self {
            Self::Full { matrix, axes, lengths } => {
                for (i, row) in matrix.iter_mut().enumerate() {
                    for (j, value) in row.iter_mut().enumerate() {
                        *value = of(i, j, *value);
                    }
                }
                let (values, vectors) = eigen(matrix);
                *axes = vectors;
                *lengths = values.into_iter().map(|value| value.max(1e-20).sqrt()).collect();
            }
            Self::Diagonal(variances) => {
                for (i, variance) in variances.iter_mut().enumerate() {
                    *variance = of(i, i, *variance).max(1e-20);
                }
            }
        }
    }
}

impl Optimizer for Cma {
    fn ask(&mut self, random: &mut ChaCha8Rng) -> Vec<f64> {
        let step = self.covariance.colour(&draws::normals(self.mean.len(), random));
        self.mean.iter().zip(step).map(|(mean, step)| reflected(mean + self.step * step)).collect()
    }

    fn tell(&mut self, point: &[f64], value: f64, _: bool) {
        self.told.push((point.to_vec(), value));
        if self.told.len() == self.batch {
            self.learn();
        }
    }

    fn batch(&self) -> u64 {
        self.batch as u64
    }

    fn centre(&self) -> Option<(u64, Vec<f64>)> {
        Some((self.learnt, self.mean.clone()))
    }
}

fn identity(size: usize) -> Vec<Vec<f64>> {
    (0..size).map(|i| (0..size).map(|j| f64::from(u8::from(i == j))).collect()).collect()
}

/// Eigenvalues of a symmetric matrix, and its eigenvectors as columns, by Jacobi's rotations: no operation but those that round the same everywhere.
fn eigen(matrix: &[Vec<f64>]) -> (Vec<f64>, Vec<Vec<f64>>) {
    let size = matrix.len();
    let mut a = matrix.to_vec();
    let mut vectors = identity(size);
    for _ in 0..60 {
        let off: f64 = (0..size).flat_map(|i| (0..i).map(move |j| (i, j))).map(|(i, j)| a[i][j] * a[i][j]).sum();
        let on: f64 = (0..size).map(|i| a[i][i] * a[i][i]).sum();
        if off <= 1e-24 * on {
            break;
        }
        for p in 0..size {
            for q in p + 1..size {
                if a[p][q] == 0.0 {
                    continue;
                }
                let theta = (a[q][q] - a[p][p]) / (2.0 * a[p][q]);
                let sign = if theta < 0.0 { -1.0 } else { 1.0 };
                let t = sign / (theta.abs() + (theta * theta + 1.0).sqrt());
                let c = 1.0 / (t * t + 1.0).sqrt();
                let s = t * c;
                for row in a.iter_mut().chain(&mut vectors) {
                    let (x, y) = (row[p], row[q]);
                    row[p] = c * x - s * y;
                    row[q] = s * x + c * y;
                }
                // p < q.
                let (above, below) = a.split_at_mut(q);
                for (first, second) in above[p].iter_mut().zip(&mut below[0]) {
                    let (x, y) = (*first, *second);
                    *first = c * x - s * y;
                    *second = s * x + c * y;
                }
            }
        }
    }
    ((0..size).map(|i| a[i][i]).collect(), vectors)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eigenvectors_diagonalise() {
        let matrix = vec![vec![4.0, 1.0, -2.0], vec![1.0, 3.0, 0.5], vec![-2.0, 0.5, 6.0]];
        let (values, vectors) = eigen(&matrix);
        // numpy.linalg.eigvalsh gives 1.97..., trace and products are exact tests of any order.
        assert!((values.iter().sum::<f64>() - 13.0).abs() < 1e-12);
        for (k, value) in values.iter().enumerate() {
            for (row, own) in matrix.iter().zip(&vectors) {
                let image: f64 = row.iter().zip(&vectors).map(|(m, v)| m * v[k]).sum();
                assert!((image - value * own[k]).abs() < 1e-10);
            }
        }
    }

    fn run(size: usize, value: impl Fn(&[f64]) -> f64, points: u64) -> f64 {
        let mut cma = Cma::new(vec![0.8; size], 0.2, 0);
        for number in 0..points {
            let point = cma.ask(&mut draws::shared(5, 0, number));
            let value = value(&point);
            cma.tell(&point, value, false);
        }
        value(&cma.mean)
    }

    #[test]
    fn it_finds_the_top_of_a_sphere_and_of_a_narrow_ridge() {
        let sphere = |point: &[f64]| -point.iter().map(|x| (x - 0.3) * (x - 0.3)).sum::<f64>();
        assert!(run(6, sphere, 1500) > -1e-10);
        let ridge =
            |point: &[f64]| -(0..5).map(|i| 10f64.powi(i) * (point[i as usize] - 0.4) * (point[i as usize] - 0.4)).sum::<f64>();
        assert!(run(5, ridge, 3000) > -1e-6);
        assert!(run(120, sphere, 12_000) > -1e-2);
    }
}
