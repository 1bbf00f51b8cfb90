//! Which devices an order is for: `all`, `site:osaka`, `relay:osaka`, `device:ID`, `tag:x`, with `and`, `or`, `not`.

use std::{fmt, str::FromStr};

/// A parsed selector. The tenant is never part of it: it comes from the caller's token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selector {
    /// Every device of the tenant.
    All,
    /// Devices of a site.
    Site(String),
    /// Devices below a relay, by its name or id.
    Relay(String),
    /// One device, by id or name.
    Device(String),
    /// Devices with a tag.
    Tag(String),
    /// Both.
    And(Box<Selector>, Box<Selector>),
    /// Either.
    Or(Box<Selector>, Box<Selector>),
    /// Not it.
    Not(Box<Selector>),
}

/// What a selector is asked about.
pub trait Candidate {
    /// Whether it is in this site.
    fn in_site(&self, site: &str) -> bool;
    /// Whether it is below this relay.
    fn below(&self, relay: &str) -> bool;
    /// Whether this id or name is its own.
    fn is(&self, device: &str) -> bool;
    /// Whether it bears this tag.
    fn tagged(&self, tag: &str) -> bool;
}

/// A text that is no selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}; a selector is all, site:NAME, relay:NAME, device:ID or tag:NAME, combined with and, or, not and ( )")]
pub struct BadSelector(String);

/// Bytes a selector may have.
pub const SELECTOR_BYTES_MAX: usize = 65_536;
/// How deep it may nest.
pub const SELECTOR_DEPTH_MAX: usize = 32;

impl Selector {
    /// Whether a device is meant.
    pub fn matches(&self, device: &impl Candidate) -> bool {
        match self {
            Selector::All => true,
            Selector::Site(s) => device.in_site(s),
            Selector::Relay(r) => device.below(r),
            Selector::Device(d) => device.is(d),
            Selector::Tag(t) => device.tagged(t),
            Selector::And(a, b) => a.matches(device) && b.matches(device),
            Selector::Or(a, b) => a.matches(device) || b.matches(device),
            Selector::Not(a) => !a.matches(device),
        }
    }

    /// The device ids or names it lists outright, so that an unknown one can be reported (JOB-1).
    pub fn named_devices(&self) -> Vec<&str> {
        match self {
            Selector::Device(d) => vec![d],
            Selector::And(a, b) | Selector::Or(a, b) => [a.named_devices(), b.named_devices()].concat(),
            _ => vec![],
        }
    }
}

impl FromStr for Selector {
    type Err = BadSelector;
    fn from_str(text: &str) -> Result<Self, BadSelector> {
        if text.len() > SELECTOR_BYTES_MAX {
            return Err(BadSelector(format!("over {SELECTOR_BYTES_MAX} bytes")));
        }
        let spaced = text.replace('(', " ( ").replace(')', " ) ");
        let mut parser = Parser { words: spaced.split_whitespace().collect(), at: 0, depth: 0 };
        if parser.words.is_empty() {
            return Err(BadSelector("it is empty".into()));
        }
        let selector = parser.or()?;
        match parser.peek() {
            None => Ok(selector),
            Some(word) => Err(BadSelector(format!("unexpected {word:?}"))),
        }
    }
}

struct Parser<'t> {
    words: Vec<&'t str>,
    at: usize,
    depth: usize,
}

impl<'t> Parser<'t> {
    fn peek(&self) -> Option<&'t str> {
        self.words.get(self.at).copied()
    }

    fn or(&mut self) -> Result<Selector, BadSelector> {
        let mut left = self.and()?;
        while self.peek() == Some("or") {
            self.at += 1;
            left = Selector::Or(Box::new(left), Box::new(self.and()?));
        }
        Ok(left)
    }

    fn and(&mut self) -> Result<Selector, BadSelector> {
        let mut left = self.term()?;
        while self.peek() == Some("and") {
            self.at += 1;
            left = Selector::And(Box::new(left), Box::new(self.term()?));
        }
        Ok(left)
    }

    fn term(&mut self) -> Result<Selector, BadSelector> {
        let word = self.peek().ok_or_else(|| BadSelector("it ends too early".into()))?;
        self.at += 1;
        self.depth += 1;
        if self.depth > SELECTOR_DEPTH_MAX {
            return Err(BadSelector(format!("nested over {SELECTOR_DEPTH_MAX} deep")));
        }
        let term = match word {
            "not" => Selector::Not(Box::new(self.term()?)),
            "(" => {
                let inner = self.or()?;
                if self.peek() != Some(")") {
                    return Err(BadSelector("a ) is missing".into()));
                }
                self.at += 1;
                inner
            }
            "all" => Selector::All,
            _ => match word.split_once(':') {
                Some((_, "")) => return Err(BadSelector(format!("{word:?} names nothing"))),
                Some(("site", name)) => Selector::Site(name.into()),
                Some(("relay", name)) => Selector::Relay(name.into()),
                Some(("device", name)) => Selector::Device(name.into()),
                Some(("tag", name)) => Selector::Tag(name.into()),
                _ => return Err(BadSelector(format!("unknown word {word:?}"))),
            },
        };
        self.depth -= 1;
        Ok(term)
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Selector::All => f.write_str("all"),
            Selector::Site(s) => write!(f, "site:{s}"),
            Selector::Relay(s) => write!(f, "relay:{s}"),
            Selector::Device(s) => write!(f, "device:{s}"),
            Selector::Tag(s) => write!(f, "tag:{s}"),
            Selector::And(a, b) => write!(f, "({a} and {b})"),
            Selector::Or(a, b) => write!(f, "({a} or {b})"),
            Selector::Not(a) => write!(f, "not {a}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Pc;
    impl Candidate for Pc {
        fn in_site(&self, site: &str) -> bool {
            site == "osaka"
        }
        fn below(&self, relay: &str) -> bool {
            relay == "osaka"
        }
        fn is(&self, device: &str) -> bool {
            device == "pc-1"
        }
        fn tagged(&self, _: &str) -> bool {
            false
        }
    }

    #[test]
    fn and_binds_tighter_than_or_and_not_tightest() {
        let matches = |text: &str| text.parse::<Selector>().unwrap().matches(&Pc);
        assert!(matches("all"));
        assert!(matches("site:osaka and not tag:x"));
        assert!(matches("device:pc-1 or site:kyoto and site:nara"));
        assert!(!matches("(device:pc-1 or site:kyoto) and site:nara"));
        assert!(matches("device:pc-2 or relay:osaka"));
    }

    #[test]
    fn what_is_no_selector_is_refused_with_the_reason() {
        for bad in ["", "  ", "site:", "all all", "not", "(all", "colour:red", "all and", "all)"] {
            assert!(bad.parse::<Selector>().is_err(), "{bad:?}");
        }
        let deep = |n: usize| format!("{}all", "not ".repeat(n));
        assert!(deep(SELECTOR_DEPTH_MAX - 1).parse::<Selector>().is_ok());
        assert!(deep(SELECTOR_DEPTH_MAX).parse::<Selector>().is_err());
    }

    #[test]
    fn what_is_printed_parses_to_the_same() {
        let s: Selector = "all and (site:a or not tag:b)".parse().unwrap();
        assert_eq!(s.to_string().parse::<Selector>().unwrap(), s);
    }
}
