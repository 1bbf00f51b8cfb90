//! The relay's rows on disk, and its state from them.
//!
//! | table | key | value |
//! |---|---|---|
//! | Meta | `attachment` | u64 |
//! | Meta | `d` + kind | envelope of a document |
//! | Meta, Spool | | see [`branchline_node::uplink::spool`] |
//! | Ledger | `o` + order number + first leaf's device | order message |
//! | Ledger | `r` + order number + device | row: waiting 0, held 1 + relay, handed over 2 |

use super::{
    shelf::Shelf,
    state::{Me, RelayCore},
};
use branchline_node::{
    downstream::ledger::{Change, Ledger, Row},
    identity::RootKey,
    store::{Batch, StoreError, StoreHandle, Table},
    uplink::spool::{Spool, SpoolFault},
};
use branchline_protocol::{
    document::Kind,
    id::{NodeId, OrderNumber},
    order::{Envelope, OrderMessage, verify_order},
    record::Fact,
    trust::TrustDocument,
};
use std::collections::BTreeMap;
use uuid::Uuid;

/// Key of the attachment number.
pub const ATTACHMENT: &[u8] = b"attachment";

fn numbered(kind: u8, order: OrderNumber) -> Vec<u8> {
    [&[kind][..], &order.term.to_be_bytes(), &order.number.to_be_bytes()].concat()
}

/// Keeps an order as it came.
pub fn order(number: OrderNumber, message: &OrderMessage, batch: &mut Batch) {
    let first = message.proof.leaves.first().map(|(_, l)| *l.device.bytes()).unwrap_or_default();
    let key = [numbered(b'o', number), first.to_vec()].concat();
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
    let value = match change.row {
        None => {
            batch.delete(Table::Ledger, key);
            return;
        }
        Some(Row::Waiting | Row::Offered(_)) => vec![0],
        Some(Row::Held(relay)) => [&[1][..], relay.bytes()].concat(),
        Some(Row::HandedOver) => vec![2],
    };
    batch.put(Table::Ledger, key, value);
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
        store: &StoreHandle,
    ) -> Result<RelayCore, Recovered> {
        let mut shelf = Shelf::new(me.tenant.clone(), root, trust);
        let mut spool = Spool::new(me.node, me.epoch, incarnation);
        let mut attachment = 0;
        let mut faults = Vec::new();
        let mut documents = BTreeMap::new();
        store.scan_all(Table::Meta, |key, value| {
            if key == ATTACHMENT {
                attachment = value[..].try_into().map(u64::from_be_bytes).unwrap_or(0);
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
        for kind in [Kind::Trust, Kind::Revocations, Kind::Upstreams, Kind::Settings] {
            if let Some(envelope) = documents.get(&(kind as u8)).and_then(|v| rmp_serde::from_slice(v).ok())
                && let Err(fault) = shelf.take(kind, &envelope)
            {
                tracing::warn!(?kind, %fault, "a stored document does not verify");
            }
        }
        let mut rows: BTreeMap<OrderNumber, BTreeMap<NodeId, Row>> = BTreeMap::new();
        let mut orders = Vec::new();
        store.scan_all(Table::Ledger, |key, value| match key.split_first() {
            Some((b'r', rest)) if rest.len() == 28 => {
                let node = |bytes: &[u8]| Uuid::from_slice(bytes).map(NodeId).ok();
                let number = OrderNumber {
                    term: u32::from_be_bytes(rest[..4].try_into().expect("4 bytes")),
                    number: u64::from_be_bytes(rest[4..12].try_into().expect("8 bytes")),
                };
                let row = match value.split_first() {
                    Some((1, relay)) => node(relay).map_or(Row::Waiting, Row::Held),
                    Some((2, _)) => Row::HandedOver,
                    _ => Row::Waiting,
                };
                if let Some(device) = node(&rest[12..]) {
                    rows.entry(number).or_default().insert(device, row);
                }
            }
            Some((b'o', _)) => orders.push(value),
            _ => {}
        })?;
        let mut ledger = Ledger::default();
        for value in orders {
            let message: OrderMessage = rmp_serde::from_slice(&value).map_err(|e| Recovered::Ledger(e.to_string()))?;
            match verify_order(&message, &me.tenant, shelf.trust()) {
                Ok(verified) => {
                    let none = BTreeMap::new();
                    let open = rows.get(&verified.payload.number).unwrap_or(&none);
                    let added = ledger.add(&me.tenant, verified.payload, message, Some(open));
                    added.map_err(|e| Recovered::Ledger(e.to_string()))?;
                }
                Err(fault) => tracing::warn!(%fault, "a stored order does not verify"),
            }
        }
        let mut core = RelayCore::from_parts(me, spool, ledger, shelf, attachment);
        // Whether the parent heard of these before the crash is not known; hearing it twice changes nothing.
        for (order, devices) in &rows {
            let handed = devices.iter().filter(|(_, row)| **row == Row::HandedOver);
            core.facts.extend(handed.map(|(device, _)| (*order, Fact::HandedOver as u8, *device)));
        }
        Ok(core)
    }
}
