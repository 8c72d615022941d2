//! WUDI-Merging (Cheng et al., Whoever started the interference should end it, ICML 2025, arXiv 2503.08099): the matrix M that minimises
//! `sum over tasks of ||(M - T_i) T_i^T||_F^2 / ||T_i||_F^2`, by Adam (Kingma and Ba 2015: betas 0.9 and 0.999, eps 1e-8) from the sum of the task matrices.
//!
//! The gradient is `2 ((M - T_1) P - C)` with `P_i = T_i^T T_i / ||T_i||^2`, `P = sum of P_i` and `C = sum of (T_i - T_1) P_i`, which are computed once; it is
//! exactly 0 for a single task, where Adam would blow rounding errors up. Zero task matrices are left out. The authors leave embeddings out: `matrices` can say so.

use super::{
    Base, Combine, Default, Kind, Method, ParameterSpec, Pass, Scope, Settings,
    matrix::{COMMON, Matrices, Matrix},
    statistics::dot,
};

pub(super) struct Wudi;

impl Method for Wudi {
    fn name(&self) -> &'static str {
        "wudi"
    }

    fn summary(&self) -> &'static str {
        "the task matrix that interferes least with each task's, by gradient steps (Cheng et al., WUDI-Merging, ICML 2025)"
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
                name: "iterations",
                scope: Scope::Merge,
                kind: Kind::Integer(0.0, 100_000.0),
                default: Default::Number(300.0),
                doc: "Steps.",
            },
            ParameterSpec {
                name: "learning_rate",
                scope: Scope::Merge,
                kind: Kind::Number(0.0, 1.0),
                default: Default::Number(1e-5),
                doc: "Size of a step, in the weights' unit.",
            },
        ];
        PARAMETERS
    }

    fn prepare(&self, settings: &Settings, pass: &Pass<'_>) -> Box<dyn Combine> {
        let iterations = settings.integer("iterations");
        let rates = settings.per_tensor("learning_rate");
        Matrices::prepare(settings, pass, Box::new(move |tensor, tasks| merge(&tasks, iterations, rates[tensor])))
    }
}

fn merge(tasks: &[Matrix], iterations: u64, rate: f64) -> Matrix {
    const BETAS: [f64; 2] = [0.9, 0.999];
    let (rows, columns) = (tasks[0].rows, tasks[0].columns);
    let mut merged = Matrix::zeros(rows, columns);
    tasks.iter().for_each(|task| merged.add(1.0, task));
    let norm = |task: &Matrix| dot(&task.values, &task.values);
    let Some(first) = tasks.iter().find(|task| norm(task) > 0.0) else {
        return merged;
    };
    let (mut p, mut c) = (Matrix::zeros(columns, columns), Matrix::zeros(rows, columns));
    for task in tasks.iter().filter(|task| norm(task) > 0.0) {
        let gram = task.transposed().times(task);
        p.add(1.0 / norm(task), &gram);
        let mut apart = task.clone();
        apart.add(-1.0, first);
        c.add(1.0 / norm(task), &apart.times(&gram));
    }
    let (mut mean, mut square) = (vec![0.0; merged.values.len()], vec![0.0; merged.values.len()]);
    let mut powers = [1.0, 1.0];
    for _ in 0..iterations {
        let mut apart = merged.clone();
        apart.add(-1.0, first);
        let gradient = apart.times(&p);
        powers = [powers[0] * BETAS[0], powers[1] * BETAS[1]];
        for (index, value) in merged.values.iter_mut().enumerate() {
            let gradient = 2.0 * (gradient.values[index] - c.values[index]);
            mean[index] = BETAS[0] * mean[index] + (1.0 - BETAS[0]) * gradient;
            square[index] = BETAS[1] * square[index] + (1.0 - BETAS[1]) * gradient * gradient;
            let step = mean[index] / (1.0 - powers[0]);
            *value -= rate * step / ((square[index] / (1.0 - powers[1])).sqrt() + 1e-8);
        }
    }
    merged
}
