//! The JSON of DESIGN 9. Scripts rely on these shapes: fields may be added, none changes its meaning.

use super::{
    control::{Contacts, NodeView, RecoveryFigures, ServerFigures},
    delay::{self, DelayView, LinkDelayView, SlotView},
    names::Names,
};
use crate::store::{Delivery, InventorySummary, JobDeviceRow, JobHead, JobRow};
use base64::{Engine, engine::general_purpose::STANDARD};
use branchline_protocol::{
    capability::{Reached, effective},
    id::{NodeId, Role},
    inventory::Items,
    job::State,
    time::Millis,
};
use jiff::{Timestamp, fmt::temporal::DateTimePrinter};
use serde::{Serialize, Serializer, ser::SerializeMap};
use serde_json::Value;
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// RFC 3339, UTC, always with three digits of milliseconds, so that texts sort as times do.
pub fn time(at: Millis) -> String {
    const PRINTER: DateTimePrinter = DateTimePrinter::new().precision(Some(3));
    let out_of_range = if at.0 < 0 { Timestamp::MIN } else { Timestamp::MAX };
    PRINTER.timestamp_to_string(&Timestamp::from_millisecond(at.0).unwrap_or(out_of_range))
}

/// A device as lists, `device` and `up` show it.
#[derive(Debug, Serialize, ToSchema)]
pub struct DeviceView {
    id: String,
    name: String,
    /// The name of the node that is this device.
    node: String,
    tenant: String,
    site: String,
    /// Names of the gateway and relays between the server and it, nearest the server first; empty: direct.
    path: Vec<String>,
    /// `direct`, `gateway` (it is outside), `relay`; null while that is not known.
    reached: Option<&'static str>,
    /// What it can do where it is: what it declared, less what its path forbids (TOP-7).
    capabilities: Vec<String>,
    /// `persistent`, `wakeable`, `polling`.
    link: &'static str,
    /// `online`, `offline`, `suspended`, `unknown`.
    state: &'static str,
    state_reason: Option<String>,
    last_contact: Option<String>,
    inventory: Option<SummaryView>,
    /// `lan` or `wan` (TOP-16).
    kind: String,
    /// When it is due again.
    next_contact: Option<String>,
    settings: AcknowledgedView,
    /// Whether it is to keep its connection; null: as its own configuration says (ADM-1).
    keep_connection: Option<bool>,
    /// The slot that it holds or waits for; null for neither.
    slot: Option<SlotView>,
    delay: DelayView,
}

/// How far the settings have come (ADM-14).
#[derive(Debug, Serialize, ToSchema)]
pub struct AcknowledgedView {
    /// The version in force at the server.
    wanted: u64,
    /// The version the device has on disk, as it last said; absent when it has said nothing since the server's start.
    acknowledged: Option<u64>,
    /// Whether it is short of the wanted one.
    pending: bool,
}

/// What a device shows of its inventory.
#[derive(Debug, Serialize, ToSchema)]
pub struct SummaryView {
    collected_at: String,
    digest: String,
    os: String,
    cpu: String,
    memory_bytes: Option<u64>,
    packages: u64,
    /// The settings it was collected under.
    settings_version: u64,
    /// Whether newer settings are in force by now, so that it does not compare with others (INV-10).
    differs: bool,
    /// Whether it was dated more than 24 h ahead of the server when it came (INV-13).
    clock_skew: bool,
}

