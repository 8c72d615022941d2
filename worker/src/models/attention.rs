//! Attention over packed sequences.
//!
//! A [`Segment`] is a run of rows with an optional parent, whose keys it sees before its own: texts that begin alike share the beginning, which is
//! computed once. A segment's numbers depend on itself and its ancestors, never on the rest of the batch.

use std::ops::Range;

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::ops::{Norm, dot, exp, map3, shift, sum, tanh, wide};

/// Columns that the inner product keeps in registers at once.
const TILE: usize = 32;
/// Query rows that go through the keys together.
const BLOCK: usize = 4;

/// Rows that attend to their ancestors' rows and to each other.
#[derive(Clone, Debug)]
pub(super) struct Segment {
    pub(super) rows: Range<usize>,
    /// Index of an earlier segment.
    pub(super) parent: Option<usize>,
}

impl Segment {
    /// Segments without parents from the lengths of sequences.
    pub(super) fn of(lengths: impl IntoIterator<Item = usize>) -> Vec<Self> {
        let mut end = 0;
        let segment = |length| {
            let start = end;
            end += length;
            Self { rows: start..end, parent: None }
        };
        lengths.into_iter().map(segment).collect()
    }

    /// The segments from the first ancestor to `index` itself.
    pub(super) fn line(segments: &[Self], index: usize) -> Vec<usize> {
        let mut line = vec![index];
        while let Some(parent) = segments[line[line.len() - 1]].parent {
            line.push(parent);
        }
        line.reverse();
        line
    }

    /// The position of every row in its text, ancestors counted.
    pub(super) fn positions(segments: &[Self]) -> Vec<usize> {
        let mut starts = Vec::with_capacity(segments.len());
        let mut positions = Vec::new();
        for segment in segments {
            let start = segment.parent.map_or(0, |parent: usize| starts[parent] + segments[parent].rows.len());
            starts.push(start);
            positions.extend(start..start + segment.rows.len());
        }
        positions
    }
}

/// Which keys a query sees, by the distance of their positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mask {
    /// All.
    Full,
    /// Itself and those before.
    Causal,
    /// Itself and those before, this many in all.
    Window(usize),
    /// This many on each side.
    Local(usize),
}

impl Mask {
    /// The keys, of `total`, that the query at `position` sees.
    fn range(self, position: usize, total: usize) -> Range<usize> {
        match self {
            Self::Full => 0..total,
            Self::Causal => 0..position + 1,
            Self::Window(size) => (position + 1).saturating_sub(size)..position + 1,
            Self::Local(size) => position.saturating_sub(size)..(position + size + 1).min(total),
        }
    }
}

/// What is added to the scores before the softmax.
pub(super) trait ScoreBias: Sync {
    /// Adds to `scores`, those of head `head` between the query in `row`, at `position`, and the keys at positions `keys`.
    fn add(&self, head: usize, row: usize, position: usize, keys: Range<usize>, scores: &mut [f32]);
}

/// The shape and the rules of one layer's attention.
#[derive(Clone, Debug)]
pub(super) struct Attention {
    pub(super) heads: usize,
    /// Heads of keys and values; each serves `heads / kv_heads` heads of queries.
    pub(super) kv_heads: usize,
    /// Width of a head.
    pub(super) depth: usize,
    pub(super) scale: f32,
    /// Scores are `cap * tanh(score / cap)`.
    pub(super) softcap: Option<f32>,
    pub(super) mask: Mask,
}

impl Attention {
    /// `heads` heads over rows of `width`, scaled by the root of the depth, as most have it.
    pub(super) fn plain(heads: usize, width: usize) -> Self {
        let depth = width / heads;
        Self { heads, kv_heads: heads, depth, scale: root(depth), softcap: None, mask: Mask::Full }
    }

