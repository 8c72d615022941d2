//! `methods`: every merge method with its parameters.

use evolver_common::merge::{self, Base, Default, Kind, METHODS, Method, Scope};

use crate::{cli, fail::refuse};

pub(crate) fn methods(options: &cli::Methods) -> anyhow::Result<()> {
    match &options.name {
        Some(name) => print(&describe(merge::find(name).map_err(refuse)?)),
        None => METHODS.iter().for_each(|method| print(&describe(*method))),
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "what the command is for")]
fn print(text: &str) {
    println!("{text}");
}

/// The method's name, what it does with a base, its source, and a line for each parameter.
fn describe(method: &dyn Method) -> String {
    let base = match method.base() {
        Base::Unused => "no base",
        Base::Optional => "a base if there is one",
        Base::Needed => "needs a base",
    };
    let mut text = format!("{} ({base})\n  {}\n", method.name(), method.summary());
    for spec in method.parameters() {
        let range = match spec.kind {
            Kind::Number(low, high) => format!("{low} to {high}"),
            Kind::Constant(low, high) => format!("{low} to {high}, one for all tensors"),
            Kind::Integer(low, high) => format!("whole, {low} to {high}"),
            Kind::Flag => "true or false".to_owned(),
            Kind::Choice(names) => names.join(" | "),
            Kind::Statistics => "a safetensors file's path; in a recipe its digest".to_owned(),
        };
        let default = match spec.default {
            Default::Number(number) => number.to_string(),
            Default::Flag(flag) => flag.to_string(),
            Default::Choice(name) => name.to_owned(),
            Default::Required => "required".to_owned(),
        };
        let scope = if spec.scope == Scope::Model { "model" } else { "merge" };
        text.push_str(&format!("  {:<18} {scope}  {range} [{default}]  {}\n", spec.name, spec.doc));
    }
    text
}
