//! `worker` and the child process behind it.

use std::{
    io::{self, Read as _},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use evolver_worker::{
    agent::{self, AgentError, AgentOptions, ChildCommand},
    child,
};
use tokio::sync::watch;

use crate::{cli, fail::refuse};

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
    let options = AgentOptions {
        connect: options.connect.clone(),
        name,
        host,
        threads,
        cache: std::path::absolute(&options.cache)?,
        child: ChildCommand { program: std::env::current_exe()?, arguments: vec!["worker-child".into()] },
        patience: Duration::from_secs_f64(options.patience.max(0.0)),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (drain, drained) = watch::channel(false);
        tokio::spawn(stop_signals(drain));
        match agent::run(options, drained).await {
            Ok(reason) => {
                tracing::info!("leaving: {reason}");
                Ok(())
            }
            Err(error @ AgentError::Refused(_)) => Err(refuse(error)),
            Err(error) => Err(error.into()),
        }
    })
}

/// The first signal drains, the second ends the process.
async fn stop_signals(drain: watch::Sender<bool>) {
    for _ in 0..2 {
        if let Err(error) = stop_signal().await {
            tracing::warn!("signals cannot be awaited: {error}");
            return;
        }
        if drain.send_replace(true) {
            break;
        }
    }
    std::process::exit(1);
}

/// Ctrl-C, or a request to terminate.
pub(crate) async fn stop_signal() -> io::Result<()> {
    #[cfg(unix)]
    {
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        tokio::select! {
            result = tokio::signal::ctrl_c() => result,
            _ = terminate.recv() => Ok(()),
        }
    }
    #[cfg(not(unix))]
    tokio::signal::ctrl_c().await
}

pub(crate) fn child() -> anyhow::Result<()> {
    Ok(child::run(io::stdin().lock(), io::stdout().lock())?)
}
