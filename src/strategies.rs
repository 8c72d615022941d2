//! `strategies`: every strategy and acceptance rule with its parameters.

use evolver_common::suggest;
use evolver_coordinator::search::{About, rules, strategies};

use crate::{cli, fail::refuse};

pub(crate) fn list(options: &cli::Strategies) -> anyhow::Result<()> {
    let (strategies, rules) = (strategies(), rules());
    let Some(name) = &options.name else {
        print("Strategies, for search.strategy:\n");
        strategies.iter().for_each(|about| print(&describe(about)));
        print("Acceptance rules, for acceptance.rule:\n");
        rules.iter().for_each(|about| print(&describe(about)));
        return Ok(());
    };
    let all = || strategies.iter().chain(&rules);
    let found = all().find(|about| about.name == name);
    let unknown = || refuse(format!("unknown strategy or rule {}", suggest::unknown(name, all().map(|about| about.name))));
    print(&describe(found.ok_or_else(unknown)?));
    Ok(())
}

#[expect(clippy::print_stdout, reason = "what the command is for")]
fn print(text: &str) {
    println!("{text}");
}

/// The name with its version, what it does, its source, and a line for each parameter.
fn describe(about: &About) -> String {
    let mut text = format!("{} (version {})\n  {}\n  {}\n", about.name, about.version, about.summary, about.source);
    for parameter in &about.parameters {
        let (kind, default) = (parameter.kind, parameter.default);
        text.push_str(&format!("  {:<20} {kind} [{default}]  {}\n", parameter.name, parameter.doc));
    }
    text
}
