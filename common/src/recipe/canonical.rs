//! The canonical encoding.
//!
//! One node is `tag, scalars, operands`; numbers are little-endian, floats by their bits (with `-0.0` written as `0.0`), texts and lists preceded by a `u32`
//! count. Two uses of the same bytes:
//! - the **id** hashes a node with each operand written as its 32-byte id (a Merkle graph);
//! - the **encoding** that travels is `version, u32 count, nodes…` in [`Recipe::nodes`] order, each operand written as the `u32` index of
//!   an earlier node.

use thiserror::Error;

use super::{
    DEPTH_MAX, Granularity, Input, LimitError, Merge, NODES_MAX, OPERANDS_MAX, Op, Parameters, RANK_MAX, Recipe, Rule, Shape,
    Value, limits,
};
use crate::digest::Digest;

/// Version of the encoding; part of every id.
const VERSION: u8 = 1;
const ID_DOMAIN: &str = "evolver recipe v1";
/// Kind of a parameter's value that holds others.
const RULES: u8 = 4;

/// Bytes that are not a recipe's canonical encoding.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// The bytes end inside a node.
    #[error("the recipe's encoding ends early, at byte {0}")]
    Truncated(usize),
    /// Something that no encoder writes.
    #[error("the recipe's encoding is wrong at byte {at}: {what}")]
    Malformed {
        /// Where.
        at: usize,
        /// What is wrong there.
        what: &'static str,
    },
    /// Well formed, but too large.
    #[error(transparent)]
    Limit(#[from] LimitError),
}

/// The id of the node that `op` makes.
pub(super) fn id(op: &Op) -> Digest {
    let mut bytes = vec![VERSION];
    write_op(op, &mut bytes, &mut |operand, out| {
        out.extend_from_slice(operand.id().as_bytes());
    });
    Digest::of_parts(ID_DOMAIN, [bytes.as_slice()])
}

/// The encoding of a whole recipe graph.
#[must_use]
pub fn encode(recipe: &Recipe) -> Vec<u8> {
    let nodes = recipe.nodes();
    let index: std::collections::HashMap<Digest, u32> = (0u32..).zip(&nodes).map(|(index, node)| (node.id(), index)).collect();
    let mut bytes = vec![VERSION];
    put_count(nodes.len(), &mut bytes);
    for node in &nodes {
        write_op(node.op(), &mut bytes, &mut |operand, out| {
            out.extend_from_slice(&index[&operand.id()].to_le_bytes());
        });
    }
    bytes
}

/// Reads what [`encode`] wrote.
///
/// # Errors
/// If the bytes are not exactly an encoding, or the recipe is beyond its limits.
pub fn decode(bytes: &[u8]) -> Result<Recipe, DecodeError> {
    let mut reader = Reader { bytes, at: 0 };
    if reader.byte()? != VERSION {
        return Err(reader.malformed("unknown version"));
    }
    let count = reader.count("nodes", NODES_MAX)?;
    let mut nodes: Vec<Recipe> = Vec::with_capacity(count.min(1024));
    for _ in 0..count {
        let op = reader.op(&nodes)?;
        let node = Recipe::new(op);
        limits::check("levels", node.depth(), DEPTH_MAX)?;
        nodes.push(node);
    }
    let root = nodes.pop().ok_or_else(|| reader.malformed("a recipe has at least one node"))?;
    if reader.at != bytes.len() {
        return Err(reader.malformed("bytes follow the last node"));
    }
    if encode(&root) != bytes {
        return Err(reader.malformed("the nodes are not in canonical order"));
    }
    Ok(root)
}

