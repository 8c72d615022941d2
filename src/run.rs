//! `run` and `coordinator`: a search, on this machine or served to others.

use std::{
    fs,
    io::Write as _,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use evolver_common::{
    checkpoint::{Checkpoint, DigestCache},
    definition::{self, Resolved},
};
use evolver_coordinator::{
    access::Security,
    journal::{JournalError, LockError},
    service::{self, Coordinator, Options, ServeError, StartError},
    setup,
};
use evolver_worker::evaluate;
use tokio::{net::TcpListener, sync::oneshot};

use crate::{cli, export, fail::refuse, progress::Progress, show, table, worker::stop_signal};

/// How long the connections of leaving workers are awaited.
const GRACE: Duration = Duration::from_secs(3);
/// How often one that stands by looks.
const STANDBY_INTERVAL: Duration = Duration::from_millis(500);
/// Restarts of local workers that died, in one run.
const RESTARTS_MAX: usize = 1000;

pub(crate) fn run(options: &cli::Run) -> anyhow::Result<()> {
    let path = &options.definition.search;
    let definition = definition::load(path, &options.definition.overrides).map_err(refuse)?;
    let Some(dir) = options.dir.as_deref().filter(|_| !options.print_config) else {
        write!(std::io::stdout(), "{}", definition::print(&complete(definition)?))?;
        return Ok(());
    };
    let resolved = resolve(definition, dir)?;
    search(&resolved, dir, &Serving::local(), Some(options.workers))
}

pub(crate) fn coordinator(options: &cli::Coordinator) -> anyhow::Result<()> {
    let definition = definition::load(&options.definition.search, &options.definition.overrides).map_err(refuse)?;
    let resolved = resolve(definition, &options.dir)?;
    let security = match &options.tls {
        Some(folder) => Security::Tls(folder.clone()),
        None if options.insecure => Security::Insecure,
        None => Security::Loopback,
    };
    search(&resolved, &options.dir, &Serving { listen: options.listen.clone(), security, standby: options.standby }, None)
}

/// How a coordinator is reached.
pub(crate) struct Serving {
    listen: String,
    security: Security,
    /// Whether it waits for a folder that another coordinator holds.
    standby: bool,
}

impl Serving {
    /// By this machine alone, on any free port.
    pub(crate) fn local() -> Self {
        Self { listen: "127.0.0.1:0".into(), security: Security::Loopback, standby: false }
    }
}

/// Binds a definition to the world and checks everything that can be checked before anything runs.
pub(crate) fn resolve(definition: definition::Definition, dir: &Path) -> anyhow::Result<Resolved> {
    let definition = complete(definition)?;
    // A folder that does not exist yet is made by the journal; bad input must leave nothing behind.
    let cache = if dir.exists() { DigestCache::open(&dir.join("cache")) } else { DigestCache::in_memory() };
    let resolved = definition::resolve(definition, &cache).map_err(refuse)?;
    let setup = setup::search(&resolved).map_err(refuse)?;
    evolver_coordinator::search::Search::new(setup).map_err(refuse)?;
    fits(&resolved)?;
    Ok(resolved)
}

/// A definition with what its evaluators leave to their defaults.
pub(crate) fn complete(mut definition: definition::Definition) -> anyhow::Result<definition::Definition> {
    evaluate::complete(&mut definition).map_err(|problems| refuse(problems.join("\n")))?;
    Ok(definition)
}

/// What the evaluators refuse is told before anything runs, and what the data of both splits share.
pub(crate) fn fits(resolved: &Resolved) -> anyhow::Result<()> {
    let base = Checkpoint::open(&resolved.base.path).map_err(refuse)?;
    let shared = evaluate::Setup::new(base.folder().to_owned(), base.config().map_err(refuse)?, 1);
    evaluate::Evaluators::open(resolved, shared).map_err(refuse)?;
    for leak in definition::leaks(resolved).map_err(refuse)? {
        eprintln!("warning: {leak}");
    }
    Ok(())
}

/// Runs a search to its end. `local` is the number of local workers, with a default if it holds none; `None` starts none.
pub(crate) fn search(resolved: &Resolved, dir: &Path, serving: &Serving, local: Option<Option<usize>>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let finished = runtime.block_on(serve(resolved, dir, serving, local))?;
    runtime.shutdown_timeout(GRACE);
    if !finished {
        let stopped = "stopped before the end; the same command continues";
        // What supervises a coordinator has to start it again, unless it was the one who stopped it.
        anyhow::ensure!(local.is_some(), "{stopped}");
        eprintln!("{stopped}");
        return Ok(());
    }
    let replay = show::open(dir)?;
    let out = dir.join("best");
    let digest = match replay.search.best() {
        Some(best) => {
            replace(&out, |new| export::export_individual(&replay, best, dir, new, &export::Options::default()))?;
            Some(export::digest(&out)?)
        }
        None => None,
    };
    table::save(&replay, digest, &dir.join(table::RESULTS))?;
    write!(std::io::stdout(), "{}", table::text(&replay))?;
    if digest.is_some() {
        writeln!(std::io::stdout(), "\nThe best model is in {}", out.display())?;
    }
    Ok(())
}

/// Makes a folder anew: the old one stays until the new one is whole.
fn replace(folder: &Path, make: impl FnOnce(&Path) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let (new, old) = (folder.with_extension("new"), folder.with_extension("old"));
    for left in [&new, &old] {
        if left.exists() {
            fs::remove_dir_all(left)?;
        }
    }
    make(&new)?;
    if folder.exists() {
        fs::rename(folder, &old)?;
    }
    fs::rename(&new, folder)?;
    if old.exists() {
        fs::remove_dir_all(&old)?;
    }
    Ok(())
}

/// A coordinator on the folder. One that stands by waits until no other process holds it: then that one is dead, and nothing of it is lost.
async fn start(options: &Options, standby: bool) -> anyhow::Result<Coordinator> {
    let mut told = false;
    loop {
        match Coordinator::start(options) {
            Err(StartError::Journal(JournalError::Lock(held @ LockError::Held { .. }))) if standby => {
                if !told {
                    eprintln!("standing by: {held}");
                    told = true;
                }
                tokio::select! {
                    () = tokio::time::sleep(STANDBY_INTERVAL) => {}
                    signal = stop_signal() => {
                        signal?;
                        anyhow::bail!("told to stop while standing by");
                    }
                }
            }
            Err(
                error @ (StartError::Journal(JournalError::Lock(_) | JournalError::Damaged { .. } | JournalError::Format { .. })
                | StartError::Change(_)
                | StartError::Replay(_)),
            ) => return Err(refuse(error)),
            result => return Ok(result?),
        }
    }
}

/// The address, refused before anything runs if it is open to others and not protected.
async fn bind(serving: &Serving) -> anyhow::Result<TcpListener> {
    let refused = |error: &dyn std::fmt::Display| refuse(format!("cannot listen on {}: {error}", serving.listen));
    let listener = TcpListener::bind(&serving.listen).await.map_err(|error| refused(&error))?;
    let address = listener.local_addr()?;
    if serving.security == Security::Loopback && !address.ip().is_loopback() {
        return Err(refuse(ServeError::Exposed(address)));
    }
    Ok(listener)
}

async fn serve(resolved: &Resolved, dir: &Path, serving: &Serving, local: Option<Option<usize>>) -> anyhow::Result<bool> {
    let options = Options { dir: dir.to_owned(), resolved: resolved.clone(), compare: local.is_none() };
    // One that stands by is not to be found before it serves.
    let bound = if serving.standby { None } else { Some(bind(serving).await?) };
    let coordinator = start(&options, serving.standby).await?;
    let listener = match bound {
        Some(listener) => listener,
        None => bind(serving).await?,
    };
    let address = listener.local_addr()?;
    if local.is_none() {
        eprintln!("listening on {address}; start workers with: evolver worker --connect {address}");
    }
    let mut workers = Local::start(local.map(|count| plan(count, resolved)), &address.to_string(), dir)?;
    let (stop, stopped) = oneshot::channel::<()>();
    let mut status = coordinator.status();
    let watching = async {
        let mut progress = Progress::new();
        let finished = loop {
            let current = status.borrow_and_update().clone();
            progress.show(&current);
            if current.finished || current.phase == "paused" {
                break current.finished;
            }
            let hopeless = !current.workers.is_empty() && current.workers.iter().all(|worker| !worker.withheld.is_empty());
            // Workers of this machine that have never scored anything will not do so later.
            anyhow::ensure!(local.is_none() || current.items_scored > 0 || !hopeless, "{}", current.stuck);
            tokio::select! {
                changed = status.changed() => if changed.is_err() { break false },
                signal = stop_signal() => {
                    signal?;
                    eprintln!("finishing what is under way; once more to stop at once");
                    // Workers of this machine end with their search; those of others wait for the next coordinator.
                    coordinator.pause(local.is_some()).await;
                    tokio::spawn(async {
                        stop_signal().await.ok();
                        std::process::exit(1);
                    });
                }
                () = tokio::time::sleep(Duration::from_millis(500)) => workers.revive()?,
            }
        };
        progress.end();
        if finished && local.is_none() {
            // Workers elsewhere hear of the end when they ask for work; one that finds nobody then would wait its patience out.
            tokio::time::sleep(GRACE).await;
        }
        workers.wait(if finished || current_pause(&status) { GRACE } else { Duration::ZERO }).await;
        stop.send(()).ok();
        anyhow::Ok(finished)
    };
    let serving = service::serve(&coordinator, listener, &serving.security, async {
        stopped.await.ok();
    });
    // The server ends when its last connection does; a worker elsewhere may hold one for long.
    let finished = {
        tokio::pin!(serving);
        let finished = tokio::select! {
            finished = watching => finished?,
            result = &mut serving => {
                result?;
                false
            }
        };
        tokio::time::timeout(GRACE, serving).await.ok();
        finished
    };
    drop(status);
    coordinator.join()?;
    Ok(finished)
}

fn current_pause(status: &tokio::sync::watch::Receiver<evolver_proto::v1::Status>) -> bool {
    status.borrow().phase == "paused"
}

/// Local workers and their threads: one worker per core, but no more than the search keeps in flight.
fn plan(workers: Option<usize>, resolved: &Resolved) -> (usize, usize) {
    let cores = std::thread::available_parallelism().map_or(1, Into::into);
    let workers = workers.unwrap_or(cores.min(resolved.definition.search.in_flight));
    (workers, (cores / workers.max(1)).max(1))
}

/// Worker processes on this machine; each dies with this process, by the pipe that it holds.
struct Local {
    address: String,
    cache: std::path::PathBuf,
    threads: usize,
    processes: Vec<Child>,
    restarts: usize,
}

impl Local {
    fn start(plan: Option<(usize, usize)>, address: &str, dir: &Path) -> anyhow::Result<Self> {
        let (workers, threads) = plan.unwrap_or((0, 1));
        let mut this =
            Self { address: address.to_owned(), cache: dir.join("cache"), threads, processes: Vec::new(), restarts: 0 };
        for _ in 0..workers {
            let process = this.spawn()?;
            this.processes.push(process);
        }
        Ok(this)
    }

    fn spawn(&self) -> anyhow::Result<Child> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(["worker", "--parent-pipe", "--connect", &self.address])
            .arg("--threads")
            .arg(self.threads.to_string())
            .arg("--cache")
            .arg(&self.cache)
            .stdin(Stdio::piped())
            .stdout(Stdio::null());
        // Ctrl-C is for this process, which then tells the workers.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        Ok(command.spawn()?)
    }

    /// Starts a worker again that died of something else than its own refusal.
    fn revive(&mut self) -> anyhow::Result<()> {
        for index in 0..self.processes.len() {
            let Some(status) = self.processes[index].try_wait()? else {
                continue;
            };
            if status.success() {
                continue;
            }
            anyhow::ensure!(
                status.code().is_none() && self.restarts < RESTARTS_MAX,
                "a local worker ended with {status}; its words are above"
            );
            self.restarts += 1;
            self.processes[index] = self.spawn()?;
        }
        Ok(())
    }

    /// Waits for the workers to leave, then ends those that have not.
    async fn wait(&mut self, grace: Duration) {
        let until = std::time::Instant::now() + grace;
        for process in &mut self.processes {
            while matches!(process.try_wait(), Ok(None)) && std::time::Instant::now() < until {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            process.kill().ok();
            process.wait().ok();
        }
    }
}
