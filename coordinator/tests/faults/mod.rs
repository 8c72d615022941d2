//! A whole fleet in one thread: the real coordinator core with its protocol, and around it simulated workers, network, disk and clock.
//!
//! Everything that happens follows from a [`Plan`]: a seed, and a list of faults, which can be shortened until nothing can be left out. Scores are a
//! pure function of the model, so the end is known beforehand.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails by panicking, and says what it saw")]

mod machine;
mod network;

use std::{cell::RefCell, collections::BTreeMap, rc::Rc, time::Duration};

use evolver_common::{
    definition::Resolved,
    digest::Digest,
    recipe::decode,
    score::{Scores, TaskScore},
};
use evolver_coordinator::{
    journal::{JournalError, Log, Record},
    search::{Outcome, Search, Spec},
    service::{Command, Core, replay},
    setup,
};
use evolver_proto::v1;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use self::machine::Machine;
pub(crate) use self::network::{Answer, Request};
use crate::world::{DEV, TEST, resolved};

/// Milliseconds of simulated time.
type Time = u64;

/// Faults fall into this time.
const STORM: Time = 240_000;
/// After this time of quiet a search that has not ended stands still.
const QUIET: Time = 4 * 3_600_000;
/// Machines at the beginning.
const MACHINES: usize = 4;

/// What can go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// The coordinator is killed between two steps.
    Kill,
    /// It is killed while it writes, before what it writes is on disk.
    KillBeforeSync,
    /// It is killed when it is on disk, before anyone is told.
    KillAfterSync,
    /// Its disk is full for a while.
    DiskFull,
    /// A machine vanishes, and another comes.
    Vanish,
    /// An agent dies, and another starts on the same disk.
    Agent,
    /// A machine stands still for up to three minutes, then goes on.
    Pause,
    /// A machine is preempted with notice.
    Preempt,
    /// A machine's messages do not arrive.
    Mute,
    /// A machine does not hear.
    Deaf,
    /// The network loses and doubles messages.
    Noise,
    /// A machine fails on all that it does.
    Sick,
    /// A scoring process is killed.
    ChildKilled,
    /// A scoring fails for once.
    ChildFailed,
    /// A report holds NaN.
    NotANumber,
    /// A scoring never ends.
    Hang,
    /// A second worker comes under a name that is taken.
    SameName,
    /// An operator pauses the search for a while.
    Operator,
}

const KINDS: [Kind; 18] = [
    Kind::Kill,
    Kind::KillBeforeSync,
    Kind::KillAfterSync,
    Kind::DiskFull,
    Kind::Vanish,
    Kind::Agent,
    Kind::Pause,
    Kind::Preempt,
    Kind::Mute,
    Kind::Deaf,
    Kind::Noise,
    Kind::Sick,
    Kind::ChildKilled,
    Kind::ChildFailed,
    Kind::NotANumber,
    Kind::Hang,
    Kind::SameName,
    Kind::Operator,
];

/// One fault.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    at: Time,
    kind: Kind,
    /// Which machine, how long: read as the fault needs it.
    choice: u32,
}

/// A world.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    seed: u64,
    faults: Vec<Fault>,
    /// Whether one worker always reports two items too many; then every result is compared.
    liar: bool,
    /// Each machine is preempted in the middle of so many scorings, and another takes its place.
    preempted_after: Option<u32>,
    /// Scoring takes at most two seconds.
    quick: bool,
    offspring: Option<u64>,
}

impl Plan {
    pub(crate) fn of(seed: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let count = random.random_range(0..=12);
        let mut fault = || Fault {
            at: random.random_range(0..STORM),
            kind: KINDS[random.random_range(0..KINDS.len())],
            choice: random.random_range(0..u32::MAX),
        };
        let mut faults: Vec<_> = (0..count).map(|_| fault()).collect();
        // One machine that is not well is a fault; three would be three words against every model.
        let mut sick = false;
        faults.retain(|fault| fault.kind != Kind::Sick || !std::mem::replace(&mut sick, true));
        faults.sort_by_key(|fault| fault.at);
        Self { seed, faults, liar: random.random_range(0..4) == 0, preempted_after: None, quick: false, offspring: None }
    }

