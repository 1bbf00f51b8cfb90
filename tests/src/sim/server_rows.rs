//! The server's store as plain maps: what each [`Op`] does, without a database. The differential test holds it equal to
//! SQLite; the simulator's server keeps its rows here, with what a crash loses.

use branchline_protocol::{
    document::Kind,
    hash::Hash,
    id::{JobId, NodeId, TenantId},
    inventory::Items,
    job::State,
    order::Envelope,
    time::Millis,
};
use branchline_server::store::{
    ApiTokenRow, AuditRow, DEAD_LETTERS_MAX, DeadLetterRow, INVENTORY_HISTORY_MAX, InventoryRow, JobDeviceRow, JobRow,
    NodeRow, Op, StreamRow, TokenRow,
};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};

/// A condition of a batch did not hold; nothing of it was kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict;

/// One job with its devices: those with a leaf by leaf, then the words of those without.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    /// The job.
    pub row: JobRow,
    /// Its devices.
    pub devices: Vec<JobDeviceRow>,
}

impl Job {
    /// Whether a device is short of its end.
    pub fn is_open(&self) -> bool {
        self.devices.iter().any(|d| !d.state.is_end())
    }
}

/// A document's (term, version) and its signed form.
pub type Versioned = ((u32, u64), Envelope);

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct ServerRows {
    /// Tenants.
    pub tenants: BTreeSet<TenantId>,
    /// Sites.
    pub sites: BTreeSet<(TenantId, String)>,
    /// Nodes.
    pub nodes: BTreeMap<(TenantId, NodeId), NodeRow>,
    /// Enrolment tokens.
    pub tokens: BTreeMap<Hash, TokenRow>,
    /// API tokens.
    pub api_tokens: BTreeMap<Hash, ApiTokenRow>,
    /// Jobs.
    pub jobs: BTreeMap<(TenantId, JobId), Job>,
    /// Jobs with a device short of its end.
    pub open: BTreeSet<(TenantId, JobId)>,
    /// Stream positions by their key.
    pub streams: BTreeMap<(TenantId, [u8; 29]), StreamRow>,
    /// Streams that were held once and are forgotten. No row of the real store.
    pub forgotten: BTreeSet<(TenantId, [u8; 29])>,
    /// Inventories; whether one is asked for anew is in [`ServerRows::wanted`].
    pub inventories: BTreeMap<(TenantId, NodeId), InventoryRow>,
    /// Devices whose inventory is asked for anew.
    pub wanted: BTreeSet<(TenantId, NodeId)>,
    /// Reports kept as history, oldest first.
    pub history: BTreeMap<(TenantId, NodeId), Vec<(Millis, Bytes)>>,
    /// Documents by tenant, kind and site.
    pub documents: BTreeMap<(TenantId, Kind, String), Versioned>,
    /// Values of the installation.
    pub meta: BTreeMap<String, Bytes>,
    /// Audited acts, oldest first.
    pub audit: Vec<AuditRow>,
    /// Refused records, oldest first.
    pub dead_letters: BTreeMap<TenantId, Vec<DeadLetterRow>>,
}

impl ServerRows {
    /// A batch, all or nothing.
    pub fn commit(&mut self, batch: &[Op]) -> Result<(), Conflict> {
        let may_conflict = |op: &Op| {
            matches!(op, Op::Tenant(_) | Op::Site(..) | Op::Node(_) | Op::Token(_) | Op::UseToken(_) | Op::Job(..))
        };
        // A batch of one cannot be kept by half.
        if batch.len() > 1 && batch.iter().any(may_conflict) {
            let mut after = self.clone();
            batch.iter().try_for_each(|op| after.apply(op))?;
            *self = after;
            return Ok(());
        }
        batch.iter().try_for_each(|op| self.apply(op))
    }

    /// A batch whose conditions hold: without the copy that would take it back.
    pub fn commit_sound(&mut self, batch: &[Op]) -> Result<(), Conflict> {
        batch.iter().try_for_each(|op| self.apply(op))
    }

    /// A job.
    pub fn job(&self, tenant: &TenantId, job: JobId) -> Option<&Job> {
        self.jobs.get(&(tenant.clone(), job))
    }

