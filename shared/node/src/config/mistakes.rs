//! What is wrong in a configuration, all of it at once.

use serde::Serialize;
use std::fmt;

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Mistake {
    /// Where: `relay[3].parent`, `server.slots`; empty for the file as a whole.
    pub path: String,
    /// Stable word for programs: `missing`, `unknown_key`, `wrong_type`, `out_of_range`, `syntax` …
    pub code: &'static str,
    /// For people: what is wrong and what would be right.
    pub message: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        write!(f, "{} ({})", self.message, self.code)
    }
}

/// Every mistake of one configuration, in the order in which they were found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Mistakes(Vec<Mistake>);

impl Mistakes {
    /// Adds one.
    pub fn add(&mut self, path: impl Into<String>, code: &'static str, message: impl Into<String>) {
        self.0.push(Mistake { path: path.into(), code, message: message.into() });
    }

    /// Exactly one.
    pub fn one(path: impl Into<String>, code: &'static str, message: impl Into<String>) -> Mistakes {
        let mut mistakes = Mistakes::default();
        mistakes.add(path, code, message);
        mistakes
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &Mistake> {
        self.0.iter()
    }

    /// The first one, if there is any.
    pub fn first(&self) -> Option<&Mistake> {
        self.0.first()
    }

    /// Gives `value` out if nothing was wrong. Until then it may hold placeholders.
    pub fn guard<T>(self, value: T) -> Result<T, Mistakes> {
        if self.is_empty() { Ok(value) } else { Err(self) }
    }
}

impl fmt::Display for Mistakes {
    /// One line per mistake, no line end after the last.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, mistake) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            mistake.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Mistakes {}
