//! The relay's rows on disk, and its state from them.
//!
//! | table | key | value |
//! |---|---|---|
//! | Meta | `attachment` | u64 |
//! | Meta | `d` + kind | envelope of a document; of time statements one in ten minutes |
//! | Meta | `age` | u64: batches that are on this disk |
//! | Meta | `disk`, `child/` + relay | u64: number of this disk, of a child's |
//! | Meta | `attached/` + child | u32, u64: epoch and attachment that it greeted with last |
//! | Meta | `wake/` + device | what wakes it: its last link here, keys, address |
//! | Meta | `node_time` | i64: node time goes on from here |
//! | Meta | `receipt/` + node + child | receipts that the child showed for the node's records |
//! | Meta, Spool | | see [`branchline_node::uplink::spool`] |
//! | Ledger | `o` + order number + hash of its devices | order message: one for each set of devices it came for |
//! | Ledger | `r` + order number + device | waiting 0, held 1, handed over 2; then the holders, who holds it first |
//! | Ledger | `t` + order number + device | i64: cancelled, to be known until then |

use super::{
    age::Age,
    receipts::Receipts,
    shelf::Shelf,
    state::{Me, RelayCore},
};
use branchline_node::{
    defects::{Defects, NoDefects},
    downstream::{
        beacon::Reachable,
        ledger::{Change, Kept, Ledger, Row},
    },
    identity::RootKey,
    store::{Batch, Scan, StoreError, Table},
    uplink::spool::{MEMORY_BYTES, Quotas, Spool, SpoolFault},
};
use branchline_protocol::{
    document::Kind,
    hash::Hash,
    id::{AttachmentKey, NodeId, OrderNumber},
    job::CANCEL,
    order::{Envelope, OrderMessage, verify_order},
    record::Fact,
    time::Millis,
    trust::TrustDocument,
};
use std::collections::BTreeMap;
use uuid::Uuid;

/// Key of the attachment number.
pub const ATTACHMENT: &[u8] = b"attachment";
/// Key of this disk's number: made once, so that parent and children see when it was replaced.
pub(super) const DISK: &[u8] = b"disk";
/// Key of the count of batches.
pub(super) const AGE: &[u8] = b"age";
/// Key of node time.
pub const NODE_TIME: &[u8] = b"node_time";
const CHILD_DISK: &[u8] = b"child/";
const RECEIPTS: &[u8] = b"receipt/";
const ATTACHED: &[u8] = b"attached/";
const WAKE: &[u8] = b"wake/";

fn numbered(kind: u8, order: OrderNumber) -> Vec<u8> {
    [&[kind][..], &order.term.to_be_bytes(), &order.number.to_be_bytes()].concat()
}

/// Keeps an order as it came.
pub fn order(number: OrderNumber, message: &OrderMessage, batch: &mut Batch) {
    let devices: Vec<&[u8]> = message.proof.leaves.iter().map(|(_, leaf)| &leaf.device.bytes()[..]).collect();
    let key = [numbered(b'o', number), Hash::of_parts(&devices).0.to_vec()].concat();
    batch.put(Table::Ledger, key, rmp_serde::to_vec(message).expect("orders are plain data"));
}

/// Forgets an order.
pub fn order_gone(number: OrderNumber, batch: &mut Batch) {
    let from = numbered(b'o', number);
    let next = OrderNumber { number: number.number + 1, ..number };
    batch.delete_range(Table::Ledger, from, numbered(b'o', next));
}

/// Keeps a changed row.
pub fn row(change: &Change, batch: &mut Batch) {
    let key = [numbered(b'r', change.order), change.device.bytes().to_vec()].concat();
    let (stage, first) = match change.row {
        None => {
            batch.delete(Table::Ledger, key);
            return;
        }
        Some(Row::Waiting | Row::Offered(_)) => (0, None),
        Some(Row::Held(relay)) => (1, Some(relay)),
        Some(Row::HandedOver) => (2, None),
    };
    let mut value = vec![stage];
    first.iter().for_each(|relay| value.extend(relay.bytes()));
    change.holders.iter().filter(|child| Some(**child) != first).for_each(|child| value.extend(child.bytes()));
    batch.put(Table::Ledger, key, value);
}

/// The inverse of [`row`].
fn kept(value: &[u8]) -> Kept {
    let (stage, rest) = value.split_first().unwrap_or((&0, &[]));
    let holders: Vec<NodeId> = rest.chunks_exact(16).filter_map(node).collect();
    let row = match (stage, holders.first()) {
        (1, Some(relay)) => Row::Held(*relay),
        (2, _) => Row::HandedOver,
        _ => Row::Waiting,
    };
    Kept { row, holders, ..Kept::default() }
}

fn node(bytes: &[u8]) -> Option<NodeId> {
    Uuid::from_slice(bytes).map(NodeId).ok()
}

