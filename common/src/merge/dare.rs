//! DARE: drop elements of each task vector at random and rescale the rest (Yu et al., Language models are super Mario, ICML 2024), as a weighted sum or
//! with TIES's election of signs.
//!
//! Which elements are dropped is a pure function of seed, tensor name, model's place and element; it is not what mergekit's generator draws. `rescale_by`
//! names mergekit's rescaling (`l1`) or the paper's (`density`).

use super::{
    Base, Combine, Method, ParameterSpec, Pass, Settings,
    sparse::{COMMON, Piece, RESCALE_BY, SEED, Sparse, Sparsify, normalize, rescale, streams},
};
use crate::{
    rng::{self, Stream},
    simd,
};

/// The weighted sum of what is left.
pub(super) struct DareLinear;
/// With TIES's election of signs.
pub(super) struct DareTies;

const PARAMETERS: &[ParameterSpec] = &[COMMON[0], COMMON[1], COMMON[2], normalize(false), rescale(true), RESCALE_BY, SEED];

/// Numbers that are drawn at a time.
const DRAWS: usize = 1024;

struct Dropout {
    /// `[tensor][model]`: density.
    densities: Vec<Vec<f64>>,
    streams: Vec<Vec<Stream>>,
    /// For each tensor: whether what is kept is divided by its density.
    divide: Vec<bool>,
}

fn prepare(settings: &Settings, pass: &Pass<'_>, elect: bool) -> Box<dyn Combine> {
    let by_density = settings.choice("rescale_by") == "density";
    let dropout = Dropout {
        densities: settings.per_model("density"),
        streams: streams(settings, pass.models()),
        divide: settings.flags("rescale").into_iter().map(|rescale| rescale && by_density).collect(),
    };
    Box::new(Sparse::prepare(settings, pass, dropout, elect, !by_density))
}

impl Sparsify for Dropout {
    fn draw(&self, piece: &Piece<'_>, factors: &mut [f64]) {
        let density = self.densities[piece.tensor()][piece.model];
        if density >= 1.0 {
            return;
        }
        let threshold = rng::threshold(density);
        let kept = if self.divide[piece.tensor()] { 1.0 / density } else { 1.0 };
        let stream = &self.streams[piece.tensor()][piece.model];
        let mut draws = [0; DRAWS];
        for (start, factors) in (piece.offset()..).step_by(DRAWS).zip(factors.chunks_mut(DRAWS)) {
            let draws = &mut draws[..factors.len()];
            stream.fill(start, draws);
            simd::dispatch(
                #[inline(always)]
                || {
                    for (factor, draw) in factors.iter_mut().zip(&*draws) {
                        *factor = if rng::falls(*draw, threshold) { kept } else { 0.0 };
                    }
                },
            );
        }
    }
}

impl Method for DareLinear {
    fn name(&self) -> &'static str {
        "dare_linear"
    }

    fn summary(&self) -> &'static str {
        "drop elements of each task vector at random, rescale and sum the rest (Yu et al., DARE, ICML 2024)"
    }

    fn base(&self) -> Base {
        Base::Needed
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        PARAMETERS
    }

    fn prepare(&self, settings: &Settings, pass: &Pass<'_>) -> Box<dyn Combine> {
        prepare(settings, pass, false)
    }
}

impl Method for DareTies {
    fn name(&self) -> &'static str {
        "dare_ties"
    }

    fn summary(&self) -> &'static str {
        "DARE with TIES's election of signs (Yu et al., DARE, ICML 2024; mergekit)"
    }

    fn base(&self) -> Base {
        Base::Needed
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        PARAMETERS
    }

    fn prepare(&self, settings: &Settings, pass: &Pass<'_>) -> Box<dyn Combine> {
        prepare(settings, pass, true)
    }
}
