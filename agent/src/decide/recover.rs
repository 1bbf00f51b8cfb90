//! A core from what the disk holds.

use super::{
    core::{ATTACHMENT, AgentCore},
    documents::Documents,
    event::Me,
    inventory, journal, kept,
    rolled_back::ROLLED_BACK,
    schedule,
    wake::WAKE,
};
use branchline_node::{
    defects::{Defects, NoDefects},
    store::{Batch, Scan, StoreError, Table},
    uplink::spool::{Spool, SpoolFault},
};
use branchline_protocol::{
    document::{Kind, Upstream},
    order::Envelope,
    trust::TrustDocument,
};
use bytes::Bytes;
use std::collections::BTreeMap;

/// Everything an agent's core needs of its store, in key order.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    /// By table.
    pub tables: BTreeMap<Table, Vec<(Vec<u8>, Bytes)>>,
}

/// Why the disk's content is no agent's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecoverFault {
    /// It cannot be read.
    #[error("read the store: {0}")]
    Store(#[from] StoreError),
    /// A record.
    #[error("recover the spool: {0}")]
    Spool(#[from] SpoolFault),
    /// An order.
    #[error("recover the journal: {0}")]
    Journal(#[from] journal::Unreadable),
    /// A settled result.
    #[error("recover what is kept: {0}")]
    Kept(#[from] kept::Unreadable),
    /// A section.
    #[error("recover the inventory: {0}")]
    Inventory(#[from] inventory::Unreadable),
    /// What the schedule remembers.
    #[error("recover the schedule: {0}")]
    Schedule(#[from] schedule::Unreadable),
    /// The count of links.
    #[error("recover the attachment number: it is no number")]
    Attachment,
    /// The epoch in which the disk was found to be put back.
    #[error("recover the epoch of a disk that was put back: it is no number")]
    RolledBack,
}

impl Rows {
    /// Reads them. Blocks.
    pub fn read(store: &impl Scan) -> Result<Rows, StoreError> {
        let mut tables = BTreeMap::new();
        for table in [Table::Meta, Table::Spool, Table::Journal, Table::Inventory] {
            let mut rows = Vec::new();
            store.scan_all(table, |key, value| rows.push((key.to_vec(), value)))?;
            tables.insert(table, rows);
        }
        Ok(Rows { tables })
    }

    fn of(&self, table: Table) -> impl Iterator<Item = (&[u8], &Bytes)> {
        self.tables.get(&table).into_iter().flatten().map(|(key, value)| (key.as_slice(), value))
    }
}

impl AgentCore {
    /// The core of an agent whose store was opened as `incarnation`. `trust` and `upstreams` are the bundle's: they
    /// count until newer ones came.
    pub fn recover(
        me: Me,
        trust: TrustDocument,
        upstreams: Vec<Upstream>,
        incarnation: u64,
        rows: &Rows,
    ) -> Result<AgentCore, RecoverFault> {
        AgentCore::recover_with(NoDefects, me, trust, upstreams, incarnation, rows)
    }
}

impl<D: Defects> AgentCore<D> {
    /// The same with defects, for the simulator.
    pub fn recover_with(
        defects: D,
        me: Me,
        trust: TrustDocument,
        upstreams: Vec<Upstream>,
        incarnation: u64,
        rows: &Rows,
    ) -> Result<Self, RecoverFault> {
        let mut spool = Spool::new(me.node, me.epoch, incarnation).with_signer(me.tenant.clone(), me.signer.clone());
        for (key, value) in rows.of(Table::Meta) {
            spool.recover_meta(key, value)?;
        }
        for (key, value) in rows.of(Table::Spool) {
            spool.recover_record(key, value)?;
        }
        let documents = Documents::new(me.clone(), trust, upstreams);
        let mut core = AgentCore::of(defects, me, spool, documents);
        for (key, value) in rows.of(Table::Meta) {
            core.schedule.recover(key, value)?;
            core.kept.recover(key, value)?;
        }
        for (key, value) in rows.of(Table::Journal) {
            core.journal.recover(key, value)?;
        }
        for (key, value) in rows.of(Table::Inventory) {
            core.inventory.recover(key, value)?;
        }
        let meta: BTreeMap<&[u8], &Bytes> = rows.of(Table::Meta).collect();
        if let Some(value) = meta.get(ATTACHMENT) {
            let number = <[u8; 8]>::try_from(value.as_ref()).map_err(|_| RecoverFault::Attachment)?;
            core.attachment = u64::from_be_bytes(number);
        }
        if let Some(value) = meta.get(WAKE) {
            core.wake.recover(value);
        }
        if let Some(value) = meta.get(ROLLED_BACK) {
            let epoch = <[u8; 4]>::try_from(value.as_ref()).map_err(|_| RecoverFault::RolledBack)?;
            core.rolled_back = Some(u32::from_be_bytes(epoch));
        }
        let kept: Vec<(Kind, Envelope)> = Kind::ALL
            .into_iter()
            .filter_map(|kind| {
                let value = meta.get(Documents::key_of(kind).as_slice())?;
                Some((kind, rmp_serde::from_slice(value).ok()?))
            })
            .collect();
        // They are on disk already.
        core.adopt(&kept, &mut Batch::new());
        Ok(core)
    }

    /// Takes documents that came outside a link, at enrolment or from the disk: trust first, because it says who may
    /// sign the others. One that does not hold is left out; the next greeting asks for it.
    pub fn adopt(&mut self, documents: &[(Kind, Envelope)], batch: &mut Batch) {
        let (trust, rest): (Vec<_>, Vec<_>) = documents.iter().partition(|(kind, _)| *kind == Kind::Trust);
        for (kind, envelope) in trust.into_iter().chain(rest) {
            if let Err(fault) = self.documents.take(*kind, envelope, batch) {
                tracing::warn!(?kind, %fault, "a document was not taken");
            }
        }
        self.me.epoch = self.documents.my_epoch();
        self.spool.set_epoch(self.me.epoch);
        if let Some(statement) = self.documents.time() {
            let (term, floor) = (statement.term, statement.order_floor);
            self.journal.set_floor(term, floor, batch);
        }
    }
}
