//! Localize-and-stitch without data (He et al., Localize-and-Stitch: efficient model merging via sparse task arithmetic, TMLR 2025, arXiv 2408.13656): of each
//! task vector the `density` largest magnitudes over the whole model are localized (with all that tie with the smallest of them), and stitched
//! onto the base; where several tasks meet their mean counts.

use super::{
    Base, Combine, Default, Inputs, Kind, Method, ParameterSpec, Pass, Scope, Settings,
    lanes::{self, LANES},
    order::{self, Cost, Selector},
    task_arithmetic::LAMBDA,
    ties::share,
};

pub(super) struct LocalizeStitch;

struct Regions {
    /// For each model: magnitudes from here on are its region.
    thresholds: Vec<f64>,
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

    #[expect(clippy::cast_precision_loss, reason = "a count below 2^53")]
    fn prepare(&self, settings: &Settings, pass: &Pass<'_>) -> Box<dyn Combine> {
        let elements: usize = pass.elements().iter().sum();
        let kept = share(settings.number("density"), elements);
        let thresholds = if kept == 0 {
            vec![f64::INFINITY; pass.models()]
        } else {
            let ranks = vec![vec![(elements - kept) as u64]; pass.models()];
            let found = pass.once("magnitudes", &[&[kept as f64]], || {
                let found = Selector::default().select(pass, None, &ranks, (Cost::Low, order::magnitudes));
                vec![found.into_iter().map(|row| f64::from(row[0])).collect()]
            });
            found[0].clone()
        };
        Box::new(Regions { thresholds, lambda: settings.per_tensor("lambda") })
    }
}

impl Combine for Regions {
    fn block(&self, inputs: &Inputs<'_>, out: &mut [f32]) {
        let lambda = self.lambda[inputs.tensor];
        lanes::map(
            inputs,
            out,
            #[inline(always)]
            |chunk| {
                let (mut sum, mut count) = ([0.0; LANES], [0.0; LANES]);
                for (model, threshold) in self.thresholds.iter().enumerate() {
                    let delta = chunk.delta(model);
                    for l in 0..LANES {
                        let inside = delta[l].abs() >= *threshold;
                        sum[l] += if inside { delta[l] } else { 0.0 };
                        count[l] += if inside { 1.0 } else { 0.0 };
                    }
                }
                let mut merged = chunk.base();
                for l in 0..LANES {
                    merged[l] += lambda * sum[l] / f64::max(count[l], 1.0);
                }
                merged
            },
        );
    }
}
