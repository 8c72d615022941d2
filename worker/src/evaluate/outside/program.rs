//! A program of the user's, started with limits in a process group of its own, which ends with it.

use std::{
    collections::BTreeMap,
    fs,
    io::Read,
    ops::ControlFlow,
    path::PathBuf,
    process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use evolver_common::definition::Task;

use super::super::{EvaluateError, Progress, parameters::Settings};

/// Bytes of a program's last words that are kept.
const WORDS: usize = 4000;
/// How often a running program is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// How often its memory is counted, and the worker told that it goes on.
const COUNT: Duration = Duration::from_millis(500);

/// How a program is started.
#[derive(Clone, Debug)]
pub(super) struct Program {
    pub(super) arguments: Vec<String>,
    pub(super) environment: BTreeMap<String, String>,
    pub(super) directory: PathBuf,
    pub(super) seconds: f64,
    /// In bytes.
    pub(super) memory: Option<u64>,
}

impl Program {
    /// From a task's keys.
    pub(super) fn new(arguments: Vec<String>, task: &Task, settings: &Settings<'_>) -> Self {
        let directory = Some(PathBuf::from(settings.text("directory"))).filter(|path| !path.as_os_str().is_empty());
        let beside = task.dev.parent().map(PathBuf::from).unwrap_or_default();
        let limit = settings.integer("memory_mb") as u64;
        Self {
            arguments,
            environment: settings.table("environment"),
            directory: directory.map_or_else(|| beside.clone(), |directory| beside.join(directory)),
            seconds: settings.number("seconds"),
            memory: (limit > 0).then_some(limit << 20),
        }
    }

    /// Starts it, `{name}` in its arguments replaced by the values.
    pub(super) fn start(&self, values: &[(&str, &str)], talks: bool) -> Result<Running, EvaluateError> {
        let fill = |argument: &String| {
            values.iter().fold(argument.clone(), |text, (name, value)| text.replace(&format!("{{{name}}}"), value))
        };
        let arguments: Vec<_> = self.arguments.iter().map(fill).collect();
        let Some((program, rest)) = arguments.split_first() else {
            return Err(EvaluateError::Unfit("command is empty: the program and its arguments are expected".into()));
        };
        let mut command = Command::new(program);
        command.args(rest).envs(&self.environment).stderr(Stdio::piped()).stdout(Stdio::piped());
        command.stdin(if talks { Stdio::piped() } else { Stdio::null() });
        if !self.directory.as_os_str().is_empty() {
            command.current_dir(&self.directory);
        }
        for (name, value) in values {
            command.env(format!("EVOLVER_{}", name.to_uppercase()), value);
        }
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child =
            command.spawn().map_err(|error| EvaluateError::Outside(format!("{program} cannot be started: {error}")))?;
        let mut readers = vec![Tail::of(child.stderr.take())];
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let output = if talks {
            output
        } else {
            readers.push(Tail::of(output));
            None
        };
        Ok(Running { program: program.clone(), child, readers, input, output, began: Instant::now(), limits: self.clone() })
    }
}

/// The end of a stream, read as it comes.
struct Tail {
    text: Arc<Mutex<Vec<u8>>>,
    thread: Option<JoinHandle<()>>,
}

impl Tail {
    fn of(stream: Option<impl Read + Send + 'static>) -> Self {
        let text = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&text);
        let thread = stream.map(|mut stream| {
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(count @ 1..) = stream.read(&mut buffer) {
                    let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                    kept.extend(&buffer[..count]);
                    let excess = kept.len().saturating_sub(WORDS);
                    kept.drain(..excess);
                }
            })
        });
        Self { text, thread }
    }

    fn read(&self) -> String {
        let text = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&text).trim().to_owned()
    }
}

/// A started program; dropping it ends it and all that it started.
pub(super) struct Running {
    program: String,
    child: Child,
    /// Standard error, and standard output if nobody talks with the program.
    readers: Vec<Tail>,
    pub(super) input: Option<ChildStdin>,
    pub(super) output: Option<ChildStdout>,
    began: Instant,
    limits: Program,
}

impl Running {
    /// Waits for its end.
    pub(super) fn wait(mut self, progress: Progress<'_>) -> Result<(), EvaluateError> {
        let mut counted = Instant::now();
        loop {
            if let Some(status) = self.ended() {
                return if status.success() { Ok(()) } else { Err(self.end("")) };
            }
            if self.began.elapsed().as_secs_f64() > self.limits.seconds {
                return Err(self.failure(&format!("did not end within seconds = {}", self.limits.seconds)));
            }
            if counted.elapsed() > COUNT {
                counted = Instant::now();
                self.check_memory()?;
                if progress.done(0) == ControlFlow::Break(()) {
                    return Err(EvaluateError::Stopped);
                }
            }
            std::thread::sleep(LOOK);
        }
    }

    /// How it ended, if it did.
    pub(super) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// The failure of one that is ending: with its status, if that comes soon, else with `what` it does instead.
    pub(super) fn end(&mut self, what: &str) -> EvaluateError {
        let until = Instant::now() + Duration::from_secs(1);
        // What it said last may still be on its way.
        let silent = |this: &Self| this.readers.iter().all(|reader| reader.thread.as_ref().is_none_or(JoinHandle::is_finished));
        while Instant::now() < until && !(self.ended().is_some() && silent(self)) {
            std::thread::sleep(LOOK);
        }
        let end = self.ended().map_or(what.to_owned(), |status| format!("ended with {status}"));
        self.failure(&end)
    }

    /// Whether it keeps its memory limit.
    pub(super) fn check_memory(&self) -> Result<(), EvaluateError> {
        match (self.limits.memory, self.memory()) {
            (Some(limit), used) if used > limit => {
                Err(self.failure(&format!("used {} MiB of private memory, and memory_mb is {}", used >> 20, limit >> 20)))
            }
            _ => Ok(()),
        }
    }

    /// Private memory of its process group, in bytes.
    fn memory(&self) -> u64 {
        let group = self.child.id().to_string();
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let of = |process: PathBuf| -> Option<u64> {
            let stat = fs::read_to_string(process.join("stat")).ok()?;
            // The group's number is the third behind the name, which is in parentheses.
            if stat.rsplit_once(')')?.1.split_whitespace().nth(2)? != group {
                return None;
            }
            let status = fs::read_to_string(process.join("status")).ok()?;
            let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
            line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
        };
        entries.filter_map(|entry| of(entry.path())).sum()
    }

    /// A failure with the program's last words.
    pub(super) fn failure(&self, what: &str) -> EvaluateError {
        let words: Vec<_> = self.readers.iter().map(Tail::read).filter(|words| !words.is_empty()).collect();
        let words =
            if words.is_empty() { "it said nothing".to_owned() } else { format!("its last words:\n{}", words.join("\n")) };
        EvaluateError::Outside(format!("{} {what}; {words}", self.program))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        #[cfg(unix)]
        if let Some(group) = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw) {
            // It may have ended, and left others of its group.
            rustix::process::kill_process_group(group, rustix::process::Signal::KILL).ok();
        }
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
