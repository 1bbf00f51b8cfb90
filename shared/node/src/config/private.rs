//! Where a node shows `/getstatus` and `/metrics`, as a configuration says it.

use super::Reader;
use std::net::SocketAddr;

/// Reads `private`: an address, or `"off"`. Unless told, a free port of this machine alone: the node tells which in its
/// `node.json`.
pub fn private_or_off(reader: &mut Reader<'_>) -> Option<SocketAddr> {
    let Some(text) = reader.optional::<String>("private") else {
        return (!reader.has("private")).then(|| SocketAddr::from(([127, 0, 0, 1], 0)));
    };
    if text == "off" {
        return None;
    }
    let address = text.parse().ok();
    if address.is_none() {
        let message = format!("{text:?} is no address with a port, such as 127.0.0.1:8364, and not \"off\"");
        reader.mistake("private", "bad_address", message);
    }
    address
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Mistakes;

    #[test]
    fn a_private_port_is_on_unless_switched_off() {
        let read = |text: &str| {
            let table = text.parse().unwrap();
            let mut mistakes = Mistakes::default();
            let mut reader = Reader::new(&table, "", &mut mistakes);
            let address = private_or_off(&mut reader);
            reader.finish();
            mistakes.guard(address).map_err(|m| m.to_string())
        };
        assert_eq!(read("").unwrap(), Some("127.0.0.1:0".parse().unwrap()));
        assert_eq!(read("private = 'off'").unwrap(), None);
        assert_eq!(read("private = '0.0.0.0:8364'").unwrap(), Some("0.0.0.0:8364".parse().unwrap()));
        for bad in ["'no'", "'127.0.0.1'", "'127.0.0.1:99999'", "8364", "''"] {
            assert!(read(&format!("private = {bad}")).unwrap_err().starts_with("private: "), "{bad}");
        }
    }
}
