//! Kinds of values a configuration holds, and how each is read.

use super::parse_duration;
use branchline_protocol::id::{NodeId, TenantId};
use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};
use toml::Value;
use uuid::Uuid;

/// A kind of value.
pub trait FromValue: Sized {
    /// Reads it, or says what was expected: (code, message).
    fn read(value: &Value) -> Result<Self, (&'static str, String)>;

    /// Stands in after a mistake, so that reading goes on. Never leaves [`super::Mistakes::guard`].
    fn placeholder() -> Self;
}

/// A host name or address with a port, resolved by whoever dials it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// A DNS name, or an IP address without brackets.
    pub host: String,
    /// 1 to 65535.
    pub port: u16,
}

impl FromStr for HostPort {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        if let Ok(address) = text.parse::<SocketAddr>() {
            return match address.port() {
                0 => Err(()),
                port => Ok(HostPort { host: address.ip().to_string(), port }),
            };
        }
        let (host, port) = text.rsplit_once(':').ok_or(())?;
        let label = |l: &str| {
            (1..=63).contains(&l.len())
                && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && !l.starts_with('-')
                && !l.ends_with('-')
        };
        let host_ok = host.len() <= 253 && host.split('.').all(label);
        match port.parse::<u16>() {
            Ok(port) if port > 0 && host_ok => Ok(HostPort { host: host.to_string(), port }),
            _ => Err(()),
        }
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

fn wrong_type<T>(value: &Value, wanted: &str) -> Result<T, (&'static str, String)> {
    Err(("wrong_type", format!("expected {wanted}, found {}", kind(value))))
}

/// What a value is, with its article, for messages.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "a text",
        Value::Integer(_) => "a whole number",
        Value::Float(_) => "a fraction",
        Value::Boolean(_) => "true or false",
        Value::Datetime(_) => "a date",
        Value::Array(_) => "a list",
        Value::Table(_) => "a table",
    }
}

impl FromValue for String {
    fn read(value: &Value) -> Result<Self, (&'static str, String)> {
        match value {
            Value::String(s) if s.is_empty() => Err(("empty", "it is empty".into())),
            Value::String(s) => Ok(s.clone()),
            other => wrong_type(other, "a text"),
        }
    }
    fn placeholder() -> Self {
        String::new()
    }
}

impl FromValue for bool {
    fn read(value: &Value) -> Result<Self, (&'static str, String)> {
        value.as_bool().map_or_else(|| wrong_type(value, "true or false"), Ok)
    }
    fn placeholder() -> Self {
        false
    }
}

impl FromValue for i64 {
    fn read(value: &Value) -> Result<Self, (&'static str, String)> {
        value.as_integer().map_or_else(|| wrong_type(value, "a whole number"), Ok)
    }
    fn placeholder() -> Self {
        0
    }
}

impl<T: FromValue> FromValue for Vec<T> {
    fn read(value: &Value) -> Result<Self, (&'static str, String)> {
        let Value::Array(items) = value else { return wrong_type(value, "a list") };
        let read = |(i, item)| T::read(item).map_err(|(code, why)| (code, format!("item {i}: {why}")));
        items.iter().enumerate().map(read).collect()
    }
    fn placeholder() -> Self {
        Vec::new()
    }
}

impl FromValue for PathBuf {
    fn read(value: &Value) -> Result<Self, (&'static str, String)> {
        match value {
            Value::String(s) if s.is_empty() => Err(("empty", "it is empty".into())),
            Value::String(s) => Ok(PathBuf::from(s)),
            other => wrong_type(other, "a path"),
        }
    }
    fn placeholder() -> Self {
        PathBuf::new()
    }
}

impl FromValue for Duration {
    fn read(value: &Value) -> Result<Self, (&'static str, String)> {
        match value {
            Value::String(s) => parse_duration(s).map_err(|e| ("bad_duration", e.to_string())),
            other => wrong_type(other, "a length of time such as \"10m\""),
        }
    }
    fn placeholder() -> Self {
        Duration::ZERO
    }
}

/// Kinds that are a text with a shape of its own.
macro_rules! from_text {
    ($kind:ty, $code:literal, $wanted:literal, $placeholder:expr) => {
        impl FromValue for $kind {
            fn read(value: &Value) -> Result<Self, (&'static str, String)> {
                match value {
                    Value::String(s) => s.parse().map_err(|_| ($code, format!("{s:?} is not {}", $wanted))),
                    other => wrong_type(other, $wanted),
                }
            }
            fn placeholder() -> Self {
                $placeholder
            }
        }
    };
}

from_text!(
    SocketAddr,
    "bad_address",
    "an IP address with a port from 0 to 65535 such as 127.0.0.1:13000",
    SocketAddr::from(([0, 0, 0, 0], 0))
);
from_text!(IpAddr, "bad_address", "an IP address", IpAddr::from([0, 0, 0, 0]));
from_text!(
    HostPort,
    "bad_address",
    "a host name or IP address with a port from 1 to 65535 such as hq.example.com:8443",
    HostPort { host: String::new(), port: 0 }
);
from_text!(
    TenantId,
    "bad_tenant",
    "a tenant name: 1 to 40 of a-z, 0-9 and -, not starting or ending with -",
    TenantId::system()
);
from_text!(NodeId, "bad_id", "a node's id", NodeId(Uuid::nil()));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rly_2_hosts_with_ports_are_names_or_addresses_with_a_real_port() {
        for good in ["hq:1", "hq.example.com:65535", "10.0.0.1:8443", "[::1]:8443"] {
            assert_eq!(good.parse::<HostPort>().unwrap().to_string(), good);
        }
        for bad in
            ["", "hq", ":1", "hq:0", "hq:65536", "hq:99999", "h q:1", "hq.:1", "-hq:1", "https://hq:1", "::1:8443x"]
        {
            assert!(bad.parse::<HostPort>().is_err(), "{bad:?}");
        }
    }
}
