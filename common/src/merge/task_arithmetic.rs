//! Task arithmetic: the base plus a scaled sum of task vectors.

use super::{
    Base, Combine, Default, Kind, Method, ParameterSpec, Pass, Scope, Settings,
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

    fn base(&self) -> Base {
        Base::Needed
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
        let mut weights = normalized(settings);
        for (row, lambda) in weights.iter_mut().zip(settings.per_tensor("lambda")) {
            row.iter_mut().for_each(|weight| *weight *= lambda);
        }
        Box::new(WeightedSum { weights, from_base: true })
    }
}