/// Order number and device of a key's 28 bytes after its first.
fn target(rest: &[u8]) -> Option<(OrderNumber, NodeId)> {
    let (term, rest) = rest.split_first_chunk::<4>()?;
    let (number, device) = rest.split_first_chunk::<8>()?;
    let order = OrderNumber { term: u32::from_be_bytes(*term), number: u64::from_be_bytes(*number) };
    Some((order, node(device)?))
}

fn number(value: &[u8]) -> Option<u64> {
    value.try_into().ok().map(u64::from_be_bytes)
}

/// Keeps that an order is cancelled for a device.
pub fn tomb(order: OrderNumber, device: NodeId, until: Millis, batch: &mut Batch) {
    let key = [numbered(b't', order), device.bytes().to_vec()].concat();
    batch.put(Table::Ledger, key, until.0.to_be_bytes().to_vec());
}

/// Forgets it.
pub fn tomb_gone(order: OrderNumber, device: NodeId, batch: &mut Batch) {
    batch.delete(Table::Ledger, [numbered(b't', order), device.bytes().to_vec()].concat());
}

/// Keeps the number of a child relay's disk.
pub fn child_disk(child: NodeId, disk: u64, batch: &mut Batch) {
    batch.put(Table::Meta, [CHILD_DISK, child.bytes()].concat(), disk.to_be_bytes().to_vec());
}

/// Where receipts are kept that a child showed for a node.
fn receipts_key(node: NodeId, child: NodeId) -> Vec<u8> {
    [RECEIPTS, node.bytes(), child.bytes()].concat()
}

/// Keeps them.
pub(super) fn receipts(node: NodeId, child: NodeId, receipts: &[Envelope], batch: &mut Batch) {
    let value = rmp_serde::to_vec(receipts).expect("envelopes are plain data");
    batch.put(Table::Meta, receipts_key(node, child), value);
}

/// Forgets them.
pub(super) fn receipts_gone(node: NodeId, child: NodeId, batch: &mut Batch) {
    batch.delete(Table::Meta, receipts_key(node, child));
}

/// Node, child and receipts of a row.
fn receipts_row(rest: &[u8], value: &[u8]) -> Option<(NodeId, NodeId, Vec<Envelope>)> {
    let (of, by) = rest.split_at_checked(16)?;
    Some((node(of)?, node(by)?, rmp_serde::from_slice(value).ok()?))
}

/// Keeps a child's attachment: an older state of its disk is known by it, after a restart of this relay too.
pub fn attached(child: NodeId, key: AttachmentKey, batch: &mut Batch) {
    let value = [&key.epoch.to_be_bytes()[..], &key.attachment.to_be_bytes()].concat();
    batch.put(Table::Meta, [ATTACHED, child.bytes()].concat(), value);
}

/// Keeps what wakes a device; without it, forgets it.
pub fn reachable(device: NodeId, reachable: Option<&Reachable>, batch: &mut Batch) {
    let key = [WAKE, device.bytes()].concat();
    match reachable {
        Some(reachable) => batch.put(Table::Meta, key, reachable.to_bytes()),
        None => batch.delete(Table::Meta, key),
    };
}

fn attachment_key(value: &[u8]) -> Option<AttachmentKey> {
    let (epoch, attachment) = value.split_first_chunk::<4>()?;
    Some(AttachmentKey { epoch: u32::from_be_bytes(*epoch), attachment: number(attachment)? })
}

/// Keeps a document.
pub fn document(kind: Kind, envelope: &Envelope, batch: &mut Batch) {
    let key = vec![b'd', kind as u8];
    batch.put(Table::Meta, key, rmp_serde::to_vec(envelope).expect("envelopes are plain data"));
}