    /// Mixes values by the queries' and keys' products: `rows x (heads * depth)`. Rows outside all segments stay zero.
    pub(super) fn run(&self, inputs: [&Tensor; 3], segments: &[Segment], bias: Option<&dyn ScoreBias>) -> Result<Tensor> {
        let width = self.heads * self.depth;
        let rows = inputs[0].dim(0)?;
        map3(inputs, width, |out, inputs| {
            let mut rest = &mut out[..rows * width];
            let mut parts = Vec::with_capacity(segments.len());
            for (index, segment) in segments.iter().enumerate() {
                let (part, after) = rest.split_at_mut(segment.rows.len() * width);
                parts.push((index, part));
                rest = after;
            }
            parts.into_par_iter().for_each(|(index, part)| self.segment(part, inputs, segments, index, bias));
        })
    }

    fn segment(
        &self,
        out: &mut [f32],
        [queries, keys, values]: [&[f32]; 3],
        segments: &[Segment],
        index: usize,
        bias: Option<&dyn ScoreBias>,
    ) {
        let seen: Vec<_> = Segment::line(segments, index).into_iter().flat_map(|index| segments[index].rows.clone()).collect();
        let rows = segments[index].rows.clone();
        self.heads_over(out, queries, rows, [keys, values], &seen, bias);
    }

    /// The rows `rows` of the queries over the keys and values in the rows `seen`, of which the last are the queries' own unless all are seen.
    pub(super) fn heads_over(
        &self,
        out: &mut [f32],
        queries: &[f32],
        rows: Range<usize>,
        [keys, values]: [&[f32]; 2],
        seen: &[usize],
        bias: Option<&dyn ScoreBias>,
    ) {
        let (width, narrow) = (self.heads * self.depth, self.kv_heads * self.depth);
        let group = self.heads / self.kv_heads;
        let mixed: Vec<Vec<f32>> = (0..self.kv_heads)
            .into_par_iter()
            .map(|kv| {
                wide(
                    #[inline(always)]
                    || {
                        let gathered = Gathered::new(keys, values, seen, narrow, kv * self.depth, self.depth);
                        let mut mixed = vec![0.0; group * rows.len() * self.depth];
                        let mut work = Work::default();
                        for (member, mixed) in mixed.chunks_mut(rows.len().max(1) * self.depth).enumerate() {
                            let head = kv * group + member;
                            self.head(mixed, queries, width, rows.clone(), head, &gathered, bias, &mut work);
                        }
                        mixed
                    },
                )
            })
            .collect();
        for (kv, mixed) in mixed.iter().enumerate() {
            for (index, mixed) in mixed.chunks(self.depth).enumerate() {
                let (member, row) = (index / rows.len(), index % rows.len());
                let at = row * width + (kv * group + member) * self.depth;
                out[at..at + self.depth].copy_from_slice(mixed);
            }
        }
    }

    #[inline(always)]
    #[expect(clippy::too_many_arguments, reason = "one head's inputs, all of them borrowed")]
    fn head(
        &self,
        out: &mut [f32],
        queries: &[f32],
        width: usize,
        rows: Range<usize>,
        head: usize,
        gathered: &Gathered,
        bias: Option<&dyn ScoreBias>,
        work: &mut Work,
    ) {
        let total = gathered.total;
        let before = total.saturating_sub(rows.len());
        let query = |row: usize| &queries[row * width + head * self.depth..][..self.depth];
        let mut start = rows.start;
        while start < rows.end {
            let block = if rows.end - start >= BLOCK { BLOCK } else { 1 };
            let position = |row: usize| before + row - rows.start;
            let low = self.mask.range(position(start), total).start / TILE * TILE;
            let high = self.mask.range(position(start + block - 1), total).end;
            let span = (high - low).next_multiple_of(TILE);
            work.scores.clear();
            work.scores.resize(block * span, 0.0);
            work.query.clear();
            for row in start..start + block {
                work.query.extend(query(row).iter().map(|q| q * self.scale));
            }
            product(&work.query, self.depth, &gathered.keys[low..], gathered.stride, &mut work.scores, span, block, self.depth);
            for (row, scores) in (start..start + block).zip(work.scores.chunks_mut(span)) {
                let range = self.mask.range(position(row), total);
                let seen = &mut scores[range.start - low..range.end - low];
                if let Some(bias) = bias {
                    bias.add(head, row, position(row), range.clone(), seen);
                }
                if let Some(cap) = self.softcap {
                    seen.iter_mut().for_each(|score| *score = cap * tanh(*score / cap));
                }
                softmax(seen);
                scores[..range.start - low].fill(0.0);
                scores[range.end - low..].fill(0.0);
            }
            let depth = gathered.depth;
            work.mixed.clear();
            work.mixed.resize(block * depth, 0.0);
            product(&work.scores, span, &gathered.values[low * depth..], depth, &mut work.mixed, depth, block, high - low);
            for (row, mixed) in (start..start + block).zip(work.mixed.chunks(depth)) {
                out[(row - rows.start) * self.depth..][..self.depth].copy_from_slice(&mixed[..self.depth]);
            }
            start += block;
        }
    }