/// A device's view. `wanted`: the version of the settings in force; `last`: the last job that it had.
pub fn device(
    view: &NodeView,
    names: &Names,
    inventory: Option<&InventorySummary>,
    wanted: u64,
    last: Option<&Delivery>,
) -> DeviceView {
    let NodeView { node, standing } = view;
    // Whoever collected under a version has it on disk.
    let told = (standing.settings.1 > 0).then_some(standing.settings.1);
    let acknowledged = told.max(inventory.map(|i| i.settings_version).filter(|version| *version > 0));
    DeviceView {
        id: node.id.to_string(),
        name: node.name.clone(),
        node: node.name.clone(),
        tenant: node.tenant.to_string(),
        site: node.site.clone(),
        path: standing
            .gateway
            .iter()
            .cloned()
            .chain(standing.route.iter().map(|id| names.get(id).cloned().unwrap_or_else(|| id.to_string())))
            .collect(),
        reached: standing.reached.map(Reached::as_str),
        // Not known to be inside: nothing is promised that only holds there.
        capabilities: effective(&node.capabilities, standing.reached.unwrap_or(Reached::Gateway)),
        link: standing.link,
        state: standing.state,
        state_reason: standing.reason.clone(),
        last_contact: standing.last_contact.map(time),
        inventory: inventory.map(|i| SummaryView {
            collected_at: time(i.collected_at),
            digest: i.digest.to_string(),
            os: i.os.clone(),
            cpu: i.cpu.clone(),
            memory_bytes: i.memory_bytes,
            packages: i.packages,
            settings_version: i.settings_version,
            differs: i.settings_version < wanted,
            clock_skew: i.clock_skew,
        }),
        kind: node.kind.clone(),
        next_contact: standing.next_contact.map(time),
        settings: AcknowledgedView {
            wanted,
            acknowledged,
            pending: acknowledged.is_none_or(|version| version < wanted),
        },
        keep_connection: standing.keep_connection,
        slot: delay::slot(standing),
        delay: delay::delay(standing, last),
    }
}

/// A list of devices.
#[derive(Debug, Serialize, ToSchema)]
pub struct DevicesView {
    /// By name.
    pub devices: Vec<DeviceView>,
}

/// How many devices are in which state.
#[derive(Debug, Serialize, ToSchema)]
pub struct DeviceCountsView {
    /// `online`, `offline`, `suspended`, `unknown`: each is there, zero included.
    pub counts: BTreeMap<&'static str, u64>,
}

/// A device's whole inventory.
#[derive(Debug, Serialize, ToSchema)]
pub struct InventoryView {
    /// The device's id.
    pub device: String,
    /// When it last changed (INV-4).
    pub collected_at: String,
    /// When the device was last heard of.
    pub last_contact: Option<String>,
    /// Digest of all sections.
    pub digest: String,
    /// The settings it was collected under.
    pub settings_version: u64,
    /// Whether newer settings are in force by now, so that it does not compare with others (INV-10).
    pub differs: bool,
    /// Whether it was dated more than 24 h ahead of the server when it came (INV-13).
    pub clock_skew: bool,
    /// Items by section and key.
    #[schema(value_type = BTreeMap<String, BTreeMap<String, Value>>)]
    pub sections: BTreeMap<String, Items>,
}

/// Devices per state: every state is there, zero included, so that the sum is the number of targets.
#[derive(Clone, Debug, Default)]
pub struct Counts(pub BTreeMap<State, u64>);

impl Counts {
    /// Of a job's devices as they are shown.
    pub fn of(devices: &[JobDeviceRow], fetch_by: Millis, present: &Present) -> Counts {
        let mut counts = Counts::default();
        for device in devices {
            *counts.0.entry(shown(device, fetch_by, present).0).or_default() += 1;
        }
        counts
    }

    /// Whether no device is short of its end.
    pub fn complete(&self) -> bool {
        self.0.iter().all(|(state, count)| state.is_end() || *count == 0)
    }
}

impl Serialize for Counts {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(State::ALL.len()))?;
        for state in State::ALL {
            map.serialize_entry(state.as_str(), self.0.get(&state).unwrap_or(&0))?;
        }
        map.end()
    }
}

/// A job with what came of it on each device.
#[derive(Debug, Serialize, ToSchema)]
pub struct JobView {
    id: String,
    verb: String,
    command: String,
    issued_at: String,
    /// Whether no device is short of its end.
    pub complete: bool,
    #[schema(value_type = BTreeMap<String, u64>)]
    counts: Counts,
    /// One a device; not there where only the counts were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    results: Option<Vec<ResultView>>,
    /// The job that this one was issued anew from.
    #[serde(skip_serializing_if = "Option::is_none")]
    reissue_of: Option<String>,
}

