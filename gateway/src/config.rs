//! The gateway's configuration: read, parsed, checked as a whole.

use branchline_node::node::{StartFault, exit_code};
use serde::Deserialize;
use std::{
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
    path::{Path, PathBuf},
};

/// Trunks a gateway may hold: more than one because a connection shares loss among all its links.
pub const TRUNKS: std::ops::RangeInclusive<usize> = 1..=4;

/// One gateway.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name shown to people.
    pub name: String,
    /// Where it keeps its identity and `node.json`.
    pub state_dir: PathBuf,
    /// Where children knock, over HTTPS.
    pub public: SocketAddr,
    /// Where `/getstatus` and `/metrics` answer; never reachable from outside.
    pub private: SocketAddr,
    /// Names under which children know the public listener: `name` or `name:port`.
    #[serde(default)]
    pub public_names: Vec<String>,
    /// The server's trunk port: `host:port`.
    pub server_trunk: String,
    /// The bundle; read only to enrol.
    pub bundle: PathBuf,
    /// Source address of outgoing connections.
    #[serde(default)]
    pub bind_source: Option<IpAddr>,
    /// The public listener's certificate; its identity's when absent.
    #[serde(default)]
    pub certificate: Option<Certificate>,
    /// Connections to the server, 1 to 4.
    #[serde(default = "default_trunks")]
    pub trunks: usize,
    /// What may pass at once.
    #[serde(default)]
    pub limits: Limits,
}

/// A certificate of any make.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    /// PEM file with the certificate first, then those that lead to a root.
    pub chain: PathBuf,
    /// PEM file with its key.
    pub key: PathBuf,
}

/// The request limits (GW-3).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Upgrades per second from one source address.
    pub upgrades_per_second: NonZeroU32,
    /// Upgrades at once from one source address: an office behind one address reconnects together.
    pub upgrades_burst: NonZeroU32,
    /// Links at once.
    pub pipes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        let n = |n| NonZeroU32::new(n).expect("a constant above 0");
        Limits { upgrades_per_second: n(50), upgrades_burst: n(400), pipes: 10_000 }
    }
}

fn default_trunks() -> usize {
    2
}

impl Config {
    /// Reads and checks a file.
    pub fn read(path: &Path) -> Result<Config, StartFault> {
        let fault = |why: String| {
            StartFault::new(exit_code::CONFIGURATION, "bad_configuration", format!("{}: {why}", path.display()))
        };
        let text = std::fs::read_to_string(path).map_err(|e| fault(e.to_string()))?;
        let config: Config = toml::from_str(&text).map_err(|e| fault(e.to_string()))?;
        let mistakes = config.mistakes();
        if mistakes.is_empty() { Ok(config) } else { Err(fault(mistakes.join("; "))) }
    }

    /// Every mistake that the types do not exclude.
    pub fn mistakes(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        if self.name.is_empty() {
            mistakes.push("name is empty".into());
        }
        if !TRUNKS.contains(&self.trunks) {
            mistakes.push(format!("trunks = {}, 1 to 4 are possible", self.trunks));
        }
        if self.limits.pipes == 0 {
            mistakes.push("limits.pipes = 0 lets nobody in".into());
        }
        if self.public.ip().is_unspecified() && self.public_names.is_empty() {
            mistakes.push(format!("public_names is empty: children have no name for a listener on {}", self.public));
        }
        let port = self.server_trunk.rsplit_once(':').map(|(host, port)| (!host.is_empty(), port.parse::<u16>()));
        if !matches!(port, Some((true, Ok(port))) if port > 0) {
            mistakes.push(format!("server_trunk = {:?} is no host:port", self.server_trunk));
        }
        mistakes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: &str = r#"
        name = "dmz"
        state_dir = "state"
        public = "192.0.2.1:443"
        private = "10.0.0.1:8363"
        server_trunk = "10.0.0.2:8443"
        bundle = "dmz.bundle"
    "#;

    fn read(text: &str) -> Result<Config, StartFault> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gateway.toml");
        std::fs::write(&path, text).unwrap();
        Config::read(&path)
    }

    #[test]
    fn defaults_are_pinned() {
        let expected = Config {
            name: "dmz".into(),
            state_dir: "state".into(),
            public: "192.0.2.1:443".parse().unwrap(),
            private: "10.0.0.1:8363".parse().unwrap(),
            public_names: vec![],
            server_trunk: "10.0.0.2:8443".into(),
            bundle: "dmz.bundle".into(),
            bind_source: None,
            certificate: None,
            trunks: 2,
            limits: Limits {
                upgrades_per_second: NonZeroU32::new(50).unwrap(),
                upgrades_burst: NonZeroU32::new(400).unwrap(),
                pipes: 10_000,
            },
        };
        assert_eq!(read(LEAST).unwrap(), expected);
    }

    #[test]
    fn trunks_at_the_bounds_pass_and_one_past_them_do_not() {
        for good in [1, 4] {
            assert_eq!(read(&format!("{LEAST}\ntrunks = {good}")).unwrap().trunks, good);
        }
        for bad in [0, 5] {
            let fault = read(&format!("{LEAST}\ntrunks = {bad}")).unwrap_err();
            assert_eq!((fault.exit_code, fault.code.as_str()), (exit_code::CONFIGURATION, "bad_configuration"));
            assert!(fault.message.contains(&format!("trunks = {bad}")), "{fault}");
        }
    }

    #[test]
    fn every_mistake_is_told_at_once() {
        let text = LEAST.replace("192.0.2.1", "0.0.0.0").replace("10.0.0.2:8443", "10.0.0.2").replace("dmz\"", "\"");
        let message = read(&format!("{text}\ntrunks = 9\n[limits]\npipes = 0")).unwrap_err().message;
        for part in ["name", "trunks", "limits.pipes", "public_names", "server_trunk"] {
            assert!(message.contains(part), "{part} in {message}");
        }
        for bad in ["typo = 1", "[limits]\nupgrades_burst = 0", "[certificate]\nchain = \"a.pem\""] {
            assert!(read(&format!("{LEAST}\n{bad}")).is_err(), "{bad}");
        }
        assert!(Config::read(Path::new("does/not/exist.toml")).is_err());
    }
}
