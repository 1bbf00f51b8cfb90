//! What the API asks of the running server: everything that is not a plain read of the store.

use super::names::Names;
use crate::{dispatch::Promise, store::JobRow};
use async_trait::async_trait;
use branchline_node::downstream::ledger::Row;
use branchline_protocol::{
    capability::Reached,
    document::Settings,
    id::{Epoch, JobId, NodeId, OrderNumber, Role, TenantId},
    job::Class,
    refusal::Refusal,
    selector::Selector,
    time::Millis,
    wire::SlotStanding,
};
use bytes::Bytes;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// A job as ordered, checked for shape only.
#[derive(Clone, Debug)]
pub struct NewJob {
    /// Which devices.
    pub on: Selector,
    /// A name of the verb table.
    pub verb: String,
    /// MessagePack of the verb's arguments.
    pub args: Bytes,
    /// For people.
    pub command: String,
    /// Overrides the verb's class.
    pub class: Option<Class>,
    /// Milliseconds within which it may be fetched; 30 days unless told (JOB-4).
    pub life_ms: u64,
    /// Milliseconds it may run.
    pub run_ms_max: u64,
}

/// How a node stands towards the server now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// `online`, `offline`, `suspended`, `unknown`.
    pub state: &'static str,
    /// e.g. `shutdown`, `timeout`, `behind osaka`, `never_seen`.
    pub reason: Option<String>,
    /// `persistent`, `wakeable`, `polling`.
    pub link: &'static str,
    /// Name of the gateway its first hop came through, while that hop is known.
    pub gateway: Option<String>,
    /// Relays between the server and it, nearest the server first.
    pub route: Vec<NodeId>,
    /// How it is reached; `None` while its first hop was not heard of since the server's start.
    pub reached: Option<Reached>,
    /// Last contact.
    pub last_contact: Option<Millis>,
    /// When it is due again.
    pub next_contact: Option<Millis>,
    /// Since when a relay cannot be reached.
    pub unreachable_since: Option<Millis>,
    /// A relay's gauge and queues as JSON (`slots`, `queues`), and the server's own.
    pub figures: Option<serde_json::Value>,
    /// (term, version) of the settings it has on disk, as it last said; (0, 0) when it has said nothing (ADM-14).
    pub settings: (u32, u64),
    /// The slot of its parent that it holds or waits for, as last heard.
    pub slot: Option<SlotStanding>,
    /// Whether it is to keep its connection, if an administrator has said so (ADM-1).
    pub keep_connection: Option<bool>,
    /// What is promised of it while it is online.
    pub promise: Option<Promise>,
}

/// A device or relay with what the server knows of it now.
#[derive(Clone, Debug)]
pub struct NodeView {
    /// As enrolled.
    pub node: crate::store::NodeRow,
    /// As it stands.
    pub standing: Standing,
}

/// Devices with what their views need.
#[derive(Clone, Debug, Default)]
pub struct Devices {
    /// The devices.
    pub views: Vec<NodeView>,
    /// Names of the relays on their ways.
    pub names: Names,
}

/// What keeps devices from a job, as the server knows it now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contacts {
    /// When each is due again, of those of which it is known.
    pub next: BTreeMap<NodeId, Millis>,
    /// Those that are suspended.
    pub suspended: BTreeSet<NodeId>,
}

/// What the running server knows of one order on its way to one device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Whereabouts {
    /// Where it stands at the server; `None` once it is over.
    pub row: Option<Row>,
    /// The first relay on the device's way that cannot be reached, and since when.
    pub cut_off: Option<(NodeId, Millis)>,
    /// Relays below other relays that had the order on disk for the device, and when they wrote it.
    pub held: Vec<(NodeId, Millis)>,
}

/// The server's own row of the tree.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ServerFigures {
    /// Its id as text.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Slots: used, cap, peak, waiting, reserved.
    pub slots: serde_json::Value,
    /// Queues: spool_records, spool_bytes, oldest_unsettled_at, ledger_open.
    pub queues: serde_json::Value,
    /// Links now.
    pub links: u64,
    /// Restarts of its actors.
    pub restarts: u64,
    /// Live gateways: (id, name, trunks, links).
    pub gateways: Vec<(NodeId, String, u32, u32)>,
}

/// Whether a restored server is still listening to its children.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecoveryFigures {
    /// The server's term.
    pub term: u32,
    /// Children heard, children awaited, and seconds until it is over at the latest; `None`: it is not recovering.
    pub recovering: Option<(u64, u64, u64)>,
}