    /// One query row over cached keys and values, `total` rows of `kv_heads * depth` each: a step of generation.
    pub(super) fn step(&self, out: &mut [f32], query: &[f32], keys: &[f32], values: &[f32], bias: Option<&dyn ScoreBias>) {
        let narrow = self.kv_heads * self.depth;
        let total = keys.len() / narrow;
        let position = total.saturating_sub(1);
        let range = self.mask.range(position, total);
        let group = self.heads / self.kv_heads;
        let mut scores = vec![0.0; range.len()];
        for head in 0..self.heads {
            let at = head / group * self.depth;
            let query: Vec<f32> = query[head * self.depth..][..self.depth].iter().map(|q| q * self.scale).collect();
            for (score, key) in scores.iter_mut().zip(range.clone()) {
                *score = dot(&query, &keys[key * narrow + at..][..self.depth]);
            }
            if let Some(bias) = bias {
                bias.add(head, 0, position, range.clone(), &mut scores);
            }
            if let Some(cap) = self.softcap {
                scores.iter_mut().for_each(|score| *score = cap * tanh(*score / cap));
            }
            softmax(&mut scores);
            let out = &mut out[head * self.depth..][..self.depth];
            out.fill(0.0);
            for (score, key) in scores.iter().zip(range.clone()) {
                let value = &values[key * narrow + at..][..self.depth];
                out.iter_mut().zip(value).for_each(|(out, value)| *out += score * value);
            }
        }
    }
}

/// `1 / sqrt(depth)`.
#[expect(clippy::cast_precision_loss, reason = "a width")]
pub(super) fn root(depth: usize) -> f32 {
    1.0 / (depth as f32).sqrt()
}

#[derive(Default)]
struct Work {
    query: Vec<f32>,
    scores: Vec<f32>,
    mixed: Vec<f32>,
}

/// The keys (transposed) and values that a segment's head sees, padded to whole tiles.
struct Gathered {
    total: usize,
    /// `depth x stride`.
    keys: Vec<f32>,
    stride: usize,
    /// `total x depth`, the depth padded.
    values: Vec<f32>,
    depth: usize,
}

impl Gathered {
    #[inline(always)]
    fn new(keys: &[f32], values: &[f32], seen: &[usize], width: usize, at: usize, depth: usize) -> Self {
        let total = seen.len();
        let (stride, padded) = (total.next_multiple_of(TILE), depth.next_multiple_of(TILE));
        let mut this = Self { total, keys: vec![0.0; depth * stride], stride, values: vec![0.0; stride * padded], depth: padded };
        for (index, row) in seen.iter().enumerate() {
            let from = row * width + at;
            for (d, key) in keys[from..from + depth].iter().enumerate() {
                this.keys[d * stride + index] = *key;
            }
            this.values[index * padded..][..depth].copy_from_slice(&values[from..from + depth]);
        }
        this
    }
}

/// `c = a b` for `rows` rows of `a` (as wide as `lda`, of which `inner` count) and whole tiles of `b`'s columns, as many as `c` has.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "a matrix product's sides")]
fn product(a: &[f32], lda: usize, b: &[f32], ldb: usize, c: &mut [f32], ldc: usize, rows: usize, inner: usize) {
    if rows == BLOCK {
        tiles::<BLOCK>(a, lda, b, ldb, c, ldc, inner);
    } else {
        tiles::<1>(a, lda, b, ldb, c, ldc, inner);
    }
}