/// What came of a job on one device.
#[derive(Debug, Serialize, ToSchema)]
pub struct ResultView {
    /// The device's id, or the administrator's words for one that does not exist.
    device: String,
    #[schema(value_type = String)]
    state: State,
    reason: Option<String>,
    exit_code: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stdout: Option<String>,
    /// In place of `stdout` when that is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    stdout_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stderr: Option<String>,
    /// In place of `stderr` when that is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    stderr_base64: Option<String>,
    truncated: bool,
    started_at: Option<String>,
    ended_at: Option<String>,
    /// The device's own result replaced an end that the server had concluded from its silence.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    late: bool,
    /// When the device is due again; only while it is short of its end (JOB-1).
    #[serde(skip_serializing_if = "Option::is_none")]
    next_contact: Option<String>,
}

/// Past `fetch_by` no agent may take the order any more; whether one had, is not known before all who may have it have
/// answered (JOB-4). Until then it is not at its end.
const UNCONFIRMED: &str = "unconfirmed";

/// A suspended device is given nothing; the life of what waits for it runs on (JOB-16).
const SUSPENDED: &str = "suspended";

/// What is known of devices at the moment at which a job is shown.
#[derive(Clone, Debug, Default)]
pub struct Present {
    /// When.
    pub now: Millis,
    /// What keeps those that are short of their end.
    pub contacts: Contacts,
}

/// A device's state and reason as they are shown.
pub fn shown(row: &JobDeviceRow, fetch_by: Millis, present: &Present) -> (State, Option<String>) {
    match row.state {
        State::Queued if row.reason.is_none() && present.now > fetch_by => (State::Expired, Some(UNCONFIRMED.into())),
        State::Queued
            if row.reason.is_none() && row.device.as_ref().is_ok_and(|id| present.contacts.suspended.contains(id)) =>
        {
            (State::Queued, Some(SUSPENDED.into()))
        }
        state => (state, row.reason.clone()),
    }
}

/// A job's view without its devices.
pub fn job(job: &JobRow, counts: Counts) -> JobView {
    JobView {
        id: job.id.to_string(),
        verb: job.verb.clone(),
        command: job.command.clone(),
        issued_at: time(job.issued_at),
        complete: counts.complete(),
        counts,
        results: None,
        reissue_of: job.origin.map(|old| old.to_string()),
    }
}

/// What came of a job on one device.
pub fn result(row: &JobDeviceRow, fetch_by: Millis, present: &Present) -> ResultView {
    let (state, reason) = shown(row, fetch_by, present);
    let told = row.result.as_ref();
    let (stdout, stdout_base64) = text_or_base64(told.map_or(&[], |r| &r.stdout));
    let (stderr, stderr_base64) = text_or_base64(told.map_or(&[], |r| &r.stderr));
    let open = row.device.as_ref().ok().filter(|_| !row.state.is_end());
    ResultView {
        device: row.device.as_ref().map_or_else(Clone::clone, NodeId::to_string),
        state,
        reason,
        exit_code: told.and_then(|r| r.exit_code),
        stdout,
        stdout_base64,
        stderr,
        stderr_base64,
        truncated: told.is_some_and(|r| r.truncated),
        started_at: told.and_then(|r| r.started_at).map(time),
        ended_at: told.map(|r| r.ended_at).or(row.state.is_end().then_some(row.changed_at)).map(time),
        late: row.late,
        next_contact: open.and_then(|id| present.contacts.next.get(id)).copied().map(time),
    }
}

fn text_or_base64(bytes: &[u8]) -> (Option<String>, Option<String>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (Some(text.into()), None),
        Err(_) => (None, Some(STANDARD.encode(bytes))),
    }
}

/// A list of jobs.
#[derive(Debug, Serialize, ToSchema)]
pub struct JobsView {
    /// Newest first.
    pub jobs: Vec<JobHeadView>,
}

/// One job of the list.
#[derive(Debug, Serialize, ToSchema)]
pub struct JobHeadView {
    id: String,
    verb: String,
    issued_at: String,
    #[schema(value_type = BTreeMap<String, u64>)]
    counts: Counts,
    complete: bool,
}

/// The list's row of a job.
pub fn job_head(head: JobHead, now: Millis) -> JobHeadView {
    let mut counts = Counts(head.counts);
    let complete = counts.complete();
    if now > head.fetch_by
        && let Some(queued) = counts.0.remove(&State::Queued)
    {
        *counts.0.entry(State::Expired).or_default() += queued;
    }
    JobHeadView { id: head.id.to_string(), verb: head.verb, issued_at: time(head.issued_at), counts, complete }
}

