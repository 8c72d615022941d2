//! Reading a definition: TOML or YAML by the file's name, overrides of single keys, then the typed model.
//!
//! Everything goes through one untyped tree, so that both formats and the overrides obey the same rules and errors name a key's path.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};
use thiserror::Error;

use super::{genome, model::Definition, validate};
use crate::suggest;

/// A definition that cannot be used; the text says where and what would be right.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The file cannot be read.
    #[error("cannot read the definition {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Neither TOML nor YAML by its name.
    #[error("{path}: a definition is a .toml, .yaml or .yml file", path = .0.display())]
    Format(PathBuf),
    /// Not well formed.
    #[error("{path}: {message}", path = path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The parser's words, with line and column.
        message: String,
    },
    /// An override that is not `key=value`.
    #[error("--set {0:?}: expected key=value, for instance --set stop.offspring=40")]
    Override(String),
    /// A key that is unknown, missing, or of another type.
    #[error("{path}: {message}", path = path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// The sentence.
        message: String,
    },
    /// Values that are out of range or do not fit each other, all of them.
    #[error("{path}: {problems}", path = path.display(), problems = problems.join("\n"))]
    Values {
        /// The file.
        path: PathBuf,
        /// One sentence each.
        problems: Vec<String>,
    },
}

/// Reads the definition at `path`, applies `overrides` (`key.path=value`, in order), fills in defaults and makes every path absolute,
/// relative ones starting from the definition's folder.
///
/// # Errors
/// See [`LoadError`]; the first syntactic problem, or every problem with values.
pub fn load(path: &Path, overrides: &[String]) -> Result<Definition, LoadError> {
    let text = fs::read_to_string(path).map_err(|source| LoadError::Read { path: path.to_owned(), source })?;
    parse(&text, path, overrides)
}

/// As [`load`], for a text that is already there; `path` names it and gives its format and folder.
///
/// # Errors
/// As [`load`].
pub fn parse(text: &str, path: &Path, overrides: &[String]) -> Result<Definition, LoadError> {
    let syntax = |message: String| LoadError::Syntax { path: path.to_owned(), message };
    let mut tree: Value = match path.extension().and_then(|extension| extension.to_str()) {
        Some("toml") => toml::from_str(text).map_err(|error| syntax(error.to_string()))?,
        Some("yaml" | "yml") => serde_saphyr::from_str(text).map_err(|error| syntax(error.to_string()))?,
        _ => return Err(LoadError::Format(path.to_owned())),
    };
    for assignment in overrides {
        set(&mut tree, assignment)?;
    }
    let strategy_is_given = tree.pointer("/search/strategy").is_some();
    let mut definition: Definition = serde_path_to_error::deserialize(tree)
        .map_err(|error| LoadError::Key { path: path.to_owned(), message: key_sentence(&error) })?;
    if definition.stop == super::Stop::default() {
        definition.stop.offspring = Some(100);
    }
    let folder = path.parent().unwrap_or(Path::new(""));
    genome::import(&mut definition, folder, strategy_is_given)
        .map_err(|message| LoadError::Key { path: path.to_owned(), message })?;
    let problems = validate::problems(&definition);
    if !problems.is_empty() {
        return Err(LoadError::Values { path: path.to_owned(), problems });
    }
    make_absolute(&mut definition, folder);
    Ok(definition)
}

/// Turns serde's message into a sentence that names the key and the nearest known one.
fn key_sentence(error: &serde_path_to_error::Error<serde_json::Error>) -> String {
    let at = error.path().to_string();
    let message = error.inner().to_string();
    if let Some(rest) = message.strip_prefix("unknown field `")
        && let Some((key, known)) = rest.split_once('`')
    {
        // serde lists the known keys between backticks after "expected".
        let known: Vec<&str> = known.split('`').skip(1).step_by(2).collect();
        let section = at.strip_suffix(key).map_or(at.as_str(), |parent| parent.trim_end_matches('.'));
        let place = if section.is_empty() || section == "." { String::from("at the top level") } else { format!("in {section}") };
        return format!("unknown key {} {place}", suggest::unknown(key, known));
    }
    if at == "." { message } else { format!("{at}: {message}") }
}

