//! The form of a recipe that a person reads: one node a line, operands by the names of earlier lines, the root last.
//!
//! ```text
//! n0 = checkpoint(digest=9f…)
//! n1 = checkpoint(digest=04…)
//! n2 = differential(target=n0, plus=n1, minus=n0, scale=0.5)
//! n3 = crossover(target=n0, donor=n2, rate=0.5, seed=7, per="parameter")
//! n4 = splice(first=n0, second=n3, at=0.5)
//! n5 = perturb(parent=n4, deviation=0.001, seed=9, rank=4)
//! n6 = merge(method="pcb", base=n0, ratio=0.1, models=[n1{weight=1.0}, n5{weight=1.0}])
//! ```

use std::{collections::HashMap, fmt};

use thiserror::Error;

use super::{Granularity, Input, Merge, NODES_MAX, Op, Parameters, Recipe, Rule, Shape, Value, canonical, limits};
use crate::digest::Digest;

/// A text that is not a recipe.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("line {line}: {what}")]
pub struct ParseError {
    /// Line of the text, from 1.
    pub line: usize,
    /// What is wrong there.
    pub what: String,
}

pub(super) fn write(recipe: &Recipe, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let nodes = recipe.nodes();
    let names: HashMap<Digest, usize> = nodes.iter().enumerate().map(|(index, node)| (node.id(), index)).collect();
    let name = |recipe: &Recipe| format!("n{}", names[&recipe.id()]);
    for (index, node) in nodes.iter().enumerate() {
        if index > 0 {
            writeln!(f)?;
        }
        write!(f, "n{index} = ")?;
        match node.op() {
            Op::Checkpoint(digest) => write!(f, "checkpoint(digest={digest})")?,
            Op::Differential { target, plus, minus, scale } => {
                let (target, plus, minus) = (name(target), name(plus), name(minus));
                write!(f, "differential(target={target}, plus={plus}, minus={minus}, scale={scale:?})")?;
            }
            Op::Crossover { target, donor, rate, seed, per } => {
                let per = match per {
                    Granularity::Parameter => "parameter",
                    Granularity::Tensor => "tensor",
                };
                let (target, donor) = (name(target), name(donor));
                write!(f, "crossover(target={target}, donor={donor}, rate={rate:?}, seed={seed}, per={per:?})")?;
            }
            Op::Perturb { parent, deviation, seed, shape } => {
                write!(f, "perturb(parent={}, deviation={deviation:?}, seed={seed}", name(parent))?;
                match shape {
                    Shape::Full => write!(f, ")")?,
                    Shape::Sparse { density } => write!(f, ", density={density:?})")?,
                    Shape::LowRank { rank } => write!(f, ", rank={rank})")?,
                }
            }
            Op::Splice { first, second, at } => {
                write!(f, "splice(first={}, second={}, at={at:?})", name(first), name(second))?;
            }
            Op::Merge(merge) => {
                write!(f, "merge(method={:?}", merge.method)?;
                if let Some(base) = &merge.base {
                    write!(f, ", base={}", name(base))?;
                }
                for (key, value) in &merge.parameters {
                    write!(f, ", {key}={}", literal(value))?;
                }
                let models: Vec<_> =
                    merge.models.iter().map(|input| format!("{}{{{}}}", name(&input.recipe), pairs(&input.parameters))).collect();
                write!(f, ", models=[{}])", models.join(", "))?;
            }
        }
    }
    Ok(())
}

fn pairs(parameters: &Parameters) -> String {
    let pairs: Vec<_> = parameters.iter().map(|(key, value)| format!("{key}={}", literal(value))).collect();
    pairs.join(", ")
}

fn literal(value: &Value) -> String {
    match value {
        Value::Flag(flag) => flag.to_string(),
        Value::Number(number) => format!("{number:?}"),
        Value::Text(text) => serde_json::Value::from(text.as_str()).to_string(),
        Value::Numbers(numbers) => format!("{numbers:?}"),
        Value::Rules(rules) => {
            let rules: Vec<_> = rules.iter().map(rule).collect();
            format!("[{}]", rules.join(", "))
        }
    }
}

fn rule(rule: &Rule) -> String {
    let filter = rule.filter.as_ref().map(|filter| format!("filter={}, ", serde_json::Value::from(filter.as_str())));
    format!("{{{}value={}}}", filter.unwrap_or_default(), literal(&rule.value))
}

