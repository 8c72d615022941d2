//! `evaluators`: every evaluator with its metrics and parameters.

use evolver_common::suggest;
use evolver_worker::{
    evaluate::{Declaration, EVALUATORS},
    models::{ARCHITECTURES, Kind},
};

use crate::{cli, fail::refuse};

pub(crate) fn evaluators(options: &cli::Evaluators) -> anyhow::Result<()> {
    let Some(name) = &options.name else {
        EVALUATORS.iter().for_each(|evaluator| print(&describe(evaluator)));
        print(&architectures());
        return Ok(());
    };
    let found = EVALUATORS.iter().find(|known| known.name == name);
    let names = EVALUATORS.iter().map(|known| known.name);
    print(&describe(found.ok_or_else(|| refuse(format!("unknown evaluator {}", suggest::unknown(name, names))))?));
    Ok(())
}

#[expect(clippy::print_stdout, reason = "what the command is for")]
fn print(text: &str) {
    println!("{text}");
}

/// The evaluator's name, what it does, its source, and a line for each metric and parameter.
fn describe(evaluator: &Declaration) -> String {
    let mut text = format!("{}\n  {}\n  after {}\n", evaluator.name, evaluator.summary, evaluator.source);
    if evaluator.metrics.is_empty() {
        text.push_str("  metrics: those of the program, in 0 to 1; the task names one\n");
    }
    for (name, meaning) in evaluator.metrics {
        text.push_str(&format!("  {name:<18} metric     {meaning}\n"));
    }
    for known in evaluator.parameters {
        let default = known.default.map_or("needed".to_owned(), |default| format!("[{default}]"));
        text.push_str(&format!("  {:<18} parameter  {} {default}  {}\n", known.name, known.kind.describe(), known.doc));
    }
    text
}

/// The architectures by what they give.
fn architectures() -> String {
    let of =
        |kind: Kind| ARCHITECTURES.iter().filter(|known| known.kind == kind).map(|known| known.model_type).collect::<Vec<_>>();
    let line = |what: &str, kind| format!("  {what:<18} {}\n", of(kind).join(", "));
    format!(
        "Architectures that run in this program, by the model_type of config.json:\n{}{}{}{}",
        line("encoders", Kind::Encoder),
        line("decoders", Kind::Decoder),
        line("encoder-decoders", Kind::EncoderDecoder),
        line("vision", Kind::Vision)
    )
}
