//! The check of a safetensors header, before anything trusts it.
//!
//! The `safetensors` crate accepts a 100 MB header, a rank of millions, duplicate names and overlapping offsets in some versions; this check refuses
//! them first, with bounds on everything that is allocated from the file's claims. The crate then parses what has passed.

use std::{collections::BTreeMap, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, Visitor},
};
use thiserror::Error;

use super::{dtype::Dtype, open::TensorInfo};

/// Longest header, in bytes.
pub(super) const HEADER_BYTES_MAX: u64 = 16 << 20;
const TENSORS_MAX: usize = 200_000;
const RANK_MAX: usize = 8;
const NAME_BYTES_MAX: usize = 1024;

/// A header that is not to be trusted.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum HeaderError {
    /// Shorter than the length field.
    #[error("the file has {0} bytes, and a safetensors file has at least 10: it is truncated or something else")]
    TooShort(usize),
    /// The header is longer than any real one.
    #[error("the header claims {claimed} bytes, and at most {limit} are allowed", limit = HEADER_BYTES_MAX)]
    TooLong {
        /// What the length field says.
        claimed: u64,
    },
    /// The header reaches past the file's end.
    #[error("the header claims {claimed} bytes, but the file ends after {found}: it is truncated or not safetensors")]
    Truncated {
        /// What the length field says.
        claimed: u64,
        /// Bytes that there are after it.
        found: u64,
    },
    /// Not the JSON that a header is.
    #[error("the header is not a safetensors header: {0}")]
    Json(String),
    /// One tensor's entry is wrong.
    #[error("tensor {name:?}: {what}")]
    Tensor {
        /// Its name.
        name: String,
        /// What is wrong.
        what: String,
    },
    /// The data does not end where the file ends.
    #[error("the tensors need {needed} bytes of data, but the file holds {found}: it is truncated or damaged")]
    Length {
        /// End of the last tensor.
        needed: u64,
        /// Bytes after the header.
        found: u64,
    },
}

/// Where a tensor lies in a file.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    pub(super) info: TensorInfo,
    /// Byte offset from the file's start.
    pub(super) start: usize,
}

/// Reads and checks the header of a whole file's bytes.
///
/// # Errors
/// Names the first thing that is wrong.
pub(super) fn check(file: &[u8]) -> Result<BTreeMap<String, Entry>, HeaderError> {
    let length = file.first_chunk::<8>().filter(|_| file.len() >= 10).ok_or(HeaderError::TooShort(file.len()))?;
    let claimed = u64::from_le_bytes(*length);
    let found = file.len() as u64 - 8;
    if claimed > HEADER_BYTES_MAX {
        return Err(HeaderError::TooLong { claimed });
    }
    if claimed > found {
        return Err(HeaderError::Truncated { claimed, found });
    }
    // Bounded by HEADER_BYTES_MAX, so it fits.
    let data_start = 8 + usize::try_from(claimed).unwrap_or(usize::MAX);
    let raw: RawHeader = serde_json::from_slice(&file[8..data_start]).map_err(|error| HeaderError::Json(error.to_string()))?;
    let mut entries = BTreeMap::new();
    let mut spans = Vec::with_capacity(raw.0.len());
    for (name, tensor) in raw.0 {
        let (entry, span) = tensor.check(&name, data_start)?;
        spans.push((span, name.clone()));
        entries.insert(name, entry);
    }
    check_cover(&mut spans, (file.len() - data_start) as u64)?;
    Ok(entries)
}

/// Checks a whole file's bytes, for those who have no use for its tensors; gives their number.
///
/// # Errors
/// Names the first thing that is wrong.
pub fn check_header(file: &[u8]) -> Result<usize, HeaderError> {
    check(file).map(|entries| entries.len())
}

