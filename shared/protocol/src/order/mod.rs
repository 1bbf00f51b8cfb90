//! Orders: what the server signs once for all targets, and how relay and agent verify it (DESIGN 6).
//!
//! An [`Envelope`] carries the signed payload bytes as they are; the [`Payload`] binds root and leaf count of a Merkle
//! tree over (order number, device, epoch); a [`MultiProof`] shows that some devices are among the leaves, and a relay
//! cuts it down for each child. Nothing here knows who is connected.

mod envelope;
mod merkle;
mod payload;
mod verify;
mod withdrawal;

pub use envelope::{Envelope, KeyId, PublicKey, SIGNATURES_MAX, Signature, Signer};
pub use merkle::{Cutter, Leaf, MultiProof, PROOF_DEPTH_MAX, ProofError, Tree};
pub use payload::{ENVELOPE_BYTES_MAX, ORDER_PAYLOAD_TYPE, OrderMessage, Payload};
pub use verify::{OrderFault, VerifiedOrder, verify_order};
pub use withdrawal::{WITHDRAWAL_DEVICES_MAX, WITHDRAWAL_PAYLOAD_TYPE, Withdrawal};
