//! The running server as the API sees it: [`Control`] over the dispatcher and the office.

use crate::{
    actors::{
        dispatcher::{
            CancelOrder, ChooseDevices, CountDevices, Dispatcher, DocumentsChanged, EndRecovery, FindDevice, FindOrder,
            IssueJob, NodeRevoked, ReissueJob, TenantMade, ViewContacts, ViewDevices, ViewFigures, ViewNodes,
            WaitComplete,
        },
        trunks::TrunkRegistry,
    },
    api::control::{
        Contacts, Control, Devices, NewJob, NodeView, RecoveryFigures, ServerFigures, TokenWish, Whereabouts,
    },
    domain::Office,
    store::JobRow,
};
use actix::Addr;
use async_trait::async_trait;
use branchline_node::supervise::ChildAddr;
use branchline_protocol::{
    document::Settings,
    id::{Epoch, JobId, NodeId, OrderNumber, Role, TenantId},
    refusal::Refusal,
    selector::Selector,
    time::Millis,
};
use bytes::Bytes;
use std::{collections::BTreeMap, sync::Arc, time::Duration};

/// The handle.
pub struct Steering {
    /// Jobs and presence.
    pub dispatcher: ChildAddr<Dispatcher>,
    /// Keys, tokens, documents.
    pub office: Office,
    /// Live trunks.
    pub trunks: Arc<TrunkRegistry>,
}

/// The dispatcher is being rebuilt; the caller may come again.
fn away<E>(_: E) -> Refusal {
    Refusal::new(503, "restarting", "the dispatcher is being rebuilt; try again").retry_after(1_000)
}

impl Steering {
    async fn dispatcher(&self) -> Result<Addr<Dispatcher>, Refusal> {
        let living = self.dispatcher.living();
        tokio::time::timeout(Duration::from_secs(10), living).await.map_err(away)
    }
}

#[async_trait]
impl Control for Steering {
    async fn issue(&self, tenant: &TenantId, who: &str, job: NewJob) -> Result<JobId, Refusal> {
        let ask = IssueJob { tenant: tenant.clone(), who: who.into(), job };
        self.dispatcher().await?.send(ask).await.map_err(away)?
    }

    async fn cancel(&self, tenant: &TenantId, who: &str, job: JobId) -> Result<(), Refusal> {
        let ask = CancelOrder { tenant: tenant.clone(), who: who.into(), job };
        self.dispatcher().await?.send(ask).await.map_err(away)?.map(|_| ())
    }

    async fn reissue(&self, who: &str, job: JobRow, devices: Vec<NodeId>) -> Result<JobId, Refusal> {
        self.dispatcher().await?.send(ReissueJob { who: who.into(), job, devices }).await.map_err(away)?
    }

    async fn whereabouts(&self, tenant: &TenantId, order: OrderNumber, device: NodeId) -> Result<Whereabouts, Refusal> {
        self.dispatcher().await?.send(FindOrder(tenant.clone(), order, device)).await.map_err(away)
    }

    async fn nodes(&self, tenant: &TenantId, role: Option<Role>) -> Result<Vec<NodeView>, Refusal> {
        self.dispatcher().await?.send(ViewNodes(tenant.clone(), role)).await.map_err(away)
    }

    async fn device(&self, tenant: &TenantId, words: &str) -> Result<Option<NodeId>, Refusal> {
        self.dispatcher().await?.send(FindDevice(tenant.clone(), words.into())).await.map_err(away)
    }

    async fn chosen(&self, tenant: &TenantId, on: &Selector) -> Result<Vec<NodeId>, Refusal> {
        self.dispatcher().await?.send(ChooseDevices(tenant.clone(), on.clone())).await.map_err(away)
    }

