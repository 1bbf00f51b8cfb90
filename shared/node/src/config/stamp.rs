//! Whether a file that a running node looks at is another one than it was.

use std::{path::Path, time::SystemTime};

/// A file as it was found: when it was written and how long it is, or that it was not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp(Option<(SystemTime, u64)>);

impl Stamp {
    /// The file's stamp now.
    pub fn of(file: &Path) -> Stamp {
        let found = std::fs::metadata(file).ok();
        Stamp(found.and_then(|m| Some((m.modified().ok()?, m.len()))))
    }
}
