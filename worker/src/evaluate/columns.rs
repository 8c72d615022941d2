//! A part of an item: a column, or a template over the columns.

use evolver_common::data::{DataError, Row};
use minijinja::{Environment, UndefinedBehavior, syntax::SyntaxConfig, value::Serde};
use serde_json::Value;

use super::EvaluateError;

/// Where a part of an item comes from.
pub(super) enum Column {
    /// A field, by its name or by a path with dots.
    Field(String),
    /// A Jinja template over the fields.
    Template(Box<Environment<'static>>),
}

const NAME: &str = "template";

impl Column {
    /// A text with braces is a template, any other a column's name.
    pub(super) fn new(text: &str) -> Result<Self, EvaluateError> {
        if !text.contains("{{") && !text.contains("{%") {
            return Ok(Self::Field(text.to_owned()));
        }
        let mut environment = environment();
        environment
            .add_template_owned(NAME, text.to_owned())
            .map_err(|error| EvaluateError::Unfit(format!("the template {text:?} cannot be read: {error:#}")))?;
        Ok(Self::Template(Box::new(environment)))
    }

    /// The part as a text; numbers are written out.
    pub(super) fn text(&self, row: &Row) -> Result<String, DataError> {
        match self {
            Self::Field(column) => match row.need(column)? {
                Value::String(text) => Ok(text.clone()),
                Value::Number(number) => Ok(number.to_string()),
                _ => Err(row.error(format!("field {column:?} is not a text"))),
            },
            Self::Template(environment) => {
                let template = environment.get_template(NAME).map_err(|error| row.error(error.to_string()))?;
                template
                    .render(minijinja::Value::from(Serde(row.fields())))
                    .map_err(|error| row.error(format!("the template cannot be filled in: {error:#}")))
            }
        }
    }

    /// The part as a list of texts; a single text is a list of one.
    pub(super) fn texts(&self, row: &Row) -> Result<Vec<String>, DataError> {
        let Self::Field(column) = self else {
            return Ok(vec![self.text(row)?]);
        };
        let text = |value: &Value| match value {
            Value::String(text) => Ok(text.clone()),
            Value::Number(number) => Ok(number.to_string()),
            _ => Err(row.error(format!("field {column:?} holds something else than texts"))),
        };
        match row.need(column)? {
            Value::Array(values) => values.iter().map(text).collect(),
            value => Ok(vec![text(value)?]),
        }
    }
}

/// Templates as Hugging Face's chat templates expect them: Python's methods of texts, and a missing variable is an error when it is written.
pub(super) fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::SemiStrict);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    if let Ok(syntax) = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build() {
        environment.set_syntax(syntax);
    }
    environment.add_function("raise_exception", |text: String| -> Result<String, minijinja::Error> {
        Err(minijinja::Error::new(minijinja::ErrorKind::InvalidOperation, text))
    });
    environment
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_and_templates_give_texts() {
        let row = Row::new(3, serde_json::from_str(r#"{"a": "x", "n": 4, "list": ["p", "q"], "in": {"er": "y"}}"#).unwrap());
        let text = |column: &str| Column::new(column).unwrap().text(&row);
        assert_eq!(text("a").unwrap(), "x");
        assert_eq!(text("in.er").unwrap(), "y");
        assert_eq!(text("n").unwrap(), "4");
        assert_eq!(text("{{ a }}: {{ list[1] }} {{ a.upper() }}").unwrap(), "x: q X");
        assert!(text("list").unwrap_err().to_string().contains("row 3: field \"list\" is not a text"));
        assert!(text("{{ missing }}").unwrap_err().to_string().contains("row 3: the template cannot be filled in"));
        assert_eq!(Column::new("list").unwrap().texts(&row).unwrap(), ["p", "q"]);
        assert!(Column::new("{{ a").is_err());
    }
}
