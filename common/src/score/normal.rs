//! The standard normal distribution, with the same bits on every machine.

/// The probability of a value below `z`.
#[must_use]
pub fn cdf(z: f64) -> f64 {
    0.5 * libm::erfc(-z / std::f64::consts::SQRT_2)
}

/// The value below which a draw falls with probability `p`, in (0, 1); by bisection, to the last bits of a double.
#[must_use]
pub fn quantile(p: f64) -> f64 {
    let (mut low, mut high) = (-39.0, 39.0);
    for _ in 0..100 {
        let middle = 0.5 * (low + high);
        if cdf(middle) < p {
            low = middle;
        } else {
            high = middle;
        }
    }
    0.5 * (low + high)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_those_of_scipy() {
        // scipy.stats.norm.cdf and ppf, scipy 1.16.
        assert!((cdf(1.0) - 0.841_344_746_068_542_9).abs() < 1e-15);
        assert!((cdf(-3.5) / 2.326_290_790_355_250_3e-4 - 1.0).abs() < 1e-12);
        assert!((quantile(0.975) - 1.959_963_984_540_054).abs() < 1e-13);
        assert!((quantile(0.001) + 3.090_232_306_167_813_5).abs() < 1e-12);
    }
}
