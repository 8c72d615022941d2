//! RegMean (Jin et al., Dataless knowledge fusion by merging weights of language models, ICLR 2023): each linear layer's weights are the ones whose outputs are
//! nearest to every model's on that model's own inputs, `W^T = (sum_i c_i G_i)^-1 sum_i c_i G_i W_i^T`, with the options of Evolver's official code.
//! What is no linear layer, or has no statistics in every file, is the weighted mean of the models.
//!
//! A model's `statistics` is a safetensors file with the Gram matrix `G = X^T X / rows(X)` of the inputs of each linear layer, `inputs x inputs`: under the name of
//! the layer's weight if that is `outputs x inputs` (`torch.nn.Linear`), under that name with `.transposed` behind if it is `inputs x outputs` (GPT-2's `Conv1D`).
//! RegMean++ (Nguyen et al., arXiv 2508.03121) is the same formula over Gram matrices that were measured through the layers merged so far.
//!
//! An input that never was anything but zero in any model's data keeps the models' mean. Sums are F64, by a Cholesky decomposition; a sum of Gram matrices that
//! is singular otherwise gives NaN, which the engine refuses with the tensor's name: fewer rows than inputs need `reduce_nondiag` below 1.

use super::{
    Base, Combine, Default, Inputs, Kind, Method, ParameterSpec, Pass, Scope, Settings,
    linear::{WEIGHT, WeightedSum, divided},
    matrix::Matrix,
    measured::{Measured, STATISTICS},
    round,
};
use crate::checkpoint::Row;

pub(super) struct RegMean;

const TRANSPOSED: &str = ".transposed";

struct Regression {
    files: Measured,
    /// `[tensor][model]`: shares that sum to 1.
    shares: WeightedSum,
    reduce: Vec<f64>,
    /// Whether a tensor is regressed, and whether it is stored `inputs x outputs`.
    linear: Vec<Option<bool>>,
}

impl Method for RegMean {
    fn name(&self) -> &'static str {
        "regmean"
    }

    fn summary(&self) -> &'static str {
        "each linear layer's least-squares fit to all models' outputs, from Gram matrices of their inputs (Jin et al., RegMean, ICLR 2023)"
    }

    fn base(&self) -> Base {
        Base::Unused
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        const PARAMETERS: &[ParameterSpec] = &[
            STATISTICS,
            WEIGHT,
            ParameterSpec {
                name: "reduce_nondiag",
                scope: Scope::Merge,
                kind: Kind::Number(0.0, 1.0),
                default: Default::Number(1.0),
                doc: "Factor of what is not on the Gram matrices' diagonals; 0 keeps the diagonals alone. The paper has 0.9, or 0.1 for T5 and DeBERTa.",
            },
            ParameterSpec {
                name: "plain_mean",
                scope: Scope::Merge,
                kind: Kind::Flag,
                default: Default::Flag(false),
                doc: "Tensors that are averaged although there are statistics of them.",
            },
        ];
        PARAMETERS
    }

    fn measured(&self, tensor: &str, shape: &[usize]) -> Vec<(String, Vec<usize>)> {
        match *shape {
            [outputs, inputs] => vec![(tensor.to_owned(), vec![inputs; 2]), (format!("{tensor}{TRANSPOSED}"), vec![outputs; 2])],
            _ => Vec::new(),
        }
    }

    fn prepare(&self, settings: &Settings, pass: &Pass<'_>) -> Box<dyn Combine> {
        let files = Measured::open(self, settings, pass);
        let plain = settings.flags("plain_mean");
        let linear = |(tensor, plain): (usize, &bool)| {
            let names = files.names(tensor);
            let transposed = |name: &String| name.ends_with(TRANSPOSED) && name.len() > settings.layers().name(tensor).len();
            let kinds: Option<Vec<_>> = names.iter().map(|name| name.as_ref().map(transposed)).collect();
            let kinds = kinds.filter(|_| !plain)?;
            kinds.first().copied().filter(|first| kinds.iter().all(|kind| kind == first))
        };
        let weights = settings.per_model("weight");
        let all = vec![true; weights.len()];
        Box::new(Regression {
            linear: plain.iter().enumerate().map(linear).collect(),
            shares: WeightedSum { weights: divided(weights, &all), from_base: false },
            reduce: settings.per_tensor("reduce_nondiag"),
            files,
        })
    }
}

impl Regression {
    /// The fit of one matrix's models, `inputs x outputs`.
    fn fit(&self, inputs: &Inputs<'_>, side: usize, transposed: bool) -> Matrix {
        let shares = &self.shares.weights[inputs.tensor];
        let outputs = inputs.models[0].len() / side.max(1);
        let (mut gram, mut sum) = (Matrix::zeros(side, side), Matrix::zeros(side, outputs));
        let mut values = Vec::new();
        let mut seen = vec![false; side];
        for (model, share) in shares.iter().enumerate() {
            self.files.read(inputs.tensor, model, 0..side * side, &mut values);
            let own = self.reduced(inputs.tensor, side, &values);
            (0..side).for_each(|k| seen[k] |= own.values[k * side + k] != 0.0);
            let weights = weights(inputs.models[model], side, transposed);
            sum.add(*share, &own.times(&weights));
            gram.add(*share, &own);
        }
        // Inputs that were never seen: their equations are those of the mean.
        for k in (0..side).filter(|k| !seen[*k]) {
            gram.values[k * side + k] = 1.0;
            for (model, share) in shares.iter().enumerate() {
                let weights = weights(inputs.models[model], side, transposed);
                let row = sum.values[k * outputs..(k + 1) * outputs].iter_mut();
                row.zip(weights.row(k)).for_each(|(sum, weight)| *sum += share * weight);
            }
        }
        gram.solve_positive(&sum)
    }

    fn reduced(&self, tensor: usize, side: usize, values: &[f32]) -> Matrix {
        let factor = |index: usize| if index / side == index % side { 1.0 } else { self.reduce[tensor] };
        let values = values.iter().enumerate().map(|(index, value)| factor(index) * f64::from(*value)).collect();
        Matrix { rows: side, columns: side, values }
    }
}

/// A model's weights as `inputs x outputs`.
fn weights(row: Row<'_>, side: usize, transposed: bool) -> Matrix {
    let mut buffer = Vec::new();
    let values = row.floats(&mut buffer);
    let wide =
        |rows: usize, columns: usize| Matrix { rows, columns, values: values.iter().map(|value| f64::from(*value)).collect() };
    let outputs = values.len() / side.max(1);
    if transposed { wide(side, outputs) } else { wide(outputs, side).transposed() }
}

impl Combine for Regression {
    fn block(&self, inputs: &Inputs<'_>, out: &mut [f32]) {
        let Some(transposed) = self.linear[inputs.tensor] else {
            return self.shares.block(inputs, out);
        };
        let side = if transposed { inputs.shape[0] } else { inputs.shape[1] };
        let fit = self.fit(inputs, side, transposed);
        let fit = if transposed { fit } else { fit.transposed() };
        out.iter_mut().zip(&fit.values).for_each(|(out, value)| *out = round(*value));
    }

    fn unit(&self, tensor: usize, shape: &[usize]) -> usize {
        if self.linear[tensor].is_some() { shape.iter().product() } else { 1 }
    }
}
