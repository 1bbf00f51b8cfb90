//! The relay's configuration file.

use branchline_node::{
    config::{LinkRate, Mistakes, Reach, Reader, link_rate, load, slots, udp_port},
    uplink::{path::PROBE_MS, spool::Quotas},
};
use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

/// A finished configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The file it was read from: a running relay follows its `slots`.
    pub file: Option<PathBuf>,
    /// Its name, for people.
    pub name: String,
    /// Identity, store, `node.json`.
    pub state_dir: PathBuf,
    /// Where children dial; default port 13000.
    pub link: SocketAddr,
    /// `/getstatus` and `/metrics`.
    pub private: SocketAddr,
    /// Persistent device links (ADM-6).
    pub slots: u16,
    /// Whether more than 300 are meant.
    pub allow_above_300: bool,
    /// Seconds between the polls of a device without a slot.
    pub poll_interval_s: u64,
    /// Seconds a freed slot stays reserved for a polling waiter; default: the poll interval and a tenth.
    pub reservation_s: Option<u64>,
    /// UDP port on which it hears notices and from which it wakes (ADM-15, ADM-18), at the address of `link`; 0 is any free
    /// one, `None` is off. Default 13000.
    pub notice_port: Option<u16>,
    /// Links taken per second.
    pub link_rate: LinkRate,
    /// The bundle; read to enrol and for the first upstreams.
    pub bundle: PathBuf,
    /// Source address of outgoing connections.
    pub bind_source: Option<IpAddr>,
    /// Which routes it may use (TOP-3).
    pub reach: Reach,
    /// A link by another way than the best looks for a better one at least so often, in seconds (TOP-4).
    pub probe_interval_s: u64,
    /// Bytes it keeps of what goes up (RLY-10).
    pub quotas: Quotas,
}

impl Config {
    /// Reads a file; every mistake is told at once.
    pub fn read(path: &Path) -> Result<Config, Mistakes> {
        load(path, Config::from_reader).map(|config| Config { file: Some(path.into()), ..config })
    }

    fn from_reader(r: &mut Reader<'_>) -> Config {
        Config {
            file: None,
            name: r.required("name"),
            state_dir: r.required("state_dir"),
            link: r.or("link", SocketAddr::from(([0, 0, 0, 0], 13_000))),
            private: r.or("private", SocketAddr::from(([127, 0, 0, 1], 0))),
            slots: slots(r),
            allow_above_300: r.or("allow_above_300", false),
            poll_interval_s: r.number_or("poll_interval_s", 3_600, 1..=604_800),
            reservation_s: r.has("reservation_s").then(|| r.number("reservation_s", 1..=604_800)),
            notice_port: udp_port(r, "notices", "notice_port", 13_000),
            link_rate: link_rate(r),
            bundle: r.required("bundle"),
            bind_source: r.optional("bind_source"),
            reach: Reach::read(r),
            probe_interval_s: r.number_or("probe_interval_s", PROBE_MS / 1_000, 1..=604_800),
            quotas: Quotas::read(r, Quotas::RELAY),
        }
    }
}