#[inline(always)]
fn tiles<const R: usize>(a: &[f32], lda: usize, b: &[f32], ldb: usize, c: &mut [f32], ldc: usize, inner: usize) {
    for tile in (0..ldc).step_by(TILE) {
        let mut sums = [[0.0f32; TILE]; R];
        for k in 0..inner {
            let Some((row, _)) = b[k * ldb + tile..].split_first_chunk::<TILE>() else {
                continue;
            };
            for (r, sums) in sums.iter_mut().enumerate() {
                let factor = a[r * lda + k];
                for (sum, value) in sums.iter_mut().zip(row) {
                    *sum += factor * value;
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            c[r * ldc + tile..][..TILE].copy_from_slice(sums);
        }
    }
}

#[inline(always)]
fn softmax(scores: &mut [f32]) {
    let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    scores.iter_mut().for_each(|score| *score = exp(*score - largest));
    let total = sum(scores, |x| x);
    scores.iter_mut().for_each(|score| *score /= total);
}

/// Rotary positions (Su et al., 2021) in the half-split form.
#[derive(Clone, Debug)]
pub(super) struct Rotary {
    /// One frequency for each pair of the rotated columns.
    pub(super) frequencies: Vec<f32>,
}

impl Rotary {
    /// The plain frequencies `base^(-2i / columns)`.
    pub(super) fn new(base: f64, columns: usize) -> Self {
        #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "widths; rounded as PyTorch does")]
        let frequency = |pair: usize| 1.0 / libm::pow(base, 2.0 * pair as f64 / columns as f64) as f32;
        Self { frequencies: (0..columns / 2).map(frequency).collect() }
    }

    /// Cosines and sines of each position.
    fn table(&self, positions: usize) -> Vec<(f32, f32)> {
        let angle = |position: usize, frequency: f32| {
            #[expect(clippy::cast_precision_loss, reason = "a position")]
            let angle = f64::from(position as f32 * frequency);
            #[expect(clippy::cast_possible_truncation, reason = "rounded to F32")]
            (libm::cos(angle) as f32, libm::sin(angle) as f32)
        };
        (0..positions).flat_map(|position| self.frequencies.iter().map(move |&frequency| angle(position, frequency))).collect()
    }
}

/// What is done to queries or keys before they meet.
#[derive(Clone, Debug, Default)]
pub(super) struct Prepare {
    /// Empty where there is none.
    pub(super) bias: Vec<f32>,
    /// Norm of each head.
    pub(super) norm: Option<Norm>,
    pub(super) rotary: Option<Rotary>,
}

impl Prepare {
    /// Ready for rows at these positions, in heads of `depth` columns.
    pub(super) fn at<'a>(&'a self, depth: usize, positions: &'a [usize]) -> Prepared<'a> {
        let last = positions.iter().copied().max().unwrap_or(0);
        Prepared {
            how: self,
            depth,
            positions,
            table: self.rotary.as_ref().map_or_else(Vec::new, |rotary| rotary.table(last + 1)),
        }
    }
}

/// A [`Prepare`] for given positions.
pub(super) struct Prepared<'a> {
    how: &'a Prepare,
    depth: usize,
    positions: &'a [usize],
    /// Cosines and sines of each position; empty where nothing is turned.
    table: Vec<(f32, f32)>,
}

impl Prepared<'_> {
    /// Adds the bias, normalises each head and turns it by its row's position; `out` begins with row `first`.
    #[inline(always)]
    pub(super) fn rows(&self, first: usize, out: &mut [f32], width: usize) {
        let Prepare { bias, norm, rotary } = self.how;
        shift(out, bias);
        if let Some(norm) = norm {
            out.chunks_mut(self.depth).for_each(|head| norm.row(head));
        }
        if let Some(pairs) = rotary.as_ref().map(|rotary| rotary.frequencies.len()) {
            for (row, position) in out.chunks_mut(width).zip(&self.positions[first..]) {
                let turns = &self.table[position * pairs..][..pairs];
                row.chunks_mut(self.depth).for_each(|head| rotate(&mut head[..2 * pairs], turns));
            }
        }
    }
}

