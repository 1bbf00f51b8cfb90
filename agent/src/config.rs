//! An agent's configuration file.

use branchline_node::{
    config::{Mistakes, Reach, Reader, load, private_or_off, udp_port},
    uplink::{path::PROBE_MS, spool::Quotas},
};
use branchline_protocol::wire::Contact;
use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

/// The longest name of a computer (ENR-4).
pub const NAME_CHARS_MAX: usize = 15;

/// Where an agent lives and how it reaches its parents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentConfig {
    /// Shown to people; at most [`NAME_CHARS_MAX`] characters.
    pub name: String,
    /// Its own folder: identity, store, jobs. Made with mode 0700 where it is missing.
    pub state_dir: PathBuf,
    /// The bundle that enrols it. Kept: it also pins the tenant's root.
    pub bundle: PathBuf,
    /// Source address of its connections; the system's choice if absent.
    pub bind_source: Option<IpAddr>,
    /// Which routes it may use (TOP-3).
    pub reach: Reach,
    /// A held link by another way than the best looks for a better one at least so often, in seconds; more often where
    /// its settings have it poll more often (TOP-4).
    pub probe_interval_s: u64,
    /// `/getstatus` and `/metrics`; `None`: it shows nothing and pays for nothing.
    pub private: Option<SocketAddr>,
    /// What it asks of its parents.
    pub contact: Contact,
    /// UDP port on which it hears wakes (ADM-15), at the address of `bind_source`; 0 is any free one, `None` is off.
    /// Default 15000.
    pub wake_port: Option<u16>,
    /// Bytes it keeps of what goes up (RLY-10, LOG-4).
    pub quotas: Quotas,
    /// Whether orders may restart the machine; not where it is shared with others, e.g. under `up`.
    pub restart: bool,
}

impl AgentConfig {
    /// Reads a file; every mistake is told at once.
    pub fn load(path: &Path) -> Result<AgentConfig, Mistakes> {
        load(path, AgentConfig::read)
    }

    fn read(reader: &mut Reader<'_>) -> AgentConfig {
        let contacts = [("persistent", Contact::Persistent), ("poll", Contact::Poll)];
        let config = AgentConfig {
            name: reader.required("name"),
            state_dir: reader.required("state_dir"),
            bundle: reader.required("bundle"),
            bind_source: reader.optional("bind_source"),
            reach: Reach::read(reader),
            probe_interval_s: reader.number_or("probe_interval_s", PROBE_MS / 1_000, 1..=604_800),
            private: private_or_off(reader),
            contact: reader.word_or("contact", &contacts, Contact::Persistent),
            wake_port: udp_port(reader, "wake", "wake_port", 15_000),
            quotas: Quotas::read(reader, Quotas::AGENT),
            restart: reader.or("restart", true),
        };
        let chars = config.name.chars().count();
        if chars > NAME_CHARS_MAX {
            let message = format!("{:?} has {chars} characters, at most {NAME_CHARS_MAX} are allowed", config.name);
            reader.mistake("name", "too_long", message);
        }
        config
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<AgentConfig, String> {
        let table = text.parse().unwrap();
        let mut mistakes = Mistakes::default();
        let mut reader = Reader::new(&table, "", &mut mistakes);
        let config = AgentConfig::read(&mut reader);
        reader.finish();
        mistakes.guard(config).map_err(|m| m.to_string())
    }

    #[test]
    fn defaults_are_these() {
        let config = read("name = 'pc-1'\nstate_dir = '/var/lib/b'\nbundle = '/etc/b'").unwrap();
        let wanted = AgentConfig {
            name: "pc-1".into(),
            state_dir: "/var/lib/b".into(),
            bundle: "/etc/b".into(),
            bind_source: None,
            reach: Reach::Any,
            probe_interval_s: 900,
            private: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
            contact: Contact::Persistent,
            wake_port: Some(15_000),
            quotas: Quotas::AGENT,
            restart: true,
        };
        assert_eq!(config, wanted);
    }

    #[test]
    fn enr_4_a_name_of_15_characters_passes_and_one_of_16_does_not() {
        let with = |n| read(&format!("name = '{}'\nstate_dir = 's'\nbundle = 'b'", "ü".repeat(n)));
        assert!(with(15).is_ok());
        assert!(with(16).unwrap_err().contains("(too_long)"));
    }

    #[test]
    fn every_mistake_is_told_at_once() {
        let told = read("nmae = 'x'\nreach = 'both'\ncontact = 'never'\nbind_source = '10.0.0'").unwrap_err();
        for part in ["name: it is required", "state_dir", "bundle", "bind_source", "reach", "contact", "nmae"] {
            assert!(told.contains(part), "{part}: {told}");
        }
    }
}
