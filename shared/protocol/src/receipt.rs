//! What a node signs of itself, because whoever carries its records cannot speak for it (DESIGN 6, RLY-9).
//!
//! A *receipt* says to which parent a node attached itself, and where its streams stood then. A *signed head* is a record
//! in a stream that says what the stream is up to there, in the words of the node that wrote it. Both are Ed25519 over an
//! envelope of their own type, by the key of the node's certificate, so that neither can pass for the other, for an order
//! or for a document.

use crate::{
    hash::Hash,
    id::{Attachment, AttachmentKey, Epoch, NodeId, TenantId},
    order::{Envelope, PublicKey, Signer},
    record::{Lane, StreamId},
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// The envelope's type of a receipt.
pub const RECEIPT_PAYLOAD_TYPE: &str = "application/vnd.branchline.receipt.v1+msgpack";
/// The envelope's type of a signed head.
pub const HEAD_PAYLOAD_TYPE: &str = "application/vnd.branchline.stream-head.v1+msgpack";

/// Heads one receipt names; of a node with more streams it is not complete.
pub const HEADS_MAX: usize = 256;
/// The largest payload of a receipt in bytes; one more is refused.
pub const RECEIPT_BYTES_MAX: usize = 32_768;
/// The largest payload of a signed head in bytes; one more is refused.
pub const HEAD_BYTES_MAX: usize = 512;
/// Receipts one run may bring: the node's own and those of the relays between it and the sender, for a few parents.
/// What is beyond is not looked at.
pub const RECEIPTS_MAX: usize = 32;

/// How far a node has written one of its streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Head {
    /// The stream's epoch.
    pub epoch: Epoch,
    /// The stream's incarnation.
    pub incarnation: u64,
    /// The stream's lane.
    pub lane: Lane,
    /// The last number written; 0 when there is none.
    pub number: u64,
    /// What the next record names as its predecessor.
    pub hash: Hash,
}

impl Head {
    /// Of this stream, at this number.
    pub fn of(stream: &StreamId, number: u64, hash: Hash) -> Head {
        Head { epoch: stream.epoch, incarnation: stream.incarnation, lane: stream.lane, number, hash }
    }

    /// The stream, if it is this node's.
    pub fn stream(&self, node: NodeId) -> StreamId {
        StreamId { node, epoch: self.epoch, incarnation: self.incarnation, lane: self.lane }
    }
}

/// A node's word on one of its attachments.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// Whose node.
    pub tenant: TenantId,
    /// The node.
    pub node: NodeId,
    /// The key of its certificate, which signs this. Who reads it has to know that it is the node's.
    pub key: PublicKey,
    /// The node's epoch.
    pub epoch: Epoch,
    /// Its count of links within the epoch.
    pub attachment: Attachment,
    /// Whom it greets: the only one that may bring its records under this receipt, and those above that one.
    pub parent: NodeId,
    /// Where its streams stand: each that may still have records on their way.
    pub heads: Vec<Head>,
    /// Whether a stream that is not named has no records on their way.
    pub complete: bool,
}

/// Why an envelope is nobody's receipt or head. Nothing of it counts.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReceiptFault {
    /// A bound was passed.
    #[error("{what} has {found}, at most {max} are allowed")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// Its bytes, or its count.
        found: usize,
        /// The bound.
        max: usize,
    },
    /// It is another kind of document.
    #[error("the envelope holds another kind of document")]
    WrongType,
    /// It cannot be read.
    #[error("the payload is malformed: {0}")]
    Malformed(String),
    /// It names another key than the node's.
    #[error("it names another key than the node's")]
    OtherKey,
    /// The node's key did not sign these bytes.
    #[error("it is not signed by the node's key")]
    BadSignature,
}

impl Receipt {
    /// (epoch, attachment).
    pub fn attachment_key(&self) -> AttachmentKey {
        AttachmentKey { epoch: self.epoch, attachment: self.attachment }
    }