#[inline(always)]
fn rotate(columns: &mut [f32], turns: &[(f32, f32)]) {
    let (first, second) = columns.split_at_mut(turns.len());
    for ((a, b), (cos, sin)) in first.iter_mut().zip(second).zip(turns) {
        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn noise(rows: usize, width: usize, seed: u32) -> Tensor {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f32::from(u16::try_from(state >> 16).unwrap()) / 32768.0 - 1.0
        };
        let values: Vec<f32> = (0..rows * width).map(|_| next()).collect();
        Tensor::from_vec(values, (rows, width), &Device::Cpu).unwrap()
    }

    /// The definition, in F64 and without any sharing.
    fn reference(attention: &Attention, [q, k, v]: [&Vec<Vec<f32>>; 3], line: &[usize], row: usize, position: usize) -> Vec<f64> {
        let group = attention.heads / attention.kv_heads;
        let mut out = Vec::new();
        for head in 0..attention.heads {
            let columns = |head: usize| head * attention.depth..(head + 1) * attention.depth;
            let seen = attention.mask.range(position, line.len());
            let scores: Vec<f64> = seen
                .clone()
                .map(|key| {
                    let (q, k) = (&q[row][columns(head)], &k[line[key]][columns(head / group)]);
                    let score = q.iter().zip(k).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum::<f64>();
                    let score = score * f64::from(attention.scale);
                    attention.softcap.map_or(score, |cap| f64::from(cap) * libm::tanh(score / f64::from(cap)))
                })
                .collect();
            let total: f64 = scores.iter().map(|score| score.exp()).sum();
            for column in columns(head / group) {
                let value = |key: usize| f64::from(v[line[key]][column]);
                out.push(seen.clone().zip(&scores).map(|(key, score)| score.exp() / total * value(key)).sum());
            }
        }
        out
    }

    #[test]
    fn attention_is_its_definition_for_any_mask_and_family() {
        let segments = vec![
            Segment { rows: 0..37, parent: None },
            Segment { rows: 37..42, parent: Some(0) },
            Segment { rows: 42..43, parent: Some(0) },
            Segment { rows: 43..50, parent: Some(1) },
            Segment { rows: 50..52, parent: None },
        ];
        let positions = Segment::positions(&segments);
        assert_eq!((positions[36], positions[37], positions[42], positions[43], positions[50]), (36, 37, 37, 42, 0));
        for (mask, softcap, kv_heads) in [
            (Mask::Full, None, 4),
            (Mask::Causal, None, 2),
            (Mask::Causal, Some(0.7), 1),
            (Mask::Window(5), None, 4),
            (Mask::Local(3), None, 4),
        ] {
            let attention = Attention { heads: 4, kv_heads, depth: 6, scale: 0.9, softcap, mask };
            let [q, k, v] = [(24, 1), (6 * kv_heads, 2), (6 * kv_heads, 3)].map(|(width, seed)| noise(60, width, seed));
            let out = attention.run([&q, &k, &v], &segments, None).unwrap().to_vec2::<f32>().unwrap();
            let plain = [&q, &k, &v].map(|x| x.to_vec2::<f32>().unwrap());
            for (index, segment) in segments.iter().enumerate() {
                let line: Vec<_> =
                    Segment::line(&segments, index).into_iter().flat_map(|index| segments[index].rows.clone()).collect();
                for row in segment.rows.clone() {
                    let expected = reference(&attention, plain.each_ref(), &line, row, positions[row]);
                    for (found, expected) in out[row].iter().zip(expected) {
                        assert!((f64::from(*found) - expected).abs() < 2e-6, "{mask:?} row {row}: {found} and {expected}");
                    }
                }
                // The last row of a segment is a step of generation.
                if mask != Mask::Full && !matches!(mask, Mask::Local(_)) {
                    let cached = |x: &Vec<Vec<f32>>| line.iter().flat_map(|row| x[*row].clone()).collect::<Vec<_>>();
                    let mut step = vec![0.0; 24];
                    let last = segment.rows.end - 1;
                    attention.step(&mut step, &plain[0][last], &cached(&plain[1]), &cached(&plain[2]), None);
                    for (found, expected) in step.iter().zip(&out[last]) {
                        assert!((found - expected).abs() < 2e-6, "{mask:?}");
                    }
                }
            }
            assert!(out[52..].iter().flatten().all(|value| *value == 0.0));
        }
    }
}
