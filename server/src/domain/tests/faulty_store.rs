//! The real store with a switch that makes writes fail and a gate that holds up the word of their success.

use crate::store::{
    ApiTokenRow, AuditRow, DeadLetterRow, Delivery, InventoryRow, InventorySummary, JobDeviceRow, JobHead, JobRow,
    NodeRow, Op, Store, StoreError, StreamRow, TokenRow,
};
use async_trait::async_trait;
use branchline_protocol::{
    document::Kind,
    hash::Hash,
    id::{JobId, NodeId, TenantId},
    job::State,
    order::Envelope,
    time::Millis,
};
use bytes::Bytes;
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::sync::{RwLock, watch};

pub struct FaultyStore {
    real: Arc<dyn Store>,
    fails: AtomicBool,
    /// Held for writing, it holds up the word that a batch is written.
    pub gate: RwLock<()>,
    written: watch::Sender<u64>,
}

impl FaultyStore {
    pub fn over(real: Arc<dyn Store>) -> Arc<FaultyStore> {
        let written = watch::Sender::new(0);
        Arc::new(FaultyStore { real, fails: AtomicBool::new(false), gate: RwLock::new(()), written })
    }

    pub fn set_failing(&self, fails: bool) {
        self.fails.store(fails, Ordering::SeqCst);
    }

    /// How many batches are written.
    pub fn written(&self) -> watch::Receiver<u64> {
        self.written.subscribe()
    }
}

type Kept<T> = Result<T, StoreError>;

#[async_trait]
impl Store for FaultyStore {
    async fn commit(&self, batch: Vec<Op>) -> Kept<()> {
        if self.fails.load(Ordering::SeqCst) {
            return Err(StoreError::Database("the disk is gone".into()));
        }
        self.real.commit(batch).await?;
        self.written.send_modify(|n| *n += 1);
        let _open = self.gate.read().await;
        Ok(())
    }
    fn fsyncs(&self) -> u64 {
        self.real.fsyncs()
    }
    async fn tenants(&self) -> Kept<Vec<TenantId>> {
        self.real.tenants().await
    }
    async fn sites(&self, tenant: &TenantId) -> Kept<Vec<String>> {
        self.real.sites(tenant).await
    }
    async fn nodes(&self) -> Kept<Vec<NodeRow>> {
        self.real.nodes().await
    }
    async fn node(&self, tenant: &TenantId, id: NodeId) -> Kept<Option<NodeRow>> {
        self.real.node(tenant, id).await
    }
    async fn token(&self, hash: Hash) -> Kept<Option<TokenRow>> {
        self.real.token(hash).await
    }
    async fn api_token(&self, hash: Hash) -> Kept<Option<ApiTokenRow>> {
        self.real.api_token(hash).await
    }
    async fn jobs(&self, tenant: &TenantId, limit: u32) -> Kept<Vec<JobHead>> {
        self.real.jobs(tenant, limit).await
    }
    async fn job(&self, tenant: &TenantId, job: JobId) -> Kept<Option<JobRow>> {
        self.real.job(tenant, job).await
    }
    async fn job_devices(&self, tenant: &TenantId, job: JobId) -> Kept<Vec<JobDeviceRow>> {
        self.real.job_devices(tenant, job).await
    }
    async fn job_device(&self, tenant: &TenantId, job: JobId, device: NodeId) -> Kept<Option<JobDeviceRow>> {
        self.real.job_device(tenant, job, device).await
    }
    async fn job_counts(&self, tenant: &TenantId, job: JobId) -> Kept<BTreeMap<State, u64>> {
        self.real.job_counts(tenant, job).await
    }
    async fn steering(&self, tenant: &TenantId, job: JobId) -> Kept<Vec<JobRow>> {
        self.real.steering(tenant, job).await
    }
    async fn open_jobs(&self) -> Kept<Vec<JobRow>> {
        self.real.open_jobs().await
    }
    async fn streams(&self) -> Kept<Vec<(TenantId, StreamRow)>> {
        self.real.streams().await
    }
    async fn dead_letters(&self, tenant: &TenantId, limit: u32) -> Kept<Vec<DeadLetterRow>> {
        self.real.dead_letters(tenant, limit).await
    }
    async fn inventory(&self, tenant: &TenantId, device: NodeId) -> Kept<Option<InventoryRow>> {
        self.real.inventory(tenant, device).await
    }
    async fn last_deliveries(&self, tenant: &TenantId, devices: &[NodeId]) -> Kept<BTreeMap<NodeId, Delivery>> {
        self.real.last_deliveries(tenant, devices).await
    }
    async fn inventory_summaries(
        &self,
        tenant: &TenantId,
        devices: &[NodeId],
    ) -> Kept<BTreeMap<NodeId, InventorySummary>> {
        self.real.inventory_summaries(tenant, devices).await
    }
    async fn inventory_history(&self, tenant: &TenantId, device: NodeId) -> Kept<Vec<(Millis, Bytes)>> {
        self.real.inventory_history(tenant, device).await
    }
    async fn need_full(&self) -> Kept<Vec<(TenantId, NodeId)>> {
        self.real.need_full().await
    }
    async fn documents(&self, tenant: &TenantId) -> Kept<Vec<(Kind, String, Envelope)>> {
        self.real.documents(tenant).await
    }
    async fn meta(&self, key: &str) -> Kept<Option<Bytes>> {
        self.real.meta(key).await
    }
    async fn metas(&self, prefix: &str) -> Kept<Vec<(String, Bytes)>> {
        self.real.metas(prefix).await
    }
    async fn audit(&self, tenant: &TenantId, limit: u32) -> Kept<Vec<AuditRow>> {
        self.real.audit(tenant, limit).await
    }
    async fn close(&self) {
        self.real.close().await;
    }
}
