//! The one exchange of an `enrol` stream, end to end between a new node and the server (DESIGN 3, 6).
//!
//! Each side sends one message: u32 length, big-endian, then MessagePack with field names.

use crate::{
    id::{Epoch, NodeId, Role, TenantId},
    order::Envelope,
    refusal::Refusal,
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// The most bytes either side of an enrolment may send.
pub const ENROL_BYTES_MAX: usize = 65_536;

/// What a new node tells of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Name shown to people; computers: at most 15 characters (ENR-4).
    pub name: String,
    /// Its full host name.
    pub host_name: String,
    /// `linux`, `windows`, `macos`.
    pub platform: String,
    /// What it can do (rule P).
    pub capabilities: Vec<String>,
    /// Its build.
    pub build: String,
    /// Host names and addresses that its own listener answers to (relay, gateway).
    #[serde(default)]
    pub addresses: Vec<String>,
}

/// A new node's request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolRequest {
    /// Protocol it speaks.
    pub protocol: u16,
    /// From the bundle.
    pub tenant: TenantId,
    /// What it wants to be; must be the token's.
    pub role: Role,
    /// From the bundle; must be the token's.
    pub site: String,
    /// The secret of the enrolment.
    pub token: String,
    /// PKCS#10 request, DER: the key was made on this host (ENR-7).
    pub request: Bytes,
    /// What it is.
    pub facts: Facts,
}

/// The server's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EnrolAnswer {
    /// Enrolled.
    Enrolled {
        /// Its id for life.
        node: NodeId,
        /// 1, or more after re-enrolment.
        epoch: Epoch,
        /// Its certificate and the CA's, DER, its own first.
        chain: Vec<Bytes>,
        /// Every document it needs at the start, in order of application.
        documents: Vec<(crate::document::Kind, Envelope)>,
    },
    /// Not enrolled; nothing was stored.
    Refused(Refusal),
}
