//! Iso-C and Iso-CTS: isotropic merging (Marczak et al., No task left behind, ICML 2025, arXiv 2502.04959).
//!
//! Iso-C: the sum of the task matrices with every singular value replaced by their mean over the shorter side. Iso-CTS: of the sum's singular vectors
//! the first `common` stay; each task adds the first of what the common space leaves of its matrix; both sides are made orthonormal (the polar factor) and
//! every singular value becomes the mean. Null directions, which have no vectors, stay null.

use super::{
    Base, Combine, Default, Kind, Method, ParameterSpec, Pass, Scope, Settings,
    matrix::{COMMON, Matrices, Matrix},
};

pub(super) struct IsoC;
pub(super) struct IsoCts;

impl Method for IsoC {
    fn name(&self) -> &'static str {
        "iso_c"
    }

    fn summary(&self) -> &'static str {
        "sum of the task matrices with equal singular values (Marczak et al., No task left behind, ICML 2025)"
    }

    fn base(&self) -> Base {
        Base::Needed
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        &COMMON
    }

    fn prepare(&self, settings: &Settings, pass: &Pass<'_>) -> Box<dyn Combine> {
        Matrices::prepare(settings, pass, Box::new(|_, tasks| iso_c(&sum(&tasks))))
    }
}

impl Method for IsoCts {
    fn name(&self) -> &'static str {
        "iso_cts"
    }

    fn summary(&self) -> &'static str {
        "equal singular values over the common and each task's own directions (Marczak et al., No task left behind, ICML 2025)"
    }

    fn base(&self) -> Base {
        Base::Needed
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        const PARAMETERS: &[ParameterSpec] = &[
            COMMON[0],
            COMMON[1],
            COMMON[2],
            ParameterSpec {
                name: "common_space_fraction",
                scope: Scope::Merge,
                kind: Kind::Number(0.0, 1.0),
                default: Default::Number(0.8),
                doc: "Share of the directions that the sum of the tasks gives.",
            },
        ];
        PARAMETERS
    }

    fn prepare(&self, settings: &Settings, pass: &Pass<'_>) -> Box<dyn Combine> {
        let fractions = settings.per_tensor("common_space_fraction");
        Matrices::prepare(settings, pass, Box::new(move |tensor, tasks| iso_cts(&tasks, fractions[tensor])))
    }
}

fn sum(tasks: &[Matrix]) -> Matrix {
    let mut sum = Matrix::zeros(tasks[0].rows, tasks[0].columns);
    tasks.iter().for_each(|task| sum.add(1.0, task));
    sum
}

#[expect(clippy::cast_precision_loss, reason = "a side of a matrix")]
fn iso_c(sum: &Matrix) -> Matrix {
    let svd = sum.svd();
    let mean = svd.s.iter().sum::<f64>() / sum.rows.min(sum.columns).max(1) as f64;
    svd.with(&vec![mean; svd.s.len()])
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "sides of a matrix and shares of them"
)]
fn iso_cts(tasks: &[Matrix], fraction: f64) -> Matrix {
    let total = sum(tasks);
    let side = total.rows.min(total.columns);
    // Every task gets the same number of directions; halves round to the even number, as in the authors' code.
    let own = ((side - (side as f64 * fraction) as usize) as f64 / tasks.len() as f64).round_ties_even() as usize;
    let own = own.min(side / tasks.len());
    let shared = side - own * tasks.len();
    let common = total.svd();
    let (common_u, common_v) = (common.u.take_rows(shared), common.v.take_rows(shared));
    let mut mean = common.s.iter().take(shared).sum::<f64>();
    let (mut u, mut v) = (Matrix::zeros(0, total.rows), Matrix::zeros(0, total.columns));
    for task in tasks {
        let mut rest = task.clone();
        rest.add(-1.0, &common_u.transposed().times(&common_u.times(task)));
        let svd = rest.svd();
        // What is left of a task that lies in the common space is rounding.
        let real = svd.s.iter().take(own).filter(|s| **s > 1e-10 * common.s.first().copied().unwrap_or(0.0)).count();
        mean += svd.s.iter().take(real).sum::<f64>();
        u.stack(&svd.u.take_rows(real));
        v.stack(&svd.v.take_rows(real));
    }
    u.stack(&common_u);
    v.stack(&common_v);
    mean /= side.max(1) as f64;
    let mut merged = u.polar().transposed().times(&v.polar());
    merged.values.iter_mut().for_each(|x| *x *= mean);
    merged
}