    async fn device_counts(&self, tenant: &TenantId, on: &Selector) -> Result<BTreeMap<&'static str, u64>, Refusal> {
        self.dispatcher().await?.send(CountDevices(tenant.clone(), on.clone())).await.map_err(away)
    }

    async fn devices(&self, tenant: &TenantId, devices: Vec<NodeId>) -> Result<Devices, Refusal> {
        self.dispatcher().await?.send(ViewDevices(tenant.clone(), devices)).await.map_err(away)
    }

    async fn contacts(&self, tenant: &TenantId, devices: Vec<NodeId>) -> Result<Contacts, Refusal> {
        self.dispatcher().await?.send(ViewContacts(tenant.clone(), devices)).await.map_err(away)
    }

    fn recovery(&self) -> RecoveryFigures {
        let now = self.office.time().now().mono;
        let recovering = self.office.recovery().map(|p| {
            let left = p.until.since(now).div_ceil(1_000);
            (p.heard as u64, p.awaited as u64, left)
        });
        RecoveryFigures { term: self.office.term(), recovering }
    }

    async fn end_recovery(&self, who: &str) -> Result<(), Refusal> {
        self.dispatcher().await?.send(EndRecovery).await.map_err(away)??;
        self.office.audit_end_of_recovery(who).await
    }

    async fn figures(&self) -> Result<ServerFigures, Refusal> {
        let mut figures = self.dispatcher().await?.send(ViewFigures).await.map_err(away)?;
        let mut live: BTreeMap<NodeId, (u32, u32)> = BTreeMap::new();
        for trunk in self.trunks.list() {
            let entry = live.entry(trunk.gateway).or_default();
            entry.0 += 1;
            entry.1 = entry.1.max(trunk.links);
        }
        for (id, _, trunks, links) in &mut figures.gateways {
            (*trunks, *links) = live.get(id).copied().unwrap_or_default();
        }
        Ok(figures)
    }

    async fn wait_complete(&self, tenant: &TenantId, job: JobId, ms: u64) -> Result<(), Refusal> {
        let done = self.dispatcher().await?.send(WaitComplete(tenant.clone(), job)).await.map_err(away)?;
        // Past the time the caller is answered with the job as it stands.
        let _ = tokio::time::timeout(Duration::from_millis(ms.min(30_000)), done).await;
        Ok(())
    }

    async fn revoke(&self, tenant: &TenantId, who: &str, node: NodeId) -> Result<Epoch, Refusal> {
        let revoked = self.office.revoke(tenant, who, node).await?;
        self.trunks.close(node);
        let told = NodeRevoked(tenant.clone(), node);
        self.dispatcher().await?.send(told).await.map_err(away)?;
        Ok(revoked.epoch)
    }

    async fn suspend(&self, tenant: &TenantId, who: &str, device: NodeId, suspended: bool) -> Result<(), Refusal> {
        self.office.suspend(tenant, who, device, suspended).await?;
        self.dispatcher().await?.send(DocumentsChanged(tenant.clone())).await.map_err(away)
    }

    async fn keep_connection(
        &self,
        tenant: &TenantId,
        who: &str,
        device: NodeId,
        keep: Option<bool>,
    ) -> Result<(), Refusal> {
        self.office.keep_connection(tenant, who, device, keep).await?;
        self.dispatcher().await?.send(DocumentsChanged(tenant.clone())).await.map_err(away)
    }

    async fn enrol_token(&self, tenant: &TenantId, who: &str, wish: TokenWish) -> Result<(String, Millis), Refusal> {
        self.office.make_token(tenant, who, &wish).await
    }

    async fn bundle(&self, tenant: &TenantId, who: &str, wish: TokenWish) -> Result<(String, Millis), Refusal> {
        self.office.bundle(tenant, who, &wish).await
    }

    async fn tenant(&self, who: &str, name: TenantId, sites: Vec<String>) -> Result<String, Refusal> {
        let secret = self.office.add_tenant(who, name.clone(), sites).await?;
        self.dispatcher().await?.send(TenantMade(name)).await.map_err(away)?;
        Ok(secret)
    }

    async fn site(&self, tenant: &TenantId, who: &str, name: String) -> Result<(), Refusal> {
        self.office.add_site(tenant, who, name).await
    }

    async fn settings(&self, tenant: &TenantId) -> Result<Settings, Refusal> {
        self.office.settings(tenant)
    }

    async fn set_settings(&self, tenant: &TenantId, who: &str, settings: Settings) -> Result<Settings, Refusal> {
        self.office.set_settings(tenant, who, settings).await
    }

    async fn gateway_address(&self, who: &str, public: String, outer_root: Option<Bytes>) -> Result<(), Refusal> {
        self.office.add_gateway(who, public, outer_root).await
    }
}