    /// A device's inventory.
    pub fn inventory(&self, tenant: &TenantId, device: NodeId) -> Option<InventoryRow> {
        let key = (tenant.clone(), device);
        let row = self.inventories.get(&key)?.clone();
        Some(InventoryRow { need_full: self.wanted.contains(&key), ..row })
    }

    fn apply(&mut self, op: &Op) -> Result<(), Conflict> {
        match op {
            Op::Tenant(tenant) => self.tenants.insert(tenant.clone()).then_some(()).ok_or(Conflict)?,
            Op::Site(tenant, site) => {
                if !self.tenants.contains(tenant) {
                    return Err(Conflict);
                }
                self.sites.insert((tenant.clone(), site.clone())).then_some(()).ok_or(Conflict)?;
            }
            Op::Node(row) => {
                let taken = |other: &NodeRow| {
                    other.tenant == row.tenant
                        && other.role == row.role
                        && other.id != row.id
                        && other.name.to_lowercase() == row.name.to_lowercase()
                        && other.revoked_at.is_none()
                };
                if row.revoked_at.is_none() && self.nodes.values().any(taken) {
                    return Err(Conflict);
                }
                self.nodes.insert((row.tenant.clone(), row.id), row.clone());
            }
            Op::Attached { tenant, node, epoch, attachment, route, last_contact, capabilities } => {
                if let Some(row) = self.nodes.get_mut(&(tenant.clone(), *node))
                    && (row.epoch, row.attachment) <= (*epoch, *attachment)
                {
                    (row.epoch, row.attachment, row.last_contact) = (*epoch, *attachment, Some(*last_contact));
                    (row.route, row.capabilities) = (route.clone(), capabilities.clone());
                }
            }
            Op::Token(row) => {
                if self.tokens.contains_key(&row.hash) {
                    return Err(Conflict);
                }
                self.tokens.insert(row.hash, row.clone());
            }
            Op::UseToken(hash) => {
                let token = self.tokens.get_mut(hash).filter(|t| t.uses_left > 0).ok_or(Conflict)?;
                token.uses_left -= 1;
            }
            Op::ApiToken(row) => {
                self.api_tokens.insert(row.hash, row.clone());
            }
            Op::Job(row, devices) => {
                let key = (row.tenant.clone(), row.id);
                if self.jobs.contains_key(&key) {
                    return Err(Conflict);
                }
                let mut devices = devices.clone();
                devices.iter_mut().for_each(|d| (d.delivered_at, d.late) = (None, false));
                devices.sort_by_key(|d| (d.leaf.is_none(), d.leaf));
                let job = Job { row: JobRow::clone(row), devices };
                if job.is_open() {
                    self.open.insert(key.clone());
                }
                self.jobs.insert(key, job);
            }
            Op::Recalled(row, devices) => {
                let key = (row.tenant.clone(), row.id);
                let taken = |(of, other): (&(TenantId, JobId), &Job)| {
                    of.0 == row.tenant && of.1 != row.id && other.row.number == row.number
                };
                if self.jobs.iter().any(taken) {
                    return Ok(());
                }
                let job = self
                    .jobs
                    .entry(key.clone())
                    .or_insert_with(|| Job { row: JobRow::clone(row), devices: Vec::new() });
                for device in devices.iter().filter(|device| device.device.is_ok()) {
                    if !job.devices.iter().any(|known| known.device == device.device) {
                        let new = JobDeviceRow { delivered_at: None, late: false, ..device.clone() };
                        job.devices.push(JobDeviceRow { holders: Vec::new(), result: None, ..new });
                    }
                }
                job.devices.sort_by_key(|d| (d.leaf.is_none(), d.leaf));
                if job.is_open() {
                    self.open.insert(key);
                }
            }
            Op::Holders { tenant, job, device, holders } => {
                if let Some(row) = self.device(tenant, *job, *device) {
                    row.holders.clone_from(holders);
                }
            }
            Op::LateResult { tenant, order, device, state, reason, at, result } => {
                let of = |((of, _), job): &(&(TenantId, JobId), &Job)| of == tenant && job.row.number == *order;
                let Some(job) = self.jobs.iter().find(of).map(|((_, job), _)| *job) else { return Ok(()) };
                if let Some(row) = self.device(tenant, job, *device)
                    && matches!(row.state, State::Expired | State::OutcomeUnknown)
                    && row.result.is_none()
                {
                    (row.state, row.reason, row.changed_at) = (*state, reason.clone(), *at);
                    (row.late, row.result) = (true, Some(result.clone()));
                }
            }
            Op::JobDevice { tenant, job, device, state, reason, at, result } => {
                self.job_device(tenant, *job, *device, *state, reason.clone(), *at, result.clone());
            }
            Op::Stream(tenant, row) => {
                let key = (tenant.clone(), row.stream.key());
                self.forgotten.remove(&key);
                self.streams.insert(key, *row);
            }
            Op::Inventory {
                tenant,
                device,
                put,
                gone,
                digest,
                collected_at,
                settings_version,
                need_full,
                clock_skew,
            } => {
                let key = (tenant.clone(), *device);
                let row = self.inventories.entry(key.clone()).or_insert_with(|| InventoryRow {
                    sections: BTreeMap::<String, Items>::new(),
                    digest: *digest,
                    collected_at: *collected_at,
                    settings_version: *settings_version,
                    need_full: false,
                    clock_skew: *clock_skew,
                });
                row.clock_skew = *clock_skew;
                row.sections.retain(|name, _| !gone.contains(name));
                row.sections.extend(put.iter().map(|(name, items)| (name.clone(), items.clone())));
                (row.digest, row.collected_at, row.settings_version) = (*digest, *collected_at, *settings_version);
                match need_full {
                    true => self.wanted.insert(key),
                    false => self.wanted.remove(&key),
                };
            }
            Op::InventoryHistory { tenant, device, collected_at, report } => {
                let kept = self.history.entry((tenant.clone(), *device)).or_default();
                kept.push((*collected_at, report.clone()));
                let over = kept.len().saturating_sub(INVENTORY_HISTORY_MAX as usize);
                kept.drain(..over);
            }
            Op::NeedFull(tenant, device) => {
                self.wanted.insert((tenant.clone(), *device));
            }
            Op::Document(tenant, kind, site, version, envelope) => {
                let key = (tenant.clone(), *kind, site.clone());
                if self.documents.get(&key).is_none_or(|(held, _)| held <= version) {
                    self.documents.insert(key, (*version, envelope.clone()));
                }
            }
            Op::Meta(key, value) => {
                self.meta.insert(key.clone(), value.clone());
            }
            Op::Audit(row) => self.audit.push(row.clone()),
            Op::StreamGone(tenant, stream) => {
                self.streams.remove(&(tenant.clone(), stream.key()));
                self.forgotten.insert((tenant.clone(), stream.key()));
            }
            Op::DeadLetter(row) => {
                let kept = self.dead_letters.entry(row.tenant.clone()).or_default();
                kept.push(row.clone());
                let over = kept.len().saturating_sub(DEAD_LETTERS_MAX as usize);
                kept.drain(..over);
            }
        }
        Ok(())
    }

    #[allow(clippy::too_many_arguments, reason = "one row of the store, spelled out")]
    fn job_device(
        &mut self,
        tenant: &TenantId,
        job: JobId,
        device: NodeId,
        state: State,
        reason: Option<String>,
        at: Millis,
        result: Option<branchline_server::store::ResultRow>,
    ) {
        let key = (tenant.clone(), job);
        let Some(row) = self.device(tenant, job, device) else { return };
        if state == State::Delivered {
            row.delivered_at.get_or_insert(at);
        }
        (row.state, row.reason, row.changed_at) = (state, reason, at);
        if result.is_some() {
            row.result = result;
        }
        match self.jobs.get(&key).is_some_and(Job::is_open) {
            true => self.open.insert(key),
            false => self.open.remove(&key),
        };
    }

    fn device(&mut self, tenant: &TenantId, job: JobId, device: NodeId) -> Option<&mut JobDeviceRow> {
        let held = self.jobs.get_mut(&(tenant.clone(), job))?;
        held.devices.iter_mut().find(|d| d.device == Ok(device))
    }
}
