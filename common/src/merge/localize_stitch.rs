//! Localize-and-stitch without data (He et al., Localize-and-Stitch: efficient model merging via sparse task arithmetic, TMLR 2025, arXiv 2408.13656): of each
//! task vector the `density` largest magnitudes over the whole model are localized (with all that tie with the smallest of them), and stitched
//! onto the base; where several tasks meet their mean counts.

use super::{
    Base, Combine, Default, Inputs, Kind, Method, ParameterSpec, Pass, Scope, Settings, order, round, task_arithmetic::LAMBDA,
    task_vector, ties::share,
};

pub(super) struct LocalizeStitch;

struct Regions {
    /// For each model: magnitudes from here on are its region.
    thresholds: Vec<f32>,
    lambda: Vec<f64>,
}

impl Method for LocalizeStitch {
    fn name(&self) -> &'static str {
        "localize_stitch"
    }

    fn summary(&self) -> &'static str {
        "the largest changes of each model, over the whole model, stitched onto the base (He et al., Localize-and-Stitch, TMLR 2025)"
    }

    fn base(&self) -> Base {
        Base::Needed
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        const PARAMETERS: &[ParameterSpec] = &[
            ParameterSpec {
                name: "density",
                scope: Scope::Merge,
                kind: Kind::Constant(0.0, 1.0),
                default: Default::Number(0.05),
                doc: "Share of each model's elements that is localized.",
            },
            LAMBDA,
        ];
        PARAMETERS
    }

    fn prepare(&self, settings: &Settings, pass: &Pass<'_>) -> Box<dyn Combine> {
        let elements: usize = pass.elements().iter().sum();
        let kept = share(settings.number("density"), elements);
        let thresholds = if kept == 0 {
            vec![f32::INFINITY; pass.models()]
        } else {
            let ranks = vec![vec![(elements - kept) as u64]; pass.models()];
            let found = order::select(pass, None, &ranks, |inputs, rows| {
                for (row, model) in rows.iter_mut().zip(inputs.models) {
                    row.extend(model.iter().zip(inputs.base).map(|(m, b)| task_vector(*m, *b).abs()));
                }
            });
            found.into_iter().map(|row| row[0]).collect()
        };
        Box::new(Regions { thresholds, lambda: settings.per_tensor("lambda") })
    }
}

impl Combine for Regions {
    fn block(&self, inputs: &Inputs<'_>, out: &mut [f32]) {
        for (element, out) in out.iter_mut().enumerate() {
            let base = inputs.base[element];
            let (mut sum, mut count) = (0.0, 0.0f64);
            for (model, threshold) in inputs.models.iter().zip(&self.thresholds) {
                let delta = task_vector(model[element], base);
                if delta.abs() >= *threshold {
                    sum += f64::from(delta);
                    count += 1.0;
                }
            }
            *out = round(f64::from(base) + self.lambda[inputs.tensor] * sum / count.max(1.0));
        }
    }
}
