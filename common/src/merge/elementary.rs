//! `exp`, `ln` and `tanh` in F64 with the same bits on every machine: plain arithmetic, no fused operations, branch-free so that loops over them vectorise.

const LN2_HIGH: f64 = 6.931_471_803_691_238e-1;
const LN2_LOW: f64 = 1.908_214_929_270_587_7e-10;
/// Adding and subtracting 1.5 * 2^52 rounds to the nearest integer.
const ROUND: f64 = 6_755_399_441_055_744.0;
/// 1/13!, 1/12!, … 1/1!
const TAYLOR: [f64; 13] = [
    1.605_904_383_682_161_5e-10,
    2.087_675_698_786_81e-9,
    2.505_210_838_544_172e-8,
    2.755_731_922_398_589e-7,
    2.755_731_922_398_589e-6,
    2.480_158_730_158_73e-5,
    1.984_126_984_126_984e-4,
    1.388_888_888_888_889e-3,
    8.333_333_333_333_333e-3,
    4.166_666_666_666_666_4e-2,
    1.666_666_666_666_666_6e-1,
    0.5,
    1.0,
];

/// `2^k` and `e^r - 1`, where `x = k ln 2 + r` with `r` around zero, for `x` in [-700, 700].
#[inline(always)]
fn reduce(x: f64) -> (f64, f64) {
    let shifted = x * std::f64::consts::LOG2_E + ROUND;
    let k = shifted - ROUND;
    let r = (x - k * LN2_HIGH) - k * LN2_LOW;
    let mut sum = TAYLOR[0];
    for coefficient in &TAYLOR[1..] {
        sum = sum * r + coefficient;
    }
    // The low bits of `shifted` hold k as an integer; moved into the exponent they multiply by 2^k.
    (f64::from_bits((shifted.to_bits().wrapping_add(1023)) << 52), sum * r)
}

/// `e^x` for `x` in [-700, 700], clamped to that range; within 2 units in the last place.
#[inline(always)]
pub(super) fn exp(x: f64) -> f64 {
    let (scale, less) = reduce(x.clamp(-700.0, 700.0));
    (less + 1.0) * scale
}

/// `ln x` for positive normal `x`, within 3 units in the last place or of 1e-16.
#[inline(always)]
pub(super) fn ln(x: f64) -> f64 {
    /// 1/23, 1/21, … 1/3, 1
    const SERIES: [f64; 12] = [
        1.0 / 23.0,
        1.0 / 21.0,
        1.0 / 19.0,
        1.0 / 17.0,
        1.0 / 15.0,
        1.0 / 13.0,
        1.0 / 11.0,
        1.0 / 9.0,
        1.0 / 7.0,
        1.0 / 5.0,
        1.0 / 3.0,
        1.0,
    ];
    /// The bits of 1/sqrt(2): what is added to them is the exponent of the number next to 1.
    const HALF: u64 = 0x3fe6_a09e_667f_3bcd;
    let offset = x.to_bits().wrapping_sub(HALF);
    // As many as the high bits say, biased so that they convert as positive numbers do.
    let k = f64::from_bits((offset >> 52 ^ 0x800) & 0xfff | 0x4330_0000_0000_0000) - 4_503_599_627_372_544.0;
    let m = f64::from_bits((offset & 0x000f_ffff_ffff_ffff).wrapping_add(HALF));
    // ln m = 2 artanh s, with s below 0.172.
    let s = (m - 1.0) / (m + 1.0);
    let square = s * s;
    let mut sum = SERIES[0];
    for coefficient in &SERIES[1..] {
        sum = sum * square + coefficient;
    }
    k * LN2_HIGH + (k * LN2_LOW + 2.0 * s * sum)
}

/// `tanh x`, within 3 units in the last place; small values keep all their digits.
#[inline(always)]
pub(super) fn tanh(x: f64) -> f64 {
    // With t = e^(-2|x|) - 1, which is exact to its last digits near zero: tanh |x| = -t / (t + 2).
    let (scale, less) = reduce((-2.0 * x.abs()).max(-700.0));
    let t = scale * less + (scale - 1.0);
    (-t / (t + 2.0)).copysign(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_agrees_with_libm() {
        let mut worst = 0.0f64;
        for step in -200_000..=200_000 {
            let x = f64::from(step) * 3.3e-3;
            let (ours, reference) = (exp(x), libm::exp(x));
            worst = worst.max(((ours - reference) / reference).abs());
        }
        assert!(worst <= 2.0 * f64::EPSILON, "{worst:e}");
        assert_eq!(exp(0.0), 1.0);
    }

    #[test]
    fn tanh_agrees_with_libm() {
        let mut worst = 0.0f64;
        for step in 1..=400_000 {
            // From 1e-20, where it is x, to 40, where it is 1.
            let x = libm::exp(f64::from(step) / 400_000.0 * 49.7 - 46.0);
            let (ours, reference) = (tanh(x), libm::tanh(x));
            worst = worst.max(((ours - reference) / reference).abs());
            assert_eq!(tanh(-x), -ours);
        }
        assert!(worst <= 3.0 * f64::EPSILON, "{worst:e}");
        assert_eq!(tanh(0.0), 0.0);
        assert_eq!(tanh(1e9), 1.0);
    }

    #[test]
    fn ln_agrees_with_libm() {
        let mut worst = 0.0f64;
        for step in -200_000..=200_000 {
            for x in [libm::exp(f64::from(step) * 3.3e-3), 1.0 + f64::from(step) * 1e-7] {
                let (ours, reference) = (ln(x), libm::log(x));
                worst = worst.max((ours - reference).abs() / reference.abs().max(0.5));
            }
        }
        assert!(worst <= 3.0 * f64::EPSILON, "{worst:e}");
        assert_eq!(ln(1.0), 0.0);
    }
}
