//! TSV-Merge: task singular vectors (Gargiulo et al., Task singular vectors: reducing task interference in model merging, CVPR 2025, arXiv 2412.00081).
//!
//! Of each of the T task matrices the first `floor(share * r)` singular triples are kept (r the shorter side, share 1/T by default); all tasks' left vectors
//! side by side, and all right ones, are replaced by the nearest orthonormal sets (the polar factor), which decorrelates the tasks; the merged matrix is
//! `U S V^T`.

use super::{
    Base, Combine, Default, Kind, Method, ParameterSpec, Pass, Scope, Settings,
    matrix::{COMMON, Matrices, Matrix, Svd},
    ties::share,
};

pub(super) struct Tsv;

impl Method for Tsv {
    fn name(&self) -> &'static str {
        "tsv"
    }

    fn summary(&self) -> &'static str {
        "the tasks' first singular directions, made orthogonal to each other (Gargiulo et al., Task singular vectors, CVPR 2025)"
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
                name: "sv_reduction",
                scope: Scope::Merge,
                kind: Kind::Number(0.0, 1.0),
                default: Default::Number(0.0),
                doc: "Share of each task's singular vectors that is kept; 0: one over the number of tasks.",
            },
        ];
        PARAMETERS
    }

    fn prepare(&self, settings: &Settings, pass: &Pass<'_>) -> Box<dyn Combine> {
        let shares = settings.per_tensor("sv_reduction");
        Matrices::prepare(settings, pass, Box::new(move |tensor, tasks| merge(&tasks, shares[tensor])))
    }
}

#[expect(clippy::cast_precision_loss, reason = "a count of tasks")]
fn merge(tasks: &[Matrix], reduction: f64) -> Matrix {
    let (rows, columns) = (tasks[0].rows, tasks[0].columns);
    let reduction = if reduction == 0.0 { 1.0 / tasks.len() as f64 } else { reduction };
    let kept = share(reduction, rows.min(columns));
    let mut all = Svd { u: Matrix::zeros(0, rows), s: Vec::new(), v: Matrix::zeros(0, columns) };
    for task in tasks {
        let svd = task.svd();
        all.s.extend(svd.s.iter().take(kept));
        all.u.stack(&svd.u.take_rows(kept));
        all.v.stack(&svd.v.take_rows(kept));
    }
    Svd { u: all.u.polar(), v: all.v.polar(), s: Vec::new() }.with(&all.s)
}
