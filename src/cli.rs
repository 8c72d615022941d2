//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use evolver_common::{checkpoint::Dtype, suggest};
use evolver_coordinator::access::Role;
use evolver_oneshot::output::{DEFAULT_SHARD_BYTES, parse_size};
use evolver_worker::connect::Target;

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
    /// Steer a running search: pause, resume, readmit or distrust a worker.
    Operate(Operate),
    /// Make, renew and revoke certificates and tokens for a fleet.
    Certs(Certs),
    /// The process that builds and scores, started by a worker.
    #[command(hide = true)]
    WorkerChild,
    /// Merge checkpoints once, without a search.
    Merge(Merge),
    /// Check a merge's or a search's definition by headers alone: all that would be refused, and what it would cost.
    Check(Check),
    /// Show how two models differ: norms, cosines, signs, types and shapes by layer and module.
    Diff(Diff),
    /// List the merge methods with their parameters.
    Methods(Methods),
    /// List the evaluators with their metrics and parameters, and the architectures that run in this program.
    Evaluators(Evaluators),
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
    /// Measure the experts' Fisher information or Gram matrices on labelled data, for merges by fisher and regmean.
    Statistics(Statistics),
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
    /// Address to listen on. One that other machines reach needs --tls.
    #[arg(long, env = "EVOLVER_LISTEN", default_value = "127.0.0.1:7711")]
    pub(crate) listen: String,
    /// Folder with cert.pem, key.pem and ca.pem, as `evolver certs coordinator` makes it; changes of its files are heeded at once.
    #[arg(long, env = "EVOLVER_TLS")]
    pub(crate) tls: Option<PathBuf>,
    /// Serve in plain text, to everyone who reaches the address, with every right.
    #[arg(long, conflicts_with = "tls")]
    pub(crate) insecure: bool,
    /// Wait until no other coordinator holds the folder, then take over.
    #[arg(long)]
    pub(crate) standby: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Operate {
    /// The coordinator's address, or several of one search, with a comma between them.
    #[arg(long, env = "EVOLVER_CONNECT")]
    pub(crate) connect: String,
    #[command(flatten)]
    pub(crate) access: Access,
    #[command(subcommand)]
    pub(crate) action: Action,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Action {
    /// Hand out no more work.
    Pause,
    /// Hand out work again.
    Resume,
    /// Give a worker work again that is withheld from it.
    Readmit {
        /// Its name, as `status` shows it.
        worker: String,
    },
    /// Give a worker no more work, and score again what it alone reported.
    Distrust {
        /// Its name, as `status` shows it.
        worker: String,
    },
    /// Print the search's status as JSON.
    Status,
}

#[derive(Debug, Args)]
pub(crate) struct Certs {
    /// Folder of the certificate authority; made if it is not there.
    #[arg(long, default_value = "evolver-certs")]
    pub(crate) dir: PathBuf,
    #[command(subcommand)]
    pub(crate) what: Issue,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Issue {
    /// The coordinator's certificate.
    Coordinator {
        /// Names and addresses that workers connect to.
        #[arg(required = true)]
        hosts: Vec<String>,
        /// Days that it holds.
        #[arg(long, default_value_t = 365)]
        days: i64,
    },
    /// A certificate for someone who connects: one for each machine or person.
    Member {
        /// Unique name.
        name: String,
        /// worker, operator or viewer.
        #[arg(long, default_value = "worker")]
        role: Role,
        /// Days that it holds.
        #[arg(long, default_value_t = 365)]
        days: i64,
    },
    /// A bearer token, printed once, for someone who cannot have a certificate.
    Token {
        /// Unique name.
        name: String,
        /// worker, operator or viewer.
        #[arg(long, default_value = "worker")]
        role: Role,
    },
    /// Revoke every certificate and token of a name; the coordinator heeds it within seconds.
    Revoke {
        /// The name.
        name: String,
    },
}

/// What this side shows to a coordinator.
#[derive(Debug, Args)]
pub(crate) struct Access {
    /// Folder with ca.pem, and with cert.pem and key.pem of this side, as `evolver certs` makes it.
    #[arg(long, env = "EVOLVER_TLS")]
    pub(crate) tls: Option<PathBuf>,
    /// File with a bearer token, where this side has no certificate.
    #[arg(long, env = "EVOLVER_TOKEN_FILE")]
    pub(crate) token_file: Option<PathBuf>,
}

impl Access {
    pub(crate) fn target(&self, connect: &str) -> Target {
        Target { addresses: Target::split(connect), tls: self.tls.clone(), token: self.token_file.clone() }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Worker {
    /// The coordinator's address, or several of one search, with a comma between them: the one in service and those that stand by.
    #[arg(long, env = "EVOLVER_CONNECT")]
    pub(crate) connect: String,
    #[command(flatten)]
    pub(crate) access: Access,
    /// Heed a cloud's notice that this machine will be taken away: aws, gcp, azure, or auto.
    #[arg(long, env = "EVOLVER_SPOT", value_parser = clap::builder::PossibleValuesParser::new(evolver_worker::notice::names().chain(["auto"])))]
    pub(crate) spot: Option<String>,
    /// Address of the cloud's metadata service, instead of its own.
    #[arg(long, hide = true)]
    pub(crate) metadata_address: Option<String>,
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
    #[command(flatten)]
    pub(crate) written: Written,
    /// Copy NaN and infinity through instead of refusing models that hold them.
    #[arg(long)]
    pub(crate) allow_non_finite: bool,
}

/// How weights are written.
#[derive(Debug, Args)]
pub(crate) struct Written {
    /// Type to save in: float32, float16, bfloat16 or float64; by default the definition's, else the base's.
    #[arg(long, value_parser = dtype)]
    pub(crate) dtype: Option<Dtype>,
    /// Largest weight file, for instance 5GB or 500MB; larger models are cut into several.
    #[arg(long, value_parser = parse_size, default_value_t = DEFAULT_SHARD_BYTES)]
    pub(crate) max_shard_size: u64,
}

fn dtype(name: &str) -> Result<Dtype, String> {
    Dtype::from_torch(name)
        .ok_or_else(|| format!("unknown dtype {}", suggest::unknown(name, ["float32", "float16", "bfloat16", "float64"])))
}

#[derive(Debug, Args)]
pub(crate) struct Check {
    /// mergekit's YAML, or a search's definition.
    pub(crate) config: PathBuf,
    /// Folder that a merge would be written to, for the space that is free there.
    #[arg(long)]
    pub(crate) out: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) written: Written,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Diff {
    /// A checkpoint, a LoRA adapter, or base+adapter.
    pub(crate) a: String,
    /// The other.
    pub(crate) b: String,
    /// Their base: what is compared are then the differences to it.
    #[arg(long)]
    pub(crate) base: Option<String>,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// Write a heat map by layer and module to this file.
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Methods {
    /// Name of one method; by default all.
    pub(crate) name: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Evaluators {
    /// Name of one evaluator; by default all.
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
    /// Another checkpoint or adapter, compared on the same items.
    #[arg(long, value_name = "CHECKPOINT")]
    pub(crate) with: Option<PathBuf>,
    /// File to write with every item's credit, as JSON lines.
    #[arg(long, value_name = "FILE")]
    pub(crate) items: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum StatisticsKind {
    /// The diagonal of the Fisher information, for the method fisher.
    Fisher,
    /// Gram matrices of the linear layers' inputs, for the method regmean.
    Gram,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum StatisticsLabels {
    /// Every label, weighed by the model's own probability: the Fisher information itself.
    Model,
    /// The data's label: the empirical Fisher information, in a fraction of the time where there are many labels.
    Given,
}

#[derive(Debug, Args)]
pub(crate) struct Statistics {
    #[command(flatten)]
    pub(crate) definition: Definition,
    /// What is measured.
    #[arg(long, value_enum)]
    pub(crate) kind: StatisticsKind,
    /// Folder to write, a file for each expert; must not exist or be empty.
    #[arg(long)]
    pub(crate) out: PathBuf,
    /// Which labels the Fisher information is about.
    #[arg(long, value_enum, default_value = "model")]
    pub(crate) labels: StatisticsLabels,
    /// Expert to measure; may be given several times; by default all.
    #[arg(long = "expert", value_name = "NAME")]
    pub(crate) experts: Vec<String>,
    /// Task whose dev items are read; may be given several times; by default all.
    #[arg(long = "task", value_name = "NAME")]
    pub(crate) tasks: Vec<String>,
    /// File of items in the place of the one task's dev items, for instance what the expert was trained on.
    #[arg(long, value_name = "FILE")]
    pub(crate) data: Option<PathBuf>,
    /// Most items of a task.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) items: Option<u64>,
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
    #[arg(long, required_unless_present = "mergekit")]
    pub(crate) out: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) written: Written,
    /// Write the recipe as mergekit's YAML to this file, where mergekit can express it.
    #[arg(long, value_name = "FILE")]
    pub(crate) mergekit: Option<PathBuf>,
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
