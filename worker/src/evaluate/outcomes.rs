//! What evaluators find for single items, as bytes: a worker that leaves hands them in, and another goes on from them.
//!
//! The bytes are exact, so that scores do not show who found what. Bytes that are none of its encoding are nothing: the item is scored again.

/// What an evaluator finds for one item.
pub(super) trait Outcome: Sized {
    /// Its bytes.
    fn write(&self) -> Vec<u8>;
    /// The outcome of bytes.
    fn read(bytes: &[u8]) -> Option<Self>;
}

/// Numbers of a fixed size, little end first.
macro_rules! number {
    ($type:ty, $wire:ty, $to:expr, $from:expr) => {
        impl Outcome for $type {
            fn write(&self) -> Vec<u8> {
                let to: fn($type) -> $wire = $to;
                to(*self).to_le_bytes().into()
            }

            fn read(bytes: &[u8]) -> Option<Self> {
                let from: fn($wire) -> Option<$type> = $from;
                from(<$wire>::from_le_bytes(bytes.try_into().ok()?))
            }
        }

        impl Outcome for Vec<$type> {
            fn write(&self) -> Vec<u8> {
                self.iter().flat_map(Outcome::write).collect()
            }

            fn read(bytes: &[u8]) -> Option<Self> {
                let numbers = bytes.chunks_exact(size_of::<$wire>());
                if numbers.remainder().is_empty() { numbers.map(Outcome::read).collect() } else { None }
            }
        }
    };
}

number!(f32, f32, |number| number, Some);
number!(f64, f64, |number| number, Some);
number!(usize, u64, |number| number as u64, |number| usize::try_from(number).ok());

impl Outcome for String {
    fn write(&self) -> Vec<u8> {
        self.as_bytes().into()
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        Self::from_utf8(bytes.into()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_come_back_and_other_bytes_are_nothing() {
        assert_eq!(Vec::<f32>::read(&vec![0.1f32, -2.5e-30, 7.0].write()), Some(vec![0.1, -2.5e-30, 7.0]));
        assert_eq!(Vec::<f64>::read(&vec![0.1f64, 1e300].write()), Some(vec![0.1, 1e300]));
        assert_eq!(f64::read(&(-1.5f64).write()), Some(-1.5));
        assert_eq!(usize::read(&7usize.write()), Some(7));
        assert_eq!(Vec::<usize>::read(&vec![1usize, 0, 9].write()), Some(vec![1, 0, 9]));
        assert_eq!(String::read(&"ja – nein".to_owned().write()), Some("ja – nein".to_owned()));
        assert_eq!(Vec::<f32>::read(&[1, 2, 3]), None);
        assert_eq!(usize::read(&[1]), None);
        assert_eq!(String::read(&[0xff]), None);
    }
}
