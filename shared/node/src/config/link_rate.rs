//! How many links a parent takes per second, as a configuration says it.

use super::Reader;

/// Links taken per second, and how many may come at once after a quiet time. A third of each is kept for relays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkRate {
    /// Per second; at least 3, so that devices and relays both have a part.
    pub per_second: u32,
    /// At once; at least 3.
    pub burst: u32,
}

impl Default for LinkRate {
    /// 100 devices and 50 relays a second, at 0.35 ms of CPU per handshake a twentieth of a core; a full house of 300
    /// devices at once.
    fn default() -> Self {
        LinkRate { per_second: 150, burst: 450 }
    }
}

/// Reads `links_per_second` and `links_burst`.
pub fn link_rate(reader: &mut Reader<'_>) -> LinkRate {
    let usual = LinkRate::default();
    LinkRate {
        per_second: reader.number_or("links_per_second", usual.per_second, 3..=100_000),
        burst: reader.number_or("links_burst", usual.burst, 3..=1_000_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Mistakes;

    fn read(text: &str) -> Result<LinkRate, String> {
        let table = text.parse().unwrap();
        let mut mistakes = Mistakes::default();
        let mut reader = Reader::new(&table, "", &mut mistakes);
        let rate = link_rate(&mut reader);
        reader.finish();
        mistakes.guard(rate).map_err(|m| m.to_string())
    }

    #[test]
    fn a_rate_at_its_bounds_and_one_past_them() {
        assert_eq!(read(""), Ok(LinkRate { per_second: 150, burst: 450 }), "the defaults are pinned");
        for (text, good) in [
            ("links_per_second = 3", true),
            ("links_per_second = 2", false),
            ("links_per_second = 100_000", true),
            ("links_per_second = 100_001", false),
            ("links_burst = 3", true),
            ("links_burst = 2", false),
            ("links_burst = 1_000_000", true),
            ("links_burst = 1_000_001", false),
            ("links_burst = -1", false),
        ] {
            let told = read(text);
            assert_eq!(told.is_ok(), good, "{text}: {told:?}");
            let key = text.split(' ').next().unwrap();
            assert!(told.err().is_none_or(|e| e.contains(key)), "{text}");
        }
    }
}