/// The tree of nodes.
#[derive(Debug, Serialize, ToSchema)]
pub struct TreeView {
    /// The server first, then gateways, relays and agents.
    pub nodes: Vec<TreeNodeView>,
}

/// One node of the tree. What a node has not told, or the caller may not see, is null.
#[derive(Debug, Serialize, ToSchema)]
pub struct TreeNodeView {
    id: String,
    name: String,
    /// `server`, `gateway`, `relay`, `agent`.
    role: String,
    /// Its parent's id.
    parent: Option<String>,
    state: &'static str,
    unreachable_since: Option<String>,
    /// `used`, `cap`, `peak`, `waiting`, `reserved`.
    slots: Value,
    /// `spool_records`, `spool_bytes`, `oldest_unsettled_at`, `ledger_open`.
    queues: Value,
    links: Option<u64>,
    restarts: Option<u64>,
    /// Of server and relays: what is promised of the caller's devices below it, by how they are reached.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    delays: BTreeMap<&'static str, LinkDelayView>,
    /// Of a device: how it is reached, the slot that it holds or waits for, and what is promised.
    #[serde(flatten)]
    device: Option<TreeDeviceView>,
}

/// What the tree shows of a device.
#[derive(Debug, Serialize, ToSchema)]
pub struct TreeDeviceView {
    /// `persistent`, `wakeable`, `polling`.
    link: &'static str,
    keep_connection: Option<bool>,
    slot: Option<SlotView>,
    delay: DelayView,
}

/// The server's own row; its figures only where all of them are the caller's business.
pub fn tree_server(
    figures: &ServerFigures,
    recovery: RecoveryFigures,
    all: bool,
    delays: BTreeMap<&'static str, LinkDelayView>,
) -> TreeNodeView {
    TreeNodeView {
        id: figures.id.clone(),
        name: figures.name.clone(),
        role: "server".into(),
        parent: None,
        state: if recovery.recovering.is_some() { "recovering" } else { "online" },
        unreachable_since: None,
        slots: if all { figures.slots.clone() } else { Value::Null },
        queues: if all { figures.queues.clone() } else { Value::Null },
        links: all.then_some(figures.links),
        restarts: all.then_some(figures.restarts),
        delays,
        device: None,
    }
}

/// A gateway's row: online while it holds a trunk.
pub fn tree_gateway(server: &str, (id, name, trunks, links): &(NodeId, String, u32, u32), all: bool) -> TreeNodeView {
    TreeNodeView {
        id: id.to_string(),
        name: name.clone(),
        role: "gateway".into(),
        parent: Some(server.into()),
        state: if *trunks > 0 { "online" } else { "offline" },
        unreachable_since: None,
        slots: Value::Null,
        queues: Value::Null,
        links: all.then_some(u64::from(*links)),
        restarts: None,
        delays: BTreeMap::new(),
        device: None,
    }
}

/// A relay tells times as integers; the API shows text.
fn queues(mut queues: Value) -> Value {
    if let Some(oldest) = queues.get_mut("oldest_unsettled_at")
        && let Some(ms) = oldest.as_i64()
    {
        *oldest = Value::String(time(Millis(ms)));
    }
    queues
}

/// A relay's or agent's row.
pub fn tree_node(server: &str, view: &NodeView, delays: BTreeMap<&'static str, LinkDelayView>) -> TreeNodeView {
    let NodeView { node, standing } = view;
    let figure = |name: &str| standing.figures.as_ref().and_then(|f| f.get(name)).cloned().unwrap_or_default();
    TreeNodeView {
        id: node.id.to_string(),
        name: node.name.clone(),
        role: node.role.to_string(),
        parent: Some(standing.route.last().map_or_else(|| server.into(), NodeId::to_string)),
        state: standing.state,
        unreachable_since: standing.unreachable_since.map(time),
        slots: figure("slots"),
        queues: queues(figure("queues")),
        links: figure("links").as_u64(),
        restarts: figure("restarts").as_u64(),
        delays,
        device: (node.role == Role::Agent).then(|| TreeDeviceView {
            link: standing.link,
            keep_connection: standing.keep_connection,
            slot: delay::slot(standing),
            delay: delay::delay(standing, None),
        }),
    }
}
