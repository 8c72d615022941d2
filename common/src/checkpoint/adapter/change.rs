//! What an adapter does to one tensor, block by block.

/// A change of one tensor of the base.
#[derive(Debug)]
pub(in crate::checkpoint) enum Change {
    /// LoRA.
    LowRank(LowRank),
    /// (IA)³.
    Scaled(Scaled),
}

/// `W + scale * B A`, or its transpose.
#[derive(Debug)]
pub(in crate::checkpoint) struct LowRank {
    /// `rank x columns`.
    pub(super) a: Vec<f32>,
    /// `rows x rank`.
    pub(super) b: Vec<f32>,
    pub(super) rank: usize,
    pub(super) columns: usize,
    pub(super) scale: f64,
    /// The base stores the transpose: GPT-2's Conv1D, and embeddings.
    pub(super) transposed: bool,
}

/// `W` with its rows or columns multiplied by factors.
#[derive(Debug)]
pub(in crate::checkpoint) struct Scaled {
    pub(super) factors: Vec<f32>,
    /// Elements in a row that share a factor; then the next factor holds, and after the last the first again.
    pub(super) stride: usize,
}

impl Change {
    /// Applies the change to `out`, which holds the base's elements from flat index `start` on. Products are summed in F64, ranks in order, and
    /// the result is rounded to F32 once.
    pub(in crate::checkpoint) fn apply(&self, start: usize, out: &mut [f32]) {
        match self {
            Self::LowRank(low_rank) => low_rank.add(start, out),
            Self::Scaled(scaled) => scaled.multiply(start, out),
        }
    }
}

impl LowRank {
    pub(super) fn rows(&self) -> usize {
        self.b.len() / self.rank
    }

    fn add(&self, start: usize, out: &mut [f32]) {
        let width = if self.transposed { self.rows() } else { self.columns };
        let mut sums = vec![0.0f64; width];
        let mut done = 0;
        while done < out.len() {
            let (row, first) = ((start + done) / width, (start + done) % width);
            let count = (width - first).min(out.len() - done);
            let sums = &mut sums[..count];
            sums.fill(0.0);
            for k in 0..self.rank {
                if self.transposed {
                    let factor = f64::from(self.a[k * self.columns + row]);
                    for (sum, column) in sums.iter_mut().zip(first..) {
                        *sum += factor * f64::from(self.b[column * self.rank + k]);
                    }
                } else {
                    let factor = f64::from(self.b[row * self.rank + k]);
                    let a = &self.a[k * self.columns + first..][..count];
                    for (sum, a) in sums.iter_mut().zip(a) {
                        *sum += factor * f64::from(*a);
                    }
                }
            }
            for (value, sum) in out[done..done + count].iter_mut().zip(sums) {
                #[expect(clippy::cast_possible_truncation, reason = "the one rounding to F32")]
                let rounded = (f64::from(*value) + self.scale * *sum) as f32;
                *value = rounded;
            }
            done += count;
        }
    }
}

impl Scaled {
    fn multiply(&self, start: usize, out: &mut [f32]) {
        for (element, value) in (start..).zip(out) {
            *value *= self.factors[(element / self.stride) % self.factors.len()];
        }
    }
}
