//! One table of a configuration, read key by key.

use super::{FromValue, Mistakes};
use std::{fmt::Display, ops::RangeInclusive};
use toml::{Table, Value};

/// Reads one table. Getters never stop at a mistake: they note it and return a placeholder (see the module's text).
/// Every key that was asked for is known; [`Reader::finish`] reports the others.
pub struct Reader<'m> {
    table: &'m Table,
    path: String,
    known: Vec<&'static str>,
    mistakes: &'m mut Mistakes,
}

impl<'m> Reader<'m> {
    /// Reads `table`, which stands at `path` (empty for the file itself).
    pub fn new(table: &'m Table, path: impl Into<String>, mistakes: &'m mut Mistakes) -> Self {
        Reader { table, path: path.into(), known: Vec::new(), mistakes }
    }

    /// The full path of one of this table's keys, as mistakes name it.
    pub fn path(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_string() } else { format!("{}.{key}", self.path) }
    }

    /// Notes a mistake at a key, for rules that no getter knows.
    pub fn mistake(&mut self, key: &str, code: &'static str, message: impl Into<String>) {
        let path = self.path(key);
        self.mistakes.add(path, code, message);
    }

    /// Whether the key is there.
    pub fn has(&mut self, key: &'static str) -> bool {
        self.value(key).is_some()
    }

    /// A value that must be there.
    pub fn required<T: FromValue>(&mut self, key: &'static str) -> T {
        match self.value(key) {
            Some(value) => self.take(key, value).unwrap_or_else(T::placeholder),
            None => {
                self.mistake(key, "missing", "it is required");
                T::placeholder()
            }
        }
    }

    /// A value that may be absent.
    pub fn optional<T: FromValue>(&mut self, key: &'static str) -> Option<T> {
        let value = self.value(key)?;
        self.take(key, value)
    }

    /// A value with a default.
    pub fn or<T: FromValue>(&mut self, key: &'static str, default: T) -> T {
        self.optional(key).unwrap_or(default)
    }

    /// A whole number within bounds that must be there.
    pub fn number<N: Number>(&mut self, key: &'static str, range: RangeInclusive<N>) -> N {
        if self.has(key) {
            return self.number_or(key, *range.start(), range);
        }
        self.mistake(key, "missing", "it is required");
        *range.start()
    }

    /// A whole number within bounds, or the default.
    pub fn number_or<N: Number>(&mut self, key: &'static str, default: N, range: RangeInclusive<N>) -> N {
        let Some(number) = self.optional::<i64>(key) else { return default };
        match N::try_from(number) {
            Ok(n) if range.contains(&n) => n,
            _ => {
                let message = format!("{number} is not within {} to {}", range.start(), range.end());
                self.mistake(key, "out_of_range", message);
                default
            }
        }
    }

    /// One of a few words, or the default.
    pub fn word_or<T: Copy>(&mut self, key: &'static str, words: &[(&'static str, T)], default: T) -> T {
        let Some(word) = self.optional::<String>(key) else { return default };
        if let Some((_, meant)) = words.iter().find(|(w, _)| *w == word) {
            return *meant;
        }
        let listed: Vec<&str> = words.iter().map(|(w, _)| *w).collect();
        self.mistake(key, "unknown_word", format!("{word:?} is none of {}", listed.join(", ")));
        default
    }

    /// One of a few words that must be there; after a mistake the first of them.
    pub fn word<T: Copy>(&mut self, key: &'static str, words: &[(&'static str, T)]) -> T {
        if !self.has(key) {
            self.mistake(key, "missing", "it is required");
        }
        self.word_or(key, words, words[0].1)
    }

    /// A table that may be absent, read by `read`; its unknown keys are reported.
    pub fn table<T>(&mut self, key: &'static str, read: impl FnOnce(&mut Reader<'_>) -> T) -> Option<T> {
        let path = self.path(key);
        match self.value(key)? {
            Value::Table(table) => {
                let mut inner = Reader::new(table, path, self.mistakes);
                let value = read(&mut inner);
                inner.finish();
                Some(value)
            }
            _ => {
                self.mistake(key, "wrong_type", format!("expected a table: write [{path}]"));
                None
            }
        }
    }

    /// A list of tables, `[[key]]`, none if absent; each is read by `read`, which is told its path.
    pub fn tables<T>(&mut self, key: &'static str, mut read: impl FnMut(&mut Reader<'_>) -> T) -> Vec<T> {
        let path = self.path(key);
        let Some(value) = self.value(key) else { return Vec::new() };
        let items = value.as_array().filter(|items| items.iter().all(Value::is_table));
        let Some(items) = items else {
            self.mistake(key, "wrong_type", format!("expected a list of tables: write [[{path}]]"));
            return Vec::new();
        };
        let mut values = Vec::with_capacity(items.len());
        for (i, table) in items.iter().filter_map(Value::as_table).enumerate() {
            let mut inner = Reader::new(table, format!("{path}[{i}]"), self.mistakes);
            values.push(read(&mut inner));
            inner.finish();
        }
        values
    }

    /// Where this table stands, e.g. `relay[3]`; empty for the file itself.
    pub fn place(&self) -> &str {
        &self.path
    }

    /// Reports every key that was not asked for, with the nearest known name.
    pub fn finish(self) {
        for key in self.table.keys().filter(|key| !self.known.contains(&key.as_str())) {
            let near = nearest(key, self.known.iter().copied()).map(|k| format!("; did you mean {k:?}?"));
            let path = self.path(key);
            self.mistakes.add(path, "unknown_key", format!("no such key{}", near.unwrap_or_default()));
        }
    }

    fn value(&mut self, key: &'static str) -> Option<&'m Value> {
        if !self.known.contains(&key) {
            self.known.push(key);
        }
        self.table.get(key)
    }

    fn take<T: FromValue>(&mut self, key: &'static str, value: &Value) -> Option<T> {
        match T::read(value) {
            Ok(value) => Some(value),
            Err((code, message)) => {
                self.mistake(key, code, message);
                None
            }
        }
    }
}