/// Reads what [`Recipe`]'s `Display` wrote.
///
/// # Errors
/// Names the line that is not a node.
pub fn parse(text: &str) -> Result<Recipe, ParseError> {
    let mut named: HashMap<String, Recipe> = HashMap::new();
    let mut root = None;
    let mut last = 1;
    for (line, content) in (1..).zip(text.lines()).filter(|(_, content)| !content.trim().is_empty()) {
        last = line;
        let bad = |what: String| ParseError { line, what };
        limits::check("nodes", named.len() + 1, NODES_MAX).map_err(|error| bad(error.to_string()))?;
        let (name, node) = Parser { rest: content.trim(), named: &named, in_rules: false }.line().map_err(bad)?;
        limits::check("levels", node.depth(), super::DEPTH_MAX).map_err(|error| bad(error.to_string()))?;
        if named.insert(name.clone(), node.clone()).is_some() {
            return Err(bad(format!("{name} names two nodes")));
        }
        root = Some(node);
    }
    let root = root.ok_or_else(|| ParseError { line: 1, what: "a recipe has at least one node".into() })?;
    // A recipe that cannot be encoded and read back is not one: for instance a number that is not finite.
    canonical::decode(&canonical::encode(&root)).map_err(|error| ParseError { line: last, what: error.to_string() })
}

/// One argument of a node.
enum Argument {
    Value(Value),
    /// A number as written, for seeds that no float can hold.
    Word(String),
    Models(Vec<Input>),
}

struct Parser<'a> {
    rest: &'a str,
    named: &'a HashMap<String, Recipe>,
    /// Whether rules are being read: they hold none again, so that no text nests without bound.
    in_rules: bool,
}

impl Parser<'_> {
    fn line(mut self) -> Result<(String, Recipe), String> {
        let name = self.word()?;
        self.expect('=')?;
        let op = self.word()?;
        self.expect('(')?;
        let mut arguments = HashMap::new();
        loop {
            let key = self.word()?;
            self.expect('=')?;
            let value = if key == "models" { Argument::Models(self.models()?) } else { self.argument()? };
            if arguments.insert(key.clone(), value).is_some() {
                return Err(format!("{key} stands there twice"));
            }
            if self.take(')') {
                break;
            }
            self.expect(',')?;
        }
        if !self.rest.is_empty() {
            return Err(format!("{:?} follows the node", self.rest));
        }
        let mut arguments = Arguments { table: arguments, named: self.named };
        let op = arguments.op(&op)?;
        match arguments.table.into_keys().next() {
            Some(key) => Err(format!("unknown argument {key}")),
            None => Ok((name, Recipe::new(op))),
        }
    }

    fn take(&mut self, c: char) -> bool {
        match self.rest.trim_start().strip_prefix(c) {
            Some(rest) => {
                self.rest = rest.trim_start();
                true
            }
            None => false,
        }
    }

    fn expect(&mut self, c: char) -> Result<(), String> {
        if self.take(c) { Ok(()) } else { Err(format!("{c:?} is expected before {:.20?}", self.rest)) }
    }

    fn word(&mut self) -> Result<String, String> {
        let rest = self.rest.trim_start();
        let end = rest.find(|c: char| !(c.is_alphanumeric() || "_.-+".contains(c))).unwrap_or(rest.len());
        let (word, rest) = rest.split_at(end);
        self.rest = rest.trim_start();
        if word.is_empty() { Err(format!("a word is expected before {:.20?}", self.rest)) } else { Ok(word.to_owned()) }
    }

    fn argument(&mut self) -> Result<Argument, String> {
        if self.rest.starts_with('"') {
            let mut values = serde_json::Deserializer::from_str(self.rest).into_iter::<String>();
            let text = values.next().and_then(Result::ok).ok_or("a text in quotes is expected")?;
            let end = values.byte_offset();
            self.rest = self.rest[end..].trim_start();
            return Ok(Argument::Value(Value::Text(text)));
        }
        if self.take('[') {
            if self.rest.starts_with('{') {
                if std::mem::replace(&mut self.in_rules, true) {
                    return Err("rules stand inside rules".into());
                }
                return Ok(Argument::Value(Value::Rules(self.rules()?)));
            }
            let mut numbers = Vec::new();
            while !self.take(']') {
                let word = self.word()?;
                numbers.push(word.parse().map_err(|_| format!("{word} is not a number"))?);
                if !self.rest.starts_with(']') {
                    self.expect(',')?;
                }
            }
            return Ok(Argument::Value(Value::Numbers(numbers)));
        }
        match self.word()?.as_str() {
            "true" => Ok(Argument::Value(Value::Flag(true))),
            "false" => Ok(Argument::Value(Value::Flag(false))),
            word => Ok(Argument::Word(word.to_owned())),
        }
    }

    /// Rules, behind their opening bracket.
    fn rules(&mut self) -> Result<Vec<Rule>, String> {
        let mut rules = Vec::new();
        while !self.take(']') {
            self.expect('{')?;
            let mut filter = None;
            let mut key = self.word()?;
            if key == "filter" {
                self.expect('=')?;
                let Value::Text(text) = value(self.argument()?)? else {
                    return Err("filter is not a text in quotes".into());
                };
                filter = Some(text);
                self.expect(',')?;
                key = self.word()?;
            }
            if key != "value" {
                return Err(format!("{key} stands in a rule: filter and value are expected"));
            }
            self.expect('=')?;
            rules.push(Rule { filter, value: value(self.argument()?)? });
            self.expect('}')?;
            if !self.rest.starts_with(']') {
                self.expect(',')?;
            }
        }
        self.in_rules = false;
        Ok(rules)
    }

    fn models(&mut self) -> Result<Vec<Input>, String> {
        self.expect('[')?;
        let mut models = Vec::new();
        while !self.take(']') {
            let recipe = find(self.named, &self.word()?)?;
            self.expect('{')?;
            let mut parameters = Parameters::new();
            while !self.take('}') {
                let key = self.word()?;
                self.expect('=')?;
                let value = value(self.argument()?)?;
                parameters.insert(key, value);
                if !self.rest.starts_with('}') {
                    self.expect(',')?;
                }
            }
            models.push(Input { recipe, parameters });
            if !self.rest.starts_with(']') {
                self.expect(',')?;
            }
        }
        Ok(models)
    }
}

