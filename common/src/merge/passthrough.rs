//! Passthrough: one model as it is, or scaled, for instance layer by layer or by tensor (mergekit).

use super::{Base, Combine, Default, Kind, Method, ParameterSpec, Pass, Scope, Settings, linear::WeightedSum};
use crate::recipe::Merge;

pub(super) struct Passthrough;

impl Method for Passthrough {
    fn name(&self) -> &'static str {
        "passthrough"
    }

    fn summary(&self) -> &'static str {
        "one model, scaled (mergekit)"
    }

    fn base(&self) -> Base {
        Base::Unused
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        const PARAMETERS: &[ParameterSpec] = &[ParameterSpec {
            name: "scale",
            scope: Scope::Model,
            kind: Kind::Number(-100.0, 100.0),
            default: Default::Number(1.0),
            doc: "Factor.",
        }];
        PARAMETERS
    }

    fn check(&self, merge: &Merge) -> Result<(), String> {
        match merge.models.len() {
            1 => Ok(()),
            count => Err(format!("exactly one model is passed through, and {count} are given")),
        }
    }

    fn prepare(&self, settings: &Settings, _pass: &Pass<'_>) -> Box<dyn Combine> {
        Box::new(WeightedSum { weights: settings.per_model("scale"), from_base: false })
    }
}
