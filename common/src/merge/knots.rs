//! KnOTS: TIES in the tasks' shared basis (Stoica et al., Model merging with SVD to tie the KnOTS, ICLR 2025, arXiv 2410.19735), on full task matrices.
//!
//! The task matrices side by side are `U S [V_1 … V_T]`; the V_i are merged by TIES (each trimmed to its `density` largest magnitudes with all ties, signs
//! elected by their weighted sum, weighted mean of what agrees), and `U S` times the merged V is the merged matrix.

use super::{
    Base, Combine, Method, ParameterSpec, Pass, Settings,
    linear::WEIGHT,
    matrix::{MATRICES, Matrices, Matrix},
    sparse::DENSITY,
    task_arithmetic::LAMBDA,
    ties::share,
};

pub(super) struct Knots;

impl Method for Knots {
    fn name(&self) -> &'static str {
        "knots"
    }

    fn summary(&self) -> &'static str {
        "TIES on the tasks' coordinates in the basis of all task matrices (Stoica et al., KnOTS, ICLR 2025)"
    }

    fn base(&self) -> Base {
        Base::Needed
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        const PARAMETERS: &[ParameterSpec] = &[WEIGHT, DENSITY, LAMBDA, MATRICES];
        PARAMETERS
    }

    fn prepare(&self, settings: &Settings, pass: &Pass<'_>) -> Box<dyn Combine> {
        let densities = settings.per_model("density");
        Matrices::prepare(settings, pass, Box::new(move |tensor, tasks| merge(&tasks, &densities[tensor])))
    }
}

/// The tasks come weighted, and a weight stays a factor of its task's coordinates.
fn merge(tasks: &[Matrix], densities: &[f64]) -> Matrix {
    let (rows, columns) = (tasks[0].rows, tasks[0].columns);
    let mut wide = Matrix::zeros(rows, columns * tasks.len());
    for (index, task) in tasks.iter().enumerate() {
        for row in 0..rows {
            let start = row * wide.columns + index * columns;
            wide.values[start..start + columns].copy_from_slice(task.row(row));
        }
    }
    let svd = wide.svd();
    let parts = densities.iter().enumerate().map(|(index, density)| {
        let part = |row: usize| &svd.v.row(row)[index * columns..(index + 1) * columns];
        let mut values: Vec<f64> = (0..svd.v.rows).flat_map(part).copied().collect();
        trim(&mut values, *density);
        values
    });
    let parts: Vec<_> = parts.collect();
    let mut merged = Matrix::zeros(svd.v.rows, columns);
    for (element, merged) in merged.values.iter_mut().enumerate() {
        let all = || parts.iter().map(|part| part[element]);
        let positive = all().sum::<f64>() >= 0.0;
        let agreeing = || all().filter(|value| *value != 0.0 && (*value > 0.0) == positive);
        *merged = agreeing().sum::<f64>() / agreeing().map(|_| 1.0).sum::<f64>().max(1.0);
    }
    super::matrix::Svd { v: merged, ..svd.clone() }.with(&svd.s)
}

/// Sets all but the largest magnitudes to zero; at least one is kept, unless none shall be.
fn trim(values: &mut [f64], density: f64) {
    let kept = share(density, values.len()).max(1);
    if kept >= values.len() {
        return;
    }
    let mut magnitudes: Vec<_> = values.iter().map(|value| value.abs()).collect();
    let place = magnitudes.len() - kept;
    let threshold = *magnitudes.select_nth_unstable_by(place, f64::total_cmp).1;
    let threshold = if density == 0.0 { f64::INFINITY } else { threshold };
    values.iter_mut().filter(|value| value.abs() < threshold).for_each(|value| *value = 0.0);
}