/// The tensors must lie one after the other, without gap or overlap, and end where the file ends.
fn check_cover(spans: &mut [((u64, u64), String)], found: u64) -> Result<(), HeaderError> {
    spans.sort_unstable();
    let mut end = 0;
    for ((start, stop), name) in spans.iter() {
        if *start != end {
            return Err(HeaderError::Tensor {
                name: name.clone(),
                what: format!(
                    "its data starts at byte {start}, and the tensor before it ends at {end}: tensors must not overlap or leave gaps"
                ),
            });
        }
        end = *stop;
    }
    if end != found {
        return Err(HeaderError::Length { needed: end, found });
    }
    Ok(())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTensor {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

impl RawTensor {
    fn check(self, name: &str, data_start: usize) -> Result<(Entry, (u64, u64)), HeaderError> {
        let bad = |what: String| HeaderError::Tensor { name: name.to_owned(), what };
        if name.len() > NAME_BYTES_MAX || name.contains("..") || name.contains(['/', '\\', '\0']) {
            return Err(bad("such a name is not allowed".into()));
        }
        let dtype = Dtype::from_name(&self.dtype).ok_or_else(|| bad(super::quantized::dtype_sentence(&self.dtype)))?;
        if self.shape.len() > RANK_MAX {
            return Err(bad(format!("it has {} dimensions, and at most {RANK_MAX} are allowed", self.shape.len())));
        }
        let too_large = || bad("its size overflows".into());
        let elements = self.shape.iter().try_fold(1u64, |product, &side| product.checked_mul(side)).ok_or_else(too_large)?;
        let bytes = elements.checked_mul(dtype.size() as u64).ok_or_else(too_large)?;
        let (start, stop) = self.data_offsets;
        if stop.checked_sub(start) != Some(bytes) {
            return Err(bad(format!("its offsets {start} to {stop} do not hold {elements} elements of {dtype}")));
        }
        let shape = self.shape.iter().map(|&side| usize::try_from(side)).collect::<Result<_, _>>().map_err(|_| too_large())?;
        let start_in_file = usize::try_from(start).ok().and_then(|start| start.checked_add(data_start)).ok_or_else(too_large)?;
        let entry = Entry { info: TensorInfo { dtype, shape }, start: start_in_file };
        Ok((entry, (start, stop)))
    }
}

/// The header's JSON object, with duplicate names refused and the count bounded while it is read.
struct RawHeader(Vec<(String, RawTensor)>);

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = RawHeader;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut seen = std::collections::HashSet::new();
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<BTreeMap<String, String>>()?;
                        continue;
                    }
                    if !seen.insert(name.clone()) {
                        return Err(A::Error::custom(format!("tensor {name:?} stands there twice")));
                    }
                    if entries.len() == TENSORS_MAX {
                        return Err(A::Error::custom(format!("more than {TENSORS_MAX} tensors")));
                    }
                    entries.push((name, map.next_value()?));
                }
                Ok(RawHeader(entries))
            }
        }

        deserializer.deserialize_map(Entries)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(header: &str, data: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    }

    fn refusal(header: &str, data: usize) -> String {
        check(&file(header, data)).unwrap_err().to_string()
    }

    #[test]
    fn a_sound_header_gives_its_tensors() {
        let header = r#"{"__metadata__":{"format":"pt"},"b":{"dtype":"BF16","shape":[3],"data_offsets":[8,14]},"a":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]}}"#;
        let entries = check(&file(header, 14)).unwrap();
        assert_eq!(entries["a"].start, 8 + header.len());
        assert_eq!(entries["b"].start, 8 + header.len() + 8);
        assert_eq!(entries["b"].info.shape, [3]);
    }

    #[test]
    fn hostile_headers_are_refused_by_a_sentence() {
        let one = |dtype: &str, shape: &str, offsets: &str| {
            format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
        };
        let cases = [
            (one("F32", "[2]", "[0,8]"), 7, "truncated"),
            (one("F32", "[2]", "[0,8]"), 9, "truncated or damaged"),
            (one("F32", "[3]", "[0,8]"), 8, "do not hold 3 elements"),
            (one("F32", "[2]", "[8,0]"), 8, "do not hold"),
            (one("F32", "[2]", "[4,12]"), 12, "leave gaps"),
            (one("F8_E4M3", "[8]", "[0,8]"), 8, "F8_E4M3 (FP8) cannot be read"),
            (one("F32", "[4294967296,4294967296,2]", "[0,8]"), 8, "overflows"),
            (one("F32", "[1,1,1,1,1,1,1,1,2]", "[0,8]"), 8, "9 dimensions"),
            (one("F32", "[-1]", "[0,8]"), 8, "not a safetensors header"),
            ("[]".into(), 0, "not a safetensors header"),
            ("{{".into(), 0, "not a safetensors header"),
            (r#"{"a/../b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#.into(), 8, "not allowed"),
            (
                r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#
                    .into(),
                12,
                "overlap",
            ),
            (
                r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}"#
                    .into(),
                16,
                "twice",
            ),
        ];
        for (header, data, expected) in cases {
            let sentence = refusal(&header, data);
            assert!(sentence.contains(expected), "{header}: {sentence}");
        }
        assert_eq!(check(b"PK"), Err(HeaderError::TooShort(2)));
        let bomb = [u64::MAX.to_le_bytes().as_slice(), b"{}"].concat();
        assert_eq!(check(&bomb), Err(HeaderError::TooLong { claimed: u64::MAX }));
        let long = [1000u64.to_le_bytes().as_slice(), b"{}"].concat();
        assert_eq!(check(&long), Err(HeaderError::Truncated { claimed: 1000, found: 2 }));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), flip in 0usize..120, to: u8) {
            let _ = check(&bytes);
            let mut near = file(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 8);
            let at = flip % near.len();
            near[at] = to;
            let _ = check(&near);
        }

        #[test]
        fn what_safetensors_writes_passes(sides in proptest::collection::vec((1usize..5, 1usize..7), 1..6)) {
            let data: Vec<Vec<u8>> = sides.iter().map(|(a, b)| vec![7; a * b * 2]).collect();
            let views: Vec<_> = sides.iter().zip(&data).enumerate().map(|(i, ((a, b), bytes))| {
                (format!("t{i}"), safetensors::tensor::TensorView::new(safetensors::Dtype::F16, vec![*a, *b], bytes).unwrap())
            }).collect();
            let file = safetensors::serialize(views, None).unwrap();
            prop_assert_eq!(check(&file).unwrap().len(), sides.len());
        }
    }
}
