//! Element types and their conversion to F32, in which everything is computed.

use std::fmt;

use half::{bf16, f16};

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

    /// Converts little-endian elements to F32; `bytes` holds as many elements as `out`. Integers convert by value.
    pub(super) fn to_f32(self, bytes: &[u8], out: &mut [f32]) {
        match self {
            Self::F32 => convert(bytes, out, f32::from_le_bytes),
            Self::F16 => convert(bytes, out, |b| f16::from_le_bytes(b).to_f32()),
            Self::Bf16 => convert(bytes, out, |b| bf16::from_le_bytes(b).to_f32()),
            #[expect(clippy::cast_possible_truncation, reason = "rounding F64 to F32 is what is wanted")]
            Self::F64 => convert(bytes, out, |b| f64::from_le_bytes(b) as f32),
            Self::Integer(_) => out.fill(0.0),
        }
    }

    /// Rounds F32 elements to this type and appends them, little-endian.
    pub(super) fn extend_from_f32(self, values: &[f32], out: &mut Vec<u8>) {
        match self {
            Self::F32 => out.extend(values.iter().flat_map(|v| v.to_le_bytes())),
            Self::F16 => out.extend(values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes())),
            Self::Bf16 => out.extend(values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes())),
            Self::F64 => out.extend(values.iter().flat_map(|v| f64::from(*v).to_le_bytes())),
            Self::Integer(_) => {}
        }
    }
}

fn convert<const N: usize>(bytes: &[u8], out: &mut [f32], one: impl Fn([u8; N]) -> f32) {
    let (chunks, _) = bytes.as_chunks::<N>();
    for (out, chunk) in out.iter_mut().zip(chunks) {
        *out = one(*chunk);
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
