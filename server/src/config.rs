//! The server's configuration file.

use branchline_node::config::{LinkRate, Mistakes, Reader, link_rate, load, slots, udp_port};
use branchline_protocol::id::TenantId;
use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

/// A finished configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The file it was read from: a running server follows its `slots`.
    pub file: Option<PathBuf>,
    /// The server's name, for people.
    pub name: String,
    /// Keys, database, tokens.
    pub state_dir: PathBuf,
    /// Where children dial directly; default port 13000.
    pub link: SocketAddr,
    /// Where gateways dial; default port 8443.
    pub trunk: SocketAddr,
    /// API and console; default port 8383.
    pub api: SocketAddr,
    /// Addresses links are accepted from on the link port; empty is any.
    pub accept_from: Vec<IpAddr>,
    /// Persistent device links (ADM-6).
    pub slots: u16,
    /// Whether more than 300 are meant.
    pub allow_above_300: bool,
    /// Seconds between the polls of a device without a slot.
    pub poll_interval_s: u64,
    /// UDP port on which it hears notices and from which it wakes (ADM-15, ADM-18), at the address of `link`; 0 is any free
    /// one, `None` is off. Default 13000.
    pub notice_port: Option<u16>,
    /// Links taken per second, on the link port and over trunks together.
    pub link_rate: LinkRate,
    /// Addresses told to children instead of `link`, e.g. a name; empty: the address really bound.
    pub advertise_link: Vec<String>,
    /// Seconds that a restored server listens to its children at most before it issues anything (OPS-7).
    pub recovering_max_s: u64,
    /// Makes the installation if the state folder is empty.
    pub init_if_new: bool,
    /// Tenants and sites made at init and added when missing.
    pub tenants: Vec<(TenantId, Vec<String>)>,
}

impl Config {
    /// Reads a file; every mistake is told at once.
    pub fn read(path: &Path) -> Result<Config, Mistakes> {
        load(path, Config::from_reader).map(|config| Config { file: Some(path.into()), ..config })
    }

    fn from_reader(r: &mut Reader<'_>) -> Config {
        let any = |port| SocketAddr::from(([0, 0, 0, 0], port));
        Config {
            file: None,
            name: r.required("name"),
            state_dir: r.required("state_dir"),
            link: r.or("link", any(13_000)),
            trunk: r.or("trunk", any(8_443)),
            api: r.or("api", any(8_383)),
            accept_from: r.or("accept_from", Vec::new()),
            slots: slots(r),
            allow_above_300: r.or("allow_above_300", false),
            poll_interval_s: r.number_or("poll_interval_s", 3_600, 1..=604_800),
            notice_port: udp_port(r, "notices", "notice_port", 13_000),
            link_rate: link_rate(r),
            advertise_link: r.or("advertise_link", Vec::new()),
            recovering_max_s: r.number_or("recovering_max_s", 600, 1..=86_400),
            init_if_new: r.or("init_if_new", false),
            tenants: r.tables("tenants", |t| {
                let name: String = t.required("name");
                let sites = t.or("sites", Vec::<String>::new());
                let id = name.parse::<TenantId>();
                if let Err(e) = &id {
                    t.mistake("name", "bad_tenant", e.to_string());
                }
                (id.unwrap_or_else(|_| TenantId::system()), sites)
            }),
        }
    }
}