/// Why a relay's disk is of no use.
#[derive(Debug, thiserror::Error)]
pub enum Recovered {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The spool.
    #[error(transparent)]
    Spool(#[from] SpoolFault),
    /// A row of the ledger.
    #[error("a row of the ledger cannot be read: {0}")]
    Ledger(String),
}

impl RelayCore {
    /// From the store. An order that does not verify any more is left out: its devices get it from the parent.
    pub fn recover(
        me: Me,
        root: RootKey,
        trust: TrustDocument,
        incarnation: u64,
        store: &impl Scan,
    ) -> Result<RelayCore, Recovered> {
        RelayCore::recover_with(NoDefects, me, root, trust, incarnation, store)
    }
}

impl<D: Defects> RelayCore<D> {
    /// The same with defects, for the simulator.
    pub fn recover_with(
        defects: D,
        me: Me,
        root: RootKey,
        trust: TrustDocument,
        incarnation: u64,
        store: &impl Scan,
    ) -> Result<Self, Recovered> {
        let mut shelf = Shelf::new(me.tenant.clone(), root, trust);
        let mut spool = Spool::new(me.node, me.epoch, incarnation)
            .with_quotas(Quotas::RELAY)
            .with_signer(me.tenant.clone(), me.signer.clone());
        spool.set_memory(MEMORY_BYTES);
        let mut attachment = 0;
        let mut faults = Vec::new();
        let mut documents = BTreeMap::new();
        let (mut disk, mut age, mut disks, mut time_kept) = (None, 0, BTreeMap::new(), None);
        let mut receipts = Vec::new();
        let mut attached: BTreeMap<NodeId, AttachmentKey> = BTreeMap::new();
        let mut sleepers = BTreeMap::new();
        store.scan_all(Table::Meta, |key, value| {
            if key == ATTACHMENT {
                attachment = number(&value).unwrap_or(0);
            } else if key == DISK {
                disk = number(&value);
            } else if key == AGE {
                age = number(&value).unwrap_or(0);
            } else if key == NODE_TIME {
                time_kept = value[..].try_into().ok().map(i64::from_be_bytes).map(Millis);
            } else if let Some(child) = key.strip_prefix(CHILD_DISK) {
                disks.extend(node(child).zip(number(&value)));
            } else if let Some(rest) = key.strip_prefix(RECEIPTS) {
                receipts.extend(receipts_row(rest, &value));
            } else if let Some(child) = key.strip_prefix(ATTACHED) {
                attached.extend(node(child).zip(attachment_key(&value)));
            } else if let Some(device) = key.strip_prefix(WAKE) {
                sleepers.extend(node(device).zip(Reachable::from_bytes(&value)));
            } else if let [b'd', kind] = key {
                documents.insert(*kind, value);
            } else if let Err(e) = spool.recover_meta(key, &value) {
                faults.push(e);
            }
        })?;
        store.scan_all(Table::Spool, |key, value| {
            if let Err(e) = spool.recover_record(key, &value) {
                faults.push(e);
            }
        })?;
        if let Some(fault) = faults.pop() {
            return Err(fault.into());
        }
        // Trust first: it says who may have signed the others.
        for kind in [Kind::Trust, Kind::Revocations, Kind::Upstreams, Kind::Settings, Kind::Time] {
            if let Some(envelope) = documents.get(&(kind as u8)).and_then(|v| rmp_serde::from_slice(v).ok())
                && let Err(fault) = shelf.take(kind, &envelope)
            {
                tracing::warn!(?kind, %fault, "a stored document does not verify");
            }
        }
        let mut rows: BTreeMap<OrderNumber, BTreeMap<NodeId, Kept>> = BTreeMap::new();
        let (mut orders, mut tombs) = (Vec::new(), BTreeMap::new());
        store.scan_all(Table::Ledger, |key, value| match key.split_first() {
            Some((b'r', rest)) => {
                if let Some((order, device)) = target(rest) {
                    rows.entry(order).or_default().insert(device, kept(&value));
                }
            }
            Some((b't', rest)) => {
                let until = value[..].try_into().ok().map(i64::from_be_bytes).map(Millis);
                tombs.extend(target(rest).zip(until));
            }
            Some((b'o', _)) => orders.push(value),
            _ => {}
        })?;
        for (order, device) in tombs.keys() {
            if let Some(kept) = rows.get_mut(order).and_then(|devices| devices.get_mut(device)) {
                kept.closed = true;
            }
        }
        let mut ledger = Ledger::default();
        let mut cancels = Vec::new();
        for value in orders {
            let message: OrderMessage = rmp_serde::from_slice(&value).map_err(|e| Recovered::Ledger(e.to_string()))?;
            match verify_order(&message, &me.tenant, shelf.trust()) {
                Ok(verified) => {
                    let number = verified.payload.number;
                    if verified.payload.verb == CANCEL {
                        cancels.push((number, message.args.clone()));
                    }
                    let keep = |device| rows.get(&number).and_then(|open| open.get(&device).cloned());
                    let added = ledger.add(&me.tenant, verified.payload, message, keep);
                    added.map_err(|e| Recovered::Ledger(e.to_string()))?;
                }
                Err(fault) => tracing::warn!(%fault, "a stored order does not verify"),
            }
        }
        let receipts = Receipts::recover(receipts, &spool);
        let mut core = RelayCore::from_parts(defects, me, spool, ledger, shelf, attachment);
        core.receipts = receipts;
        core.age = Age::recovered(age);
        core.sleepers = super::sleepers::Sleepers::recovered(sleepers);
        core.disk = (disk.unwrap_or(incarnation), disk.is_some());
        (core.disks, core.tombs, core.time_kept) = (disks, tombs, time_kept);
        attached.into_iter().for_each(|(child, key)| core.directory.keep(child, key));
        core.time_kept = core.kept_time();
        core.ask_again(&mut Batch::new());
        for (cancel, args) in cancels {
            let devices: Vec<NodeId> = rows.get(&cancel).into_iter().flatten().map(|(device, _)| *device).collect();
            core.tell_holders(cancel, &args, &devices);
        }
        // Whether the parent heard of these before the crash is not known; hearing it twice changes nothing.
        for (order, devices) in &rows {
            let handed = devices.iter().filter(|(_, kept)| kept.row == Row::HandedOver);
            core.facts.extend(handed.map(|(device, _)| (*order, Fact::HandedOver as u8, *device)));
        }
        Ok(core)
    }
}