    /// A longer search on machines that are preempted again and again, and in which nothing else goes wrong.
    pub(crate) fn preempting(seed: u64, after: u32) -> Self {
        Self { seed, faults: Vec::new(), liar: false, preempted_after: Some(after), quick: false, offspring: Some(150) }
    }

    /// A search from which machines vanish without a word.
    pub(crate) fn vanishing(seed: u64) -> Self {
        let fault =
            |at: u64| Fault { at: 3000 + 9000 * at, kind: Kind::Vanish, choice: u32::try_from(at * 7919 + seed).unwrap() };
        Self { seed, faults: (0..20).map(fault).collect(), liar: false, preempted_after: None, quick: true, offspring: Some(400) }
    }

    /// The shortest list of faults that still goes wrong.
    pub(crate) fn minimised(&self, goes_wrong: impl Fn(&Plan) -> bool) -> Plan {
        let mut plan = self.clone();
        let mut size = plan.faults.len().max(1);
        while size > 0 {
            let mut at = 0;
            while at < plan.faults.len() {
                let mut shorter = plan.clone();
                shorter.faults.drain(at..(at + size).min(plan.faults.len()));
                if goes_wrong(&shorter) {
                    plan = shorter;
                } else {
                    at += size;
                }
            }
            size /= 2;
        }
        plan
    }

    /// The search of this world: one of many kinds.
    fn resolved(&self) -> Resolved {
        let mut random = ChaCha8Rng::seed_from_u64(self.seed ^ 0x5eed);
        let mut pick = |values: &[Value]| values[random.random_range(0..values.len())].clone();
        let search = json!({
            "strategy": "evolver", "seed": self.seed, "in_flight": pick(&[1.into(), 2.into(), 4.into(), 8.into()]),
            "mutation": pick(&["interpolation".into(), "difference".into()]),
            "per": pick(&["parameter".into(), "tensor".into()]),
        });
        let rule = pick(&["greedy".into(), "paired".into()]);
        let offspring = pick(&[4.into(), 8.into(), 14.into()]);
        let offspring = self.offspring.map_or(offspring, Value::from);
        let every = if self.liar { 1.into() } else { pick(&[0.into(), 1.into(), 4.into(), 50.into()]) };
        resolved(|definition| {
            definition["search"] = search;
            definition["acceptance"] = json!({ "rule": rule });
            definition["stop"] = json!({ "offspring": offspring });
            definition["tasks"][0]["metric"] = "accuracy".into();
            definition["fleet"] = json!({ "lease_seconds": 60.0, "heartbeat_seconds": 10.0, "check_every": every });
        })
    }
}

/// How a model ends, whoever works on it: one in twenty-four fails every time.
pub(crate) fn truth(recipe: &[u8], items: usize) -> Outcome {
    let id = decode(recipe).unwrap().id();
    let drawn = Digest::of_parts("truth", [id.as_bytes().as_slice(), &items.to_le_bytes()]);
    let bytes = drawn.as_bytes();
    if bytes[31] < 10 {
        return Outcome::Failed("doomed".into());
    }
    let credits = bytes.iter().take(items).map(|byte| if *byte < 90 + bytes[30] / 3 { 1.0 } else { 0.0 });
    Outcome::Scored(scored(credits.collect()))
}

fn scored(credits: Vec<f32>) -> Scores {
    #[expect(clippy::cast_precision_loss, reason = "a few items")]
    let accuracy = credits.iter().map(|credit| f64::from(*credit)).sum::<f64>() / credits.len() as f64;
    Scores { tasks: vec![TaskScore { task: "t".into(), metrics: BTreeMap::from([("accuracy".into(), accuracy)]), credits }] }
}

