//! "Did you mean": the nearest known name to an unknown one.

/// The known name nearest to `word`, if one is near enough to be meant.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(word, name), name))
        .min()
        .filter(|(distance, name)| *distance <= 1 + name.len().max(word.len()) / 3)
        .map(|(_, name)| name)
}

/// `word` in quotes, followed by the nearest of `known`, or by all of them where none is near.
pub fn unknown<'a>(word: &str, known: impl IntoIterator<Item = &'a str> + Clone) -> String {
    match nearest(word, known.clone()) {
        Some(name) => format!("{word:?} (did you mean {name:?}?)"),
        None => {
            let names: Vec<_> = known.into_iter().collect();
            format!("{word:?} (known: {})", names.join(", "))
        }
    }
}
