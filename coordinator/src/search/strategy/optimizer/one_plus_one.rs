//! The (1+1)-ES with the 1/5 success rule (Rechenberg 1973; Kern et al. 2004): a step size that grows by what is accepted and shrinks by what is not,
//! so that about one in five is.

use rand_chacha::ChaCha8Rng;

use super::{super::draws, Optimizer};

/// Share of accepted steps at which the step size stays.
const TARGET: f64 = 0.2;

pub(in super::super) struct OnePlusOne {
    parent: Vec<f64>,
    pub(in super::super) step: f64,
}

/// The step size after a success or a failure, in `dimension` dimensions.
pub(in super::super) fn adapted(step: f64, accepted: bool, dimension: usize) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a count of coefficients")]
    let damping = (dimension as f64 + 1.0).sqrt();
    let success = f64::from(u8::from(accepted));
    step * libm::exp((success - TARGET) / ((1.0 - TARGET) * damping))
}

impl OnePlusOne {
    pub(in super::super) fn new(first: Vec<f64>, step: f64) -> Self {
        Self { parent: first, step }
    }
}

/// A number outside [0, 1] reflected at the bound that it crossed.
pub(super) fn reflected(number: f64) -> f64 {
    let inside = number.abs() % 2.0;
    if inside > 1.0 { 2.0 - inside } else { inside }
}

impl Optimizer for OnePlusOne {
    fn ask(&mut self, random: &mut ChaCha8Rng) -> Vec<f64> {
        self.parent.iter().map(|at| reflected(at + self.step * draws::normal(random))).collect()
    }

    fn tell(&mut self, point: &[f64], _: f64, accepted: bool) {
        self.step = adapted(self.step, accepted, self.parent.len()).clamp(1e-6, 1.0);
        if accepted {
            self.parent = point.to_vec();
        }
    }

    fn batch(&self) -> u64 {
        1
    }

    fn centre(&self) -> Option<(u64, Vec<f64>)> {
        None
    }
}
