//! Element types and their conversion to F32, in which everything is computed.

use std::fmt;

use crate::simd;

/// Type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// 64-bit floats; rounded to F32 when read.
    F64,
    /// 32-bit floats.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of F32.
    Bf16,
    /// Integers or booleans of this many bytes: buffers such as position ids, which never evolve.
    Integer(u8),
}

impl Dtype {
    /// The type of this name in a safetensors header; `None` for types that cannot be read (FP8, quantized, unknown).
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "F64" => Self::F64,
            "F32" => Self::F32,
            "F16" => Self::F16,
            "BF16" => Self::Bf16,
            "I64" | "U64" => Self::Integer(8),
            "I32" | "U32" => Self::Integer(4),
            "I16" | "U16" => Self::Integer(2),
            "I8" | "U8" | "BOOL" => Self::Integer(1),
            _ => return None,
        })
    }

    /// The float type of this name in torch and in config files.
    #[must_use]
    pub fn from_torch(name: &str) -> Option<Self> {
        Some(match name.strip_prefix("torch.").unwrap_or(name) {
            "float64" | "double" => Self::F64,
            "float32" | "float" => Self::F32,
            "float16" | "half" => Self::F16,
            "bfloat16" => Self::Bf16,
            _ => return None,
        })
    }

    /// The name of a float type in torch and in config files.
    #[must_use]
    pub fn torch_name(self) -> &'static str {
        match self {
            Self::F64 => "float64",
            Self::F16 => "float16",
            Self::Bf16 => "bfloat16",
            Self::F32 | Self::Integer(_) => "float32",
        }
    }

    /// The name in a safetensors header.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F64 => "F64",
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Integer(8) => "I64",
            Self::Integer(4) => "I32",
            Self::Integer(2) => "I16",
            Self::Integer(_) => "U8",
        }
    }

    /// Bytes of one element.
    #[must_use]
    pub fn size(self) -> usize {
        match self {
            Self::F64 => 8,
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Integer(size) => usize::from(size),
        }
    }

    /// Whether elements are floats, which can evolve.
    #[must_use]
    pub fn is_float(self) -> bool {
        !matches!(self, Self::Integer(_))
    }

    /// Converts little-endian elements to F32; `bytes` holds as many elements as `out`. Integers convert to zero.
    pub(super) fn to_f32(self, bytes: &[u8], out: &mut [f32]) {
        match self {
            Self::F32 => convert(bytes, out, f32::from_le_bytes),
            Self::F16 => convert(
                bytes,
                out,
                #[inline(always)]
                |b| widen_f16(u16::from_le_bytes(b)),
            ),
            Self::Bf16 => convert(bytes, out, widen_bf16),
            #[expect(clippy::cast_possible_truncation, reason = "rounding F64 to F32 is what is wanted")]
            Self::F64 => convert(
                bytes,
                out,
                #[inline(always)]
                |b| f64::from_le_bytes(b) as f32,
            ),
            Self::Integer(_) => out.fill(0.0),
        }
    }

    /// Rounds F32 elements to this type, to the nearest and ties to even, and writes them over `out`, little-endian.
    pub(super) fn fill_from_f32(self, values: &[f32], out: &mut Vec<u8>) {
        out.resize(values.len() * self.size(), 0);
        match self {
            Self::F32 => store(values, out, f32::to_le_bytes),
            Self::F16 => store(
                values,
                out,
                #[inline(always)]
                |v| narrow_f16(v).to_le_bytes(),
            ),
            Self::Bf16 => store(
                values,
                out,
                #[inline(always)]
                |v| narrow_bf16(v).to_le_bytes(),
            ),
            Self::F64 => store(
                values,
                out,
                #[inline(always)]
                |v| f64::from(v).to_le_bytes(),
            ),
            Self::Integer(_) => out.clear(),
        }
    }
}

/// Rounds F32 values to the bits of a type of 16: BF16, else F16.
pub(crate) fn narrow(dtype: Dtype, values: &[f32], out: &mut [u16]) {
    match dtype {
        Dtype::Bf16 => simd::dispatch(
            #[inline(always)]
            || out.iter_mut().zip(values).for_each(|(out, value)| *out = narrow_bf16(*value)),
        ),
        _ => simd::dispatch(
            #[inline(always)]
            || out.iter_mut().zip(values).for_each(|(out, value)| *out = narrow_f16(*value)),
        ),
    }
}

