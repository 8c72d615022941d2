//! Files of statistics that models' parameters name by their paths: opened, and named by their digests from then on, as recipes name them.

use std::{path::Path, sync::Arc};

use evolver_common::{
    checkpoint::{Checkpoint, DigestCache},
    digest::Digest,
    merge::{find, statistics_parameter},
    recipe::{Parameters, Value},
};

use crate::config::{Content, MergeConfig};

/// A file of statistics and its content digest.
pub type Statistics = (Digest, Arc<Checkpoint>);

/// Opens every file and replaces its path; what is wrong joins `problems`.
pub(super) fn open(config: &mut MergeConfig, problems: &mut Vec<String>) -> Vec<Statistics> {
    let parameter = find(&config.method).ok().and_then(statistics_parameter);
    let folder = config.folder.clone();
    let digests = DigestCache::in_memory();
    let mut opened = Vec::new();
    for table in tables(config) {
        for (_, value) in table.iter_mut().filter(|(name, _)| Some(name.as_str()) == parameter) {
            if let Value::Text(path) = value {
                match file(&folder.join(&*path), &digests) {
                    Ok(found) => {
                        *path = found.0.to_string();
                        opened.push(found);
                    }
                    Err(sentence) => problems.push(sentence),
                }
            }
        }
    }
    opened
}

fn file(path: &Path, digests: &DigestCache) -> Result<Statistics, String> {
    let file = Checkpoint::open(path).map_err(|error| format!("statistics: {error}"))?;
    let digest = file.digest(digests).map_err(|error| format!("statistics: {error}"))?;
    Ok((digest, Arc::new(file)))
}

/// Every table of parameters.
fn tables(config: &mut MergeConfig) -> Vec<&mut Parameters> {
    let mut tables = vec![&mut config.parameters];
    for module in &mut config.modules {
        tables.push(&mut module.parameters);
        match &mut module.content {
            Content::Models(entries) => tables.extend(entries.iter_mut().map(|entry| &mut entry.parameters)),
            Content::Slices(slices) => {
                for slice in slices {
                    tables.push(&mut slice.parameters);
                    tables.extend(slice.sources.iter_mut().map(|source| &mut source.parameters));
                }
            }
        }
    }
    tables
}