/// What a worker says that always claims two items more.
fn lie(scores: &Scores) -> Scores {
    let mut credits = scores.tasks[0].credits.clone();
    credits.iter_mut().filter(|credit| **credit < 1.0).take(2).for_each(|credit| *credit = 1.0);
    scored(credits)
}

fn items(spec: &Spec) -> usize {
    if spec.portion.split == evolver_common::score::Split::Test { TEST } else { DEV }
}

/// Where the undisturbed search ends.
fn undisturbed(resolved: &Resolved) -> (Digest, Option<Digest>, u64) {
    let mut search = Search::new(setup::search(resolved).unwrap()).unwrap();
    let outcome = |spec: &Spec| truth(&evolver_common::recipe::encode(&spec.recipe), items(spec));
    while let Some(spec) = search.ask() {
        search.tell(spec.number, outcome(&spec)).unwrap();
    }
    for spec in search.tests() {
        search.tell(spec.number, outcome(&spec)).unwrap();
    }
    (search.state_hash(), search.best().map(|best| best.id), search.counters().committed)
}

/// The coordinator's disk: what is on it outlasts every coordinator.
#[derive(Default)]
struct Disk {
    records: Vec<Record>,
    full: bool,
    /// The next append ends the coordinator: with its records on disk, or without.
    fatal: Option<bool>,
}

#[derive(Clone, Default)]
struct Shared(Rc<RefCell<Disk>>);

impl Log for Shared {
    fn append(&mut self, records: &[Record]) -> Result<(), JournalError> {
        let mut disk = self.0.borrow_mut();
        let refuse = |kind| Err(JournalError::Folder { path: "simulated".into(), source: std::io::Error::from(kind) });
        if disk.full && !records.is_empty() {
            return refuse(std::io::ErrorKind::StorageFull);
        }
        match disk.fatal.take() {
            Some(false) => return refuse(std::io::ErrorKind::Interrupted),
            Some(true) => {
                disk.records.extend_from_slice(records);
                return refuse(std::io::ErrorKind::Interrupted);
            }
            None => disk.records.extend_from_slice(records),
        }
        Ok(())
    }

    fn records(&self) -> Result<Vec<Record>, JournalError> {
        Ok(self.0.borrow().records.clone())
    }

    fn has_room(&self) -> bool {
        !self.0.borrow().full
    }
}

/// What has happened, to show that the faults fired.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen(pub(crate) BTreeMap<&'static str, u64>);

impl Seen {
    pub(crate) fn add(&mut self, what: &'static str, count: u64) {
        *self.0.entry(what).or_default() += count;
    }

    pub(crate) fn merge(&mut self, other: &Seen) {
        other.0.iter().for_each(|(what, count)| self.add(what, *count));
    }
}

/// What is to come.
enum Event {
    Arrive { machine: usize, serial: u64, request: Request },
    Answer { machine: usize, serial: u64, answer: Answer },
    Wake { machine: usize },
    Fault(usize),
    Start,
    Step,
    Deliver,
    Calm(Kind, usize),
    Preempt(usize),
}

/// A world under way.
pub(crate) struct World {
    plan: Plan,
    resolved: Resolved,
    random: ChaCha8Rng,
    now: Time,
    /// When the present coordinator started.
    since: Time,
    core: Option<Core<Shared>>,
    disk: Shared,
    queue: BTreeMap<(Time, u64), Event>,
    serial: u64,
    machines: Vec<Machine>,
    /// Requests that the coordinator has not answered.
    open: Vec<network::Open>,
    /// What has reached the coordinator and waits for its next step.
    inbox: Vec<Command>,
    noise: bool,
    /// Passing failures so far, by work.
    failed_once: BTreeMap<Digest, u32>,
    /// Results that were acknowledged: number, recipe, worker.
    acknowledged: Vec<(u64, Digest, String)>,
    begun: u64,
    /// Specs whose machine vanished, and when.
    vanished: BTreeMap<u64, Time>,
    /// A contract that was broken.
    violation: Option<String>,
    pub(crate) seen: Seen,
}

