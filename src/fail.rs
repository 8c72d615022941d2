//! Errors by audience: what the user can mend is a [`Refused`].

use std::fmt::{self, Display};

/// What was given is wrong; the text says where and what would be right.
#[derive(Debug)]
pub(crate) struct Refused(String);

impl Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

/// Marks an error as the user's to mend.
pub(crate) fn refuse(error: impl Display) -> anyhow::Error {
    Refused(error.to_string()).into()
}

/// The error and its causes as one text. Many errors name their cause themselves: it is not said twice.
pub(crate) fn sentence(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}
