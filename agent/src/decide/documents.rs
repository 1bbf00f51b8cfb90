//! The newest of each signed document: verified, and only ever replaced by a newer one. What follows from a document is
//! the core's business.

use super::event::Me;
use branchline_node::{
    identity::verify_trust,
    store::{Batch, Table},
};
use branchline_protocol::{
    document::{Document, DocumentFault, Kind, Revocations, Settings, TimeStatement, Upstream, UpstreamList, open},
    id::Epoch,
    order::Envelope,
    trust::TrustDocument,
    wire::Contact,
};
use std::collections::BTreeMap;

/// First bytes of the documents' keys in [`Table::Meta`].
const KEY: &[u8] = b"document/";

/// A time statement is written down at least this often, in milliseconds of node time: a restart then knows the time to
/// that much, and an idle device does not sync its disk every minute.
const TIME_EVERY_MS: i64 = 600_000;

/// What a document that was taken changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Its kind.
    pub kind: Kind,
    /// Whether the batch has something to remember for it.
    pub written: bool,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Documents {
    me: Me,
    trust: TrustDocument,
    first_upstreams: Vec<Upstream>,
    revocations: Option<Revocations>,
    upstreams: Option<UpstreamList>,
    settings: Option<Settings>,
    time: Option<TimeStatement>,
    /// The statement that was written down last.
    time_written: Option<TimeStatement>,
    /// The newest of each kind as it came.
    envelopes: BTreeMap<Kind, Envelope>,
}

impl Documents {
    /// What the bundle says: its trust document, and its upstreams as the first list.
    pub fn new(me: Me, trust: TrustDocument, first_upstreams: Vec<Upstream>) -> Self {
        let (revocations, upstreams, settings, time) = (None, None, None, None);
        let (time_written, envelopes) = (None, BTreeMap::new());
        Documents { me, trust, first_upstreams, revocations, upstreams, settings, time, time_written, envelopes }
    }

    /// Takes a document if it is verified and newer than what is here; `None` when it is not newer.
    ///
    /// # Errors
    /// It is not what it says it is; nothing changed.
    pub fn take(&mut self, kind: Kind, envelope: &Envelope, batch: &mut Batch) -> Result<Option<Taken>, DocumentFault> {
        let (tenant, keys) = (&self.me.tenant, self.trust.server_keys());
        let mut written = true;
        let newer = match kind {
            Kind::Trust => {
                let found = verify_trust(envelope, tenant, self.me.root)?;
                let newer = found.version() > self.trust.version();
                if newer {
                    self.trust = found;
                }
                newer
            }
            Kind::Revocations => replace(&mut self.revocations, open(envelope, tenant, &keys)?),
            Kind::Upstreams => {
                let found: UpstreamList = open(envelope, tenant, &keys)?;
                found.site == self.me.site && replace(&mut self.upstreams, found)
            }
            Kind::Settings => replace(&mut self.settings, open(envelope, tenant, &keys)?),
            Kind::Time => {
                let found: TimeStatement = open(envelope, tenant, &keys)?;
                written = self.time_written.as_ref().is_none_or(|old| {
                    (old.term, old.order_floor) != (found.term, found.order_floor)
                        || found.time.0 - old.time.0 >= TIME_EVERY_MS
                });
                if replace(&mut self.time, found.clone()) {
                    if written {
                        self.time_written = Some(found);
                    }
                    true
                } else {
                    false
                }
            }
        };
        if !newer {
            return Ok(None);
        }
        self.envelopes.insert(kind, envelope.clone());
        if written {
            let value = rmp_serde::to_vec(envelope).expect("an envelope is plain data");
            batch.put(Table::Meta, key(kind), value);
        }
        Ok(Some(Taken { kind, written }))
    }

    /// The key under which a kind is kept.
    pub fn key_of(kind: Kind) -> Vec<u8> {
        key(kind)
    }

    /// What counts now.
    pub fn trust(&self) -> &TrustDocument {
        &self.trust
    }

    /// Who may be a parent, in order of preference.
    pub fn upstreams(&self) -> &[Upstream] {
        self.upstreams.as_ref().map_or(&self.first_upstreams, |list| &list.upstreams)
    }

    /// The newest settings.
    pub fn settings(&self) -> Option<&Settings> {
        self.settings.as_ref()
    }

    /// The newest time statement.
    pub fn time(&self) -> Option<&TimeStatement> {
        self.time.as_ref()
    }

    /// Whether this device, in this epoch, is refused everywhere.
    pub fn revokes_me(&self) -> bool {
        self.revocations.as_ref().is_some_and(|list| list.covers(self.me.node, self.me.epoch))
    }

    /// The epoch in which this device goes on.
    pub fn my_epoch(&self) -> Epoch {
        self.revocations.as_ref().map_or(self.me.epoch, |list| list.epoch_of(self.me.node, self.me.epoch))
    }

    /// What this device asks of its parent: as the list says, else as it is configured (ADM-1). A parent that has the same
    /// list decides by that, whatever is asked.
    pub fn contact(&self) -> Contact {
        match self.revocations.as_ref().and_then(|list| list.keeps(self.me.node)) {
            Some(true) => Contact::Persistent,
            Some(false) => Contact::Poll,
            None => self.me.contact,
        }
    }

    /// Whether this device is to begin and collect nothing until it is revived (JOB-16).
    pub fn suspends_me(&self) -> bool {
        self.revocations.as_ref().is_some_and(|list| list.suspends(self.me.node))
    }

    /// (term, version) of each, in [`Kind::ALL`] order; (0, 0) where there is none.
    pub fn versions(&self) -> Vec<(u32, u64)> {
        Kind::ALL
            .into_iter()
            .map(|kind| match kind {
                Kind::Revocations => version(&self.revocations),
                Kind::Trust => self.trust.version(),
                Kind::Upstreams => version(&self.upstreams),
                Kind::Settings => version(&self.settings),
                Kind::Time => version(&self.time),
            })
            .collect()
    }

    /// What a restored server asks for, as far as it is newer than what it says it has (OPS-7).
    pub fn newer_than(&self, asked: &[(Kind, (u32, u64))]) -> Vec<(Kind, Envelope)> {
        let versions: BTreeMap<Kind, (u32, u64)> = Kind::ALL.into_iter().zip(self.versions()).collect();
        let newer = asked.iter().filter(|(kind, than)| versions.get(kind).is_some_and(|version| version > than));
        newer.filter_map(|(kind, _)| Some((*kind, self.envelopes.get(kind)?.clone()))).collect()
    }

    /// The newest term seen.
    pub fn term(&self) -> u32 {
        self.versions().into_iter().map(|(term, _)| term).max().unwrap_or(0)
    }
}

fn key(kind: Kind) -> Vec<u8> {
    let word = kind.payload_type();
    [KEY, word.as_bytes()].concat()
}

fn version<D: Document>(document: &Option<D>) -> (u32, u64) {
    document.as_ref().map_or((0, 0), D::version)
}

fn replace<D: Document>(held: &mut Option<D>, found: D) -> bool {
    let newer = held.as_ref().is_none_or(|held| found.version() > held.version());
    if newer {
        *held = Some(found);
    }
    newer
}