/// The running server, as the API's handlers see it.
#[async_trait]
pub trait Control: Send + Sync + 'static {
    /// Issues a job; answers its id once it is durable.
    async fn issue(&self, tenant: &TenantId, who: &str, job: NewJob) -> Result<JobId, Refusal>;
    /// Cancels a job that is not at its end everywhere; returns once that is durable (JOB-14).
    async fn cancel(&self, tenant: &TenantId, who: &str, job: JobId) -> Result<(), Refusal>;
    /// Issues a job anew for these of its devices (CON-5).
    async fn reissue(&self, who: &str, job: JobRow, devices: Vec<NodeId>) -> Result<JobId, Refusal>;
    /// Where an order is on its way to a device.
    async fn whereabouts(&self, tenant: &TenantId, order: OrderNumber, device: NodeId) -> Result<Whereabouts, Refusal>;
    /// Every node of the tenant, by role if one is given, with its standing.
    async fn nodes(&self, tenant: &TenantId, role: Option<Role>) -> Result<Vec<NodeView>, Refusal>;
    /// A device of the tenant by its id or its name; a name that a revoked device bore means its successor.
    async fn device(&self, tenant: &TenantId, words: &str) -> Result<Option<NodeId>, Refusal>;
    /// The tenant's devices that a selector means, by name; revoked ones are none.
    async fn chosen(&self, tenant: &TenantId, on: &Selector) -> Result<Vec<NodeId>, Refusal>;
    /// How many devices that a selector means stand how: each word of [`Standing::state`] is there.
    async fn device_counts(&self, tenant: &TenantId, on: &Selector) -> Result<BTreeMap<&'static str, u64>, Refusal>;
    /// These devices, or relays, as they stand, in this order; those that are not the tenant's are left out.
    async fn devices(&self, tenant: &TenantId, devices: Vec<NodeId>) -> Result<Devices, Refusal>;
    /// What keeps these devices, or what of them is the tenant's, from a job.
    async fn contacts(&self, tenant: &TenantId, devices: Vec<NodeId>) -> Result<Contacts, Refusal>;
    /// Whether the server recovers, and how far it is (OPS-7).
    fn recovery(&self) -> RecoveryFigures;
    /// Ends a recovery before its time; audited. 409 `not_recovering`.
    async fn end_recovery(&self, who: &str) -> Result<(), Refusal>;
    /// The server's own figures.
    async fn figures(&self) -> Result<ServerFigures, Refusal>;
    /// Returns when the job has no device short of its end, or after `ms` at the latest (at most 30,000).
    async fn wait_complete(&self, tenant: &TenantId, job: JobId, ms: u64) -> Result<(), Refusal>;
    /// Revokes a node: closes its link and refuses its return (ENR-9).
    async fn revoke(&self, tenant: &TenantId, who: &str, node: NodeId) -> Result<Epoch, Refusal>;
    /// Suspends a device, or revives it (JOB-16).
    async fn suspend(&self, tenant: &TenantId, who: &str, device: NodeId, suspended: bool) -> Result<(), Refusal>;
    /// Says whether a device keeps its connection; `None`: as its own configuration says (ADM-1).
    async fn keep_connection(
        &self,
        tenant: &TenantId,
        who: &str,
        device: NodeId,
        keep: Option<bool>,
    ) -> Result<(), Refusal>;
    /// Makes an enrolment token; answers the secret and its expiry.
    async fn enrol_token(&self, tenant: &TenantId, who: &str, wish: TokenWish) -> Result<(String, Millis), Refusal>;
    /// Makes a bundle with a fresh token; answers its text and the token's expiry.
    async fn bundle(&self, tenant: &TenantId, who: &str, wish: TokenWish) -> Result<(String, Millis), Refusal>;
    /// Makes a tenant with its keys and sites; answers its API token's secret.
    async fn tenant(&self, who: &str, name: TenantId, sites: Vec<String>) -> Result<String, Refusal>;
    /// Adds a site.
    async fn site(&self, tenant: &TenantId, who: &str, name: String) -> Result<(), Refusal>;
    /// The tenant's settings in force.
    async fn settings(&self, tenant: &TenantId) -> Result<Settings, Refusal>;
    /// Puts settings in force, one version newer than those they were made from, whose version they bear; answers them
    /// as they are then. Equal ones change nothing. 409 `conflict` when newer ones are in force.
    async fn set_settings(&self, tenant: &TenantId, who: &str, settings: Settings) -> Result<Settings, Refusal>;
    /// Registers a gateway's public address, handed to children in bundles and upstream lists.
    async fn gateway_address(&self, who: &str, public: String, outer_root: Option<Bytes>) -> Result<(), Refusal>;
}

/// What a token or bundle is to be for.
#[derive(Clone, Debug)]
pub struct TokenWish {
    /// What may enrol.
    pub role: Role,
    /// Where; must exist.
    pub site: String,
    /// The parent for a bundle: `server`, `gateway`, or a relay's name or id.
    pub parent: String,
    /// How many nodes, 1 to 10,000.
    pub uses: u32,
    /// Milliseconds it is good for, 1 s to 365 d.
    pub life_ms: u64,
}
