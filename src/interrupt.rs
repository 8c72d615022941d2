//! Ctrl-C while a folder is written: what is unfinished is removed before the process ends.

use evolver_common::checkpoint::write;

/// The exit code of a process that was interrupted, as shells have it.
const INTERRUPTED: i32 = 130;

/// From here on, an interrupt or a request to end removes unfinished folders and ends the process.
pub(crate) fn clean_up() {
    std::thread::spawn(|| {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
        runtime.block_on(interrupted());
        write::abandon();
        eprintln!("interrupted: nothing was left behind");
        std::process::exit(INTERRUPTED);
    });
}

#[cfg(unix)]
async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut end), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = end.recv() => {}
        _ = interrupt.recv() => {}
    }
}

#[cfg(not(unix))]
async fn interrupted() {
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending().await
    }
}
