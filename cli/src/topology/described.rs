//! A topology as its file writes it, before anything is looked up.

use branchline_node::config::{LinkRate, Reader, link_rate, slots};
use branchline_protocol::id::TenantId;
use std::time::Duration;

/// Agents one `[[agents]]` entry may stand for: each is a process of this machine.
const COUNT_MAX: u16 = 1_000;

/// The whole file.
#[derive(Clone, Debug)]
pub struct Described {
    /// `topology.name`: also the name of its state folder.
    pub name: String,
    /// `[[tenant]]`.
    pub tenants: Vec<TenantPart>,
    /// `[server]`; absent is a mistake that is noted already.
    pub server: Option<ServerPart>,
    /// `[[gateway]]`.
    pub gateways: Vec<GatewayPart>,
    /// `[[relay]]`.
    pub relays: Vec<RelayPart>,
    /// `[[agents]]`.
    pub agents: Vec<AgentsPart>,
    /// `[job]`.
    pub job: JobPart,
}

/// One tenant and its sites.
#[derive(Clone, Debug)]
pub struct TenantPart {
    /// Where it stands in the file.
    pub place: String,
    /// Its name.
    pub name: TenantId,
    /// Its sites, by name.
    pub sites: Vec<String>,
}

/// Whom the server's link port accepts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AcceptFrom {
    /// Whoever dials.
    #[default]
    Any,
    /// Gateways only: all other nodes stand outside.
    Gateway,
}

/// The server.
#[derive(Clone, Debug)]
pub struct ServerPart {
    /// Its name.
    pub name: String,
    /// Whom its link port accepts.
    pub accept_from: AcceptFrom,
    /// Persistent links.
    pub slots: u16,
    /// Whether more than 300 is meant.
    pub allow_above_300: bool,
    /// Links taken per second, and at once.
    pub link_rate: LinkRate,
}

/// A gateway.
#[derive(Clone, Debug)]
pub struct GatewayPart {
    /// Where it stands in the file.
    pub place: String,
    /// Its name.
    pub name: String,
}

/// A relay.
#[derive(Clone, Debug)]
pub struct RelayPart {
    /// Where it stands in the file.
    pub place: String,
    /// Its name.
    pub name: String,
    /// Whose it is; by default its parent relay's tenant, or the only one.
    pub tenant: Option<TenantId>,
    /// Its site; by default its parent relay's, or the tenant's first.
    pub site: Option<String>,
    /// The node it dials; by default the server.
    pub parent: Option<String>,
    /// Persistent links.
    pub slots: u16,
    /// Whether more than 300 is meant.
    pub allow_above_300: bool,
    /// Links taken per second, and at once.
    pub link_rate: LinkRate,
}

/// One agent by name, or several by prefix.
#[derive(Clone, Debug)]
pub struct AgentsPart {
    /// Where it stands in the file.
    pub place: String,
    /// The key that names them: `name` or `prefix`.
    pub named_by: &'static str,
    /// Each one's name.
    pub names: Vec<String>,
    /// Whose they are, as for a relay.
    pub tenant: Option<TenantId>,
    /// Their site, as for a relay.
    pub site: Option<String>,
    /// The node they dial; by default the server.
    pub parent: Option<String>,
}

/// The job that `up` runs once all devices are online.
#[derive(Clone, Debug, PartialEq)]
pub struct JobPart {
    /// What runs.
    pub run: JobRun,
    /// On which devices of each tenant.
    pub on: String,
    /// After how long its process group is killed.
    pub time_out: Duration,
}

/// A command line without a shell, or a script.
#[derive(Clone, Debug, PartialEq)]
pub enum JobRun {
    /// Program and arguments.
    Argv(Vec<String>),
    /// A script's text with its interpreter (default `/bin/sh`).
    Script {
        /// The text.
        text: String,
        /// What runs it.
        interpreter: Option<String>,
    },
}

