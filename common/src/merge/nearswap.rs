//! `NearSwap`: moves the base towards a model where the two are near (alchemonaut, QuartetAnemoi; mergekit): with weight `min(1, t / |base - model|)`.

use super::{
    Base, Combine, Default, Inputs, Kind, Method, ParameterSpec, Pass, Scope, Settings,
    lanes::{self, LANES},
    slerp::one_model,
};
use crate::recipe::Merge;

pub(super) struct NearSwap;

struct Swap {
    /// For each tensor.
    t: Vec<f64>,
}

/// Smaller differences divide as this.
const SMALL: f64 = 1e-6;

impl Method for NearSwap {
    fn name(&self) -> &'static str {
        "nearswap"
    }

    fn summary(&self) -> &'static str {
        "take the model's values where they are near the base's, the more the nearer (alchemonaut, QuartetAnemoi-70B)"
    }

    fn base(&self) -> Base {
        Base::Needed
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        const PARAMETERS: &[ParameterSpec] = &[ParameterSpec {
            name: "t",
            scope: Scope::Merge,
            kind: Kind::Number(-100.0, 100.0),
            default: Default::Number(1e-4),
            doc: "Difference up to which the model's value is taken whole, in the weights' unit.",
        }];
        PARAMETERS
    }

    fn check(&self, merge: &Merge) -> Result<(), String> {
        one_model(merge)
    }

    fn prepare(&self, settings: &Settings, _pass: &Pass<'_>) -> Box<dyn Combine> {
        Box::new(Swap { t: settings.per_tensor("t") })
    }
}

impl Combine for Swap {
    fn block(&self, inputs: &Inputs<'_>, out: &mut [f32]) {
        let t = self.t[inputs.tensor];
        lanes::map(
            inputs,
            out,
            #[inline(always)]
            |chunk| {
                let (mut merged, model) = (chunk.base(), chunk.model(0));
                for l in 0..LANES {
                    let weight = (t / f64::max((merged[l] - model[l]).abs(), SMALL)).clamp(0.0, 1.0);
                    merged[l] = weight * model[l] + (1.0 - weight) * merged[l];
                }
                merged
            },
        );
    }
}
