//! Messages on their way, and answers that the coordinator owes.

use evolver_coordinator::service::Command;
use evolver_proto::v1;
use rand::RngExt as _;
use tokio::sync::oneshot;
use tonic::Status;

use super::{Event, World};

/// A call.
#[derive(Clone, Debug)]
pub(crate) enum Request {
    Register(v1::RegisterRequest),
    Lease(v1::LeaseRequest),
    Heartbeat(v1::HeartbeatRequest),
    Report(v1::ReportRequest),
    Drain(v1::DrainRequest),
}

/// What came back.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    Register(v1::RegisterReply),
    Lease(v1::LeaseReply),
    Heartbeat(v1::HeartbeatReply),
    Report(v1::ReportReply),
    Drain,
    Error(tonic::Code),
}

type Receiver<T> = oneshot::Receiver<Result<T, Status>>;

enum Owed {
    Register(Receiver<v1::RegisterReply>),
    Lease(Receiver<v1::LeaseReply>),
    Heartbeat(Receiver<v1::HeartbeatReply>),
    Report(Receiver<v1::ReportReply>),
    Drain(Receiver<v1::DrainReply>),
}

/// A request that the coordinator has not answered.
pub(crate) struct Open {
    machine: usize,
    serial: u64,
    owed: Owed,
}

fn taken<T>(receiver: &mut Receiver<T>, answer: impl FnOnce(T) -> Answer) -> Option<Answer> {
    match receiver.try_recv() {
        Ok(Ok(reply)) => Some(answer(reply)),
        Ok(Err(status)) => Some(Answer::Error(status.code())),
        Err(oneshot::error::TryRecvError::Empty) => None,
        Err(oneshot::error::TryRecvError::Closed) => Some(Answer::Error(tonic::Code::Unavailable)),
    }
}

impl Open {
    fn take(&mut self) -> Option<Answer> {
        match &mut self.owed {
            Owed::Register(receiver) => taken(receiver, Answer::Register),
            Owed::Lease(receiver) => taken(receiver, Answer::Lease),
            Owed::Heartbeat(receiver) => taken(receiver, Answer::Heartbeat),
            Owed::Report(receiver) => taken(receiver, Answer::Report),
            Owed::Drain(receiver) => taken(receiver, |_| Answer::Drain),
        }
    }
}

impl World {
    fn delay(&mut self) -> u64 {
        if self.random.random_range(0..20) == 0 { self.random.random_range(0..3000) } else { self.random.random_range(1..30) }
    }

    /// Sends a call; it may be lost, doubled and delayed.
    pub(super) fn send(&mut self, machine: usize, serial: u64, request: Request) {
        if self.machines[machine].mute || (self.noise && self.random.random_range(0..4) == 0) {
            self.seen.add("requests lost", 1);
            return;
        }
        let delay = self.delay();
        if self.noise && self.random.random_range(0..4) == 0 {
            self.seen.add("requests doubled", 1);
            let later = delay + self.random.random_range(0..20_000);
            self.after(later, Event::Arrive { machine, serial, request: request.clone() });
        }
        self.after(delay, Event::Arrive { machine, serial, request });
    }

    pub(super) fn arrive(&mut self, machine: usize, serial: u64, request: Request) -> Result<(), String> {
        if self.core.is_none() {
            self.answer(machine, serial, Answer::Error(tonic::Code::Unavailable));
            return Ok(());
        }
        macro_rules! call {
            ($kind:ident, $message:expr) => {{
                let (reply, receiver) = oneshot::channel();
                self.open.push(Open { machine, serial, owed: Owed::$kind(receiver) });
                Command::$kind($message, reply)
            }};
        }
        let command = match request {
            Request::Register(message) => call!(Register, message),
            Request::Lease(message) => call!(Lease, message),
            Request::Heartbeat(message) => call!(Heartbeat, message),
            Request::Report(message) => call!(Report, Box::new(message)),
            Request::Drain(message) => call!(Drain, message),
        };
        self.step(vec![command])
    }

    /// Sends what the coordinator has answered by now.
    pub(super) fn collect(&mut self) {
        let mut answers = Vec::new();
        self.open.retain_mut(|open| match open.take() {
            Some(answer) => {
                answers.push((open.machine, open.serial, answer));
                false
            }
            None => true,
        });
        for (machine, serial, answer) in answers {
            self.answer(machine, serial, answer);
        }
    }

    fn answer(&mut self, machine: usize, serial: u64, answer: Answer) {
        if self.noise && self.random.random_range(0..4) == 0 {
            self.seen.add("answers lost", 1);
            return;
        }
        let delay = self.delay();
        self.after(delay, Event::Answer { machine, serial, answer });
    }
}
