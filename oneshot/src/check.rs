//! What a merge would cost: bytes, memory, time and disk, told from headers and a sample.

use std::{ops::Range, sync::Arc, time::Instant};

use evolver_common::{
    checkpoint::{Row, Space, SpaceTensor},
    digest::Digest,
    merge::{Engine, InMemory, Leaf, Options, REMEMBERED_BYTES, STRIDE},
    recipe::Recipe,
    rng::Stream,
};

use crate::plan::{Operand, Part, Plan};

/// Elements of the two samples that are merged: the time is a part for each tensor and a part for each element.
const SAMPLES: [usize; 2] = [1 << 16, 1 << 20];
/// Tensors of a sample, at most.
const SAMPLE_TENSORS: usize = 16;
/// Methods whose time does not grow evenly with the elements, since they decompose matrices.
const UNEVEN: [&str; 5] = ["tsv", "iso_c", "iso_cts", "knots", "wudi"];
/// Methods that remember what they draw, a bit for each element of each model, as far as there is room.
const DRAWING: [&str; 4] = ["dare_linear", "dare_ties", "della", "della_linear"];
/// What a process needs besides the engine's buffers.
const FIXED_BYTES: u64 = 32 << 20;

/// What a merge would cost.
#[derive(Clone, Debug, PartialEq)]
pub struct Costs {
    /// Bytes of weights that are read, each once.
    pub read: u64,
    /// Bytes of weights that are written.
    pub write: u64,
    /// Weight files.
    pub shards: usize,
    /// Parameters of the result.
    pub parameters: u64,
    /// Private memory that the engine's buffers and what it remembers of draws need.
    pub memory: u64,
    /// Seconds of merging on this machine, files in memory; `None` where a sample does not tell.
    pub seconds: Option<f64>,
    /// Free bytes where the result would go.
    pub free: Option<u64>,
}

impl Plan {
    /// The costs of carrying the plan out with shards of this size, into a folder beside `out`.
    ///
    /// The time is measured on a sample: some of each part's tensors, shrunk, with values drawn at random. The rest is exact or a lower bound.
    #[must_use]
    pub fn costs(&self, shard_bytes: u64, out: &std::path::Path) -> Costs {
        let sizes = self.tensors.iter().map(|tensor| (tensor.shape.iter().product::<usize>() * tensor.dtype.size()) as u64);
        let mut shards = 1;
        let mut size = 0;
        for bytes in sizes {
            if size > 0 && size + bytes > shard_bytes {
                shards += 1;
                size = 0;
            }
            size += bytes;
        }
        let parameters = self.tensors.iter().map(|tensor| tensor.shape.iter().product::<usize>() as u64).sum();
        let samples: Vec<_> = self.parts.iter().map(|part| self.sample(part)).collect();
        let threads = rayon::current_num_threads() as u64;
        let buffer = |(part, sample): (&Part, &Option<Sample>)| {
            let largest = part.space.tensors.iter().map(|tensor| tensor.elements).max().unwrap_or(0);
            let whole = sample.as_ref().is_some_and(|sample| sample.whole_tensors);
            let block = if whole { largest } else { largest.min(Options::default().block) };
            let stride = largest.min(STRIDE.max(block));
            ((block * (part.models.len() + 2) + stride) * 4) as u64 * threads
        };
        let buffers = self.parts.iter().zip(&samples).map(buffer).max();
        let bits = self.parts.iter().map(|part| part.space.elements() * part.models.len()).max().unwrap_or(0);
        let draws = DRAWING.contains(&self.config.method.as_str());
        let remembered = if draws { (bits / 8).min(REMEMBERED_BYTES) as u64 } else { 0 };
        let seconds = |sample: Option<Sample>| sample.and_then(|sample| sample.seconds);
        Costs {
            read: self.bytes_read(),
            write: self.bytes(),
            shards,
            parameters,
            memory: FIXED_BYTES + buffers.unwrap_or(0) + remembered,
            seconds: samples.into_iter().map(seconds).sum(),
            free: crate::output::free_space(out),
        }
    }

    /// Bytes of the tensors that the plan reads.
    fn bytes_read(&self) -> u64 {
        let size = |model: usize, name: &String| {
            let info = self.models[model].checkpoint.tensors().get(name);
            info.map_or(0, |info| (info.elements() * info.dtype.size()) as u64)
        };
        let of_operand = |operand: &Operand| operand.names.iter().map(|name| size(operand.model, name)).sum::<u64>();
        let merged: u64 = self
            .parts
            .iter()
            .flat_map(|part| part.base.iter().chain(part.models.iter().map(|(operand, _)| operand)))
            .map(of_operand)
            .sum();
        merged + self.kept.iter().map(|(_, model, name)| size(*model, name)).sum::<u64>()
    }