fn write_op(op: &Op, out: &mut Vec<u8>, operand: &mut dyn FnMut(&Recipe, &mut Vec<u8>)) {
    match op {
        Op::Checkpoint(digest) => {
            out.push(0);
            out.extend_from_slice(digest.as_bytes());
        }
        Op::Differential { target, plus, minus, scale } => {
            out.push(1);
            put_number(*scale, out);
            operand(target, out);
            operand(plus, out);
            operand(minus, out);
        }
        Op::Crossover { target, donor, rate, seed, per } => {
            out.push(2);
            put_number(*rate, out);
            out.extend_from_slice(&seed.to_le_bytes());
            out.push(match per {
                Granularity::Parameter => 0,
                Granularity::Tensor => 1,
            });
            operand(target, out);
            operand(donor, out);
        }
        Op::Perturb { parent, deviation, seed, shape } => {
            match shape {
                Shape::Full => out.push(3),
                Shape::Sparse { density } => {
                    out.extend_from_slice(&[6, 0]);
                    put_number(*density, out);
                }
                Shape::LowRank { rank } => {
                    out.extend_from_slice(&[6, 1]);
                    out.extend_from_slice(&rank.to_le_bytes());
                }
            }
            put_number(*deviation, out);
            out.extend_from_slice(&seed.to_le_bytes());
            operand(parent, out);
        }
        Op::Splice { first, second, at } => {
            out.push(5);
            put_number(*at, out);
            operand(first, out);
            operand(second, out);
        }
        Op::Merge(merge) => {
            out.push(4);
            put_text(&merge.method, out);
            put_parameters(&merge.parameters, out);
            out.push(u8::from(merge.base.is_some()));
            if let Some(base) = &merge.base {
                operand(base, out);
            }
            put_count(merge.models.len(), out);
            for input in &merge.models {
                put_parameters(&input.parameters, out);
                operand(&input.recipe, out);
            }
        }
    }
}

fn put_count(count: usize, out: &mut Vec<u8>) {
    // Every list is bounded far below 2^32 by the limits.
    out.extend_from_slice(&u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes());
}

fn put_number(number: f64, out: &mut Vec<u8>) {
    // Adding zero turns -0.0 into 0.0: equal numbers, equal bits.
    out.extend_from_slice(&(number + 0.0).to_bits().to_le_bytes());
}

fn put_text(text: &str, out: &mut Vec<u8>) {
    put_count(text.len(), out);
    out.extend_from_slice(text.as_bytes());
}

fn put_parameters(parameters: &Parameters, out: &mut Vec<u8>) {
    put_count(parameters.len(), out);
    for (name, value) in parameters {
        put_text(name, out);
        put_value(value, out);
    }
}