    /// Signs it with the key it names.
    pub fn seal(&self, signer: &Signer) -> Envelope {
        let bytes = rmp_serde::to_vec(self).expect("a receipt is plain data");
        Envelope::sign(RECEIPT_PAYLOAD_TYPE, bytes, signer)
    }

    /// What it says, signed by whomever: only to find out whether it is worth [`Receipt::open`].
    ///
    /// # Errors
    /// It is over its bounds, of another type, or cannot be read.
    pub fn read(envelope: &Envelope) -> Result<Receipt, ReceiptFault> {
        let receipt: Receipt = read(envelope, RECEIPT_PAYLOAD_TYPE, RECEIPT_BYTES_MAX)?;
        within("the list of heads", receipt.heads.len(), HEADS_MAX)?;
        Ok(receipt)
    }

    /// What the holder of the key with this blake3 says. One signature is verified.
    ///
    /// # Errors
    /// It cannot be read, names another key, or that key did not sign it.
    pub fn open(envelope: &Envelope, key_hash: Hash) -> Result<Receipt, ReceiptFault> {
        let receipt = Receipt::read(envelope)?;
        if Hash::of(&receipt.key.0) != key_hash {
            return Err(ReceiptFault::OtherKey);
        }
        signed(envelope, &receipt.key)?;
        Ok(receipt)
    }
}

#[derive(Serialize, Deserialize)]
struct SignedHead {
    tenant: TenantId,
    node: NodeId,
    head: Head,
}

/// The body of a record of [`crate::record::class::HEAD`].
pub fn seal_head(tenant: &TenantId, node: NodeId, head: Head, signer: &Signer) -> Bytes {
    let payload = rmp_serde::to_vec(&SignedHead { tenant: tenant.clone(), node, head });
    let envelope = Envelope::sign(HEAD_PAYLOAD_TYPE, payload.expect("a head is plain data"), signer);
    rmp_serde::to_vec(&envelope).expect("an envelope is plain data").into()
}

/// What the holder of `key` says in such a body. One signature is verified.
///
/// # Errors
/// It cannot be read, is another tenant's or node's, or the key did not sign it.
pub fn open_head(body: &[u8], tenant: &TenantId, node: NodeId, key: &PublicKey) -> Result<Head, ReceiptFault> {
    let envelope: Envelope = rmp_serde::from_slice(body).map_err(|e| ReceiptFault::Malformed(e.to_string()))?;
    let head: SignedHead = read(&envelope, HEAD_PAYLOAD_TYPE, HEAD_BYTES_MAX)?;
    signed(&envelope, key)?;
    if (&head.tenant, head.node) != (tenant, node) {
        return Err(ReceiptFault::OtherKey);
    }
    Ok(head.head)
}

fn read<'e, T: Deserialize<'e>>(envelope: &'e Envelope, kind: &str, max: usize) -> Result<T, ReceiptFault> {
    within("the payload", envelope.payload.len(), max)?;
    within("the list of signatures", envelope.signatures.len(), 1)?;
    if envelope.payload_type != kind {
        return Err(ReceiptFault::WrongType);
    }
    rmp_serde::from_slice(&envelope.payload).map_err(|e| ReceiptFault::Malformed(e.to_string()))
}

fn signed(envelope: &Envelope, key: &PublicKey) -> Result<(), ReceiptFault> {
    envelope.signed_by([key]).map(drop).ok_or(ReceiptFault::BadSignature)
}

