//! TIES-Merging: trim, elect sign, disjoint merge (Yadav et al., NeurIPS 2023), with mergekit's conventions: density per tensor, signs elected on the
//! weighted task vectors. All magnitudes that tie with the smallest one kept are kept, as in the paper's code; mergekit keeps exactly `k` of them.

use super::{
    Base, Combine, Method, ParameterSpec, Pass, Settings,
    sparse::{Band, COMMON, Sparse, normalize, rescale},
};

pub(super) struct Ties;

impl Method for Ties {
    fn name(&self) -> &'static str {
        "ties"
    }

    fn summary(&self) -> &'static str {
        "trim each task vector to its largest magnitudes, elect a sign per parameter, merge what agrees (Yadav et al., TIES-Merging, NeurIPS 2023)"
    }

    fn base(&self) -> Base {
        Base::Needed
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        const PARAMETERS: &[ParameterSpec] = &[COMMON[0], COMMON[1], COMMON[2], normalize(true), rescale(false)];
        PARAMETERS
    }

    fn prepare(&self, settings: &Settings, pass: &Pass<'_>) -> Box<dyn Combine> {
        let densities = settings.per_model("density");
        let band = Band::prepare(pass, |tensor, model| {
            let (density, elements) = (densities[tensor][model], pass.elements()[tensor]);
            let kept = share(density, elements).max(1).min(elements);
            (density > 0.0).then(|| ((elements - kept) as u64, elements.saturating_sub(1) as u64))
        });
        Box::new(Sparse::prepare(settings, pass, band, true, true))
    }
}

/// `floor(share * elements)`.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "the share lies in [0, 1]"
)]
pub(super) fn share(share: f64, elements: usize) -> usize {
    (share * elements as f64) as usize
}
