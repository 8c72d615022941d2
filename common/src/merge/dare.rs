//! DARE: drop elements of each task vector at random and rescale the rest (Yu et al., Language models are super Mario, ICML 2024), as a weighted sum or
//! with TIES's election of signs.
//!
//! Which elements are dropped is a pure function of seed, tensor name, model's place and element; it is not what mergekit's generator draws. `rescale_by`
//! names mergekit's rescaling (`l1`) or the paper's (`density`).

use super::{
    Base, Combine, Method, ParameterSpec, Pass, Settings,
    lanes::{self, LANES},
    sparse::{COMMON, Draws, Piece, RESCALE_BY, SEED, Sparse, Sparsify, normalize, rescale, streams},
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
    const DRAWS: bool = true;

    fn draw(&self, piece: &Piece<'_>, draws: &mut Draws) {
        let density = self.densities[piece.tensor()][piece.model];
        if density >= 1.0 {
            return draws.kept.fill(u64::MAX);
        }
        let threshold = rng::threshold(density);
        let stream = &self.streams[piece.tensor()][piece.model];
        let mut numbers = [0; DRAWS];
        for (start, kept) in (piece.offset()..).step_by(DRAWS).zip(draws.kept.chunks_mut(DRAWS / LANES)) {
            stream.fill(start, &mut numbers);
            simd::dispatch(
                #[inline(always)]
                || {
                    for (kept, numbers) in kept.iter_mut().zip(numbers.as_chunks::<LANES>().0) {
                        *kept = lanes::bits(numbers, |number| rng::falls(number, threshold));
                    }
                },
            );
        }
    }

    fn factor(&self, tensor: usize, model: usize) -> f64 {
        let density = self.densities[tensor][model];
        if self.divide[tensor] && density > 0.0 { 1.0 / density } else { 1.0 }
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
