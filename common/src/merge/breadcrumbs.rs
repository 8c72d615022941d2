//! Model Breadcrumbs: drop the largest magnitudes of each task vector as outliers and the smallest as noise (Davari and Belilovsky, ECCV 2024),
//! with mergekit's conventions: per tensor, `gamma` of the largest go first, and fewer of them where `density` could not be met otherwise. All
//! magnitudes that tie with one kept are kept.

use super::{
    Base, Combine, Default, Kind, Method, ParameterSpec, Pass, Scope, Settings,
    sparse::{Band, COMMON, Sparse, normalize, rescale},
    ties::share,
};

/// The weighted sum of what is left.
pub(super) struct Breadcrumbs;
/// With TIES's election of signs.
pub(super) struct BreadcrumbsTies;

const PARAMETERS: &[ParameterSpec] = &[
    COMMON[0],
    COMMON[1],
    ParameterSpec {
        name: "gamma",
        scope: Scope::Model,
        kind: Kind::Number(0.0, 1.0),
        default: Default::Number(0.01),
        doc: "Share of the largest magnitudes that is dropped.",
    },
    COMMON[2],
    normalize(false),
    rescale(false),
];

fn prepare(settings: &Settings, pass: &Pass<'_>, elect: bool) -> Box<dyn Combine> {
    let (densities, gammas) = (settings.per_model("density"), settings.per_model("gamma"));
    let band = Band::prepare(pass, |tensor, model| {
        let (density, elements) = (densities[tensor][model], pass.elements()[tensor]);
        let (kept, top) = (share(density, elements), share(gammas[tensor][model], elements));
        if density >= 1.0 {
            return Some((0, elements.saturating_sub(1) as u64));
        }
        let bottom = elements.saturating_sub(kept + top);
        (kept > 0).then(|| (bottom as u64, (bottom + kept - 1) as u64))
    });
    Box::new(Sparse::prepare(settings, pass, band, elect, true))
}

impl Method for Breadcrumbs {
    fn name(&self) -> &'static str {
        "breadcrumbs"
    }

    fn summary(&self) -> &'static str {
        "drop the largest and the smallest magnitudes of each task vector, sum the rest (Davari and Belilovsky, Model Breadcrumbs, ECCV 2024)"
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

impl Method for BreadcrumbsTies {
    fn name(&self) -> &'static str {
        "breadcrumbs_ties"
    }

    fn summary(&self) -> &'static str {
        "Model Breadcrumbs with TIES's election of signs (Davari and Belilovsky, ECCV 2024; mergekit)"
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
