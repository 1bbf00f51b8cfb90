//! What may pass the gateway, decided without a socket: the one path, the bounds of enrolments. Pure.

use branchline_protocol::wire::{LINK_PATH, Preface};
use std::{collections::BTreeSet, net::SocketAddr};

/// The longest request target; longer ones are not even compared (GW-2).
pub const TARGET_BYTES_MAX: usize = 8 * 1024;
/// The longest link token that is looked at.
pub const TOKEN_BYTES_MAX: usize = 512;

/// What becomes of a request on the public listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It asks for a link, in the only way there is.
    Link,
    /// Everything else: 404, and the connection is closed.
    NotFound,
}

/// A request as the public listener saw it.
#[derive(Clone, Copy, Debug)]
pub struct Request<'r> {
    /// The method.
    pub method: &'r str,
    /// The target as it was sent, not normalised.
    pub target: &'r str,
    /// Every `Host` header.
    pub hosts: &'r [&'r str],
    /// Whether it is HTTP/1.1.
    pub http_1_1: bool,
    /// Names of all headers in lower case, with their values.
    pub headers: &'r [(&'r str, &'r str)],
}

/// The rule of the public listener (GW-2): one method, one path, our own names, an upgrade.
#[derive(Clone, Debug)]
pub struct PathRule {
    /// `Host` values that are ours, in lower case.
    hosts: BTreeSet<String>,
}

impl PathRule {
    /// The rule for these public names (`name` or `name:port`) and this listener. A name without a port stands for the
    /// listener's port and for none stated; the listener's own address is always a name, unless it is the wildcard.
    pub fn new(public_names: &[String], listener: SocketAddr) -> PathRule {
        let mut hosts = BTreeSet::new();
        for name in public_names {
            let name = name.to_ascii_lowercase();
            if !has_port(&name) {
                hosts.insert(format!("{name}:{}", listener.port()));
                // 443 is what a client means that states no port, also when it is mapped to another one of ours.
                hosts.insert(format!("{name}:443"));
            }
            hosts.insert(name);
        }
        if !listener.ip().is_unspecified() {
            hosts.insert(listener.to_string());
            if listener.port() == 443 {
                let text = listener.to_string();
                hosts.insert(text.trim_end_matches(":443").to_owned());
            }
        }
        PathRule { hosts }
    }

    /// Judges a request by what was sent, before anything normalises it.
    pub fn judge(&self, request: Request<'_>) -> Verdict {
        match self.asks_for_a_link(request) {
            true => Verdict::Link,
            false => Verdict::NotFound,
        }
    }

    fn asks_for_a_link(&self, request: Request<'_>) -> bool {
        if request.method != "GET" || !request.http_1_1 || request.target.len() > TARGET_BYTES_MAX {
            return false;
        }
        let path = match request.target.strip_prefix("https://") {
            // The absolute form names a host, too.
            Some(rest) => match rest.split_at(rest.find('/').unwrap_or(rest.len())) {
                (host, path) if self.is_ours(host) => path,
                _ => return false,
            },
            None => request.target,
        };
        let &[host] = request.hosts else { return false };
        path == LINK_PATH && self.is_ours(host) && is_upgrade(request.headers)
    }

    fn is_ours(&self, host: &str) -> bool {
        self.hosts.contains(&host.to_ascii_lowercase())
    }
}

/// Whether the headers ask for a WebSocket, and bring no body of their own.
fn is_upgrade(headers: &[(&str, &str)]) -> bool {
    let one = |name: &str| {
        let mut values = headers.iter().filter(|(n, _)| *n == name).map(|(_, value)| *value);
        values.next().filter(|_| values.next().is_none())
    };
    let lists = |name: &str, word: &str| {
        let words = headers.iter().filter(|(n, _)| *n == name).flat_map(|(_, value)| value.split(','));
        words.map(str::trim).any(|w| w.eq_ignore_ascii_case(word))
    };
    lists("connection", "upgrade")
        && one("upgrade").is_some_and(|v| v.eq_ignore_ascii_case("websocket"))
        && one("sec-websocket-version") == Some("13")
        && one("sec-websocket-key").is_some()
        && !headers.iter().any(|(name, _)| matches!(*name, "content-length" | "transfer-encoding" | "expect"))
}

fn has_port(name: &str) -> bool {
    name.rsplit_once(':').is_some_and(|(host, port)| {
        !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) && (!host.contains(':') || host.ends_with(']'))
    })
}

/// What a child's first byte makes of its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// A link or bulk content: copied for as long as both ends like.
    Open,
    /// An enrolment: copied within its own bounds.
    Enrol,
    /// Nothing a child may say.
    Refused,
}

impl Opening {
    /// Judges a first byte. A trunk is opened by gateways at the server, never through one.
    pub fn of(first: u8) -> Opening {
        match Preface::from_byte(first) {
            Some(Preface::Link | Preface::Uplink | Preface::Bulk) => Opening::Open,
            Some(Preface::Enrol) => Opening::Enrol,
            Some(Preface::Trunk) | None => Opening::Refused,
        }
    }
}

/// How many bytes one direction of a stream may still carry.
#[derive(Clone, Copy, Debug)]
pub struct Allowance(Option<u64>);

impl Allowance {
    /// No bound.
    pub fn unbounded() -> Allowance {
        Allowance(None)
    }

    /// At most so many bytes.
    pub fn of(bytes: u64) -> Allowance {
        Allowance(Some(bytes))
    }

    /// Takes the bytes; false if they are more than is left.
    pub fn take(&mut self, bytes: usize) -> bool {
        match &mut self.0 {
            None => true,
            Some(left) => match left.checked_sub(bytes as u64) {
                Some(rest) => {
                    *left = rest;
                    true
                }
                None => false,
            },
        }
    }
}

#[cfg(test)]
#[path = "limits_tests.rs"]
mod tests;
