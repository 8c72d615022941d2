//! Live progress: one line that changes in a terminal, plain lines elsewhere.

use std::{
    io::IsTerminal as _,
    time::{Duration, Instant},
};

use evolver_proto::v1::Status;
use indicatif::{ProgressBar, ProgressStyle};

/// How often a plain line is printed at most.
const PLAIN_INTERVAL: Duration = Duration::from_secs(5);

pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    began: Instant,
    first: Option<u64>,
    last: Option<(Instant, String)>,
}

impl Progress {
    pub(crate) fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        Self { bar, began: Instant::now(), first: None, last: None }
    }

    pub(crate) fn show(&mut self, status: &Status) {
        let line = self.line(status);
        if let Some(bar) = &self.bar {
            bar.set_message(line);
            return;
        }
        let due = match &self.last {
            None => true,
            Some((at, phase)) => at.elapsed() >= PLAIN_INTERVAL || *phase != status.phase,
        };
        if due {
            eprintln!("{line}");
            self.last = Some((Instant::now(), status.phase.clone()));
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "counts for people")]
    fn line(&mut self, status: &Status) -> String {
        let first = *self.first.get_or_insert(status.committed);
        let minutes = self.began.elapsed().as_secs_f64() / 60.0;
        let pace = (status.committed - first) as f64 / minutes.max(1e-9);
        let of = status.offspring_limit.map_or(String::new(), |limit| format!("/{limit}"));
        let mut line = format!("{} · generation {} · offspring {}{of}", status.phase, status.generation, status.committed);
        if pace > 0.0 {
            line.push_str(&format!(" · {pace:.0} a minute"));
            if let Some(limit) = status.offspring_limit {
                let left = (limit.saturating_sub(status.committed)) as f64 / pace * 60.0;
                line.push_str(&format!(" · {left:.0} s left"));
            }
        }
        if let Some(best) = &status.best {
            line.push_str(&format!(
                " · best {:.1} [{:.1}, {:.1}] on dev",
                100.0 * best.dev,
                100.0 * best.dev_low,
                100.0 * best.dev_high
            ));
        }
        if !status.stuck.is_empty() {
            line.push_str(&format!(" · waiting: {}", status.stuck));
        }
        let busy = status.workers.iter().filter(|worker| worker.spec.is_some()).count();
        line.push_str(&format!(" · {busy} of {} workers busy", status.workers.len()));
        line
    }

    pub(crate) fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
