//! From a file to a table, and from a file to a whole configuration.

use super::{Mistakes, Reader};
use std::path::Path;
use toml::Table;

/// The largest configuration file that is read; more is some other file.
const FILE_BYTES_MAX: u64 = 1_048_576;

/// Reads a TOML file. Codes: `unreadable`, `too_large`, `syntax` (with line and column).
pub fn read_file(path: &Path) -> Result<Table, Mistakes> {
    let named = |code, why: String| Mistakes::one("", code, format!("{}: {why}", path.display()));
    let length = std::fs::metadata(path).map_err(|e| named("unreadable", e.to_string()))?.len();
    if length > FILE_BYTES_MAX {
        return Err(named("too_large", format!("{length} bytes, at most {FILE_BYTES_MAX} are read")));
    }
    let text = std::fs::read_to_string(path).map_err(|e| named("unreadable", e.to_string()))?;
    parse(&text).map_err(|why| named("syntax", why))
}

/// Parses TOML text; the error names line and column, both counted from 1.
pub fn parse(text: &str) -> Result<Table, String> {
    text.parse::<Table>().map_err(|e| {
        let at = e.span().map_or(0, |span| span.start.min(text.len()));
        let before = &text.as_bytes()[..at];
        let line = before.iter().filter(|b| **b == b'\n').count() + 1;
        let line_start = before.iter().rposition(|b| *b == b'\n').map_or(0, |n| n + 1);
        let column = String::from_utf8_lossy(&before[line_start..]).chars().count() + 1;
        format!("line {line}, column {column}: {}", e.message())
    })
}

/// Reads a file and a whole configuration from it; unknown keys and every other mistake are told at once.
pub fn load<T>(path: &Path, read: impl FnOnce(&mut Reader<'_>) -> T) -> Result<T, Mistakes> {
    let table = read_file(path)?;
    let mut mistakes = Mistakes::default();
    let mut reader = Reader::new(&table, "", &mut mistakes);
    let value = read(&mut reader);
    reader.finish();
    mistakes.guard(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn syntax_errors_name_line_and_column() {
        assert!(parse("a = 1\n\nb = = 2\n").unwrap_err().starts_with("line 3, column 5: "));
        assert!(parse("x").unwrap_err().starts_with("line 1, column "));
        assert!(parse("a = 1\na = 2\n").unwrap_err().starts_with("line 2, column 1: "));
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let absent = folder.path().join("absent.toml");
        let fault = read_file(&absent).unwrap_err();
        assert_eq!(fault.first().unwrap().code, "unreadable");
        assert!(fault.to_string().contains("absent.toml"), "{fault}");
        let bad = folder.path().join("bad.toml");
        std::fs::write(&bad, "name = \n").unwrap();
        assert_eq!(read_file(&bad).unwrap_err().first().unwrap().code, "syntax");
    }

    #[test]
    fn the_largest_file_is_read_and_one_byte_more_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("big.toml");
        std::fs::write(&path, format!("#{}", " ".repeat(FILE_BYTES_MAX as usize - 1))).unwrap();
        assert!(read_file(&path).unwrap().is_empty());
        std::fs::write(&path, format!("#{}", " ".repeat(FILE_BYTES_MAX as usize))).unwrap();
        assert_eq!(read_file(&path).unwrap_err().first().unwrap().code, "too_large");
    }

    #[test]
    fn load_reports_an_unknown_key_beside_the_rest() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.toml");
        std::fs::write(&path, "nmae = \"hq\"\nslots = true\n").unwrap();
        let fault = load(&path, |r| (r.required::<String>("name"), r.number_or("slots", 1u16, 1..=2))).unwrap_err();
        let codes: Vec<_> = fault.iter().map(|m| m.code).collect();
        assert_eq!(codes, ["missing", "wrong_type", "unknown_key"]);
    }
}
