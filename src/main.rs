//! `evolver`: evolutionary search over model weights.
//!
//! This page parses, dispatches, prints the error and returns the code; the work is in the crates.

mod certs;
mod check;
mod cli;
mod decide;
mod diff;
mod evaluate;
mod evaluators;
mod export;
mod fail;
mod interrupt;
mod merge;
mod methods;
mod operate;
mod progress;
mod quickstart;
mod run;
mod sensitivity;
mod show;
mod statistics;
mod strategies;
mod table;
mod worker;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};
use evolver_common::checkpoint::write::WriteError;
use tracing_subscriber::EnvFilter;

use crate::{
    cli::{Cli, Command},
    fail::Refused,
};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_env("EVOLVER_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match dispatch(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", fail::sentence(&error));
            // 2: what the user gave is wrong, a place that cannot be written to among it; 1: anything else.
            ExitCode::from(if error.is::<Refused>() || error.is::<WriteError>() { 2 } else { 1 })
        }
    }
}

fn dispatch(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Quickstart(options) => quickstart::quickstart(&options),
        Command::Run(options) => run::run(&options),
        Command::Coordinator(options) => run::coordinator(&options),
        Command::Worker(options) => worker::worker(&options),
        Command::Operate(options) => operate::operate(&options),
        Command::Certs(options) => certs::certs(&options),
        Command::WorkerChild => worker::child(),
        Command::Merge(options) => merge::merge(&options),
        Command::Check(options) => check::check(&options),
        Command::Diff(options) => diff::diff(&options),
        Command::Methods(options) => methods::methods(&options),
        Command::Evaluators(options) => evaluators::evaluators(&options),
        Command::Strategies(options) => strategies::list(&options),
        Command::Sensitivity(options) => sensitivity::sensitivity(&options),
        Command::Statistics(options) => statistics::statistics(&options),
        Command::Extend(options) => decide::extend(&options),
        Command::Enqueue(options) => decide::enqueue(&options),
        Command::Evaluate(options) => evaluate::evaluate(&options),
        Command::Show(options) => show::show(&options),
        Command::Export(options) => export::export(&options),
        Command::Verify { dir } => show::verify(&dir),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "evolver", &mut std::io::stdout());
            Ok(())
        }
    }
}
