//! Optimizers over the unit cube. They maximise, and read of the results only values and whether a point beat its rival.

mod cma;
mod one_plus_one;

use rand_chacha::ChaCha8Rng;

pub(super) use self::{
    cma::Cma,
    one_plus_one::{OnePlusOne, adapted},
};

/// Draws points and moves to the better ones.
pub(super) trait Optimizer: Send {
    /// The next point, each number in [0, 1].
    fn ask(&mut self, random: &mut ChaCha8Rng) -> Vec<f64>;

    /// Hears the value of a point; minus infinity where there is none.
    fn tell(&mut self, point: &[f64], value: f64, accepted: bool);

    /// Points before anything is learnt.
    fn batch(&self) -> u64;

    /// Times that it has learnt, and the middle of what it draws, where that is more than the best point.
    fn centre(&self) -> Option<(u64, Vec<f64>)>;
}
