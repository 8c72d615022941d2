//! Sums over two tensors, taken in F64 per 4096 elements and added in order, so that they do not depend on threads.

use evolver_common::checkpoint::{Checkpoint, ReadError};
use rayon::prelude::*;
use serde::Serialize;

/// Elements of one partial sum.
const CHUNK: usize = 4096;
/// Elements that a thread reads at a time.
const BLOCK: usize = 16 * CHUNK;

/// Sums over elements of two vectors: the models' values, or their differences to the base.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sums {
    elements: u64,
    /// Elements that are equal.
    equal: u64,
    /// Elements at which neither vector is zero, and those of them with the same sign.
    signed: u64,
    agreeing: u64,
    /// Elements that are not zero in each.
    changed: [u64; 2],
    squares: [f64; 2],
    product: f64,
    /// Squares of the difference of both.
    distance: f64,
    /// NaN and infinite values in either.
    non_finite: u64,
}

/// What is told of two tensors, or of several together. With a base, everything is about the differences to it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Measures {
    /// Elements.
    pub elements: u64,
    /// Euclidean norms of both.
    pub norm_a: f64,
    /// Of the second.
    pub norm_b: f64,
    /// Norm of the difference of both.
    pub distance: f64,
    /// The distance divided by the norm of the first; `None` if that is 0.
    pub relative: Option<f64>,
    /// Cosine of the angle between both; `None` if one is 0.
    pub cosine: Option<f64>,
    /// Share of equal signs among elements at which neither is 0; `None` if there are none.
    pub sign_agreement: Option<f64>,
    /// Share of elements that are equal in both.
    pub equal: f64,
    /// With a base: share of elements that each changed.
    pub changed: Option<[f64; 2]>,
    /// NaN and infinite values in either; the other numbers leave these elements out.
    pub non_finite: u64,
}

impl Sums {
    pub(super) fn add(&mut self, other: &Self) {
        self.elements += other.elements;
        self.equal += other.equal;
        self.signed += other.signed;
        self.agreeing += other.agreeing;
        self.product += other.product;
        self.distance += other.distance;
        self.non_finite += other.non_finite;
        for side in 0..2 {
            self.changed[side] += other.changed[side];
            self.squares[side] += other.squares[side];
        }
    }

    fn chunk(a: &[f32], b: &[f32], base: Option<&[f32]>) -> Self {
        let mut sums = Self { elements: a.len() as u64, ..Self::default() };
        for (index, (a, b)) in a.iter().zip(b).enumerate() {
            let origin = base.map_or(0.0, |base| f64::from(base[index]));
            let (a, b) = (f64::from(*a) - origin, f64::from(*b) - origin);
            if !(a.is_finite() && b.is_finite()) {
                sums.non_finite += 1;
                continue;
            }
            sums.equal += u64::from(a == b);
            let both = a != 0.0 && b != 0.0;
            sums.signed += u64::from(both);
            sums.agreeing += u64::from(both && (a > 0.0) == (b > 0.0));
            sums.changed[0] += u64::from(a != 0.0);
            sums.changed[1] += u64::from(b != 0.0);
            sums.squares[0] += a * a;
            sums.squares[1] += b * b;
            sums.product += a * b;
            sums.distance += (b - a) * (b - a);
        }
        sums
    }

    #[expect(clippy::cast_precision_loss, reason = "shares of counts")]
    pub(super) fn measures(&self, over_base: bool) -> Measures {
        let share = |count: u64, of: u64| count as f64 / of.max(1) as f64;
        let [a, b] = self.squares.map(f64::sqrt);
        let distance = self.distance.sqrt();
        Measures {
            elements: self.elements,
            norm_a: a,
            norm_b: b,
            distance,
            relative: (a > 0.0).then(|| distance / a),
            cosine: (a > 0.0 && b > 0.0).then(|| (self.product / (a * b)).clamp(-1.0, 1.0)),
            sign_agreement: (self.signed > 0).then(|| share(self.agreeing, self.signed)),
            equal: share(self.equal, self.elements),
            changed: over_base.then(|| self.changed.map(|changed| share(changed, self.elements))),
            non_finite: self.non_finite,
        }
    }
}

/// The sums of one tensor.
pub(super) fn measure(name: &str, a: &Checkpoint, b: &Checkpoint, base: Option<&Checkpoint>) -> Result<Sums, ReadError> {
    let (a, b) = (a.view(name)?, b.view(name)?);
    let base = base.map(|base| base.view(name)).transpose()?;
    let elements = a.elements();
    let block = |block: usize| -> Result<Vec<Sums>, ReadError> {
        let range = block * BLOCK..elements.min((block + 1) * BLOCK);
        let mut buffers = [vec![0.0; range.len()], vec![0.0; range.len()], vec![0.0; range.len()]];
        a.read(range.clone(), &mut buffers[0])?;
        b.read(range.clone(), &mut buffers[1])?;
        if let Some(base) = &base {
            base.read(range.clone(), &mut buffers[2])?;
        }
        let [a, b, origin] = &buffers;
        let chunks = (0..range.len()).step_by(CHUNK).map(|start| start..range.len().min(start + CHUNK));
        Ok(chunks.map(|chunk| Sums::chunk(&a[chunk.clone()], &b[chunk.clone()], base.map(|_| &origin[chunk.clone()]))).collect())
    };
    let blocks = (0..elements.div_ceil(BLOCK)).into_par_iter().map(block).collect::<Result<Vec<_>, _>>()?;
    let mut sums = Sums::default();
    blocks.iter().flatten().for_each(|chunk| sums.add(chunk));
    Ok(sums)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measures_are_those_of_plain_arithmetic() {
        let (a, b, base) = ([1.0, 2.0, 3.0, 0.0], [1.0, -2.0, 5.0, f32::NAN], [1.0, 0.0, 1.0, 0.0]);
        let plain = Sums::chunk(&a, &b, None).measures(false);
        assert_eq!((plain.norm_a, plain.norm_b), (14.0f64.sqrt(), 30.0f64.sqrt()));
        assert_eq!((plain.distance, plain.equal, plain.non_finite), (20.0f64.sqrt(), 0.25, 1));
        assert_eq!((plain.sign_agreement, plain.changed), (Some(2.0 / 3.0), None));
        assert!((plain.cosine.unwrap() - 12.0 / (14.0f64 * 30.0).sqrt()).abs() < 1e-15);
        // Differences to the base: (0, 2, 2, 0) and (0, -2, 4, NaN).
        let task = Sums::chunk(&a, &b, Some(&base)).measures(true);
        assert_eq!((task.norm_a, task.norm_b), (8.0f64.sqrt(), 20.0f64.sqrt()));
        assert_eq!((task.sign_agreement, task.changed), (Some(0.5), Some([0.5, 0.5])));
        assert!((task.cosine.unwrap() - 4.0 / 160.0f64.sqrt()).abs() < 1e-15);
        assert_eq!(Sums::default().measures(false).cosine, None);
    }
}