/// Sets one key of the tree, making the tables on the way; numbers in a path index lists.
fn set(tree: &mut Value, assignment: &str) -> Result<(), LoadError> {
    let bad = || LoadError::Override(assignment.to_owned());
    let (key, text) = assignment.split_once('=').ok_or_else(bad)?;
    // A bare word is a text: `search.strategy=evolver` needs no quotes.
    let value = toml::from_str::<Map<String, Value>>(&format!("value = {text}"))
        .ok()
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| Value::String(text.to_owned()));
    let mut place = tree;
    for part in key.trim().split('.') {
        if part.is_empty() {
            return Err(bad());
        }
        place = match place {
            Value::Array(items) => part.parse::<usize>().ok().and_then(|index| items.get_mut(index)).ok_or_else(bad)?,
            Value::Object(table) => table.entry(part).or_insert_with(|| Value::Object(Map::new())),
            _ => return Err(bad()),
        };
    }
    *place = value;
    Ok(())
}

fn make_absolute(definition: &mut Definition, folder: &Path) {
    let join = |path: &mut PathBuf| {
        let joined = folder.join(&*path);
        *path = std::path::absolute(&joined).unwrap_or(joined);
    };
    join(&mut definition.models.base);
    for expert in &mut definition.models.experts {
        join(&mut expert.path);
        expert.statistics.as_mut().map(join);
    }
    for task in &mut definition.tasks {
        join(&mut task.dev);
        if let Some(test) = &mut task.test {
            join(test);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = r#"
        [models]
        base = "base"
        [[models.experts]]
        name = "a"
        path = "a"
        [[models.experts]]
        name = "b"
        path = "/abs/b"
        [[tasks]]
        name = "t"
        dev = "t.jsonl"
    "#;

    fn load_text(text: &str, overrides: &[&str]) -> Result<Definition, String> {
        let overrides: Vec<_> = overrides.iter().map(|&o| o.to_owned()).collect();
        parse(text, Path::new("/dir/search.toml"), &overrides).map_err(|error| error.to_string())
    }

    #[test]
    fn toml_and_yaml_give_the_same_definition() {
        let toml = load_text(SMALL, &[]).unwrap();
        let yaml =
            "models: {base: base, experts: [{name: a, path: a}, {name: b, path: /abs/b}]}\ntasks: [{name: t, dev: t.jsonl}]\n";
        let yaml = parse(yaml, Path::new("/dir/search.yaml"), &[]).unwrap();
        assert_eq!(toml, yaml);
        assert_eq!(toml.models.experts[0].path, Path::new("/dir/a"));
        assert_eq!(toml.models.experts[1].path, Path::new("/abs/b"));
        assert_eq!(toml.stop.offspring, Some(100));
    }

    #[test]
    fn overrides_reach_tables_lists_and_plugin_keys() {
        let definition =
            load_text(SMALL, &["stop.offspring=7", "tasks.0.metric=macro_f1", "search.scale=0.25", "models.frozen=[\"x.*\"]"])
                .unwrap();
        assert_eq!(definition.stop.offspring, Some(7));
        assert_eq!(definition.tasks[0].metric(), "macro_f1");
        assert_eq!(definition.search.parameters["scale"], 0.25);
        assert_eq!(definition.models.frozen, ["x.*"]);
        assert!(load_text(SMALL, &["stop.offspring"]).unwrap_err().contains("key=value"));
        assert!(load_text(SMALL, &["tasks.3.metric=x"]).unwrap_err().contains("tasks.3"));
    }

    #[test]
    fn an_unknown_key_is_refused_with_the_nearest_one() {
        let error = load_text(&format!("{SMALL}\n[fleet]\nlease_secnods = 3"), &[]).unwrap_err();
        assert!(error.contains("\"lease_secnods\" (did you mean \"lease_seconds\"?)"), "{error}");
        assert!(error.contains("in fleet"), "{error}");
        let error = load_text(&format!("{SMALL}\n[stopp]\noffspring = 3"), &[]).unwrap_err();
        assert!(error.contains("did you mean \"stop\""), "{error}");
        assert!(error.contains("at the top level"), "{error}");
        let error = load_text(SMALL, &["stop.offspring=many"]).unwrap_err();
        assert!(error.contains("stop.offspring"), "{error}");
    }

    #[test]
    fn a_syntax_error_names_file_and_line() {
        let error = load_text("a = [1,\nb", &[]).unwrap_err();
        assert!(error.contains("/dir/search.toml"), "{error}");
        assert!(error.contains("line 2"), "{error}");
    }
}
