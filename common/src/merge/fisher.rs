//! Fisher-weighted averaging (Matena and Raffel, Merging models with Fisher-weighted averaging, NeurIPS 2022): at each element the mean of the models,
//! weighted by their diagonal Fisher information, `sum c_i (F_i + s) theta_i / sum c_i (F_i + s)`, with the options of Evolver's official code.
//!
//! A model's `statistics` is a safetensors file with a tensor for each parameter, under the parameter's name and of its shape: the mean of squared
//! gradients. A parameter that the file lacks counts as zero throughout, so that `smooth` makes it a plain mean.

use rayon::prelude::*;

use super::{
    Base, Combine, Default, Inputs, Kind, Method, ParameterSpec, Pass, Scope, Settings,
    lanes::{self, LANES},
    linear::WEIGHT,
    measured::{Measured, STATISTICS},
};
use crate::checkpoint::Row;

pub(super) struct Fisher;

struct Weighted {
    files: Measured,
    /// `[tensor][model]`: c_i.
    coefficients: Vec<Vec<f64>>,
    smooth: Vec<f64>,
}

impl Method for Fisher {
    fn name(&self) -> &'static str {
        "fisher"
    }

    fn summary(&self) -> &'static str {
        "mean of the models weighted by their diagonal Fisher information at each element (Matena and Raffel, NeurIPS 2022)"
    }

    fn base(&self) -> Base {
        Base::Unused
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        const PARAMETERS: &[ParameterSpec] = &[
            STATISTICS,
            WEIGHT,
            ParameterSpec {
                name: "smooth",
                scope: Scope::Merge,
                kind: Kind::Number(0.0, 1.0),
                default: Default::Number(1e-10),
                doc: "Added to every element of every statistic, and to norms before they divide.",
            },
            ParameterSpec {
                name: "fisher_normalize",
                scope: Scope::Merge,
                kind: Kind::Choice(&["none", "param", "model"]),
                default: Default::Choice("none"),
                doc: "Divide a model's statistics by their norm, of each tensor or of the whole model, so that no model outweighs the others by their scale.",
            },
        ];
        PARAMETERS
    }

    fn measured(&self, tensor: &str, shape: &[usize]) -> Vec<(String, Vec<usize>)> {
        vec![(tensor.to_owned(), shape.to_vec())]
    }

    fn prepare(&self, settings: &Settings, pass: &Pass<'_>) -> Box<dyn Combine> {
        let files = Measured::open(self, settings, pass);
        let mut coefficients = settings.per_model("weight");
        let smooth = settings.per_tensor("smooth");
        let normalize = settings.choice("fisher_normalize");
        if normalize != "none" {
            let mut norms = squares(&files, pass);
            if normalize == "model" {
                let total = |model| norms.iter().map(|row| row[model]).sum::<f64>();
                let totals: Vec<_> = (0..pass.models()).map(total).collect();
                norms.fill(totals);
            }
            for ((row, norms), smooth) in coefficients.iter_mut().zip(&norms).zip(&smooth) {
                row.iter_mut().zip(norms).for_each(|(coefficient, square)| *coefficient /= square.sqrt() + smooth);
                // Only their ratios matter, and these could overflow.
                let largest = row.iter().fold(0.0f64, |largest, coefficient| largest.max(coefficient.abs()));
                row.iter_mut().filter(|_| largest > 0.0).for_each(|coefficient| *coefficient /= largest);
            }
        }
        Box::new(Weighted { files, coefficients, smooth })
    }
}

/// The sum of squares of each tensor's statistics: `[tensor][model]`.
fn squares(files: &Measured, pass: &Pass<'_>) -> Vec<Vec<f64>> {
    /// Elements that are read at a time.
    const STEP: usize = 1 << 14;
    let square = |tensor: usize, model: usize, elements: usize| {
        let (mut sum, mut values) = (0.0, Vec::new());
        for start in (0..elements).step_by(STEP) {
            files.read(tensor, model, start..elements.min(start + STEP), &mut values);
            let inputs = Inputs { base: Row::EMPTY, models: &[Row::F32(&values)], tensor, shape: &[], offset: start };
            let mut sums = [0.0];
            lanes::sum(
                &inputs,
                0..values.len(),
                &mut sums,
                #[inline(always)]
                |chunk, sums| sums[0].add_products(&chunk.model(0), &chunk.model(0)),
            );
            sum += sums[0];
        }
        sum
    };
    let of_tensor = |(tensor, &elements)| (0..pass.models()).map(|model| square(tensor, model, elements)).collect();
    pass.elements().par_iter().enumerate().map(of_tensor).collect()
}

impl Combine for Weighted {
    fn block(&self, inputs: &Inputs<'_>, out: &mut [f32]) {
        let (coefficients, smooth) = (self.coefficients[inputs.tensor].as_slice(), self.smooth[inputs.tensor]);
        let mut statistics = vec![Vec::new(); coefficients.len()];
        for (model, values) in statistics.iter_mut().enumerate() {
            self.files.read(inputs.tensor, model, inputs.offset..inputs.offset + out.len(), values);
        }
        // The statistics walk along as models of their own.
        let rows: Vec<_> = inputs.models.iter().copied().chain(statistics.iter().map(|row| Row::F32(row))).collect();
        let both = Inputs { models: &rows, ..*inputs };
        lanes::map(
            &both,
            out,
            #[inline(always)]
            |chunk| {
                let (mut sum, mut divisor) = ([0.0; LANES], [0.0; LANES]);
                for (model, coefficient) in coefficients.iter().enumerate() {
                    let (values, fisher) = (chunk.model(model), chunk.model(coefficients.len() + model));
                    for l in 0..LANES {
                        let weight = coefficient * (fisher[l] + smooth);
                        sum[l] += weight * values[l];
                        divisor[l] += weight;
                    }
                }
                for l in 0..LANES {
                    sum[l] /= divisor[l];
                }
                sum
            },
        );
    }
}
