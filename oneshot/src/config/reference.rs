//! `path@revision+adapter`, mergekit's way to name a model, and where it lies on this machine.

use std::{
    env, fmt, fs,
    path::{Path, PathBuf},
};

use serde_json::Value as Json;

/// A model, and an adapter over it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ModelReference {
    /// The model.
    pub model: Place,
    /// A LoRA or (IA)³ adapter over it.
    pub adapter: Option<Place>,
}

/// A folder, or a model of the Hugging Face hub that was downloaded before.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// Path, or name on the hub.
    pub path: String,
    /// Revision on the hub.
    pub revision: Option<String>,
}

impl fmt::Display for ModelReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.adapter {
            Some(adapter) => write!(f, "{}+{adapter}", self.model),
            None => write!(f, "{}", self.model),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.revision {
            Some(revision) => write!(f, "{}@{revision}", self.path),
            None => f.write_str(&self.path),
        }
    }
}

impl ModelReference {
    /// The folder at `path`, by itself.
    #[must_use]
    pub fn folder(path: &Path) -> Self {
        Self { model: Place { path: path.display().to_string(), revision: None }, adapter: None }
    }

    /// What (IA)³ vectors start from. No path is written so.
    #[must_use]
    pub fn ones() -> Self {
        Self { model: Place { path: "(ones)".into(), revision: None }, adapter: None }
    }

    /// Reads `model`, `model@revision` or `model+adapter`.
    ///
    /// # Errors
    /// A sentence.
    pub fn parse(text: &str) -> Result<Self, String> {
        Self::from_tree(&Json::String(text.to_owned()))
    }

    /// Reads a text, or a table of `model` and `lora`.
    pub(super) fn from_tree(tree: &Json) -> Result<Self, String> {
        let place = |tree: &Json| match tree {
            Json::String(text) => Place::parse(text),
            Json::Object(table) if table.keys().all(|key| ["path", "revision"].contains(&key.as_str())) => {
                let text = |key: &str| table.get(key).and_then(Json::as_str).map(str::to_owned);
                Ok(Place { path: text("path").ok_or("a model's table lacks the key path")?, revision: text("revision") })
            }
            other => Err(format!("{other} names no model: a path is expected, or path and revision")),
        };
        match tree {
            Json::String(text) => match text.split('+').collect::<Vec<_>>().as_slice() {
                [model] => Ok(Self { model: Place::parse(model)?, adapter: None }),
                [model, adapter] => Ok(Self { model: Place::parse(model)?, adapter: Some(Place::parse(adapter)?) }),
                _ => Err(format!("{text:?} has more than one +: model+adapter is expected")),
            },
            Json::Object(table) if table.contains_key("model") => {
                let known = ["model", "lora"];
                if let Some(key) = table.keys().find(|key| !known.contains(&key.as_str())) {
                    let sentence = evolver_common::suggest::unknown(key, known);
                    return Err(format!("unknown key {sentence} in a model's table"));
                }
                let adapter = table.get("lora").filter(|tree| !tree.is_null()).map(place).transpose()?;
                Ok(Self { model: place(&table["model"])?, adapter })
            }
            other => Ok(Self { model: place(other)?, adapter: None }),
        }
    }

    /// A name for people and for model cards.
    #[must_use]
    pub fn names(&self) -> Vec<&str> {
        std::iter::once(&self.model).chain(&self.adapter).map(|place| place.path.as_str()).collect()
    }
}

impl Place {
    fn parse(text: &str) -> Result<Self, String> {
        // A local folder may have any name.
        let (path, revision) = match text.split_once('@') {
            Some((path, revision)) if !Path::new(text).exists() => (path, Some(revision.to_owned())),
            _ => (text, None),
        };
        if path.is_empty() || revision.as_ref().is_some_and(|revision| revision.is_empty() || revision.contains('@')) {
            return Err(format!("{text:?} names no model: a path is expected, or path@revision"));
        }
        Ok(Self { path: path.to_owned(), revision })
    }