fn put_value(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Flag(flag) => out.extend_from_slice(&[0, u8::from(*flag)]),
        Value::Number(number) => {
            out.push(1);
            put_number(*number, out);
        }
        Value::Text(text) => {
            out.push(2);
            put_text(text, out);
        }
        Value::Numbers(numbers) => {
            out.push(3);
            put_count(numbers.len(), out);
            for number in numbers {
                put_number(*number, out);
            }
        }
        Value::Rules(rules) => {
            out.push(RULES);
            put_count(rules.len(), out);
            for rule in rules {
                out.push(u8::from(rule.filter.is_some()));
                if let Some(filter) = &rule.filter {
                    put_text(filter, out);
                }
                put_value(&rule.value, out);
            }
        }
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn malformed(&self, what: &'static str) -> DecodeError {
        DecodeError::Malformed { at: self.at, what }
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let rest = &self.bytes[self.at..];
        let chunk = rest.first_chunk::<N>().ok_or(DecodeError::Truncated(self.bytes.len()))?;
        self.at += N;
        Ok(*chunk)
    }

    fn byte(&mut self) -> Result<u8, DecodeError> {
        self.take::<1>().map(|[byte]| byte)
    }

    fn flag(&mut self) -> Result<bool, DecodeError> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(self.malformed("a flag is 0 or 1")),
        }
    }

    fn count(&mut self, what: &'static str, limit: usize) -> Result<usize, DecodeError> {
        let count = u32::from_le_bytes(self.take()?) as usize;
        limits::check(what, count, limit)?;
        Ok(count)
    }

    fn number(&mut self) -> Result<f64, DecodeError> {
        let number = f64::from_bits(u64::from_le_bytes(self.take()?));
        if !number.is_finite() {
            return Err(self.malformed("a number is not finite"));
        }
        Ok(number)
    }

    fn seed(&mut self) -> Result<u64, DecodeError> {
        Ok(u64::from_le_bytes(self.take()?))
    }

    fn text(&mut self) -> Result<String, DecodeError> {
        let count = self.count("bytes in a text", 4096)?;
        let rest = &self.bytes[self.at..];
        let bytes = rest.get(..count).ok_or(DecodeError::Truncated(self.bytes.len()))?;
        let text = std::str::from_utf8(bytes).map_err(|_| self.malformed("not UTF-8"))?;
        self.at += count;
        Ok(text.to_owned())
    }

    fn parameters(&mut self) -> Result<Parameters, DecodeError> {
        let count = self.count("parameters", OPERANDS_MAX)?;
        let mut parameters = Parameters::new();
        for _ in 0..count {
            let name = self.text()?;
            let kind = self.byte()?;
            let value = if kind == RULES { self.rules()? } else { self.value(kind)? };
            parameters.insert(name, value);
        }
        Ok(parameters)
    }

    fn rules(&mut self) -> Result<Value, DecodeError> {
        let count = self.count("rules", OPERANDS_MAX)?;
        let rule = |_| {
            let filter = if self.flag()? { Some(self.text()?) } else { None };
            let kind = self.byte()?;
            Ok(Rule { filter, value: self.value(kind)? })
        };
        Ok(Value::Rules((0..count).map(rule).collect::<Result<_, DecodeError>>()?))
    }

    fn value(&mut self, kind: u8) -> Result<Value, DecodeError> {
        Ok(match kind {
            0 => Value::Flag(self.flag()?),
            1 => Value::Number(self.number()?),
            2 => Value::Text(self.text()?),
            3 => {
                let count = self.count("numbers in a list", OPERANDS_MAX)?;
                Value::Numbers((0..count).map(|_| self.number()).collect::<Result<_, _>>()?)
            }
            _ => return Err(self.malformed("unknown kind of value")),
        })
    }

    fn operand(&mut self, nodes: &[Recipe]) -> Result<Recipe, DecodeError> {
        let index = u32::from_le_bytes(self.take()?) as usize;
        nodes.get(index).cloned().ok_or_else(|| self.malformed("an operand is not an earlier node"))
    }

    fn rank(&mut self) -> Result<u32, DecodeError> {
        match u32::from_le_bytes(self.take()?) {
            rank @ 1..=RANK_MAX => Ok(rank),
            _ => Err(self.malformed("a rank lies between 1 and 1024")),
        }
    }

    fn perturb(&mut self, shape: Shape, nodes: &[Recipe]) -> Result<Op, DecodeError> {
        let deviation = self.number()?;
        let seed = self.seed()?;
        Ok(Op::Perturb { parent: self.operand(nodes)?, deviation, seed, shape })
    }

    fn op(&mut self, nodes: &[Recipe]) -> Result<Op, DecodeError> {
        Ok(match self.byte()? {
            0 => Op::Checkpoint(Digest::from_bytes(self.take()?)),
            1 => {
                let scale = self.number()?;
                Op::Differential { target: self.operand(nodes)?, plus: self.operand(nodes)?, minus: self.operand(nodes)?, scale }
            }
            2 => {
                let rate = self.number()?;
                let seed = self.seed()?;
                let per = match self.byte()? {
                    0 => Granularity::Parameter,
                    1 => Granularity::Tensor,
                    _ => return Err(self.malformed("unknown granularity")),
                };
                Op::Crossover { target: self.operand(nodes)?, donor: self.operand(nodes)?, rate, seed, per }
            }
            3 => self.perturb(Shape::Full, nodes)?,
            4 => {
                let method = self.text()?;
                let parameters = self.parameters()?;
                let base = if self.flag()? { Some(self.operand(nodes)?) } else { None };
                let count = self.count("models in a merge", OPERANDS_MAX)?;
                let models = (0..count)
                    .map(|_| Ok(Input { parameters: self.parameters()?, recipe: self.operand(nodes)? }))
                    .collect::<Result<_, DecodeError>>()?;
                Op::Merge(Merge { method, base, models, parameters })
            }
            5 => {
                let at = self.number()?;
                Op::Splice { first: self.operand(nodes)?, second: self.operand(nodes)?, at }
            }
            6 => {
                let shape = match self.byte()? {
                    0 => Shape::Sparse { density: self.number()? },
                    1 => Shape::LowRank { rank: self.rank()? },
                    _ => return Err(self.malformed("unknown shape of a perturbation")),
                };
                self.perturb(shape, nodes)?
            }
            _ => return Err(self.malformed("unknown operation")),
        })
    }
}
