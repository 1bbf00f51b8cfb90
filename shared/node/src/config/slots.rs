//! The rule for `slots`, one for server, relay and topology file.

use super::Reader;

/// Persistent links of a node unless configured otherwise (KSC/003).
pub const SLOTS_DEFAULT: u16 = 300;

/// Reads `slots` and `allow_above_300`: 1 to 300, more only if the operator says in so many words that it is meant.
pub fn slots(reader: &mut Reader<'_>) -> u16 {
    let above: bool = reader.or("allow_above_300", false);
    let slots = reader.number_or("slots", SLOTS_DEFAULT, 1..=u16::MAX);
    if slots > SLOTS_DEFAULT && !above {
        reader.mistake(
            "slots",
            "out_of_range",
            format!("{slots} is above the supported {SLOTS_DEFAULT}: lower it, or set allow_above_300 = true"),
        );
    }
    slots
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Mistakes;

    fn check(text: &str) -> Result<u16, String> {
        let table = text.parse().unwrap();
        let mut mistakes = Mistakes::default();
        let mut reader = Reader::new(&table, "server", &mut mistakes);
        let slots = slots(&mut reader);
        reader.finish();
        mistakes.guard(slots).map_err(|m| m.to_string())
    }

    #[test]
    fn three_hundred_is_the_bound_unless_more_is_asked_for_by_name() {
        assert_eq!(check(""), Ok(300));
        assert_eq!(check("slots = 1"), Ok(1));
        assert_eq!(check("slots = 300"), Ok(300));
        assert_eq!(check("slots = 301\nallow_above_300 = true"), Ok(301));
        assert!(check("slots = 301").unwrap_err().starts_with("server.slots: 301 is above"));
        assert!(check("slots = 0").unwrap_err().starts_with("server.slots: 0 is not within 1 to 65535"));
    }
}
