//! Which changes of a definition a search that has begun allows.
//!
//! A change is allowed if it cannot alter what was already decided: longer limits, other ways of spreading the work, files that moved but
//! kept their content. Everything else is refused with the difference shown.

use serde_json::Value;
use thiserror::Error;

use super::Resolved;

/// A change that would alter what was decided.
#[derive(Debug, Error)]
#[error("this folder holds a search with another definition, and these changes would alter what it has decided:\n{}\nuse the old values, or another --dir", .differences.join("\n"))]
pub struct ChangeError {
    /// One line per key, with both values.
    pub differences: Vec<String>,
}

/// Whether a search that was begun with `old` may go on with `new`.
///
/// # Errors
/// Lists every difference that may not be.
pub fn compatible(old: &Resolved, new: &Resolved) -> Result<(), ChangeError> {
    let mut differences = Vec::new();
    compare("", &old.deciding(), &new.deciding(), &mut differences);
    let (was, is) = (&old.definition.stop, &new.definition.stop);
    let limits = [
        ("stop.offspring", as_float(was.offspring), as_float(is.offspring)),
        ("stop.generations", as_float(was.generations), as_float(is.generations)),
        ("stop.evaluations", as_float(was.evaluations), as_float(is.evaluations)),
        ("stop.seconds", was.seconds, is.seconds),
        ("stop.patience", as_float(was.patience), as_float(is.patience)),
    ];
    for (key, was, is) in limits {
        // No limit is the longest limit.
        if is.unwrap_or(f64::INFINITY) < was.unwrap_or(f64::INFINITY) {
            let show = |limit: Option<f64>| limit.map_or("none".to_owned(), |l| l.to_string());
            differences.push(format!("  {key}: was {}, now {} (a limit may only be raised)", show(was), show(is)));
        }
    }
    if differences.is_empty() { Ok(()) } else { Err(ChangeError { differences }) }
}

#[expect(clippy::cast_precision_loss, reason = "limits are compared and shown, never computed with")]
fn as_float(limit: Option<u64>) -> Option<f64> {
    limit.map(|limit| limit as f64)
}

fn compare(path: &str, old: &Value, new: &Value, differences: &mut Vec<String>) {
    let join = |key: &str| {
        if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
    };
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            let added = new.keys().filter(|key| !old.contains_key(*key));
            for key in old.keys().chain(added) {
                let value = |tree: &serde_json::Map<String, Value>| tree.get(key).cloned().unwrap_or(Value::Null);
                compare(&join(key), &value(old), &value(new), differences);
            }
        }
        (Value::Array(old), Value::Array(new)) if old.len() == new.len() => {
            for (index, (old, new)) in old.iter().zip(new).enumerate() {
                compare(&join(&index.to_string()), old, new, differences);
            }
        }
        (old, new) if old != new => {
            differences.push(format!("  {path}: was {old}, now {new}"));
        }
        _ => {}
    }
}
