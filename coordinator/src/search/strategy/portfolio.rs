//! A portfolio of strategies: each gets a share of the offspring by what it gained.
//!
//! After a round in which each draws a few, the next to draw is chosen with a probability that grows with what its offspring added to the best, older
//! gains counting less (probability matching, as in adaptive operator selection: Thierens 2005). None falls below a least share.

use std::collections::BTreeMap;

use evolver_common::suggest;
use rand_chacha::ChaCha8Rng;

use super::{Open, Proposal, STRATEGIES, Start, Strategy, Told, draws};
use crate::search::{
    model::{Individual, Plugin, SetupError},
    settings::{Default, Entry, Kind, Parameter, Settings},
};

pub(super) const ENTRY: Entry<Open> = Entry {
    name: "portfolio",
    version: 1,
    summary: "several strategies, each with a share of the budget by what it gains",
    source: "Thierens, An adaptive pursuit strategy for allocating operator probabilities, GECCO 2005",
    parameters: &[&[
        Parameter {
            name: "strategies",
            kind: Kind::Texts,
            default: Default::Open,
            doc: "The strategies; by default evolver_merger, cma_es over task arithmetic's weights, and recipes.",
        },
        Parameter {
            name: "settings",
            kind: Kind::Table,
            default: Default::Open,
            doc: "Keys of each strategy, for instance { cma_es = { method = \"ties\" } }.",
        },
        Parameter {
            name: "warmup",
            kind: Kind::Integer(1, 10_000),
            default: Default::Number(4.0),
            doc: "Offspring that each draws before gains decide.",
        },
        Parameter {
            name: "least_share",
            kind: Kind::Number(0.0, 0.5),
            default: Default::Number(0.1),
            doc: "Share of the offspring that each gets whatever it gains.",
        },
        Parameter {
            name: "memory",
            kind: Kind::Number(0.0, 1.0),
            default: Default::Number(0.9),
            doc: "What is left of earlier gains after each offspring of a strategy.",
        },
    ]],
    open: |settings, start| Ok(Box::new(Portfolio::open(settings, start)?)),
};

/// Those that were best together on simulated landscapes and on a real task; `docs/search.md` has the tables.
const DEFAULTS: [&str; 3] = ["evolver_merger", "cma_es", "recipes"];

struct Member {
    strategy: Box<dyn Strategy>,
    drawn: u64,
    /// Mean gain of its offspring, the later ones more.
    gain: f64,
}

struct Portfolio {
    members: Vec<Member>,
    warmup: u64,
    least: f64,
    memory: f64,
    /// Whose the offspring under way are, and their numbers there.
    owners: BTreeMap<u64, (usize, u64)>,
    /// The best so far of all of them.
    best: f64,
    population: Vec<Individual>,
}

impl Portfolio {
    fn open(settings: &Settings, start: &Start<'_>) -> Result<Self, SetupError> {
        let mut names = settings.texts("strategies");
        let mut tables = settings.table("settings");
        if names.is_empty() {
            names = DEFAULTS.to_vec();
            tables
                .entry("cma_es")
                .or_insert_with(|| serde_json::json!({ "method": "task_arithmetic", "ranges": { "weight": [0.0, 1.5, 0.35] } }));
        }
        if let Some(other) = tables.keys().find(|key| !names.contains(&key.as_str())) {
            return Err(SetupError(format!(
                "search.settings: {} is not among search.strategies",
                suggest::unknown(other, names.iter().copied())
            )));
        }
        let member = |name: &&str| {
            if *name == ENTRY.name {
                return Err(SetupError("search.strategies: a portfolio cannot hold a portfolio".into()));
            }
            let parameters = match tables.get(*name) {
                None => serde_json::Map::new(),
                Some(serde_json::Value::Object(table)) => table.clone(),
                Some(other) => return Err(SetupError(format!("search.settings.{name} is {other}: a table is expected"))),
            };
            let plugin = Plugin { name: (*name).to_owned(), parameters };
            let (entry, settings) = super::find("search", "strategies", STRATEGIES, &plugin)?;
            let strategy = (entry.open)(&settings, start).map_err(|error| SetupError(format!("strategy {name}: {error}")))?;
            Ok(Member { strategy, drawn: 0, gain: 0.0 })
        };
        let members = names.iter().map(member).collect::<Result<Vec<_>, _>>()?;
        let best = start.members.iter().map(|member| member.dev).fold(f64::NEG_INFINITY, f64::max);
        let mut this = Self {
            members,
            warmup: settings.integer("warmup"),
            least: settings.number("least_share"),
            memory: settings.number("memory"),
            owners: BTreeMap::new(),
            best,
            population: Vec::new(),
        };
        this.gather();
        Ok(this)
    }

    fn gather(&mut self) {
        self.population = self.members.iter().flat_map(|member| member.strategy.population().iter().cloned()).collect();
        self.population.sort_by_key(|individual| individual.number);
        self.population.dedup_by_key(|individual| individual.id);
    }

    /// Whose turn it is.
    fn turn(&self, random: &mut ChaCha8Rng) -> usize {
        if let Some(fresh) = (0..self.members.len())
            .filter(|&one| self.members[one].drawn < self.warmup)
            .min_by_key(|&one| self.members[one].drawn)
        {
            return fresh;
        }
        let total: f64 = self.members.iter().map(|member| member.gain).sum();
        #[expect(clippy::cast_precision_loss, reason = "a count of strategies")]
        let count = self.members.len() as f64;
        let least = self.least.min(1.0 / count);
        let share = |member: &Member| if total > 0.0 { least + (1.0 - count * least) * member.gain / total } else { 1.0 };
        let shares: Vec<f64> = self.members.iter().map(share).collect();
        draws::weighted(&shares, random)
    }

    fn own(&mut self, offspring: u64, owner: usize) -> u64 {
        let member = &mut self.members[owner];
        let number = member.drawn;
        member.drawn += 1;
        self.owners.insert(offspring, (owner, number));
        number
    }
}

impl Strategy for Portfolio {
    fn ask(&mut self, offspring: u64, random: &mut ChaCha8Rng) -> Proposal {
        let owner = self.turn(random);
        let number = self.own(offspring, owner);
        self.members[owner].strategy.ask(number, random)
    }

    fn adopt(&mut self, offspring: u64) {
        let number = self.own(offspring, 0);
        self.members[0].strategy.adopt(number);
    }

    fn rival(&self, offspring: u64) -> Option<&Individual> {
        let (owner, number) = self.owners.get(&offspring)?;
        self.members[*owner].strategy.rival(*number)
    }

    fn tell(&mut self, offspring: u64, told: &Told<'_>) {
        let Some((owner, number)) = self.owners.remove(&offspring) else { return };
        let member = &mut self.members[owner];
        member.strategy.tell(number, told);
        let gain = if told.accepted && told.individual.dev > self.best { told.individual.dev - self.best } else { 0.0 };
        member.gain = self.memory * member.gain + (1.0 - self.memory) * gain;
        if told.accepted && told.individual.dev > self.best {
            self.best = told.individual.dev;
        }
        self.gather();
    }

    fn population(&self) -> &[Individual] {
        &self.population
    }

    fn generation(&self) -> u64 {
        self.members.iter().map(|member| member.strategy.generation()).sum()
    }

    fn least(&self) -> u64 {
        // Each draws its few; what a member by itself would need is what gains decide.
        self.warmup * self.members.len() as u64
    }
}
