//! What a data path means.
//!
//! - a file, by its ending;
//! - a pattern in the last part of the path, `data/validation-*.parquet`;
//! - a folder written by `datasets`' `save_to_disk`, or one with data files of a single split;
//! - a split of such a folder, `FOLDER/validation`;
//! - a folder of folders of images, whose names are the labels.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use globset::Glob;
use serde_json::Value;

use super::DataError;

const PLAIN: [&str; 5] = ["jsonl", "ndjson", "json", "csv", "tsv"];
const COLUMNAR: [&str; 2] = ["parquet", "arrow"];
const IMAGES: [&str; 6] = ["png", "jpg", "jpeg", "webp", "bmp", "gif"];

/// One file to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Plain(PathBuf),
    Columnar(PathBuf),
    Image { file: PathBuf, label: String },
}

/// The files of a data path, in the order in which they are read.
pub(super) fn sources(path: &Path) -> Result<Vec<Source>, DataError> {
    if path.is_file() {
        return Ok(vec![file(path.to_owned())]);
    }
    if path.is_dir() {
        return folder(path);
    }
    let parent = path.parent().unwrap_or(Path::new(""));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let found = if name.contains(['*', '?', '[', '{']) {
        let pattern = Glob::new(&name).map_err(|error| bad(path, error.to_string()))?.compile_matcher();
        data_files(parent)?.into_iter().filter(|file| pattern.is_match(file.file_name().unwrap_or_default())).collect()
    } else {
        let of_split = |folder: &Path| {
            let files = data_files(folder).unwrap_or_default();
            files.into_iter().filter(|file| split_of(file) == name).collect::<Vec<_>>()
        };
        let found = of_split(parent);
        if found.is_empty() { of_split(&parent.join("data")) } else { found }
    };
    if found.is_empty() {
        let source = std::io::Error::from(std::io::ErrorKind::NotFound);
        return Err(DataError::Read { path: path.to_owned(), source });
    }
    Ok(found.into_iter().map(file).collect())
}

fn bad(path: &Path, what: impl Into<String>) -> DataError {
    DataError::File { path: path.to_owned(), what: what.into() }
}

fn file(path: PathBuf) -> Source {
    if COLUMNAR.contains(&ending(&path).as_str()) { Source::Columnar(path) } else { Source::Plain(path) }
}

fn ending(path: &Path) -> String {
    path.extension().map(|ending| ending.to_string_lossy().to_lowercase()).unwrap_or_default()
}

/// The split that a file's name begins with: `train-00000-of-00001.parquet`, `train.jsonl`.
fn split_of(file: &Path) -> String {
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    stem.split_once("-0").map_or(stem.as_ref(), |(split, _)| split).to_owned()
}

fn entries(path: &Path) -> Result<Vec<PathBuf>, DataError> {
    let read = || -> std::io::Result<Vec<PathBuf>> { fs::read_dir(path)?.map(|entry| entry.map(|entry| entry.path())).collect() };
    let mut entries = read().map_err(|source| DataError::Read { path: path.to_owned(), source })?;
    entries.sort();
    Ok(entries)
}

/// Data files of a folder by name; the JSON that `datasets` writes beside them is not data.
fn data_files(path: &Path) -> Result<Vec<PathBuf>, DataError> {
    let aside = ["dataset_info.json", "dataset_dict.json", "dataset_infos.json", "state.json"];
    let is_data = |file: &PathBuf| {
        let ending = ending(file);
        file.is_file()
            && (PLAIN.contains(&ending.as_str()) || COLUMNAR.contains(&ending.as_str()))
            && !file.file_name().is_some_and(|name| aside.iter().any(|aside| name == *aside))
    };
    Ok(entries(path)?.into_iter().filter(is_data).collect())
}

