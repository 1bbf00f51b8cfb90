//! What a device can do where it is: what it declared, less what its path forbids (TOP-7).

use std::sync::Arc;

/// The capabilities that a node declared, sorted. Nodes of one kind declare the same, so whoever keeps many shares them.
pub type Declared = Arc<[String]>;

/// Network connection control: whether the network lets the device in. Only inside (TOP-8).
pub const CONNECTION_CONTROL: &str = "connection_control";
/// Starting it from afar. A packet for that crosses no gateway (TOP-11).
pub const POWER_ON: &str = "power_on";
/// What a device has inside only.
pub const INSIDE_ONLY: [&str; 2] = [CONNECTION_CONTROL, POWER_ON];

/// How a device is reached from the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reached {
    /// Straight.
    Direct,
    /// Through a gateway and nothing else: it is outside.
    Gateway,
    /// By relays: it is inside at its relay's site, wherever that is.
    Relay,
}

impl Reached {
    /// By the first hop's gateway, and the number of relays between.
    pub fn of(through_gateway: bool, relays: usize) -> Reached {
        match (relays, through_gateway) {
            (0, false) => Reached::Direct,
            (0, true) => Reached::Gateway,
            _ => Reached::Relay,
        }
    }

    /// `direct`, `gateway`, `relay`.
    pub fn as_str(self) -> &'static str {
        match self {
            Reached::Direct => "direct",
            Reached::Gateway => "gateway",
            Reached::Relay => "relay",
        }
    }
}

/// The words of `declared` that hold where the device is reached so.
pub fn effective(declared: &[String], reached: Reached) -> Vec<String> {
    let outside = reached == Reached::Gateway;
    declared.iter().filter(|word| !(outside && INSIDE_ONLY.contains(&word.as_str()))).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn top_7_outside_there_is_no_connection_control_and_no_power_on_and_nothing_is_added_anywhere() {
        let words = |list: &[&str]| list.iter().map(|w| w.to_string()).collect::<Vec<_>>();
        let declared = words(&["run_script", CONNECTION_CONTROL, "restart", POWER_ON]);
        for inside in [Reached::of(false, 0), Reached::of(false, 1), Reached::of(true, 2)] {
            assert_eq!(effective(&declared, inside), declared, "{inside:?}");
        }
        assert_eq!(effective(&declared, Reached::of(true, 0)), words(&["run_script", "restart"]));
        assert_eq!(effective(&words(&["run_script"]), Reached::Direct), words(&["run_script"]));
        assert!(effective(&[], Reached::Gateway).is_empty());
    }
}
