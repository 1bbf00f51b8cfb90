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

    #[test]
    fn adm_6_what_is_no_number_of_slots_is_refused_with_and_without_the_switch() {
        for bad in ["0", "-1", "65536", "9223372036854775807", "\"abc\"", "\"300\"", "300.0", "true", "[300]"] {
            for switch in ["", "allow_above_300 = true"] {
                let told = check(&format!("slots = {bad}\n{switch}")).expect_err(bad);
                assert!(told.starts_with("server.slots: "), "{bad}: {told}");
                assert_eq!(told.lines().count(), 1, "one clear answer: {told}");
            }
        }
        let told = check("slots = 301\nallow_above_300 = \"yes\"").expect_err("no switch");
        assert!(told.contains("server.allow_above_300: "), "{told}");
    }
}
