//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

/// Evolutionary search over model weights: many fine-tuned checkpoints in, one model that does all their jobs out.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Fetch a real model and real data, and evolve four experts into one model.
    Quickstart(Quickstart),
    /// Search on this machine: a coordinator and local workers.
    Run(Run),
    /// Serve a search to workers on other machines.
    Coordinator(Coordinator),
    /// Work for a coordinator.
    Worker(Worker),
    /// The process that builds and scores, started by a worker.
    #[command(hide = true)]
    WorkerChild,
    /// Merge checkpoints once, without a search.
    Merge(Merge),
    /// List the merge methods with their parameters.
    Methods(Methods),
    /// List the search strategies and acceptance rules with their parameters.
    Strategies(Strategies),
    /// Score a checkpoint on a search's tasks.
    Evaluate(Evaluate),
    /// Show where a search is and what it found.
    Show(Show),
    /// Write a model of a search as a checkpoint folder.
    Export(Export),
    /// Tell which experts and layers of a model matter for which task.
    Sensitivity(Sensitivity),
    /// Raise a search's limits; the run command then goes on.
    Extend(Extend),
    /// Hand a model to a search: it is scored as the next offspring.
    Enqueue(Enqueue),
    /// Check every record of a search's journal.
    Verify {
        /// The search's folder.
        dir: PathBuf,
    },
    /// Print completions for a shell.
    Completions {
        /// The shell.
        shell: Shell,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Quickstart {
    /// Folder for downloads, models, data and the search.
    #[arg(long, default_value = "quickstart-run")]
    pub(crate) dir: PathBuf,
    /// Local workers; by default one per core, at most as many as the search keeps in flight.
    #[arg(long)]
    pub(crate) workers: Option<usize>,
    /// Set a key of the definition, for instance stop.offspring=12.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) overrides: Vec<String>,
    /// Stop when model, data and experts are there.
    #[arg(long)]
    pub(crate) prepare_only: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Definition {
    /// The search's definition, TOML or YAML.
    pub(crate) search: PathBuf,
    /// Set a key of the definition, for instance stop.offspring=12.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) overrides: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Run {
    #[command(flatten)]
    pub(crate) definition: Definition,
    /// Folder that holds the search; the same command again continues it.
    #[arg(long, required_unless_present = "print_config")]
    pub(crate) dir: Option<PathBuf>,
    /// Local workers; by default one per core, at most as many as the search keeps in flight.
    #[arg(long)]
    pub(crate) workers: Option<usize>,
    /// Print the whole definition, with defaults and meanings, and stop.
    #[arg(long)]
    pub(crate) print_config: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Coordinator {
    #[command(flatten)]
    pub(crate) definition: Definition,
    /// Folder that holds the search; the same command again continues it.
    #[arg(long)]
    pub(crate) dir: PathBuf,
    /// Address to listen on.
    #[arg(long, env = "EVOLVER_LISTEN", default_value = "127.0.0.1:7711")]
    pub(crate) listen: String,
}

#[derive(Debug, Args)]
pub(crate) struct Worker {
    /// The coordinator's address.
    #[arg(long, env = "EVOLVER_CONNECT")]
    pub(crate) connect: String,
    /// Unique name; by default host, process and time.
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Scoring threads; by default one per core.
    #[arg(long)]
    pub(crate) threads: Option<usize>,
    /// Folder for caches, shared by the workers of a machine.
    #[arg(long, env = "EVOLVER_CACHE", default_value = "evolver-cache")]
    pub(crate) cache: PathBuf,
    /// Seconds that the coordinator may be away.
    #[arg(long, default_value_t = 600.0)]
    pub(crate) patience: f64,
    /// End when standard input does: the starter holds the other end.
    #[arg(long, hide = true)]
    pub(crate) parent_pipe: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Merge {
    /// mergekit's YAML, or the same keys as TOML.
    pub(crate) config: PathBuf,
    /// Folder to write; must not exist or be empty.
    #[arg(long)]
    pub(crate) out: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Methods {
    /// Name of one method; by default all.
    pub(crate) name: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Strategies {
    /// Name of one strategy or rule; by default all.
    pub(crate) name: Option<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum SplitName {
    /// The items that the search selects on.
    Dev,
    /// The sealed items.
    Test,
}

#[derive(Debug, Args)]
pub(crate) struct Evaluate {
    #[command(flatten)]
    pub(crate) definition: Definition,
    /// Folder of the checkpoint or LoRA adapter.
    pub(crate) checkpoint: PathBuf,
    /// Items to score on.
    #[arg(long, value_enum, default_value = "dev")]
    pub(crate) split: SplitName,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Show {
    /// The search's folder.
    pub(crate) dir: PathBuf,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Export {
    /// The search's folder.
    pub(crate) dir: PathBuf,
    /// Name or beginning of the id of an individual; by default the best.
    pub(crate) individual: Option<String>,
    /// Folder to write; must not exist or be empty.
    #[arg(long)]
    pub(crate) out: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Extend {
    /// The search's folder; no coordinator may be running in it.
    pub(crate) dir: PathBuf,
    /// A limit and its new value, for instance stop.offspring=200; `none` takes a limit away.
    #[arg(required = true, value_name = "LIMIT=VALUE")]
    pub(crate) limits: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Enqueue {
    /// The search's folder; no coordinator may be running in it.
    pub(crate) dir: PathBuf,
    /// File with a recipe in the form that `evolver show` prints, over the search's own checkpoints.
    pub(crate) recipe: PathBuf,
    /// Name for the table.
    #[arg(long, default_value = "enqueued")]
    pub(crate) name: String,
}

#[derive(Debug, Args)]
pub(crate) struct Sensitivity {
    /// The search's folder.
    pub(crate) dir: PathBuf,
    /// Name or beginning of the id of an individual; by default the best.
    pub(crate) individual: Option<String>,
    /// Ranges of layers that experts are left out of.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=256))]
    pub(crate) layer_groups: u64,
    /// Dev items to score, over all models.
    #[arg(long, default_value_t = 20_000)]
    pub(crate) items: u64,
}
