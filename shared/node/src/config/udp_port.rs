//! A UDP port that may be switched off, as a configuration says it (ADM-15, ADM-18).

use super::Reader;

/// Reads a switch, on unless it is said otherwise, and the port, 0 for any free one. `None`: it is off.
pub fn udp_port(reader: &mut Reader<'_>, switch: &'static str, key: &'static str, default: u16) -> Option<u16> {
    let (on, port) = (reader.or(switch, true), reader.number_or(key, default, 0..=u16::MAX));
    on.then_some(port)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Mistakes;

    fn read(text: &str) -> Result<Option<u16>, String> {
        let table = text.parse().unwrap();
        let mut mistakes = Mistakes::default();
        let mut reader = Reader::new(&table, "", &mut mistakes);
        let port = udp_port(&mut reader, "notices", "notice_port", 13_000);
        reader.finish();
        mistakes.guard(port).map_err(|m| m.to_string())
    }

    #[test]
    fn adm_18_a_port_has_a_default_and_can_be_switched_off() {
        assert_eq!(read(""), Ok(Some(13_000)));
        assert_eq!(read("notice_port = 0"), Ok(Some(0)));
        assert_eq!(read("notice_port = 65535"), Ok(Some(65_535)));
        assert!(read("notice_port = 65536").unwrap_err().starts_with("notice_port: 65536 is not within 0 to 65535"));
        assert_eq!(read("notices = false"), Ok(None));
        assert!(read("notices = 'no'").is_err());
    }
}
