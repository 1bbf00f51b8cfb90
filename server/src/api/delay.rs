//! How soon a job reaches a device: what is promised, what was measured, and the slots it depends on (ADM-9, CON-4).

use super::{
    control::{NodeView, Standing},
    views::time,
};
use crate::store::Delivery;
use branchline_protocol::{
    id::{NodeId, Role},
    job::Class,
};
use serde::Serialize;
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// The slot of its parent that a device holds or waits for.
#[derive(Debug, Serialize, ToSchema)]
pub struct SlotView {
    /// Since when it holds it, or waits.
    since: String,
    /// Its number in line as it was told last; null: it holds the slot.
    waiter: Option<u32>,
}

/// Milliseconds from a job's issue to the device.
#[derive(Debug, Serialize, ToSchema)]
pub struct DelayView {
    /// Of an urgent job at the most; null while the device is not online or its polls are not known.
    urgent_ms: Option<u64>,
    /// Of a normal job.
    normal_ms: Option<u64>,
    /// What the last job took that the device had.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_job: Option<LastJobView>,
}

/// The last job that a device had.
#[derive(Debug, Serialize, ToSchema)]
pub struct LastJobView {
    /// Its id.
    job: String,
    #[schema(value_type = String)]
    class: Class,
    /// Milliseconds from its issue until the server knew that the device had it.
    delay_ms: u64,
}

/// What holds of all children of a node that are reached in the same way.
#[derive(Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct LinkDelayView {
    /// How many of them are online.
    devices: u64,
    /// Milliseconds that an urgent job takes to the slowest of them at the most.
    urgent_ms: Option<u64>,
    /// The same for a normal job.
    normal_ms: Option<u64>,
}

/// The slot of a device; null for one that holds none and waits for none, or is not in contact.
pub fn slot(standing: &Standing) -> Option<SlotView> {
    let slot = standing.slot.filter(|_| standing.state == "online")?;
    Some(SlotView { since: time(slot.since), waiter: (slot.waiter > 0).then_some(slot.waiter) })
}

/// What is promised of a device, beside what was measured.
pub fn delay(standing: &Standing, last: Option<&Delivery>) -> DelayView {
    DelayView {
        urgent_ms: standing.promise.map(|promise| promise.urgent_ms),
        normal_ms: standing.promise.map(|promise| promise.normal_ms),
        last_job: last.map(|last| LastJobView {
            job: last.job.to_string(),
            class: last.class,
            delay_ms: u64::try_from(last.delivered_at.0 - last.issued_at.0).unwrap_or(0),
        }),
    }
}

/// For each node with devices of its own that are online: what is promised of them by how they are reached. `None` is the
/// server.
pub fn by_link(views: &[NodeView]) -> BTreeMap<Option<NodeId>, BTreeMap<&'static str, LinkDelayView>> {
    let mut all: BTreeMap<_, BTreeMap<_, LinkDelayView>> = BTreeMap::new();
    for view in views.iter().filter(|view| view.node.role == Role::Agent && view.standing.state == "online") {
        let of_parent = all.entry(view.standing.route.last().copied()).or_default();
        let of_link = of_parent.entry(view.standing.link).or_default();
        of_link.devices += 1;
        of_link.urgent_ms = of_link.urgent_ms.max(view.standing.promise.map(|promise| promise.urgent_ms));
        of_link.normal_ms = of_link.normal_ms.max(view.standing.promise.map(|promise| promise.normal_ms));
    }
    all
}