impl World {
    pub(crate) fn new(plan: &Plan) -> Self {
        let mut this = Self {
            resolved: plan.resolved(),
            random: ChaCha8Rng::seed_from_u64(plan.seed ^ 0xc0de),
            plan: plan.clone(),
            now: 0,
            since: 0,
            core: None,
            disk: Shared::default(),
            queue: BTreeMap::new(),
            serial: 0,
            machines: Vec::new(),
            open: Vec::new(),
            inbox: Vec::new(),
            noise: false,
            failed_once: BTreeMap::new(),
            acknowledged: Vec::new(),
            begun: 0,
            vanished: BTreeMap::new(),
            violation: None,
            seen: Seen::default(),
        };
        this.at(0, Event::Start);
        this.at(0, Event::Step);
        for _ in 0..MACHINES {
            this.join();
        }
        this.machines[0].liar = plan.liar;
        for (index, fault) in plan.faults.clone().into_iter().enumerate() {
            this.at(fault.at, Event::Fault(index));
        }
        this
    }

    /// Runs to the end and checks what must hold then.
    pub(crate) fn run(mut self) -> Result<Seen, String> {
        let mut calm = false;
        while let Some(((now, _), event)) = self.queue.pop_first() {
            self.now = now;
            if now >= STORM && !calm {
                calm = true;
                self.settle();
            }
            if now > STORM + QUIET {
                let status = self.core.as_ref().map(Core::status);
                return Err(format!("P5: it stands still: {status:?}"));
            }
            self.handle(event)?;
            if let Some(violation) = self.violation.take() {
                return Err(violation);
            }
            if calm && self.core.as_ref().is_some_and(|core| core.status().finished) {
                break;
            }
        }
        self.check()
    }

    fn at(&mut self, time: Time, event: Event) {
        self.serial += 1;
        self.queue.insert((time, self.serial), event);
    }

    fn after(&mut self, delay: Time, event: Event) {
        self.at(self.now + delay, event);
    }

    fn join(&mut self) -> usize {
        let machine = self.machines.len();
        self.machines.push(Machine::new(format!("w{machine}/1")));
        self.after(1, Event::Wake { machine });
        machine
    }