fn folder(path: &Path) -> Result<Vec<Source>, DataError> {
    if let Ok(state) = fs::read(path.join("state.json")) {
        let state: Value = serde_json::from_slice(&state).map_err(|error| bad(path, format!("state.json: {error}")))?;
        let names = state["_data_files"].as_array().into_iter().flatten().filter_map(|file| file["filename"].as_str());
        return Ok(names.map(|name| Source::Columnar(path.join(name))).collect());
    }
    let several = |splits: &BTreeSet<String>| {
        let names: Vec<_> = splits.iter().map(String::as_str).collect();
        bad(path, format!("it holds the splits {}: name one, for instance {}/{}", names.join(", "), path.display(), names[0]))
    };
    let entries = entries(path)?;
    if path.join("dataset_dict.json").exists() {
        let name = |entry: &PathBuf| entry.file_name().map(|name| name.to_string_lossy().into_owned());
        let splits: BTreeSet<_> = entries.iter().filter(|entry| entry.is_dir()).filter_map(name).collect();
        return Err(if splits.is_empty() { bad(path, "it holds no splits") } else { several(&splits) });
    }
    for candidate in [path, &path.join("data")] {
        let files = if candidate.is_dir() { data_files(candidate)? } else { Vec::new() };
        let splits: BTreeSet<_> = files.iter().map(|file| split_of(file)).collect();
        match splits.len() {
            0 => {}
            1 => return Ok(files.into_iter().map(file).collect()),
            _ => return Err(several(&splits)),
        }
    }
    let mut images = Vec::new();
    for class in entries.iter().filter(|entry| entry.is_dir()) {
        let label = class.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let files = self::entries(class)?.into_iter().filter(|file| IMAGES.contains(&ending(file).as_str()));
        images.extend(files.map(|file| Source::Image { file, label: label.clone() }));
    }
    if images.is_empty() {
        return Err(bad(
            path,
            "it holds neither data files (JSON lines, CSV, Parquet, Arrow), nor a dataset of `datasets`, nor folders of images",
        ));
    }
    Ok(images)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(path: &Path) -> Result<Vec<String>, String> {
        let sources = sources(path).map_err(|error| error.to_string())?;
        let name = |source: &Source| match source {
            Source::Plain(file) | Source::Columnar(file) => file.file_name().unwrap().to_string_lossy().into_owned(),
            Source::Image { file, label } => format!("{label}:{}", file.file_name().unwrap().to_string_lossy()),
        };
        Ok(sources.iter().map(name).collect())
    }

    #[test]
    fn paths_mean_files_patterns_splits_and_folders() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str| {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "{}").unwrap();
        };
        for name in [
            "hub/README.md",
            "hub/data/train-00000-of-00001.parquet",
            "hub/data/validation-00001-of-00002.parquet",
            "hub/data/validation-00000-of-00002.parquet",
            "saved/dataset_dict.json",
            "saved/test/data-00000-of-00001.arrow",
            "one/all.csv",
            "pictures/cat/1.png",
            "pictures/cat/notes.txt",
            "pictures/dog/2.JPG",
            "nothing/x.txt",
        ] {
            write(name);
        }
        let state = r#"{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}"#;
        fs::write(folder.path().join("saved/test/state.json"), state).unwrap();
        let at = |name: &str| names(&folder.path().join(name));
        let validation = ["validation-00000-of-00002.parquet", "validation-00001-of-00002.parquet"];
        assert_eq!(at("hub/validation").unwrap(), validation);
        assert_eq!(at("hub/data/validation-*.parquet").unwrap(), validation);
        assert_eq!(at("hub/data/validation").unwrap(), validation);
        assert!(at("hub").unwrap_err().contains("holds the splits train, validation: name one"));
        assert!(at("saved").unwrap_err().contains("the splits test: name one"));
        assert_eq!(at("saved/test").unwrap(), ["data-00000-of-00001.arrow"]);
        assert_eq!(at("one").unwrap(), ["all.csv"]);
        assert_eq!(at("pictures").unwrap(), ["cat:1.png", "dog:2.JPG"]);
        assert!(at("nothing").unwrap_err().contains("neither data files"));
        assert!(at("hub/tset").unwrap_err().contains("cannot read"));
    }
}
