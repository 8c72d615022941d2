//! The child process, its messages, and how it ended.

use std::{ffi::OsString, io, path::PathBuf, process::Stdio, time::Duration};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{self, ChildStdin, ChildStdout, Command},
};

use crate::child::{FailureClass, FromChild, ToChild};

/// How the child is started.
#[derive(Clone, Debug)]
pub struct ChildCommand {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
}

/// What was heard of the child.
pub(super) enum Event {
    /// It said something.
    Message(FromChild),
    /// It is gone.
    Ended(FailureClass, String),
    /// Nothing for as long as was waited.
    Silent,
}

/// A running child; dropping it kills it.
pub(super) struct Child {
    process: process::Child,
    input: Option<ChildStdin>,
    output: Option<Lines<BufReader<ChildStdout>>>,
}

impl Child {
    pub(super) fn start(command: &ChildCommand, threads: usize) -> io::Result<Self> {
        let mut process = Command::new(&command.program)
            .args(&command.arguments)
            .env("RAYON_NUM_THREADS", threads.to_string())
            .env("TOKENIZERS_PARALLELISM", "false")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        Ok(Self {
            input: process.stdin.take(),
            output: process.stdout.take().map(|output| BufReader::new(output).lines()),
            process,
        })
    }

    /// Sends a message. A child that cannot take it has ended, which [`Child::event`] tells.
    pub(super) async fn send(&mut self, message: &ToChild) {
        if let (Some(input), Ok(mut line)) = (&mut self.input, serde_json::to_vec(message)) {
            line.push(b'\n');
            if input.write_all(&line).await.is_err() || input.flush().await.is_err() {
                self.input = None;
            }
        }
    }

    /// Waits for what happens next.
    pub(super) async fn event(&mut self, wait: Duration) -> Event {
        let Some(output) = &mut self.output else {
            return self.end("its output is closed").await;
        };
        match tokio::time::timeout(wait, output.next_line()).await {
            Err(_) => Event::Silent,
            Ok(Ok(Some(line))) => match serde_json::from_str(&line) {
                Ok(message) => Event::Message(message),
                // Cut in the middle of an answer.
                Err(error) if error.is_eof() => self.end("it ended without an answer").await,
                Err(_) => self.end(&format!("it said something that is no message: {line:.80}")).await,
            },
            Ok(Ok(None)) => self.end("it ended without an answer").await,
            Ok(Err(error)) => self.end(&format!("its output cannot be read: {error}")).await,
        }
    }

    async fn end(&mut self, what: &str) -> Event {
        self.input = None;
        let ended = tokio::time::timeout(Duration::from_secs(2), self.process.wait()).await;
        let Ok(Ok(status)) = ended else {
            self.process.start_kill().ok();
            return Event::Ended(FailureClass::Crash, what.to_owned());
        };
        #[cfg(unix)]
        if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
            let (class, meaning) = signal_meaning(signal);
            if class == FailureClass::Killed {
                return Event::Ended(class, format!("the child was killed by signal {signal}: {meaning}"));
            }
            return Event::Ended(class, format!("{what} ({status}: {meaning})"));
        }
        Event::Ended(FailureClass::Crash, format!("{what} ({status})"))
    }
}

/// What a signal that ends a child says.
#[cfg(unix)]
fn signal_meaning(signal: i32) -> (FailureClass, &'static str) {
    match signal {
        4 => (FailureClass::Crash, "an instruction that this processor does not have"),
        6 => (FailureClass::Crash, "it gave up, for instance because it was refused memory beyond evaluator.memory_bytes"),
        7 => (FailureClass::Input, "a file was cut short while it was mapped, or its disk failed"),
        9 => (FailureClass::Killed, "out of memory, or by someone"),
        11 => (FailureClass::Crash, "a wrong memory access"),
        15 => (FailureClass::Killed, "by someone"),
        _ => (FailureClass::Crash, "a fault"),
    }
}