    /// A small part with the same parameters at its tensors: some of them, cut to about `elements` in all.
    fn shrunk(part: &Part, elements: usize) -> Space {
        let count = part.space.tensors.len().clamp(1, SAMPLE_TENSORS);
        let step = part.space.tensors.len().div_ceil(count).max(1);
        let chosen: Vec<_> = part.space.tensors.iter().step_by(step).collect();
        let share = elements / chosen.len().max(1);
        let cut = |tensor: &&SpaceTensor| {
            let mut shape = tensor.shape.clone();
            while shape.iter().product::<usize>() > share {
                let Some(side) = shape.iter_mut().max() else { break };
                *side = side.div_ceil(2);
            }
            SpaceTensor { name: tensor.name.clone(), elements: shape.iter().product(), shape }
        };
        Space { tensors: chosen.iter().map(cut).collect() }
    }

    /// Builds a part's samples, and tells from them how long the part would take.
    fn sample(&self, part: &Part) -> Option<Sample> {
        let whole_tensors = {
            let (engine, recipe) = self.sampled(part, Self::shrunk(part, SAMPLES[0]))?;
            engine.needs_whole_tensors(&recipe).ok()?
        };
        if UNEVEN.contains(&self.config.method.as_str()) {
            return Some(Sample { whole_tensors, seconds: None });
        }
        // The better of two runs: the first also starts threads and touches memory.
        let time = |elements: usize| {
            let space = Self::shrunk(part, elements);
            let mut best = f64::INFINITY;
            for _ in 0..2 {
                let (engine, recipe) = self.sampled(part, space.clone())?;
                let mut out = InMemory::new();
                let began = Instant::now();
                engine.build(&recipe, &mut out).ok()?;
                best = best.min(began.elapsed().as_secs_f64());
            }
            Some((best, space))
        };
        let ((short, small), (long, large)) = (time(SAMPLES[0])?, time(SAMPLES[1])?);
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let count = |number: usize| number as f64;
        let grown = count(large.elements()) - count(small.elements());
        let each = if grown > 0.0 { ((long - short) / grown).max(0.0) } else { long / count(large.elements().max(1)) };
        let fixed = (short - each * count(small.elements())).max(0.0) / count(small.tensors.len().max(1));
        let seconds = fixed * count(part.space.tensors.len()) + each * count(part.space.elements());
        Some(Sample { whole_tensors, seconds: Some(seconds) })
    }

    /// An engine over drawn values in the place of the part's models.
    fn sampled(&self, part: &Part, space: Space) -> Option<(Engine, Recipe)> {
        let space = Arc::new(space);
        let mut engine = Engine::new(Arc::clone(&space), Options::default());
        let operands: Vec<_> = part.base.iter().chain(part.models.iter().map(|(operand, _)| operand)).collect();
        let digest =
            |operand: &Operand| Digest::of(format!("{:?}", operands.iter().position(|other| *other == operand)).as_bytes());
        let recipe = self.recipe(part, digest).ok()?;
        for (seed, operand) in operands.iter().enumerate() {
            let model = (0..space.tensors.len()).map(|tensor| drawn(seed as u64, &space.tensors[tensor])).collect();
            engine.insert(Recipe::checkpoint(digest(operand)).id(), Arc::new(Drawn(model)));
        }
        Some((engine, recipe))
    }
}

/// What a part's sample tells.
struct Sample {
    whole_tensors: bool,
    seconds: Option<f64>,
}

/// Values near a common base, as fine-tuned models' are.
fn drawn(seed: u64, tensor: &SpaceTensor) -> Vec<f32> {
    let fill = |seed: u64| {
        let mut draws = vec![0; tensor.elements];
        Stream::new(seed, &tensor.name).fill(0, &mut draws);
        draws
    };
    let unit = |draw: u32| f64::from(draw) / f64::from(u32::MAX) - 0.5;
    #[expect(clippy::cast_possible_truncation, reason = "random numbers")]
    let value = |(base, step): (u32, u32)| (unit(base) + if seed == 0 { 0.0 } else { 0.01 * unit(step) }) as f32;
    fill(u64::MAX).into_iter().zip(fill(seed)).map(value).collect()
}

struct Drawn(InMemory);

impl Leaf for Drawn {
    fn read(&self, tensor: usize, elements: Range<usize>, out: &mut [f32]) -> Result<(), String> {
        out.copy_from_slice(&self.0[tensor][elements]);
        Ok(())
    }

    fn borrow(&self, tensor: usize) -> Option<Row<'_>> {
        Some(Row::F32(&self.0[tensor]))
    }
}

/// Whether a file is a merge's definition, and not a search's: by the key that every merge has.
#[must_use]
pub fn is_merge(path: &std::path::Path) -> bool {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let key = |line: &str| line.trim_start_matches(['"', '\'']).starts_with("merge_method");
    let search = |line: &str| line.starts_with("[models") || line.starts_with("[[tasks") || line.starts_with("tasks:");
    text.lines().any(key) || !text.lines().any(search)
}
