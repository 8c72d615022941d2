//! From the published sentiment files to labelled items in three splits.
//!
//! A document never stands on both sides of a split: a group of texts goes where the hash of its name says, 60 % to train, 15 % to dev, 25 % to test.

use std::{
    io::{Cursor, Read},
    path::Path,
};

use anyhow::Context as _;
use evolver_common::checkpoint::write::FolderWriter;
use flate2::read::GzDecoder;
use serde_json::json;
use sha2::{Digest as _, Sha256};

/// The archive inside the package.
const ARCHIVE: &str = "hutto_ICWSM_2014.tar.gz";

struct Domain {
    name: &'static str,
    file: &'static str,
    /// Whether the id's part before `_` names the document; otherwise the text itself is the group.
    documents: bool,
}

const DOMAINS: [Domain; 4] = [
    Domain { name: "tweets", file: "tweets_GroundTruth.txt", documents: false },
    Domain { name: "movies", file: "movieReviewSnippets_GroundTruth.txt", documents: false },
    Domain { name: "products", file: "amazonReviewSnippets_GroundTruth.txt", documents: true },
    Domain { name: "editorials", file: "nytEditorialSnippets_GroundTruth.txt", documents: true },
];

/// Writes `<domain>.<split>.jsonl` files from the package's bytes.
pub(super) fn prepare(package: &[u8], out: &Path) -> anyhow::Result<()> {
    let inner = member(package, ARCHIVE)?;
    let folder = FolderWriter::new(out)?;
    for domain in DOMAINS {
        let text = String::from_utf8(member(&inner, domain.file)?).with_context(|| format!("{} is not UTF-8", domain.file))?;
        let mut splits = [("train", String::new()), ("dev", String::new()), ("test", String::new())];
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.is_empty()) {
            let (split, item) = domain.item(line).with_context(|| format!("{}, line {}", domain.file, number + 1))?;
            splits[split].1.push_str(&item);
            splits[split].1.push('\n');
        }
        for (split, lines) in splits {
            folder.write(&format!("{}.{split}.jsonl", domain.name), lines.as_bytes())?;
        }
    }
    Ok(folder.finish()?)
}

/// The file of this name in a gzipped archive, whatever folder it is in.
fn member(archive: &[u8], name: &str) -> anyhow::Result<Vec<u8>> {
    let mut archive = tar::Archive::new(GzDecoder::new(Cursor::new(archive)));
    for entry in archive.entries()? {
        let mut entry = entry?;
        if entry.path()?.file_name().is_some_and(|found| found == name) {
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes)?;
            return Ok(bytes);
        }
    }
    anyhow::bail!("{name} is not in the archive")
}

impl Domain {
    /// The split (0 train, 1 dev, 2 test) and the JSON of one line `id TAB valence TAB text`.
    fn item(&self, line: &str) -> anyhow::Result<(usize, String)> {
        let mut fields = line.splitn(3, '\t');
        let (Some(id), Some(valence), Some(text)) = (fields.next(), fields.next(), fields.next()) else {
            anyhow::bail!("three fields are expected: {line:?}");
        };
        let valence: f64 = valence.trim().parse().context("the second field is not a number")?;
        let text = text.trim();
        let label = match valence {
            v if v < -0.5 => "negative",
            v if v > 0.5 => "positive",
            _ => "neutral",
        };
        let group = if self.documents { id.split('_').next().unwrap_or(id) } else { text };
        let digest = Sha256::digest(format!("{}\t{group}", self.name));
        let head = digest.first_chunk::<8>().map_or(0, |bytes| u64::from_be_bytes(*bytes));
        #[expect(clippy::cast_precision_loss, reason = "a share")]
        let share = head as f64 / 2f64.powi(64);
        let split = if share < 0.60 {
            0
        } else if share < 0.75 {
            1
        } else {
            2
        };
        let item = json!({ "id": format!("{} {id}", self.name), "text": text, "label": label });
        Ok((split, item.to_string()))
    }
}