impl Described {
    /// Reads the file's table.
    pub fn read(r: &mut Reader<'_>) -> Described {
        let name = match r.table("topology", |r| r.required("name")) {
            Some(name) => name,
            None => {
                if !r.has("topology") {
                    r.mistake("topology.name", "missing", "it is required");
                }
                String::new()
            }
        };
        let tenants = r.tables("tenant", |r| TenantPart {
            place: r.place().to_string(),
            name: r.required("name"),
            sites: r.required("sites"),
        });
        let server = r.table("server", |r| ServerPart {
            name: r.required("name"),
            accept_from: r.word_or(
                "accept_from",
                &[("any", AcceptFrom::Any), ("gateway", AcceptFrom::Gateway)],
                AcceptFrom::Any,
            ),
            slots: slots(r),
            allow_above_300: r.or("allow_above_300", false),
            link_rate: link_rate(r),
        });
        if server.is_none() && !r.has("server") {
            r.mistake("server", "missing", "a topology has exactly one server: write [server] with its name");
        }
        Described {
            name,
            tenants,
            server,
            gateways: r.tables("gateway", |r| GatewayPart { place: r.place().to_string(), name: r.required("name") }),
            relays: r.tables("relay", |r| RelayPart {
                place: r.place().to_string(),
                name: r.required("name"),
                tenant: r.optional("tenant"),
                site: r.optional("site"),
                parent: r.optional("parent"),
                slots: slots(r),
                allow_above_300: r.or("allow_above_300", false),
                link_rate: link_rate(r),
            }),
            agents: r.tables("agents", AgentsPart::read),
            job: match r.table("job", JobPart::read) {
                Some(job) => job,
                None => {
                    if !r.has("job") {
                        r.mistake("job", "missing", "say what to run on the devices: write [job] with argv or script");
                    }
                    JobPart::placeholder()
                }
            },
        }
    }
}

impl AgentsPart {
    fn read(r: &mut Reader<'_>) -> AgentsPart {
        let (name, prefix) = (r.optional::<String>("name"), r.optional::<String>("prefix"));
        let count = r.number_or("count", 1u16, 1..=COUNT_MAX);
        let (named_by, names) = match (name, prefix) {
            (Some(name), None) => {
                if r.has("count") {
                    r.mistake("count", "contradiction", "a name stands for one agent; use prefix for several");
                }
                ("name", vec![name])
            }
            (None, Some(prefix)) => {
                // At least two digits, so that a folder listing is in order.
                let width = count.to_string().len().max(2);
                ("prefix", (1..=count).map(|n| format!("{prefix}-{n:0width$}")).collect())
            }
            (None, None) => {
                r.mistake("prefix", "missing", "say name for one agent, or prefix and count for several");
                ("prefix", vec![])
            }
            (Some(_), Some(_)) => {
                r.mistake("prefix", "contradiction", "say either name or prefix, not both");
                ("prefix", vec![])
            }
        };
        AgentsPart {
            place: r.place().to_string(),
            named_by,
            names,
            tenant: r.optional("tenant"),
            site: r.optional("site"),
            parent: r.optional("parent"),
        }
    }
}

impl JobPart {
    fn read(r: &mut Reader<'_>) -> JobPart {
        let argv = r.optional::<Vec<String>>("argv");
        let script = r.optional::<String>("script");
        let interpreter = r.optional::<String>("interpreter");
        let both_absent = !r.has("argv") && !r.has("script");
        let run = match (argv, script) {
            (Some(argv), None) => {
                if argv.is_empty() {
                    r.mistake("argv", "empty", "it names no program");
                }
                if interpreter.is_some() {
                    r.mistake("interpreter", "contradiction", "argv runs without an interpreter");
                }
                JobRun::Argv(argv)
            }
            (None, Some(text)) => JobRun::Script { text, interpreter },
            (Some(_), Some(_)) => {
                r.mistake("script", "contradiction", "say either argv or script, not both");
                JobRun::Argv(vec![])
            }
            (None, None) => {
                if both_absent {
                    r.mistake("script", "missing", "say argv or script");
                }
                JobRun::Argv(vec![])
            }
        };
        JobPart { run, on: r.or("on", "all".to_string()), time_out: r.or("time_out", Duration::from_secs(60)) }
    }

    fn placeholder() -> JobPart {
        JobPart { run: JobRun::Argv(vec![]), on: "all".into(), time_out: Duration::from_secs(60) }
    }
}
