//! A diff as a page: heat maps of layers and modules, in one file without anything from elsewhere.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use super::{Diff, Measures, Tensor};

const STYLE: &str = include_str!("page.css");

/// A heat map's quantity.
struct Map {
    title: &'static str,
    meaning: &'static str,
    value: fn(&Measures) -> Option<f64>,
    /// Whether 0 lies in the middle of the colours.
    signed: bool,
}

const MAPS: [Map; 3] = [
    Map {
        title: "Relative distance",
        meaning: "|b − a| / |a|, coloured on a logarithmic scale",
        value: |measures| measures.relative,
        signed: false,
    },
    Map { title: "Cosine", meaning: "of the angle between a and b", value: |measures| measures.cosine, signed: true },
    Map {
        title: "Sign agreement",
        meaning: "share of equal signs where neither is 0; by chance it would be one half",
        value: |measures| measures.sign_agreement.map(|share| 2.0 * share - 1.0),
        signed: true,
    },
];

/// The page.
#[must_use]
pub fn page(diff: &Diff) -> String {
    let mut out = String::new();
    let over = diff.base.as_ref().map_or_else(String::new, |base| format!(", as differences to <code>{}</code>", escaped(base)));
    write!(
        out,
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<title>How two models differ</title>\n<style>\n{STYLE}</style>\n<h1>How two models differ</h1>\n<p>a: <code>{}</code><br>b: <code>{}</code>{over}</p>\n",
        escaped(&diff.a),
        escaped(&diff.b)
    )
    .ok();
    summary(diff, &mut out);
    let grid = Grid::new(&diff.tensors);
    for map in &MAPS {
        write!(out, "<h2>{}</h2>\n<p>{}</p>\n", map.title, map.meaning).ok();
        grid.table(map, &mut out);
        grid.outside(map, &mut out);
    }
    let kinds = diff.changed.iter().cloned();
    let kinds = kinds.chain(diff.only_a.iter().map(|name| format!("{name}: only in a")));
    let kinds: Vec<_> = kinds.chain(diff.only_b.iter().map(|name| format!("{name}: only in b"))).collect();
    if !kinds.is_empty() {
        out.push_str("<h2>Types, shapes and missing tensors</h2>\n<ul>\n");
        for sentence in kinds {
            writeln!(out, "<li>{}</li>", escaped(&sentence)).ok();
        }
        out.push_str("</ul>\n");
    }
    out.push_str("</html>\n");
    out
}

fn summary(diff: &Diff, out: &mut String) {
    let total = &diff.total;
    let shown = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), |value| format!("{value:.4}"));
    write!(
        out,
        "<table class=\"summary\">\n<tr><th>|a|</th><th>|b|</th><th>|b − a|</th><th>relative</th><th>cosine</th><th>sign agreement</th><th>equal values</th></tr>\n<tr><td>{:.4e}</td><td>{:.4e}</td><td>{:.4e}</td><td>{}</td><td>{}</td><td>{}</td><td>{:.2} %</td></tr>\n</table>\n",
        total.norm_a,
        total.norm_b,
        total.distance,
        shown(total.relative),
        shown(total.cosine),
        shown(total.sign_agreement),
        100.0 * total.equal
    )
    .ok();
}

/// Tensors by layer and module.
struct Grid<'a> {
    layers: Vec<&'a str>,
    modules: BTreeSet<&'a str>,
    cells: BTreeMap<(&'a str, &'a str), &'a Tensor>,
    outside: Vec<&'a Tensor>,
}

impl<'a> Grid<'a> {
    fn new(tensors: &'a [Tensor]) -> Self {
        let mut grid = Self { layers: Vec::new(), modules: BTreeSet::new(), cells: BTreeMap::new(), outside: Vec::new() };
        let mut numbers: BTreeMap<(String, usize), &str> = BTreeMap::new();
        for tensor in tensors {
            let Some(layer) = tensor.layer.as_deref() else {
                grid.outside.push(tensor);
                continue;
            };
            let digits = layer.len() - layer.bytes().rev().take_while(u8::is_ascii_digit).count();
            numbers.insert((layer[..digits].to_owned(), layer[digits..].parse().unwrap_or(0)), layer);
            grid.modules.insert(&tensor.module);
            grid.cells.insert((layer, &tensor.module), tensor);
        }
        grid.layers = numbers.into_values().collect();
        grid
    }

    fn table(&self, map: &Map, out: &mut String) {
        if self.layers.is_empty() {
            return;
        }
        out.push_str("<table class=\"map\">\n<tr><th></th>");
        for module in &self.modules {
            write!(out, "<th class=\"module\"><span>{}</span></th>", escaped(module)).ok();
        }
        out.push_str("</tr>\n");
        for layer in &self.layers {
            write!(out, "<tr><th>{}</th>", escaped(layer)).ok();
            for module in &self.modules {
                match self.cells.get(&(*layer, *module)) {
                    Some(tensor) => cell(tensor, map, out),
                    None => out.push_str("<td class=\"none\"></td>"),
                }
            }
            out.push_str("</tr>\n");
        }
        out.push_str("</table>\n");
    }

    fn outside(&self, map: &Map, out: &mut String) {
        if self.outside.is_empty() {
            return;
        }
        out.push_str("<table class=\"map\">\n");
        for tensor in &self.outside {
            write!(out, "<tr><th>{}</th>", escaped(&tensor.name)).ok();
            cell(tensor, map, out);
            out.push_str("</tr>\n");
        }
        out.push_str("</table>\n");
    }
}

fn cell(tensor: &Tensor, map: &Map, out: &mut String) {
    let Some(value) = (map.value)(&tensor.measures) else {
        write!(out, "<td class=\"none\" title=\"{}: nothing to compare\">–</td>", escaped(&tensor.name)).ok();
        return;
    };
    let shown = if map.title == "Sign agreement" { f64::midpoint(value, 1.0) } else { value };
    let (colour, light) = if map.signed { diverging(value) } else { sequential(value) };
    let ink = if light { "#111" } else { "#fff" };
    write!(
        out,
        "<td style=\"background:{colour};color:{ink}\" title=\"{}: {shown:.6}\">{}</td>",
        escaped(&tensor.name),
        short(shown)
    )
    .ok();
}

fn short(value: f64) -> String {
    if value != 0.0 && value.abs() < 0.01 { format!("{value:.0e}") } else { format!("{value:.2}") }
}

/// White to blue over relative distances from 0.01 % to 100 %; and whether dark ink is readable on it.
fn sequential(value: f64) -> (String, bool) {
    let share = if value > 0.0 { ((value.log10() + 4.0) / 4.0).clamp(0.0, 1.0) } else { 0.0 };
    (mixed([255.0, 255.0, 255.0], [8.0, 48.0, 107.0], share), share < 0.55)
}

/// Red below 0, white at 0, blue above.
fn diverging(value: f64) -> (String, bool) {
    let end = if value < 0.0 { [165.0, 15.0, 21.0] } else { [8.0, 81.0, 156.0] };
    let share = value.abs().clamp(0.0, 1.0);
    (mixed([255.0, 255.0, 255.0], end, share), share < 0.6)
}

fn mixed(from: [f64; 3], to: [f64; 3], share: f64) -> String {
    let [r, g, b] = [0, 1, 2].map(|channel| from[channel] + share * (to[channel] - from[channel]));
    format!("rgb({r:.0},{g:.0},{b:.0})")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
