//! Task arithmetic: the base plus a scaled sum of task vectors.

use super::{
    Combine, Default, Kind, Method, ParameterSpec, Pass, Scope, Settings,
    linear::{WEIGHT, WeightedSum, normalized},
};

pub(super) struct TaskArithmetic;

pub(super) const LAMBDA: ParameterSpec = ParameterSpec {
    name: "lambda",
    scope: Scope::Merge,
    kind: Kind::Number(-100.0, 100.0),
    default: Default::Number(1.0),
    doc: "Scale of the merged task vector.",
};

impl Method for TaskArithmetic {
    fn name(&self) -> &'static str {
        "task_arithmetic"
    }

    fn summary(&self) -> &'static str {
        "base + lambda * sum of weight_i * (model_i - base) (Ilharco et al., Editing models with task arithmetic, ICLR 2023)"
    }

    fn needs_base(&self) -> bool {
        true
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        const PARAMETERS: &[ParameterSpec] = &[
            WEIGHT,
            LAMBDA,
            ParameterSpec {
                name: "normalize",
                scope: Scope::Merge,
                kind: Kind::Flag,
                default: Default::Flag(false),
                doc: "Divide by the sum of the weights.",
            },
        ];
        PARAMETERS
    }

    fn prepare(&self, settings: &Settings, _pass: &Pass<'_>) -> Box<dyn Combine> {
        let lambda = settings.number("lambda");
        let weights = normalized(settings.numbers("weight"), settings.flag("normalize"));
        Box::new(WeightedSum { weights: weights.into_iter().map(|weight| lambda * weight).collect(), from_base: true })
    }
}