    fn handle(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Arrive { machine, serial, request } => self.arrive(machine, serial, request),
            Event::Answer { machine, serial, answer } => {
                self.heard(machine, serial, answer);
                Ok(())
            }
            Event::Wake { machine } => {
                self.wake(machine);
                Ok(())
            }
            Event::Deliver => {
                let commands = std::mem::take(&mut self.inbox);
                self.step(commands)
            }
            Event::Fault(index) => self.fault(index),
            Event::Start => self.start(),
            Event::Step => {
                self.step(Vec::new())?;
                self.after(500, Event::Step);
                Ok(())
            }
            Event::Calm(kind, machine) => self.calm(kind, machine),
            Event::Preempt(machine) => {
                self.preempt(machine);
                self.join();
                Ok(())
            }
        }
    }

    fn start(&mut self) -> Result<(), String> {
        if self.core.is_some() {
            return Ok(());
        }
        let records = self.disk.records().unwrap();
        let seed = self.random.random();
        let core = Core::start(self.disk.clone(), &records, &self.resolved, true, seed);
        match core {
            Ok(core) => {
                self.since = self.now;
                self.hold(&core, &records)?;
                self.core = Some(core);
            }
            // The disk is full still, or the start was killed as well.
            Err(_) => self.after(1000, Event::Start),
        }
        Ok(())
    }

    /// What must hold whenever a coordinator starts: everything acknowledged is there.
    fn hold(&mut self, core: &Core<Shared>, records: &[Record]) -> Result<(), String> {
        for (number, recipe, worker) in &self.acknowledged {
            let there = records.iter().any(|record| {
                matches!(record, Record::Result { number: of, recipe: is, worker: by, .. } if (of, is, by) == (number, recipe, worker))
            });
            if !there {
                return Err(format!("P1: the result of spec {number} by {worker} was acknowledged and is lost"));
            }
        }
        let folded = replay(records, Some(&self.resolved)).map_err(|error| format!("P3: {error}"))?;
        if folded.search.state_hash() != core.replay().search.state_hash() {
            return Err("P3: the journal folds to another state".into());
        }
        Ok(())
    }

    fn step(&mut self, commands: Vec<Command>) -> Result<(), String> {
        let Some(core) = &mut self.core else { return Ok(()) };
        let elapsed = Duration::from_millis(self.now - self.since);
        if core.step(elapsed, commands).is_err() {
            self.down("killed while writing");
        }
        self.collect();
        Ok(())
    }

    fn down(&mut self, how: &'static str) {
        self.seen.add(how, 1);
        // Answers that were on their way out are delivered by whoever collects them first.
        self.collect();
        self.core = None;
        self.open.clear();
        self.inbox.clear();
        let pause = self.random.random_range(100..20_000);
        self.after(pause, Event::Start);
    }

    fn fault(&mut self, index: usize) -> Result<(), String> {
        let fault = self.plan.faults[index];
        let machine = fault.choice as usize % self.machines.len();
        let long = u64::from(fault.choice >> 8);
        match fault.kind {
            Kind::Kill if self.core.is_some() => self.down("killed"),
            Kind::KillBeforeSync => self.disk.0.borrow_mut().fatal = Some(false),
            Kind::KillAfterSync => self.disk.0.borrow_mut().fatal = Some(true),
            Kind::DiskFull => {
                self.disk.0.borrow_mut().full = true;
                self.after(5000 + long % 90_000, Event::Calm(Kind::DiskFull, 0));
            }
            Kind::Vanish => {
                let gone = std::mem::replace(&mut self.machines[machine].gone, true);
                if let Some(spec) = self.machines[machine].spec().filter(|_| !gone) {
                    self.vanished.insert(spec, self.now);
                }
                self.seen.add("vanished", 1);
                self.after(long % 40_000, Event::Calm(Kind::Vanish, machine));
            }
            Kind::Agent => {
                self.machines[machine].gone = true;
                self.seen.add("agents killed", 1);
                self.after(long % 10_000, Event::Calm(Kind::Agent, machine));
            }
            Kind::Pause => {
                self.machines[machine].paused_until = self.now + long % 180_000;
                self.seen.add("paused", 1);
                self.after(long % 180_000 + 1, Event::Wake { machine });
            }
            Kind::Preempt => {
                self.preempt(machine);
                self.after(long % 40_000, Event::Calm(Kind::Vanish, machine));
            }
            Kind::Mute | Kind::Deaf => {
                let state = &mut self.machines[machine];
                *(if fault.kind == Kind::Mute { &mut state.mute } else { &mut state.deaf }) = true;
                self.after(5000 + long % 120_000, Event::Calm(fault.kind, machine));
            }
            Kind::Noise => {
                self.noise = true;
                self.after(5000 + long % 60_000, Event::Calm(Kind::Noise, 0));
            }
            Kind::Sick => self.machines[machine].sick = true,
            Kind::ChildKilled | Kind::ChildFailed | Kind::NotANumber | Kind::Hang => {
                self.machines[machine].next = Some(fault.kind);
            }
            Kind::SameName => {
                let name = self.machines[machine].name.clone();
                let other = self.join();
                self.machines[other].name = name;
                self.machines[other].liar = self.machines[machine].liar;
                self.seen.add("same name", 1);
            }
            Kind::Operator => {
                self.operate(true)?;
                self.after(1000 + long % 60_000, Event::Calm(Kind::Operator, 0));
            }
            Kind::Kill => {}
        }
        Ok(())
    }

    fn operate(&mut self, pause: bool) -> Result<(), String> {
        use v1::operate_request::Action;
        let action = if pause { Action::Pause(v1::Pause {}) } else { Action::Resume(v1::Resume {}) };
        let (reply, _) = tokio::sync::oneshot::channel();
        self.step(vec![Command::Operate(v1::OperateRequest { action: Some(action) }, reply)])
    }

    fn calm(&mut self, kind: Kind, machine: usize) -> Result<(), String> {
        match kind {
            Kind::DiskFull => self.disk.0.borrow_mut().full = false,
            Kind::Vanish => {
                let other = self.join();
                self.inherit(other, machine);
            }
            Kind::Agent => {
                let spool = self.machines[machine].spool.take();
                let other = self.join();
                self.machines[other].spool = spool;
                self.inherit(other, machine);
            }
            Kind::Mute => self.machines[machine].mute = false,
            Kind::Deaf => self.machines[machine].deaf = false,
            Kind::Noise => self.noise = false,
            Kind::Operator => self.operate(false)?,
            _ => {}
        }
        Ok(())
    }

    /// Whoever lies lies again, under another name and with the same certificate.
    fn inherit(&mut self, other: usize, from: usize) {
        if self.machines[from].liar {
            self.machines[other].liar = true;
            let voice = self.machines[from].name.split('/').next().unwrap().to_owned();
            self.machines[other].name = format!("{voice}/{}", other + 2);
        }
    }

    /// From here on nothing goes wrong any more, and three healthy workers are there.
    fn settle(&mut self) {
        self.noise = false;
        let mut disk = self.disk.0.borrow_mut();
        (disk.full, disk.fatal) = (false, None);
        drop(disk);
        for machine in &mut self.machines {
            machine.calm(self.now);
        }
        let pause = self.operate(false);
        debug_assert!(pause.is_ok());
        for _ in 0..3 {
            self.join();
        }
        for machine in 0..self.machines.len() {
            self.after(1, Event::Wake { machine });
        }
        self.after(1, Event::Start);
    }

    /// What must hold at the end.
    fn check(mut self) -> Result<Seen, String> {
        let Some(core) = self.core.take() else {
            return Err("P5: the coordinator did not come back".into());
        };
        let (hash, best, committed) = undisturbed(&self.resolved);
        let records = self.disk.records().unwrap();
        self.hold(&core, &records)?;
        let replay = core.replay();
        let search = &replay.search;
        if (search.state_hash(), search.best().map(|best| best.id), search.counters().committed) != (hash, best, committed) {
            if std::env::var_os("EVOLVER_SEED").is_some() {
                for record in records.iter().filter(|record| !matches!(record, Record::Definition { .. })) {
                    println!("{}", format!("{record:?}").chars().take(260).collect::<String>());
                }
            }
            return Err(format!(
                "P4: it ended in another state: best {:?} of {} offspring, not {best:?} of {committed}",
                search.best().map(|best| best.id),
                search.counters().committed
            ));
        }
        let (mut checks, mut attempts, mut results) = (0, 0, 0);
        for record in &records {
            match record {
                Record::Check { workers, .. } => checks += workers.len() as u64,
                Record::Attempt { .. } => attempts += 1,
                Record::Result { .. } => results += 1,
                Record::Distrust { numbers, .. } => {
                    self.seen.add("liars caught", 1);
                    self.seen.add("retracted", numbers.len() as u64);
                }
                Record::Failure { .. } => self.seen.add("given up", 1),
                _ => {}
            }
        }
        self.seen.add("results", results);
        self.seen.add("compared", checks);
        self.seen.add("failed attempts", attempts);
        // P6: beyond what came to something, each fault costs what was under way on what it hit.
        let useful = results + attempts + checks;
        let allowed = useful + (self.machines.len() as u64) * (self.plan.faults.len() as u64 + 2) + 2 * replay.retracted + 10;
        if self.begun > allowed && self.plan.preempted_after.is_none() {
            return Err(format!("P6: {} attempts were begun, {useful} came to something, and {allowed} are allowed", self.begun));
        }
        Ok(self.seen)
    }
}