fn find(named: &HashMap<String, Recipe>, name: &str) -> Result<Recipe, String> {
    named.get(name).cloned().ok_or_else(|| format!("{name} is not the name of an earlier node"))
}

fn value(argument: Argument) -> Result<Value, String> {
    match argument {
        Argument::Value(value) => Ok(value),
        Argument::Word(word) => word.parse().map(Value::Number).map_err(|_| format!("{word} is not a number")),
        Argument::Models(_) => Err("models is not a parameter".into()),
    }
}

struct Arguments<'a> {
    table: HashMap<String, Argument>,
    named: &'a HashMap<String, Recipe>,
}

impl Arguments<'_> {
    fn take(&mut self, key: &str) -> Result<Argument, String> {
        self.table.remove(key).ok_or_else(|| format!("{key} is missing"))
    }

    fn word<T: std::str::FromStr>(&mut self, key: &str) -> Result<T, String> {
        match self.take(key)? {
            Argument::Word(word) => word.parse().map_err(|_| format!("{key} cannot be {word}")),
            _ => Err(format!("{key} is not of the right kind")),
        }
    }

    fn node(&mut self, key: &str) -> Result<Recipe, String> {
        let name: String = self.word(key)?;
        find(self.named, &name)
    }

    fn text(&mut self, key: &str) -> Result<String, String> {
        match self.take(key)? {
            Argument::Value(Value::Text(text)) => Ok(text),
            _ => Err(format!("{key} is not a text in quotes")),
        }
    }

    fn op(&mut self, op: &str) -> Result<Op, String> {
        Ok(match op {
            "checkpoint" => Op::Checkpoint(self.word("digest")?),
            "differential" => Op::Differential {
                target: self.node("target")?,
                plus: self.node("plus")?,
                minus: self.node("minus")?,
                scale: self.word("scale")?,
            },
            "crossover" => Op::Crossover {
                target: self.node("target")?,
                donor: self.node("donor")?,
                rate: self.word("rate")?,
                seed: self.word("seed")?,
                per: match self.text("per")?.as_str() {
                    "parameter" => Granularity::Parameter,
                    "tensor" => Granularity::Tensor,
                    other => return Err(format!("per is {other:?}: \"parameter\" or \"tensor\" is expected")),
                },
            },
            "perturb" => {
                let shape = if self.table.contains_key("density") {
                    Shape::Sparse { density: self.word("density")? }
                } else if self.table.contains_key("rank") {
                    Shape::LowRank { rank: self.word("rank")? }
                } else {
                    Shape::Full
                };
                let (parent, deviation) = (self.node("parent")?, self.word("deviation")?);
                Op::Perturb { parent, deviation, seed: self.word("seed")?, shape }
            }
            "splice" => Op::Splice { first: self.node("first")?, second: self.node("second")?, at: self.word("at")? },
            "merge" => {
                let method = self.text("method")?;
                let base = if self.table.contains_key("base") { Some(self.node("base")?) } else { None };
                let Argument::Models(models) = self.take("models")? else {
                    return Err("models is not a list".into());
                };
                let parameters = self.table.drain().map(|(key, argument)| Ok((key, value(argument)?)));
                Op::Merge(Merge { method, base, models, parameters: parameters.collect::<Result<_, String>>()? })
            }
            other => {
                let known = ["checkpoint", "differential", "crossover", "perturb", "merge"];
                return Err(format!("unknown operation {}", crate::suggest::unknown(other, known)));
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::recipe::{decode, encode};

    /// A random graph: every byte picks an operation over the nodes so far.
    fn graph(choices: &[(u8, u8, u64, f64)]) -> Recipe {
        let mut nodes = vec![Recipe::checkpoint(Digest::of(b"a")), Recipe::checkpoint(Digest::of(b"b"))];
        for &(kind, pick, seed, number) in choices {
            let at = |offset: usize| nodes[(usize::from(pick) + offset) % nodes.len()].clone();
            let op = match kind % 6 {
                0 => Op::Differential { target: at(0), plus: at(1), minus: at(2), scale: number },
                1 => {
                    let per = if seed % 2 == 0 { Granularity::Parameter } else { Granularity::Tensor };
                    Op::Crossover { target: at(0), donor: at(1), rate: number, seed, per }
                }
                2 => {
                    let shape = match seed % 3 {
                        0 => Shape::Full,
                        1 => Shape::Sparse { density: number },
                        _ => Shape::LowRank { rank: 1 + u32::from(pick) },
                    };
                    Op::Perturb { parent: at(0), deviation: number, seed, shape }
                }
                4 => Op::Splice { first: at(0), second: at(1), at: number },
                3 => Op::Checkpoint(Digest::of(&[pick])),
                _ => {
                    let parameters = Parameters::from([
                        ("ratio".to_owned(), Value::Number(number)),
                        ("variant".to_owned(), Value::Text("a \"b\", c)".into())),
                        ("flag".to_owned(), Value::Flag(seed % 2 == 0)),
                        ("list".to_owned(), Value::Numbers(vec![number, 1.0])),
                        (
                            "rules".to_owned(),
                            Value::Rules(vec![
                                Rule { filter: Some("a]\"}, ".into()), value: Value::Numbers(vec![number]) },
                                Rule { filter: None, value: Value::Flag(seed % 2 == 0) },
                            ]),
                        ),
                    ]);
                    let model = |offset| Input { recipe: at(offset), parameters: parameters.clone() };
                    let base = (seed % 3 == 0).then(|| at(3));
                    Op::Merge(Merge {
                        method: "pcb".into(),
                        base,
                        models: vec![model(0), model(1)],
                        parameters: parameters.clone(),
                    })
                }
            };
            nodes.push(Recipe::new(op));
        }
        nodes[nodes.len() - 1].clone()
    }

    fn choices() -> impl Strategy<Value = Vec<(u8, u8, u64, f64)>> {
        proptest::collection::vec((any::<u8>(), any::<u8>(), any::<u64>(), -1e3..1e3f64), 0..12)
    }

    proptest! {
        #[test]
        fn text_and_encoding_read_back_as_themselves(choices in choices()) {
            let recipe = graph(&choices);
            prop_assert_eq!(parse(&recipe.to_string()).unwrap().id(), recipe.id());
            prop_assert_eq!(decode(&encode(&recipe)).unwrap().id(), recipe.id());
        }

        #[test]
        fn damaged_encodings_and_texts_never_panic(choices in choices(), at: usize, to: u8) {
            let recipe = graph(&choices);
            let mut bytes = encode(&recipe);
            let place = at % bytes.len();
            bytes[place] = to;
            if let Ok(other) = decode(&bytes) {
                prop_assert_eq!(encode(&other), bytes);
            }
            let mut text = recipe.to_string().into_bytes();
            let place = at % text.len();
            text[place] = to;
            let _ = parse(&String::from_utf8_lossy(&text));
        }
    }

    #[test]
    fn a_wrong_line_is_named() {
        let good = format!("n0 = checkpoint(digest={})", Digest::of(b"a"));
        for (line, expected) in [
            ("n1 = perturb(parent=n7, deviation=0.1, seed=1)", "n7 is not the name"),
            ("n1 = pertub(parent=n0, deviation=0.1, seed=1)", "did you mean \"perturb\""),
            ("n1 = perturb(parent=n0, deviation=0.1)", "seed is missing"),
            ("n1 = perturb(parent=n0, deviation=0.1, seed=1, x=2)", "unknown argument x"),
            ("n1 = perturb(parent=n0, deviation=inf, seed=1)", "not finite"),
            ("n0 = perturb(parent=n0, deviation=0.1, seed=1)", "names two nodes"),
        ] {
            let error = parse(&format!("{good}\n{line}")).unwrap_err();
            assert!(error.line == 2 && error.what.contains(expected), "{line}: {error}");
        }
    }
}
