//! A machine with an agent that works as the real one does: it registers, leases, scores, spools, reports, and offers again what lost its token.

use evolver_common::digest::Digest;
use evolver_coordinator::search::Outcome;
use evolver_proto::{
    PROTOCOL, scores_to_wire,
    v1::{self, lease_reply, report_reply::Verdict, report_request},
    work_of,
};
use rand::RngExt as _;
use tonic::Code;

use super::{Answer, Event, Kind, Request, Time, World, lie, truth};
use crate::world::{DEV, TEST};

/// A call without an answer is repeated after this time.
const PATIENCE: Time = 25_000;
const HEARTBEAT: Time = 10_000;
/// An agent reports a hang after this time.
const HANG: Time = 90_000;

/// A finished report.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    work: Digest,
    report: v1::ReportRequest,
}

struct Working {
    assignment: v1::Assignment,
    work: Digest,
    done: Time,
    fault: Option<Kind>,
}

/// What an agent is waiting for the answer to.
#[derive(Clone, Debug)]
enum Asking {
    Register,
    Lease(Option<v1::Held>),
    Report,
}

/// A machine.
pub(super) struct Machine {
    pub(super) name: String,
    pub(super) liar: bool,
    pub(super) sick: bool,
    pub(super) gone: bool,
    pub(super) mute: bool,
    pub(super) deaf: bool,
    pub(super) paused_until: Time,
    /// What the next scoring ends by.
    pub(super) next: Option<Kind>,
    pub(super) spool: Option<Stored>,
    epoch: u64,
    asking: Option<(u64, Time, Asking)>,
    /// Not before this time is anything asked.
    rest: Time,
    working: Option<Working>,
    beat: Time,
    beats: u64,
    offers: u32,
}

impl Machine {
    pub(super) fn new(name: String) -> Self {
        Self {
            name,
            liar: false,
            sick: false,
            gone: false,
            mute: false,
            deaf: false,
            paused_until: 0,
            next: None,
            spool: None,
            epoch: 0,
            asking: None,
            rest: 0,
            working: None,
            beat: 0,
            beats: 0,
            offers: 0,
        }
    }

    /// Nothing is wrong with it from now on.
    pub(super) fn calm(&mut self, now: Time) {
        (self.sick, self.mute, self.deaf, self.next) = (false, false, false, None);
        self.paused_until = self.paused_until.min(now);
    }
}

impl World {
    /// What a machine does when its time has come.
    pub(super) fn wake(&mut self, index: usize) {
        let (now, machine) = (self.now, &mut self.machines[index]);
        if machine.gone || now < machine.paused_until {
            return;
        }
        if let Some(working) = &machine.working
            && now >= working.done
        {
            self.end_work(index);
        }
        let machine = &mut self.machines[index];
        if machine.working.is_some() && now >= machine.beat + HEARTBEAT {
            self.heartbeat(index);
        }
        let machine = &mut self.machines[index];
        let waits = machine.asking.as_ref().is_some_and(|(_, since, _)| now < since + PATIENCE);
        if !waits && now >= machine.rest {
            let again = machine.asking.take().map(|(.., asking)| asking);
            let next = match again {
                Some(asking) => Some(asking),
                None if machine.epoch == 0 => Some(Asking::Register),
                None if machine.working.is_some() => None,
                None if machine.spool.is_some() => Some(Asking::Lease(machine.held())),
                None => Some(Asking::Lease(None)),
            };
            if let Some(next) = next {
                self.ask(index, next);
            }
        }
        let machine = &self.machines[index];
        let mut times = vec![now + PATIENCE, machine.rest];
        if let Some(working) = &machine.working {
            times.extend([working.done, machine.beat + HEARTBEAT]);
        }
        if let Some((_, since, _)) = &machine.asking {
            times.push(since + PATIENCE);
        }
        let next = times.into_iter().filter(|time| *time > now).min().unwrap_or(now + 1000);
        self.at(next, Event::Wake { machine: index });
    }

