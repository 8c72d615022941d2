//! `worker` and the child process behind it.

use std::{
    io::{self, Read as _},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use evolver_worker::{
    agent::{self, AgentError, AgentOptions, ChildCommand},
    child, notice,
};
use tokio::sync::watch;

use crate::{cli, fail::refuse};

/// A worker that was told to leave is gone after this time.
const GONE_WITHIN: Duration = Duration::from_secs(14);

pub(crate) fn worker(options: &cli::Worker) -> anyhow::Result<()> {
    if options.parent_pipe {
        // The starter's death closes the pipe, whatever killed it.
        std::thread::spawn(|| {
            io::stdin().lock().read_to_end(&mut Vec::new()).ok();
            std::process::exit(1);
        });
    }
    let host = std::fs::read_to_string("/etc/hostname").map_or_else(|_| "unknown".into(), |name| name.trim().to_owned());
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let name = options.name.clone().unwrap_or_else(|| format!("{host}-{}-{:x}", std::process::id(), since.as_millis()));
    let threads = options.threads.or_else(|| std::thread::available_parallelism().ok().map(Into::into)).unwrap_or(1);
    let spot = options.spot.clone();
    let metadata = options.metadata_address.clone();
    let options = AgentOptions {
        target: options.access.target(&options.connect),
        name,
        host,
        threads,
        cache: std::path::absolute(&options.cache)?,
        child: ChildCommand { program: std::env::current_exe()?, arguments: vec!["worker-child".into()] },
        patience: Duration::try_from_secs_f64(options.patience.max(0.0)).unwrap_or(Duration::MAX),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (drain, drained) = watch::channel(false);
        let drain = Arc::new(drain);
        tokio::spawn(stop_signals(Arc::clone(&drain)));
        if let Some(cloud) = spot {
            tokio::spawn(async move {
                let notice = notice::wait(&cloud, metadata.as_deref(), notice::INTERVAL).await;
                tracing::warn!("{notice}: what is under way is given back");
                leave(&drain);
            });
        }
        match agent::run(options, drained).await {
            Ok(reason) => {
                tracing::info!("leaving: {reason}");
                Ok(())
            }
            Err(error @ (AgentError::Refused(_) | AgentError::Target(_))) => Err(refuse(error)),
            Err(error) => Err(error.into()),
        }
    })
}

/// The first signal drains, the second ends the process.
async fn stop_signals(drain: Arc<watch::Sender<bool>>) {
    for _ in 0..2 {
        if let Err(error) = stop_signal().await {
            tracing::warn!("signals cannot be awaited: {error}");
            return;
        }
        if leave(&drain) {
            break;
        }
    }
    std::process::exit(1);
}

/// Tells the agent to leave, and sees to it that the process is gone in time whatever the agent does. Whether it had been told before.
fn leave(drain: &watch::Sender<bool>) -> bool {
    let told = drain.send_replace(true);
    if !told {
        std::thread::spawn(|| {
            std::thread::sleep(GONE_WITHIN);
            std::process::exit(1);
        });
    }
    told
}

/// Ctrl-C, a request to terminate, or the signal that Slurm is usually asked to send before a job's end (`--signal=USR1@60`).
pub(crate) async fn stop_signal() -> io::Result<()> {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let (mut terminate, mut user) = (signal(SignalKind::terminate())?, signal(SignalKind::user_defined1())?);
        tokio::select! {
            result = tokio::signal::ctrl_c() => result,
            _ = terminate.recv() => Ok(()),
            _ = user.recv() => Ok(()),
        }
    }
    #[cfg(not(unix))]
    tokio::signal::ctrl_c().await
}

pub(crate) fn child() -> anyhow::Result<()> {
    Ok(child::run(io::stdin().lock(), io::stdout().lock())?)
}