fn within(what: &'static str, found: usize, max: usize) -> Result<(), ReceiptFault> {
    if found > max { Err(ReceiptFault::TooLarge { what, found, max }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn node(n: u128) -> NodeId {
        NodeId(Uuid::from_u128(n))
    }

    fn signer() -> Signer {
        Signer::from_seed(&[7; 32])
    }

    fn tenant() -> TenantId {
        "acme".parse().unwrap()
    }

    fn head(number: u64) -> Head {
        Head { epoch: 1, incarnation: 9, lane: Lane::Work, number, hash: Hash::of(b"head") }
    }

    fn receipt() -> Receipt {
        Receipt {
            tenant: tenant(),
            node: node(1),
            key: signer().public(),
            epoch: 1,
            attachment: 3,
            parent: node(2),
            heads: vec![head(4)],
            complete: true,
        }
    }

    fn hash_of(signer: &Signer) -> Hash {
        Hash::of(&signer.public().0)
    }

    #[test]
    fn rly_9_a_receipt_is_its_nodes_word_and_nobody_elses() {
        let good = receipt().seal(&signer());
        assert_eq!(Receipt::open(&good, hash_of(&signer())), Ok(receipt()));
        let thief = Signer::from_seed(&[8; 32]);
        assert_eq!(Receipt::open(&receipt().seal(&thief), hash_of(&signer())), Err(ReceiptFault::BadSignature));
        let own_key = Receipt { key: thief.public(), ..receipt() }.seal(&thief);
        assert_eq!(Receipt::open(&own_key, hash_of(&signer())), Err(ReceiptFault::OtherKey));
        for position in 0..good.payload.len() {
            let mut bytes = good.payload.to_vec();
            bytes[position] ^= 1;
            let bad = Envelope { payload: bytes.into(), ..good.clone() };
            assert!(Receipt::open(&bad, hash_of(&signer())).is_err(), "byte {position}");
        }
        let other = Envelope { payload_type: HEAD_PAYLOAD_TYPE.into(), ..good };
        assert_eq!(Receipt::open(&other, hash_of(&signer())), Err(ReceiptFault::WrongType));
    }

    #[test]
    fn a_receipt_at_its_bounds_is_read_and_past_them_it_is_not() {
        let full = Receipt { heads: vec![head(u64::MAX); HEADS_MAX], ..receipt() }.seal(&signer());
        assert!(full.payload.len() <= RECEIPT_BYTES_MAX, "{} bytes", full.payload.len());
        assert!(Receipt::open(&full, hash_of(&signer())).is_ok());
        let more = Receipt { heads: vec![head(1); HEADS_MAX + 1], ..receipt() }.seal(&signer());
        assert!(matches!(Receipt::read(&more), Err(ReceiptFault::TooLarge { found: 257, max: 256, .. })));
        let fits = Envelope::sign(RECEIPT_PAYLOAD_TYPE, vec![0; RECEIPT_BYTES_MAX], &signer());
        assert!(matches!(Receipt::read(&fits), Err(ReceiptFault::Malformed(_))));
        let large = Envelope::sign(RECEIPT_PAYLOAD_TYPE, vec![0; RECEIPT_BYTES_MAX + 1], &signer());
        assert!(matches!(Receipt::read(&large), Err(ReceiptFault::TooLarge { .. })));
        let mut twice = receipt().seal(&signer());
        twice.add_signature(&signer());
        assert!(matches!(Receipt::read(&twice), Err(ReceiptFault::TooLarge { found: 2, max: 1, .. })));
    }

    #[test]
    fn a_signed_head_binds_tenant_node_stream_number_and_hash() {
        let body = seal_head(&tenant(), node(1), head(4), &signer());
        let key = signer().public();
        assert_eq!(open_head(&body, &tenant(), node(1), &key), Ok(head(4)));
        assert!(open_head(&body, &"other".parse().unwrap(), node(1), &key).is_err());
        assert!(open_head(&body, &tenant(), node(2), &key).is_err());
        let other = Signer::from_seed(&[8; 32]).public();
        assert_eq!(open_head(&body, &tenant(), node(1), &other), Err(ReceiptFault::BadSignature));
        for position in 0..body.len() {
            let mut bad = body.to_vec();
            bad[position] ^= 1;
            assert_ne!(open_head(&bad, &tenant(), node(1), &key), Ok(head(4)), "byte {position}");
        }
        let longest: TenantId = "t".repeat(40).parse().unwrap();
        let body = seal_head(&longest, node(1), head(u64::MAX), &signer());
        assert!(open_head(&body, &longest, node(1), &key).is_ok(), "{} bytes", body.len());
    }
}