    /// The folder that it lies in: a path, from the definition's folder or from where the program runs, or a model of the hub's cache.
    pub(crate) fn locate(&self, folder: &Path) -> Result<PathBuf, String> {
        let beside = folder.join(&self.path);
        for path in [beside.as_path(), Path::new(&self.path)] {
            if self.revision.is_none() && path.exists() {
                return Ok(std::path::absolute(path).unwrap_or_else(|_| path.to_owned()));
            }
        }
        let hub = hub_cache();
        if let Some(found) = hub.as_deref().and_then(|hub| self.in_hub(hub)) {
            return Ok(found);
        }
        let cache = match hub.filter(|_| self.is_hub_name()) {
            Some(hub) => format!(", nor in the hub's cache {}", hub.display()),
            None => String::new(),
        };
        Err(format!("model {self}: there is no such file or folder, neither at {}{cache}", beside.display()))
    }

    fn is_hub_name(&self) -> bool {
        let plain = |part: &str| !part.is_empty() && !part.starts_with('.');
        matches!(self.path.split('/').collect::<Vec<_>>().as_slice(), [owner, name] if plain(owner) && plain(name))
    }

    /// Where the hub's cache holds the revision.
    fn in_hub(&self, hub: &Path) -> Option<PathBuf> {
        if !self.is_hub_name() {
            return None;
        }
        let model = hub.join(format!("models--{}", self.path.replace('/', "--")));
        let revision = self.revision.as_deref().unwrap_or("main");
        let named = fs::read_to_string(model.join("refs").join(revision)).map(|commit| commit.trim().to_owned());
        let snapshot = model.join("snapshots").join(named.unwrap_or_else(|_| revision.to_owned()));
        snapshot.is_dir().then_some(snapshot)
    }
}

/// The folder that the hub's own tools download to.
fn hub_cache() -> Option<PathBuf> {
    let variable = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable("HF_HUB_CACHE")
        .or_else(|| variable("HF_HOME").map(|home| home.join("hub")))
        .or_else(|| variable("XDG_CACHE_HOME").map(|cache| cache.join("huggingface/hub")))
        .or_else(|| variable("HOME").map(|home| home.join(".cache/huggingface/hub")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<ModelReference, String> {
        ModelReference::from_tree(&serde_json::from_str(json).unwrap())
    }

    #[test]
    fn texts_and_tables_name_models() {
        for (json, shown) in [
            (r#""a/b""#, "a/b"),
            (r#""a/b@v1+c@v2""#, "a/b@v1+c@v2"),
            (r#"{"model": "a", "lora": "l"}"#, "a+l"),
            (r#"{"model": {"path": "a", "revision": "r"}}"#, "a@r"),
            (r#"{"path": "a", "revision": "r"}"#, "a@r"),
        ] {
            assert_eq!(read(json).unwrap().to_string(), shown);
        }
        for (json, expected) in [
            (r#""a+b+c""#, "more than one +"),
            (r#""a@""#, "names no model"),
            (r#"{"model": "a", "lorra": "l"}"#, "did you mean \"lora\""),
            (r#"{"model": "a", "override_architecture": "X"}"#, "unknown key \"override_architecture\""),
            ("7", "names no model"),
        ] {
            let error = read(json).unwrap_err();
            assert!(error.contains(expected), "{json}: {error}");
        }
    }

    #[test]
    fn a_hub_name_is_found_in_the_cache() {
        let hub = tempfile::tempdir().unwrap();
        let model = hub.path().join("models--org--name");
        fs::create_dir_all(model.join("snapshots/abc")).unwrap();
        fs::create_dir_all(model.join("refs")).unwrap();
        fs::write(model.join("refs/main"), "abc\n").unwrap();
        let place = |text: &str| Place::parse(text).unwrap();
        assert_eq!(place("org/name").in_hub(hub.path()), Some(model.join("snapshots/abc")));
        assert_eq!(place("org/name@abc").in_hub(hub.path()), Some(model.join("snapshots/abc")));
        assert_eq!(place("org/name@abd").in_hub(hub.path()), None);
        assert_eq!(place("../name").in_hub(hub.path()), None);
        let error = place("nowhere/at-all").locate(Path::new("/d")).unwrap_err();
        assert!(error.contains("/d/nowhere/at-all"), "{error}");
    }
}
