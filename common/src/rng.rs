//! Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
//!
//! The number for element `e` of tensor `t` under seed `s` is a pure function of `(s, t, e)`: any block can be drawn alone, by any thread, on
//! any machine, with the same bits.

use crate::{digest::Digest, simd};

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;
/// Numbers that one counter gives.
pub const LANES: usize = 4;

/// Philox4x32 with ten rounds.
#[must_use]
#[inline(always)]
pub fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let [mut c0, mut c1, mut c2, mut c3] = counter;
    let [mut k0, mut k1] = key;
    for _ in 0..ROUNDS {
        let p0 = u64::from(c0) * u64::from(MULTIPLIERS[0]);
        let p1 = u64::from(c2) * u64::from(MULTIPLIERS[1]);
        [c0, c1, c2, c3] = [high(p1) ^ c1 ^ k0, low(p1), high(p0) ^ c3 ^ k1, low(p0)];
        k0 = k0.wrapping_add(WEYL[0]);
        k1 = k1.wrapping_add(WEYL[1]);
    }
    [c0, c1, c2, c3]
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the low half is what is wanted")]
fn low(wide: u64) -> u32 {
    wide as u32
}

#[inline(always)]
fn high(wide: u64) -> u32 {
    low(wide >> 32)
}

/// The numbers of one tensor under one seed.
#[derive(Clone, Copy, Debug)]
pub struct Stream {
    key: [u32; 2],
    tensor: [u32; 2],
}

impl Stream {
    /// The stream of the tensor named `tensor` under `seed`.
    #[must_use]
    pub fn new(seed: u64, tensor: &str) -> Self {
        let digest = Digest::of(tensor.as_bytes());
        let bytes = digest.as_bytes();
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        Self { key: [low(seed), high(seed)], tensor: [word(0), word(4)] }
    }

    /// The four numbers of elements `4 * group ..= 4 * group + 3`.
    #[must_use]
    #[inline(always)]
    pub fn group(&self, group: u64) -> [u32; 4] {
        philox([low(group), high(group), self.tensor[0], self.tensor[1]], self.key)
    }

    /// The number of one element.
    #[must_use]
    pub fn element(&self, element: u64) -> u32 {
        self.group(element / LANES as u64)[(element % LANES as u64) as usize]
    }

    /// The numbers of some elements from `start` on, both multiples of [`LANES`].
    #[inline(always)]
    pub(crate) fn draws<const N: usize>(&self, start: u64) -> [u32; N] {
        let mut draws = [0; N];
        let first = start / LANES as u64;
        for (group, out) in (first..).zip(draws.as_chunks_mut::<LANES>().0) {
            *out = self.group(group);
        }
        draws
    }

    /// Fills `out` with the numbers of the elements from `start` on.
    pub fn fill(&self, start: u64, out: &mut [u32]) {
        let lanes = LANES as u64;
        let lead = ((lanes - start % lanes) % lanes).min(out.len() as u64);
        let (head, body) = out.split_at_mut(lead as usize);
        for (offset, value) in (start..).zip(head) {
            *value = self.element(offset);
        }
        let first = (start + lead) / lanes;
        let (groups, tail) = body.as_chunks_mut::<LANES>();
        // A plain loop over counters: the compiler turns it into vector code.
        simd::dispatch(
            #[inline(always)]
            || {
                for (group, out) in (first..).zip(&mut *groups) {
                    *out = self.group(group);
                }
            },
        );
        let after = first + groups.len() as u64;
        let last = self.group(after);
        tail.copy_from_slice(&last[..tail.len()]);
    }
}

/// A fair draw below `threshold` has probability `rate`: exact at 0 and 1, else within 2^-33.
#[must_use]
pub fn threshold(rate: f64) -> u64 {
    // 2^32 * rate, rounded; 1 gives 2^32, which every u32 is below.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "rate lies in [0, 1]")]
    let threshold = (rate.clamp(0.0, 1.0) * 4_294_967_296.0 + 0.5) as u64;
    threshold
}

/// Whether a draw falls below a [`threshold`].
#[must_use]
#[inline(always)]
pub fn falls(draw: u32, threshold: u64) -> bool {
    // 32 bits wide, since twice as many lanes fit a vector then; all draws fall below 2^32.
    draw < low(threshold) || threshold > u64::from(u32::MAX)
}

/// Two standard normal numbers from two uniform ones (Box and Muller 1958), by `libm`, so that every machine gives the same bits.
#[must_use]
pub fn normal_pair(a: u32, b: u32) -> (f64, f64) {
    let unit = |n: u32| (f64::from(n) + 0.5) / 4_294_967_296.0;
    let radius = (-2.0 * libm::log(unit(a))).sqrt();
    let angle = 2.0 * std::f64::consts::PI * unit(b);
    (radius * libm::cos(angle), radius * libm::sin(angle))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn philox_gives_the_published_vectors() {
        // Random123's known-answer file, philox4x32 with 10 rounds.
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn normals_are_standard() {
        let stream = Stream::new(3, "t");
        let draws: Vec<f64> = (0..50_000)
            .flat_map(|group| {
                let [a, b, c, d] = stream.group(group);
                let ((w, x), (y, z)) = (normal_pair(a, b), normal_pair(c, d));
                [w, x, y, z]
            })
            .collect();
        let n = draws.len() as f64;
        let mean = draws.iter().sum::<f64>() / n;
        let variance = draws.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / n;
        assert!(mean.abs() < 0.01 && (variance - 1.0).abs() < 0.02, "{mean} {variance}");
    }

    proptest! {
        #[test]
        fn a_block_alone_is_a_slice_of_the_whole(seed: u64, start in 0u64..99, length in 0usize..50) {
            let stream = Stream::new(seed, "layer.weight");
            let mut whole = vec![0; 160];
            stream.fill(0, &mut whole);
            let mut block = vec![0; length];
            stream.fill(start, &mut block);
            prop_assert_eq!(&block[..], &whole[start as usize..start as usize + length]);
        }
    }
}
