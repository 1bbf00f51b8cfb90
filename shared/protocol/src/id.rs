//! Names of things: tenants, nodes, jobs, and the counters of DESIGN 5.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr, sync::Arc};
use uuid::Uuid;

/// A tenant's short name: 1 to 40 of `a-z`, `0-9` and `-`, no `-` at either end, so that it is also a DNS label.
/// The name `system` is the installation's own: gateways and the API's certificate belong to it. It is part of every key, so its text is
/// shared.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TenantId(Arc<str>);

/// A text that is no tenant name.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a tenant name is 1 to 40 of a-z, 0-9 and -, not starting or ending with -")]
pub struct BadTenantId;

impl TenantId {
    /// The installation's own tenant.
    pub fn system() -> Self {
        TenantId("system".into())
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TenantId {
    type Err = BadTenantId;
    fn from_str(s: &str) -> Result<Self, BadTenantId> {
        let ok = (1..=40).contains(&s.len())
            && s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !s.starts_with('-')
            && !s.ends_with('-');
        if ok { Ok(TenantId(s.into())) } else { Err(BadTenantId) }
    }
}

impl TryFrom<String> for TenantId {
    type Error = BadTenantId;
    fn try_from(s: String) -> Result<Self, BadTenantId> {
        s.parse()
    }
}

impl From<TenantId> for String {
    fn from(t: TenantId) -> String {
        t.0.as_ref().into()
    }
}

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// The 16 bytes, as store keys and hashes take them.
            pub fn bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
        impl FromStr for $name {
            type Err = uuid::Error;
            fn from_str(s: &str) -> Result<Self, uuid::Error> {
                s.parse().map($name)
            }
        }
    };
}

uuid_id! {
    /// Any node: server, gateway, relay or agent. A *device* is an agent's node id. Given by the server, kept for life.
    NodeId
}
uuid_id! {
    /// One job: an administrator's order to a set of devices.
    JobId
}
uuid_id! {
    /// One id from order to result, in the logs of every node it touches (OPS-9).
    TraceId
}

/// What a node is; stands in its certificate.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The management server.
    Server,
    /// The blind pipe in the DMZ.
    Gateway,
    /// A branch's relay.
    Relay,
    /// The agent on a computer.
    Agent,
}

impl Role {
    /// The role's name, as in certificates and configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Server => "server",
            Role::Gateway => "gateway",
            Role::Relay => "relay",
            Role::Agent => "agent",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = ();
    fn from_str(s: &str) -> Result<Self, ()> {
        [Role::Server, Role::Gateway, Role::Relay, Role::Agent].into_iter().find(|r| r.as_str() == s).ok_or(())
    }
}

/// Raised by the server on re-enrolment, proven rollback or a resolved clone; 1 at enrolment (DESIGN 5).
pub type Epoch = u32;

/// The device's own count of its links, +1 durably per link. (epoch, attachment) orders attachments at every hop.
pub type Attachment = u64;

/// (epoch, attachment): the newest wins wherever two claims of one node meet.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct AttachmentKey {
    /// The node's epoch.
    pub epoch: Epoch,
    /// Its count of links within the epoch.
    pub attachment: Attachment,
}

impl AttachmentKey {
    /// The number behind this one. Told of a number that was given twice: no link that has it is newer.
    pub fn next(self) -> AttachmentKey {
        AttachmentKey { attachment: self.attachment.saturating_add(1), ..self }
    }
}

/// A number the server issued, compared as (term, number): a restored server's new term outranks every older number.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct OrderNumber {
    /// Raised when the server is restored from a backup.
    pub term: u32,
    /// One counter per tenant.
    pub number: u64,
}

impl fmt::Display for OrderNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.term, self.number)
    }
}

impl fmt::Debug for OrderNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenant_names_at_the_bound_and_one_past_it() {
        assert!("a".parse::<TenantId>().is_ok());
        assert!("a".repeat(40).parse::<TenantId>().is_ok());
        for bad in ["", "-a", "a-", "A", "a.b", "ä", &"a".repeat(41)] {
            assert_eq!(bad.parse::<TenantId>(), Err(BadTenantId), "{bad:?}");
        }
    }

    #[test]
    fn a_new_term_outranks_every_older_number() {
        let old = OrderNumber { term: 1, number: 999 };
        assert!(OrderNumber { term: 2, number: 1 } > old);
    }
}