    fn ask(&mut self, index: usize, asking: Asking) {
        self.serial += 1;
        let (serial, now) = (self.serial, self.now);
        let machine = &mut self.machines[index];
        let worker = machine.name.clone();
        let request = match &asking {
            Asking::Register => Request::Register(v1::RegisterRequest {
                protocol: PROTOCOL,
                worker,
                host: "h".into(),
                threads: 1,
                version: "sim".into(),
            }),
            Asking::Lease(held) => {
                Request::Lease(v1::LeaseRequest { worker, epoch: machine.epoch, wait_ms: 10_000, held: held.clone() })
            }
            Asking::Report => match &machine.spool {
                Some(stored) => Request::Report(v1::ReportRequest { worker, ..stored.report.clone() }),
                None => return,
            },
        };
        machine.asking = Some((serial, now, asking));
        self.send(index, serial, request);
    }

    fn heartbeat(&mut self, index: usize) {
        self.serial += 1;
        let (serial, now) = (self.serial, self.now);
        let machine = &mut self.machines[index];
        machine.beat = now;
        machine.beats = serial;
        let Some(working) = &machine.working else { return };
        let (worker, token) = (machine.name.clone(), working.assignment.token);
        let request = v1::HeartbeatRequest { worker, epoch: machine.epoch, token, items_done: 1, items_total: 2 };
        self.send(index, serial, Request::Heartbeat(request));
    }

    /// A machine that is told to leave releases what it has, and is gone.
    pub(super) fn preempt(&mut self, index: usize) {
        self.serial += 1;
        let serial = self.serial;
        let machine = &mut self.machines[index];
        if machine.gone {
            return;
        }
        let request = v1::DrainRequest { worker: machine.name.clone(), epoch: machine.epoch };
        machine.gone = true;
        self.seen.add("preempted", 1);
        self.send(index, serial, Request::Drain(request));
    }

    pub(super) fn heard(&mut self, index: usize, serial: u64, answer: Answer) {
        let now = self.now;
        let machine = &mut self.machines[index];
        if machine.deaf || machine.gone || now < machine.paused_until {
            self.seen.add("answers unheard", 1);
            return;
        }
        if let Answer::Heartbeat(reply) = answer {
            if machine.beats == serial && !reply.valid && machine.working.is_some() && machine.asking.is_none() {
                let held = machine.held();
                self.ask(index, Asking::Lease(held));
            }
            return;
        }
        let Some((of, _, asking)) = &machine.asking else { return };
        if *of != serial {
            return;
        }
        let asking = asking.clone();
        machine.asking = None;
        match (asking, answer) {
            (_, Answer::Error(Code::Unauthenticated)) => machine.epoch = 0,
            (_, Answer::Error(Code::FailedPrecondition | Code::InvalidArgument)) => machine.gone = true,
            (asking, Answer::Error(_)) => {
                machine.rest = now + self.random.random_range(1..4000);
                machine.asking = Some((0, 0, asking));
                self.seen.add("turned away", 1);
            }
            (Asking::Register, Answer::Register(reply)) => machine.epoch = reply.epoch,
            (Asking::Lease(held), Answer::Lease(reply)) => self.leased(index, held.is_some(), reply.outcome.unwrap()),
            (Asking::Report, Answer::Report(reply)) => self.reported(index, &reply),
            _ => {}
        }
        self.wake(index);
    }

    fn leased(&mut self, index: usize, offered: bool, outcome: lease_reply::Outcome) {
        let machine = &mut self.machines[index];
        let lease_reply::Outcome::Assignment(assignment) = outcome else {
            if offered {
                // Nobody wants it any more.
                machine.spool = None;
                machine.working = None;
            }
            if matches!(outcome, lease_reply::Outcome::Leave(_)) {
                // Another coordinator, or an operator, may want it later.
                machine.rest = self.now + 5000;
            }
            return;
        };
        let work = work_of(&assignment);
        if let Some(stored) = machine.spool.as_mut().filter(|stored| stored.work == work) {
            stored.report.token = assignment.token;
            self.seen.add("handed in under a new token", 1);
            return self.ask(index, Asking::Report);
        }
        machine.spool = None;
        if let Some(working) = machine.working.as_mut().filter(|working| working.work == work) {
            working.assignment.token = assignment.token;
            self.seen.add("went on under a new token", 1);
            return;
        }
        let length = self.random.random_range(500..12_000) * if self.random.random_range(0..12) == 0 { 8 } else { 1 };
        let passing = self.failed_once.entry(work).or_default();
        let machine = &mut self.machines[index];
        // What fails for once fails for once on every model, so that it is not given up for that.
        let fault = if machine.sick { Some(Kind::Sick) } else { machine.next.take().filter(|_| *passing < 1) };
        *passing += u32::from(fault.is_some() && fault != Some(Kind::Sick));
        let done = self.now + if fault == Some(Kind::Hang) { HANG } else { length };
        machine.beat = self.now;
        machine.working = Some(Working { assignment, work, done, fault });
        self.begun += 1;
    }

