//! Evolution of recipes: which models, which method, which parameters, and which layers each merge gives.
//!
//! A genome is one to `segments` merges, one above the other: each gives the layers from where the one below ends. The first offspring are random genomes;
//! later ones come of two parents by exchanging whole segments, and of mutation: a model more or less, another method, a moved number, a moved or
//! new split. An offspring competes for the place of the worst member.

use std::collections::BTreeMap;

use evolver_common::{
    merge::{self, Method, ParameterSpec, Scope, find},
    recipe::{Op, Parameters, Recipe, Value},
};
use rand::RngExt as _;
use rand_chacha::ChaCha8Rng;

use super::{
    Open, Proposal, Start, Strategy, Told, draws,
    merging::{MODELS, Merging, chosen},
};
use crate::search::{
    model::{Individual, SetupError},
    settings::{Default, Entry, Kind, Parameter, Settings},
};

/// Methods that are tried by default: each merges any number of models and has no needs beyond a base.
const METHODS: [&str; 6] = ["linear", "task_arithmetic", "ties", "dare_linear", "breadcrumbs", "pcb"];

pub(super) const ENTRY: Entry<Open> = Entry {
    name: "recipes",
    version: 1,
    summary: "evolution of the models, the method, the parameters and the layer ranges of merges",
    source: "Akiba et al., Evolutionary Optimization of Model Merging Recipes, Nature Machine Intelligence 2025",
    parameters: &[&[
        MODELS,
        Parameter {
            name: "methods",
            kind: Kind::Texts,
            default: Default::Open,
            doc: "Merge methods that are tried; by default linear, task_arithmetic, ties, dare_linear, breadcrumbs and pcb.",
        },
        Parameter {
            name: "size",
            kind: Kind::Integer(2, 10_000),
            default: Default::Number(12.0),
            doc: "Members of the population; as many first offspring are random.",
        },
        Parameter {
            name: "segments",
            kind: Kind::Integer(1, 64),
            default: Default::Number(2.0),
            doc: "Most layer ranges of one recipe.",
        },
        Parameter {
            name: "mutation_rate",
            kind: Kind::Number(0.0, 1.0),
            default: Default::Number(0.3),
            doc: "Probability with which each part of a genome is mutated.",
        },
    ]],
    open: |settings, start| Ok(Box::new(Recipes::open(settings, start)?)),
};

/// A merge of some of the models.
#[derive(Clone)]
struct Segment {
    /// Relative depth from which the next segment gives the layers.
    until: f64,
    method: usize,
    /// Which models take part.
    models: Vec<bool>,
    /// Numbers by parameter; one for the merge, or one per model.
    numbers: BTreeMap<&'static str, Vec<f64>>,
}

type Genome = Vec<Segment>;

struct Recipes {
    models: Vec<Individual>,
    mergings: Vec<(&'static dyn Method, Merging)>,
    size: usize,
    segments: usize,
    rate: f64,
    members: Vec<Individual>,
    genomes: Vec<Genome>,
    drawn: BTreeMap<u64, Option<Genome>>,
}

/// A range in which a parameter is tried.
fn range(spec: &ParameterSpec) -> Option<(f64, f64)> {
    match spec.kind {
        merge::Kind::Number(low, high) | merge::Kind::Constant(low, high) => {
            let default = if let merge::Default::Number(number) = spec.default { number } else { 0.0 };
            Some((low.max(0.0), high.min((2.0 * default).max(1.0))))
        }
        _ => None,
    }
}

impl Recipes {
    fn open(settings: &Settings, start: &Start<'_>) -> Result<Self, SetupError> {
        let models = chosen(settings, start)?;
        if models.len() < 2 {
            return Err(SetupError(format!("strategy recipes merges at least two models, and there are {}", models.len())));
        }
        let mut names = settings.texts("methods");
        if names.is_empty() {
            names = METHODS.to_vec();
        }
        let merging = |name: &&str| {
            let method = find(name).map_err(|error| SetupError(format!("search.methods: {error}")))?;
            let merging = Merging::plain(name, start)?;
            // For its refusals: two models and all of them have to be possible.
            merging.of_all(models.iter().map(|model| &model.recipe))?;
            merging.of_all(models[..2].iter().map(|model| &model.recipe))?;
            Ok((method, merging))
        };
        Ok(Self {
            mergings: names.iter().map(merging).collect::<Result<_, SetupError>>()?,
            models,
            size: settings.count("size"),
            segments: settings.count("segments"),
            rate: settings.number("mutation_rate"),
            members: Vec::new(),
            genomes: Vec::new(),
            drawn: BTreeMap::new(),
        })
    }

    fn random_segment(&self, random: &mut ChaCha8Rng) -> Segment {
        let models = self.models.iter().map(|_| random.random::<f64>() < 0.7).collect();
        let mut segment =
            Segment { until: 1.0, method: draws::index(self.mergings.len(), random), models, numbers: BTreeMap::new() };
        self.complete(&mut segment, random);
        segment
    }

    /// At least two models, and a number for every parameter of the method.
    fn complete(&self, segment: &mut Segment, random: &mut ChaCha8Rng) {
        while segment.models.iter().filter(|takes_part| **takes_part).count() < 2 {
            let more = draws::index(segment.models.len(), random);
            segment.models[more] = true;
        }
        let specs = self.mergings[segment.method].0.parameters();
        segment.numbers.retain(|name, _| specs.iter().any(|spec| spec.name == *name));
        for spec in specs {
            let Some((low, high)) = range(spec) else { continue };
            if segment.numbers.contains_key(spec.name) {
                continue;
            }
            let default = if let merge::Default::Number(number) = spec.default { number } else { low };
            let count = if spec.scope == Scope::Model { self.models.len() } else { 1 };
            // Half of them begin with the method's default.
            let number = |_| if random.random::<bool>() { default } else { low + random.random::<f64>() * (high - low) };
            segment.numbers.insert(spec.name, (0..count).map(number).collect());
        }
    }