/// Whole numbers a configuration may hold.
pub trait Number: Copy + PartialOrd + Display + TryFrom<i64> {}
impl<N: Copy + PartialOrd + Display + TryFrom<i64>> Number for N {}

/// The name most like `word`, if one is like it at all.
pub fn nearest<'n>(word: &str, names: impl IntoIterator<Item = &'n str>) -> Option<&'n str> {
    let like = |name: &'n str| (strsim::jaro_winkler(word, name), name);
    let best = names.into_iter().map(like).max_by(|a, b| a.0.total_cmp(&b.0));
    // Below this likeness people read the hint as noise; `slot`/`slots` is 0.96, `parent`/`slots` 0.44.
    best.filter(|(likeness, _)| *likeness >= 0.75).map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use branchline_protocol::id::TenantId;
    use std::{net::SocketAddr, path::PathBuf, time::Duration};

    /// Reads `text` with `read` and returns each mistake as a line.
    fn mistakes<T>(text: &str, read: impl FnOnce(&mut Reader<'_>) -> T) -> Vec<String> {
        let table = text.parse().unwrap();
        let mut mistakes = Mistakes::default();
        let mut reader = Reader::new(&table, "", &mut mistakes);
        read(&mut reader);
        reader.finish();
        mistakes.iter().map(|m| m.to_string()).collect()
    }

    #[test]
    fn every_kind_of_value_is_read() {
        let text = "
            name = 'hq'
            link = '127.0.0.1:13000'
            state = '/var/lib/x'
            every = '10m'
            tenant = 'main'
            on = true
            count = 7
            sites = ['a', 'b']
            reach = 'any'
        ";
        let found = mistakes(text, |r| {
            assert_eq!(r.required::<String>("name"), "hq");
            assert_eq!(r.required::<SocketAddr>("link").port(), 13000);
            assert_eq!(r.required::<PathBuf>("state"), PathBuf::from("/var/lib/x"));
            assert_eq!(r.or("every", Duration::ZERO), Duration::from_secs(600));
            assert_eq!(r.required::<TenantId>("tenant").as_str(), "main");
            assert!(r.or("on", false));
            assert_eq!(r.number_or("count", 1u16, 1..=7), 7);
            assert_eq!(r.required::<Vec<String>>("sites"), ["a", "b"]);
            assert_eq!(r.word_or("reach", &[("direct", 1), ("any", 2)], 1), 2);
            assert_eq!(r.or("absent", 9i64), 9);
        });
        assert_eq!(found, Vec::<String>::new());
    }

    #[test]
    fn rly_2_all_mistakes_are_told_at_once() {
        let text = "
            name = ''
            link = '127.0.0.1:99999'
            every = 10
            tenant = 'Main'
            count = 8
            sites = ['a', 1]
            reach = 'both'
            salts = 3
            [[relay]]
            [[relay]]
            nmae = 'x'
        ";
        let found = mistakes(text, |r| {
            r.required::<String>("name");
            r.required::<SocketAddr>("link");
            r.required::<String>("host");
            r.or("every", Duration::ZERO);
            r.required::<TenantId>("tenant");
            r.number_or("count", 1u16, 1..=7);
            r.required::<Vec<String>>("sites");
            r.word_or("reach", &[("direct", 1), ("any", 2)], 1);
            r.number_or("slots", 1u16, 1..=7);
            r.tables("relay", |r| r.required::<String>("name"));
        });
        let wanted = [
            "name: it is empty (empty)",
            "link: \"127.0.0.1:99999\" is not an IP address with a port from 0 to 65535 such as 127.0.0.1:13000 (bad_address)",
            "host: it is required (missing)",
            "every: expected a length of time such as \"10m\", found a whole number (wrong_type)",
            "tenant: \"Main\" is not a tenant name: 1 to 40 of a-z, 0-9 and -, not starting or ending with - (bad_tenant)",
            "count: 8 is not within 1 to 7 (out_of_range)",
            "sites: item 1: expected a text, found a whole number (wrong_type)",
            "reach: \"both\" is none of direct, any (unknown_word)",
            "relay[0].name: it is required (missing)",
            "relay[1].name: it is required (missing)",
            "relay[1].nmae: no such key; did you mean \"name\"? (unknown_key)",
            "salts: no such key; did you mean \"slots\"? (unknown_key)",
        ];
        assert_eq!(found, wanted);
    }

    #[test]
    fn numbers_outside_their_type_are_out_of_range_not_wrapped() {
        for text in ["count = -1", "count = 65536", "count = 9223372036854775807"] {
            let found = mistakes(text, |r| assert_eq!(r.number_or("count", 5u16, 0..=u16::MAX), 5));
            assert_eq!(found.len(), 1, "{text}: {found:?}");
        }
        assert_eq!(mistakes("", |r| r.number("count", 1u16..=2)), ["count: it is required (missing)"]);
    }

    #[test]
    fn a_table_in_the_wrong_shape_says_how_to_write_it() {
        let found = mistakes("server = 1\nrelay = ['x']", |r| {
            assert!(r.table("server", |_| ()).is_none());
            assert!(r.tables("relay", |_| ()).is_empty());
        });
        assert_eq!(
            found,
            [
                "server: expected a table: write [server] (wrong_type)",
                "relay: expected a list of tables: write [[relay]] (wrong_type)",
            ]
        );
    }

    #[test]
    fn a_name_like_none_gets_no_hint() {
        assert_eq!(mistakes("zzz = 1", |r| r.has("name")), ["zzz: no such key (unknown_key)"]);
        assert_eq!(nearest("parnet", ["slots", "parent"]), Some("parent"));
    }
}
