//! A diff as text.

use std::fmt::Write as _;

use super::{Diff, Measures};

/// Sentences that are shown before the others are counted.
const SHOWN: usize = 20;

/// The diff as tables: the whole, by layer, by module, and what differs in kind.
#[must_use]
pub fn text(diff: &Diff) -> String {
    let mut out = String::new();
    match &diff.base {
        Some(base) => writeln!(out, "a: {}\nb: {}\nas differences to {base}\n", diff.a, diff.b).ok(),
        None => writeln!(out, "a: {}\nb: {}\n", diff.a, diff.b).ok(),
    };
    let width = diff.layers.iter().chain(&diff.modules).map(|group| group.name.len()).max().unwrap_or(0).clamp(8, 60);
    let mut section = |title: &str, rows: &mut dyn Iterator<Item = (&str, &Measures)>| {
        writeln!(
            out,
            "{title:<width$} {:>11} {:>11} {:>11} {:>9} {:>9} {:>9} {:>8}",
            "|a|", "|b|", "|b - a|", "relative", "cosine", "signs", "equal"
        )
        .ok();
        for (name, measures) in rows {
            writeln!(out, "{name:<width$} {}", row(measures)).ok();
        }
        out.push('\n');
    };
    section("", &mut std::iter::once(("all", &diff.total)));
    section("layer", &mut diff.layers.iter().map(|group| (group.name.as_str(), &group.measures)));
    section("module", &mut diff.modules.iter().map(|group| (group.name.as_str(), &group.measures)));
    let sentences = diff.changed.iter().cloned();
    let sentences = sentences.chain(diff.only_a.iter().map(|name| format!("{name}: only in a")));
    let sentences: Vec<_> = sentences.chain(diff.only_b.iter().map(|name| format!("{name}: only in b"))).collect();
    for sentence in sentences.iter().take(SHOWN) {
        writeln!(out, "{sentence}").ok();
    }
    if sentences.len() > SHOWN {
        writeln!(out, "and {} more, which --json lists", sentences.len() - SHOWN).ok();
    }
    if diff.total.non_finite > 0 {
        writeln!(out, "{} elements are NaN or infinite and are left out", diff.total.non_finite).ok();
    }
    out
}

fn row(measures: &Measures) -> String {
    let shown = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), |value| format!("{value:.4}"));
    format!(
        "{:>11.4e} {:>11.4e} {:>11.4e} {:>9} {:>9} {:>9} {:>7.2}%",
        measures.norm_a,
        measures.norm_b,
        measures.distance,
        shown(measures.relative),
        shown(measures.cosine),
        shown(measures.sign_agreement),
        100.0 * measures.equal
    )
}