    fn child(&self, random: &mut ChaCha8Rng) -> (Genome, Vec<usize>) {
        let parents = [0; 2].map(|_| {
            let pair = [0; 2].map(|_| draws::index(self.members.len(), random));
            if self.members[pair[1]].dev > self.members[pair[0]].dev { pair[1] } else { pair[0] }
        });
        let mut child = self.genomes[parents[0]].clone();
        let other = &self.genomes[parents[1]];
        for segment in &mut child {
            if random.random::<f64>() < 0.5 {
                let until = segment.until;
                *segment = Segment { until, ..other[draws::index(other.len(), random)].clone() };
            }
        }
        if child.len() < self.segments && random.random::<f64>() < self.rate / 2.0 {
            let mut lower = self.random_segment(random);
            lower.until = random.random::<f64>();
            child.push(lower);
        } else if child.len() > 1 && random.random::<f64>() < self.rate / 2.0 {
            child.remove(draws::index(child.len(), random));
        }
        for segment in &mut child {
            self.mutate(segment, random);
        }
        child.sort_by(|a, b| a.until.total_cmp(&b.until));
        (child, parents.to_vec())
    }

    fn mutate(&self, segment: &mut Segment, random: &mut ChaCha8Rng) {
        if random.random::<f64>() < self.rate {
            let model = draws::index(segment.models.len(), random);
            segment.models[model] = !segment.models[model];
        }
        if random.random::<f64>() < self.rate / 3.0 {
            segment.method = draws::index(self.mergings.len(), random);
        }
        self.complete(segment, random);
        for spec in self.mergings[segment.method].0.parameters() {
            let Some((low, high)) = range(spec) else { continue };
            for number in segment.numbers.get_mut(spec.name).into_iter().flatten() {
                if random.random::<f64>() < self.rate {
                    *number = (*number + 0.15 * (high - low) * draws::normal(random)).clamp(low, high);
                }
            }
        }
        if random.random::<f64>() < self.rate {
            segment.until = (segment.until + 0.2 * draws::normal(random)).clamp(0.0, 1.0);
        }
    }

    fn merge(&self, segment: &Segment) -> Recipe {
        let merging = &self.mergings[segment.method];
        let mut merge = Parameters::new();
        let mut models = vec![Parameters::new(); self.models.len()];
        for spec in merging.0.parameters() {
            let Some(numbers) = segment.numbers.get(spec.name) else { continue };
            if spec.scope == Scope::Model {
                for (table, number) in models.iter_mut().zip(numbers) {
                    table.insert(spec.name.to_owned(), Value::Number(*number));
                }
            } else {
                merge.extend(numbers.first().map(|number| (spec.name.to_owned(), Value::Number(*number))));
            }
        }
        let models = self.models.iter().zip(models).zip(&segment.models).filter(|(_, takes_part)| **takes_part);
        let models = models.map(|((model, table), _)| (model.recipe.clone(), table)).collect();
        // What a method refuses at these numbers is scored as its first model alone, and loses.
        merging.1.of(models, merge).unwrap_or_else(|_| self.models[0].recipe.clone())
    }

    fn recipe(&self, genome: &[Segment]) -> Recipe {
        let mut layers = genome.iter().map(|segment| (segment.until, self.merge(segment)));
        let (mut until, mut recipe) = layers.next().unwrap_or_else(|| (1.0, self.models[0].recipe.clone()));
        for (next, upper) in layers {
            if upper != recipe {
                recipe = Recipe::new(Op::Splice { first: recipe, second: upper, at: until });
            }
            until = next;
        }
        recipe
    }
}

impl Strategy for Recipes {
    fn ask(&mut self, offspring: u64, random: &mut ChaCha8Rng) -> Proposal {
        let (genome, parents) = if offspring < self.size as u64 || self.members.len() < 2 {
            (vec![self.random_segment(random)], Vec::new())
        } else {
            self.child(random)
        };
        let recipe = self.recipe(&genome);
        self.drawn.insert(offspring, Some(genome));
        Proposal { recipe, parents: parents.into_iter().map(|parent| self.members[parent].id).collect() }
    }

    fn adopt(&mut self, offspring: u64) {
        self.drawn.insert(offspring, None);
    }

    fn rival(&self, _: u64) -> Option<&Individual> {
        if self.members.len() < self.size { None } else { self.members.iter().min_by(|a, b| a.dev.total_cmp(&b.dev)) }
    }

    fn tell(&mut self, offspring: u64, told: &Told<'_>) {
        // A model from outside has no genome to breed from; it can still be the best.
        let Some(Some(genome)) = self.drawn.remove(&offspring) else { return };
        if !told.accepted || told.individual.dev.is_nan() {
            return;
        }
        if self.members.len() >= self.size
            && let Some(worst) = (0..self.members.len()).min_by(|&a, &b| self.members[a].dev.total_cmp(&self.members[b].dev))
        {
            self.members.remove(worst);
            self.genomes.remove(worst);
        }
        self.members.push(told.individual.clone());
        self.genomes.push(genome);
    }

    fn population(&self) -> &[Individual] {
        &self.members
    }

    fn generation(&self) -> u64 {
        self.size as u64
    }

    fn least(&self) -> u64 {
        self.size as u64
    }
}
