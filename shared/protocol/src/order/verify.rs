//! Whether an order may be carried and run: the same answer at every relay and at the agent (RLY-13, JOB-15).

use super::{ENVELOPE_BYTES_MAX, Envelope, ORDER_PAYLOAD_TYPE, OrderMessage, Payload, ProofError, SIGNATURES_MAX};
use crate::{
    hash::Hash,
    id::{Epoch, NodeId, TenantId},
    job::{CANCEL, SCRIPT_BYTES_MAX, verb},
    order::PublicKey,
    trust::TrustDocument,
};

/// The largest arguments of a verb this build does not know: what the largest known verb may have. Such an order is
/// carried, because an agent below may be newer than the relay.
const UNKNOWN_ARGS_MAX: usize = SCRIPT_BYTES_MAX + 65_536;

/// The largest arguments of a steering order.
const STEERING_ARGS_MAX: usize = 1_024;

/// Why an order was not taken.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum OrderFault {
    /// A bound was passed.
    #[error("the order's {what} is {found}, at most {max} is allowed")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// Its size in bytes, or its count.
        found: usize,
        /// The bound.
        max: usize,
    },
    /// No server key of the trust document signed exactly these bytes.
    #[error("no key of the server signed the order")]
    BadSignature,
    /// A server key signed it, but that key counts no longer for this order number.
    #[error("the key that signed order {0} does not count for this number")]
    KeyNotValid(u64),
    /// A server key signed another kind of document.
    #[error("the envelope holds no order")]
    WrongType,
    /// A server key signed it, and it is no order this build can read.
    #[error("the order's payload is malformed: {0}")]
    Malformed(String),
    /// It is another tenant's.
    #[error("the order is tenant {0}'s")]
    OtherTenant(TenantId),
    /// The arguments are not the ones that were signed.
    #[error("the arguments are not those of the order")]
    ArgsAltered,
    /// The leaves are not among the targets that were signed.
    #[error("the targets are not proven: {0}")]
    Proof(#[from] ProofError),
}

impl OrderFault {
    /// The refusal's code: `too_large`, `malformed` or `bad_signature`.
    pub fn code(&self) -> &'static str {
        match self {
            OrderFault::TooLarge { .. } => "too_large",
            OrderFault::WrongType | OrderFault::Malformed(_) => "malformed",
            OrderFault::BadSignature
            | OrderFault::KeyNotValid(_)
            | OrderFault::OtherTenant(_)
            | OrderFault::ArgsAltered
            | OrderFault::Proof(_) => "bad_signature",
        }
    }
}

/// An order whose origin, arguments and leaves have been checked. Only [`verify_order`] makes one from a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedOrder {
    /// What the server signed.
    pub payload: Payload,
}

impl VerifiedOrder {
    /// Whether the order, in the message it was verified from, is for this device in this epoch.
    pub fn names(&self, message: &OrderMessage, device: NodeId, epoch: Epoch) -> bool {
        message.proof.names(device, epoch)
    }
}

/// Checks an order of `tenant` against the trust document: bounds, signature, tenant, the key's validity for the
/// order's number, arguments and proof. Nothing is decoded that no server key signed.
pub fn verify_order(
    message: &OrderMessage,
    tenant: &TenantId,
    trust: &TrustDocument,
) -> Result<VerifiedOrder, OrderFault> {
    let envelope = &message.envelope;
    let signer = server_signer(envelope, tenant, trust)?;
    if envelope.payload_type != ORDER_PAYLOAD_TYPE {
        return Err(OrderFault::WrongType);
    }
    let payload: Payload =
        rmp_serde::from_slice(&envelope.payload).map_err(|e| OrderFault::Malformed(e.to_string()))?;
    if payload.tenant != *tenant {
        return Err(OrderFault::OtherTenant(payload.tenant));
    }
    let number = payload.number;
    let valid = trust.server_keys_for(number.number);
    if !valid.contains(&signer) && envelope.signed_by(&valid).is_none() {
        return Err(OrderFault::KeyNotValid(number.number));
    }

    let args_max = match &payload.verb[..] {
        CANCEL => STEERING_ARGS_MAX,
        name => verb(name).map_or(UNKNOWN_ARGS_MAX, |v| v.args_max),
    };
    within("size of arguments", message.args.len(), args_max)?;
    if Hash::of(&message.args) != payload.args_hash {
        return Err(OrderFault::ArgsAltered);
    }
    message.proof.verify(tenant, number, payload.root, payload.leaf_count)?;
    Ok(VerifiedOrder { payload })
}

/// The server key that signed an envelope within its bounds, whether or not it still counts.
pub(super) fn server_signer(
    envelope: &Envelope,
    tenant: &TenantId,
    trust: &TrustDocument,
) -> Result<PublicKey, OrderFault> {
    within("envelope", envelope_bytes(envelope), ENVELOPE_BYTES_MAX)?;
    within("number of signatures", envelope.signatures.len(), SIGNATURES_MAX)?;
    if trust.tenant != *tenant {
        return Err(OrderFault::OtherTenant(trust.tenant.clone()));
    }
    let servers: Vec<PublicKey> = trust.keys.iter().filter(|k| k.role == "server").map(|k| k.key).collect();
    envelope.signed_by(&servers).ok_or(OrderFault::BadSignature)
}

/// Bytes of an envelope's contents; the few bytes of encoding around them are not counted.
fn envelope_bytes(envelope: &Envelope) -> usize {
    let signatures: usize = envelope.signatures.iter().map(|s| size_of_val(&s.key) + s.bytes.len()).sum();
    envelope.payload_type.len() + envelope.payload.len() + signatures
}

pub(super) fn within(what: &'static str, found: usize, max: usize) -> Result<(), OrderFault> {
    if found > max { Err(OrderFault::TooLarge { what, found, max }) } else { Ok(()) }
}

#[cfg(test)]
#[path = "verify_tests.rs"]
mod tests;