fn convert<const N: usize>(bytes: &[u8], out: &mut [f32], one: impl Fn([u8; N]) -> f32) {
    simd::dispatch(
        #[inline(always)]
        || {
            let (chunks, _) = bytes.as_chunks::<N>();
            for (out, chunk) in out.iter_mut().zip(chunks) {
                *out = one(*chunk);
            }
        },
    );
}

fn store<const N: usize>(values: &[f32], out: &mut [u8], one: impl Fn(f32) -> [u8; N]) {
    simd::dispatch(
        #[inline(always)]
        || {
            let (chunks, _) = out.as_chunks_mut::<N>();
            for (chunk, value) in chunks.iter_mut().zip(values) {
                *chunk = one(*value);
            }
        },
    );
}

/// BF16 to F32, exactly.
#[inline(always)]
pub(super) fn widen_bf16(bytes: [u8; 2]) -> f32 {
    f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16)
}

/// F16 to F32, exactly, without a branch, so that loops over it vectorise.
#[inline(always)]
fn widen_f16(bits: u16) -> f32 {
    let bits = u32::from(bits);
    let (sign, magnitude) = ((bits & 0x8000) << 16, bits & 0x7fff);
    // Exponents are biased by 15 and by 127; infinities and NaN have the largest of either.
    let normal = (magnitude << 13) + (112 << 23);
    let special = (magnitude << 13) | 0x7f80_0000;
    #[expect(clippy::cast_precision_loss, reason = "at most 10 bits")]
    let subnormal = (magnitude as f32 * 2f32.powi(-24)).to_bits();
    let wide = if magnitude >= 0x7c00 { special } else { normal };
    f32::from_bits(sign | if magnitude < 0x400 { subnormal } else { wide })
}

/// F32 to F16, to the nearest and ties to even, without a branch.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "16 bits are left")]
fn narrow_f16(value: f32) -> u16 {
    let bits = value.to_bits();
    let (sign, magnitude) = ((bits >> 16) & 0x8000, bits & 0x7fff_ffff);
    let normal = ((magnitude + 0xfff + ((magnitude >> 13) & 1)) >> 13).wrapping_sub(112 << 10);
    // Adding 0.5 rounds what is below 2^-14 to multiples of 2^-24, in the low bits.
    let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
    let finite = if magnitude < 0x3880_0000 { subnormal } else { normal };
    let special = if magnitude > 0x7f80_0000 { 0x7e00 | ((magnitude >> 13) & 0x3ff) } else { 0x7c00 };
    (sign | if magnitude >= 0x477f_f000 { special } else { finite }) as u16
}

/// F32 to BF16, to the nearest and ties to even, without a branch.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "16 bits are left")]
pub(crate) fn narrow_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    let nan = (bits >> 16) | 0x40;
    (if bits & 0x7fff_ffff > 0x7f80_0000 { nan } else { rounded }) as u16
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;

    #[test]
    fn every_f16_widens_as_the_half_crate_has_it() {
        for bits in 0..=u16::MAX {
            let (ours, theirs) = (widen_f16(bits), f16::from_bits(bits).to_f32());
            assert!(ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan(), "{bits:#x}");
        }
    }

    #[test]
    fn f32_narrows_as_the_half_crate_has_it() {
        // Every exponent and sign, with mantissas at and around the places where rounding turns.
        let mantissas = [
            0, 1, 0xfff, 0x1000, 0x1001, 0x1fff, 0x2000, 0x3000, 0x7fff, 0x8000, 0x8001, 0x1_8000, 0x40_0000, 0x7f_efff,
            0x7f_f000, 0x7f_ffff,
        ];
        for high in 0..512u32 {
            for mantissa in mantissas {
                let value = f32::from_bits(high << 23 | mantissa);
                let (half, brain) = (f16::from_f32(value), bf16::from_f32(value));
                if value.is_nan() {
                    assert!(f16::from_bits(narrow_f16(value)).is_nan() && bf16::from_bits(narrow_bf16(value)).is_nan());
                } else {
                    assert_eq!(narrow_f16(value), half.to_bits(), "{value:e}");
                    assert_eq!(narrow_bf16(value), brain.to_bits(), "{value:e}");
                }
            }
        }
    }
}