    fn end_work(&mut self, index: usize) {
        let machine = &mut self.machines[index];
        let Some(working) = machine.working.take() else { return };
        let failure = |class: v1::FailureClass, message: &str| {
            report_request::Result::Failure(v1::Failure { class: class.into(), message: message.into() })
        };
        let items = if working.assignment.split() == v1::Split::Test { TEST } else { DEV };
        let result = match (working.fault, truth(&working.assignment.recipe, items)) {
            (Some(Kind::ChildKilled), _) => failure(v1::FailureClass::Killed, "killed"),
            (Some(Kind::Hang), _) => failure(v1::FailureClass::Hang, "hung"),
            (Some(Kind::NotANumber), Outcome::Scored(scores)) => {
                let mut scores = scores_to_wire(&scores);
                scores.tasks[0].credits[0] = f32::NAN;
                report_request::Result::Scores(scores)
            }
            (Some(kind), _) => {
                if kind == Kind::Sick {
                    self.seen.add("failed by a sick machine", 1);
                }
                failure(v1::FailureClass::Crash, "boom")
            }
            (None, Outcome::Failed(reason)) => failure(v1::FailureClass::NonFinite, &reason),
            (None, Outcome::Scored(scores)) => {
                let scores = if machine.liar { lie(&scores) } else { scores };
                report_request::Result::Scores(scores_to_wire(&scores))
            }
        };
        let report = v1::ReportRequest {
            worker: machine.name.clone(),
            token: working.assignment.token,
            result: Some(result),
            timings: None,
        };
        machine.spool = Some(Stored { work: working.work, report });
        machine.offers = 0;
        machine.asking = None;
        self.ask(index, Asking::Report);
    }

    fn reported(&mut self, index: usize, reply: &v1::ReportReply) {
        let machine = &mut self.machines[index];
        let Some(stored) = &machine.spool else { return };
        let scores = matches!(stored.report.result, Some(report_request::Result::Scores(_)));
        match reply.verdict() {
            Verdict::Superseded if scores && machine.offers < 5 => {
                machine.offers += 1;
                let held = machine.held();
                self.seen.add("superseded", 1);
                self.ask(index, Asking::Lease(held));
            }
            Verdict::Committed => {
                // A comparison is not journaled as a result.
                let records = self.disk.0.borrow();
                let token = stored.report.token.unwrap();
                let of = |record: &evolver_coordinator::journal::Record| match record {
                    evolver_coordinator::journal::Record::Result { number, recipe, worker, attempt, .. }
                        if (*number, worker, *attempt) == (token.spec, &machine.name, token.attempt) =>
                    {
                        Some((*number, *recipe, worker.clone()))
                    }
                    _ => None,
                };
                let found = records.records.iter().rev().find_map(of);
                let any = |record: &evolver_coordinator::journal::Record| matches!(record, evolver_coordinator::journal::Record::Result { number, .. } if *number == token.spec);
                if scores && !records.records.iter().any(any) {
                    self.violation = Some(format!("P1: the scores of spec {} were acknowledged and are not on disk", token.spec));
                }
                drop(records);
                self.acknowledged.extend(found);
                machine.spool = None;
            }
            _ => machine.spool = None,
        }
    }
}

impl Machine {
    /// What it has in hand.
    fn held(&self) -> Option<v1::Held> {
        let of = |work: Digest, token: Option<v1::Token>| v1::Held {
            spec: token.map_or(0, |token| token.spec),
            work: work.as_bytes().to_vec(),
        };
        let stored = self.spool.as_ref().map(|stored| of(stored.work, stored.report.token));
        stored.or_else(|| self.working.as_ref().map(|working| of(working.work, working.assignment.token)))
    }
}
