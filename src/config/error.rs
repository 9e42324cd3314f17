//! What is wrong with a configuration: where, which value, and what to do.

use std::path::PathBuf;

use super::Origin;

/// Where a setting was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Flag, variable or file.
    pub origin: Origin,
    /// Line in the file, from 1.
    pub line: Option<u64>,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}", self.origin),
            None => self.origin.fmt(f),
        }
    }
}

impl From<Origin> for Place {
    fn from(origin: Origin) -> Self {
        Self { origin, line: None }
    }
}

/// Why there is no [`super::Config`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read the configuration {}: {cause}", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// The system's words.
        cause: String,
    },
    /// The file is not YAML, or not one mapping.
    #[error("{place}: {problem}")]
    Syntax {
        /// Where.
        place: Place,
        /// The parser's words.
        problem: String,
    },
    /// A key nobody reads.
    #[error("{place}: there is no key `{key}`{}", meant.as_ref().map(|key| format!(": did you mean `{key}`?")).unwrap_or_default())]
    Unknown {
        /// Where.
        place: Place,
        /// Its full path.
        key: String,
        /// A key like it.
        meant: Option<String>,
    },
    /// A value that is not what its key needs.
    #[error("{place}: `{key}` is {value}, but must be {expected}; for example: {example}")]
    Wrong {
        /// Where.
        place: Box<Place>,
        /// The key's full path.
        key: String,
        /// The value found, unless it is secret.
        value: String,
        /// What is needed.
        expected: &'static str,
        /// A good value.
        example: &'static str,
    },
    /// `${NAME}` names a variable that is not set.
    #[error(
        "{place}: `{key}` needs the environment variable {variable}, which is not set: set it, or give a default with \
         ${{{variable}:-default}}"
    )]
    MissingVariable {
        /// Where.
        place: Place,
        /// The key's full path.
        key: String,
        /// The variable.
        variable: String,
    },
    /// `${` without a name or an end.
    #[error(
        "{place}: `{key}` has a `${{` that is not `${{NAME}}` or `${{NAME:-default}}`; a plain `${{` is written `$${{`"
    )]
    BadVariable {
        /// Where.
        place: Place,
        /// The key's full path.
        key: String,
    },
    /// Two values that cannot both be.
    #[error("{problem}: {advice}")]
    Contradiction {
        /// Both keys with their values and origins.
        problem: String,
        /// What to change.
        advice: String,
    },
    /// A required value is nowhere.
    #[error("`{key}` is not set: {advice}")]
    Missing {
        /// The key.
        key: &'static str,
        /// How to set it.
        advice: &'static str,
    },
    /// The context is not defined.
    #[error("{place}: there is no context `{name}`; known: {}", known.join(", "))]
    UnknownContext {
        /// Where it is named.
        place: Place,
        /// Its name.
        name: String,
        /// Those that are defined.
        known: Vec<String>,
    },
}
