//! Loops compiled for the vector instructions that the machine has, chosen while the program runs.
//!
//! No level contracts a product and a sum into one rounding, and none reorders a sum, since Rust allows neither: all levels give the same bits.

use std::{
    fmt,
    sync::atomic::{AtomicU8, Ordering},
};

/// Vector instructions that loops are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    /// What every machine of the architecture has.
    Baseline,
    /// x86-64-v3: AVX2.
    V3,
    /// x86-64-v4: AVX-512.
    V4,
}

/// The highest level that may be used.
static LIMIT: AtomicU8 = AtomicU8::new(Level::V4 as u8);

/// Uses no level above `level` from now on, in the whole process: for tests and measurements, since no result depends on it.
pub fn limit(level: Level) {
    LIMIT.store(level as u8, Ordering::Relaxed);
}

/// The level in use.
#[must_use]
pub fn level() -> Level {
    match arch() {
        #[cfg(target_arch = "x86_64")]
        pulp::Arch::V4(_) => Level::V4,
        #[cfg(target_arch = "x86_64")]
        pulp::Arch::V3(_) => Level::V3,
        _ => Level::Baseline,
    }
}

fn arch() -> pulp::Arch {
    #[cfg(target_arch = "x86_64")]
    {
        let limit = LIMIT.load(Ordering::Relaxed);
        if limit == Level::Baseline as u8 {
            return pulp::Arch::Scalar;
        }
        if limit == Level::V3 as u8
            && let Some(v3) = pulp::x86::V3::try_new()
        {
            return pulp::Arch::V3(v3);
        }
    }
    pulp::Arch::new()
}

/// Runs `f` compiled for the level in use. Give it as `#[inline(always)] || …`: only what is inlined into it is compiled for the level.
#[inline]
pub(crate) fn dispatch<R>(f: impl FnOnce() -> R) -> R {
    arch().dispatch(f)
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Baseline => "the architecture's baseline instructions",
            Self::V3 => "x86-64-v3 (AVX2)",
            Self::V4 => "x86-64-v4 (AVX-512)",
        })
    }
}
