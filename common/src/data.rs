//! Labelled items: JSON lines of `{"text": …, "label": …}`.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde_json::Value;
use thiserror::Error;

use crate::{digest::Digest, suggest};

/// Names of an item's fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fields {
    /// The text.
    pub text: String,
    /// The second text, for pairs.
    pub text_pair: Option<String>,
    /// The label: its name, or its index.
    pub label: String,
}

/// A labelled text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// The text.
    pub text: String,
    /// The second text, for pairs.
    pub pair: Option<String>,
    /// Index of its label.
    pub label: usize,
}

/// A data file that cannot be used.
#[derive(Debug, Error)]
pub enum DataError {
    /// It cannot be read.
    #[error("cannot read {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It has no items.
    #[error("{path} is empty: at least one labelled item is needed", path = .0.display())]
    Empty(PathBuf),
    /// One of its lines is wrong.
    #[error("{path}, line {line}: {what}", path = path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong there.
        what: String,
    },
}

/// Reads the items of a file, in its order.
///
/// # Errors
/// Names the file and the first line that is not an item.
pub fn read_items(path: &Path, fields: &Fields, labels: &[String]) -> Result<Vec<Item>, DataError> {
    let bytes = fs::read(path).map_err(|source| DataError::Read { path: path.to_owned(), source })?;
    let mut items = Vec::new();
    for (index, line) in bytes.split(|&byte| byte == b'\n').enumerate() {
        if line.trim_ascii().is_empty() {
            continue;
        }
        let item =
            parse_line(line, fields, labels).map_err(|what| DataError::Line { path: path.to_owned(), line: index + 1, what })?;
        items.push(item);
    }
    if items.is_empty() {
        return Err(DataError::Empty(path.to_owned()));
    }
    Ok(items)
}

fn parse_line(line: &[u8], fields: &Fields, labels: &[String]) -> Result<Item, String> {
    let text = std::str::from_utf8(line).map_err(|_| "not UTF-8".to_owned())?;
    let value: Value = serde_json::from_str(text).map_err(|error| format!("not JSON: {error}"))?;
    let string = |field: &str| match value.get(field) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(_) => Err(format!("field {field:?} is not a text")),
        None => Err(format!("field {field:?} is missing")),
    };
    let label = match value.get(&fields.label) {
        Some(Value::String(name)) => labels
            .iter()
            .position(|label| label == name)
            .ok_or_else(|| format!("unknown label {}", suggest::unknown(name, labels.iter().map(String::as_str))))?,
        Some(Value::Number(number)) => number
            .as_u64()
            .and_then(|index| usize::try_from(index).ok())
            .filter(|&index| index < labels.len())
            .ok_or_else(|| format!("label {number} is not one of the {} labels, counted from 0", labels.len()))?,
        Some(_) => return Err(format!("field {:?} is neither a label's name nor its index", fields.label)),
        None => return Err(format!("field {:?} is missing", fields.label)),
    };
    Ok(Item { text: string(&fields.text)?, pair: fields.text_pair.as_deref().map(string).transpose()?, label })
}

/// A fixed choice of `count` items, by their content and not by their place, in the file's order; 0 means all.
#[must_use]
pub fn limit(items: Vec<Item>, count: usize) -> Vec<Item> {
    if count == 0 || count >= items.len() {
        return items;
    }
    let key = |item: &Item| {
        let pair = item.pair.as_deref().unwrap_or_default();
        Digest::of_parts("evolver item v1", [item.text.as_bytes(), pair.as_bytes()])
    };
    let mut order: Vec<_> = items.iter().enumerate().map(|(index, item)| (key(item), index)).collect();
    order.sort_unstable();
    let mut chosen: Vec<_> = order[..count].iter().map(|(_, index)| *index).collect();
    chosen.sort_unstable();
    let mut items: Vec<_> = items.into_iter().map(Some).collect();
    chosen.into_iter().filter_map(|index| items[index].take()).collect()
}

/// Digest of a data file's content.
///
/// # Errors
/// If it cannot be read.
pub fn digest(path: &Path) -> Result<Digest, DataError> {
    fs::read(path).map(|bytes| Digest::of(&bytes)).map_err(|source| DataError::Read { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(content: &str) -> Result<Vec<Item>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("d.jsonl");
        fs::write(&path, content).unwrap();
        let fields = Fields { text: "text".into(), text_pair: None, label: "label".into() };
        read_items(&path, &fields, &["bad".into(), "good".into()]).map_err(|error| error.to_string())
    }

    #[test]
    fn items_are_read_and_wrong_lines_named() {
        let good = "{\"text\":\"a\",\"label\":\"good\"}\n\n{\"text\":\"b\",\"label\":0}\n";
        let items = read(good).unwrap();
        assert_eq!((items[0].label, items[1].label), (1, 0));
        for (line, expected) in [
            ("{", "line 3: not JSON"),
            ("{\"text\":\"a\",\"label\":\"goood\"}", "did you mean \"good\""),
            ("{\"text\":\"a\",\"label\":2}", "label 2 is not one of the 2"),
            ("{\"label\":0}", "\"text\" is missing"),
            ("{\"text\":\"a\"}", "\"label\" is missing"),
        ] {
            let error = read(&format!("{{\"text\":\"a\",\"label\":\"good\"}}\n\n{line}\n")).unwrap_err();
            assert!(error.contains(expected) && error.contains("line 3"), "{error}");
        }
        assert!(read("\n").unwrap_err().contains("is empty"));
    }

    #[test]
    fn a_limited_choice_is_fixed_and_in_order() {
        let item = |n: usize| Item { text: n.to_string(), pair: None, label: 0 };
        let chosen = limit((0..50).map(item).collect(), 7);
        assert_eq!(chosen.len(), 7);
        let mut backwards = limit((0..50).rev().map(item).collect(), 7);
        backwards.reverse();
        assert_eq!(chosen, backwards);
    }
}
