//! How a node stands towards the server (pure): never "up" behind a relay that is cut off.

use super::{core::TenantState, promise::promise};
use crate::{
    api::control::{Contacts, Standing},
    store::NodeRow,
};
use branchline_protocol::{
    capability::Reached,
    id::{NodeId, Role},
    time::Millis,
    wire::Reach,
};

/// A polling device that is this many intervals late is offline.
const POLLS_MISSED: i64 = 3;

/// How a node is reached: by the gateway, if one, of its first hop's newest link, and the relays between.
fn reached(state: &TenantState, row: &NodeRow, relays: &[NodeId]) -> Option<Reached> {
    // What the disk remembers of a device does not tell whether it was outside.
    let known = state.is_way_known(row.id) || !relays.is_empty();
    known.then(|| Reached::of(state.gateway_of(row.id).is_some(), relays.len()))
}

/// What keeps these devices of a tenant from a job: the same that their standing tells, without the rest of it, for there
/// may be a hundred thousand.
pub fn contacts(state: &TenantState, devices: &[NodeId]) -> Contacts {
    let of = |device: &NodeId| Some((*device, state.directory.get(*device)?.next_contact?));
    let suspended = |device: &&NodeId| {
        let node = state.nodes.get(device);
        node.is_some_and(|node| node.revoked_at.is_none()) && state.suspended.contains(device)
    };
    Contacts {
        next: devices.iter().filter_map(of).collect(),
        suspended: devices.iter().filter(suspended).copied().collect(),
    }
}

/// The standing of one node of a tenant.
pub fn standing(state: &TenantState, row: &NodeRow, now: Millis) -> Standing {
    let entry = state.directory.get(row.id);
    let figures = entry.and_then(|e| e.figures.as_deref()).and_then(|f| serde_json::from_str(f).ok());
    let route = entry.map_or_else(|| row.route.clone(), |e| e.via.clone());
    let mut view = Standing {
        state: "unknown",
        reason: None,
        link: "polling",
        gateway: None,
        reached: reached(state, row, &route),
        route,
        last_contact: entry.map(|e| e.last_contact).or(row.last_contact),
        next_contact: entry.and_then(|e| e.next_contact),
        unreachable_since: None,
        figures,
        settings: entry.map_or((0, 0), |e| e.settings),
        slot: entry.and_then(|e| e.slot),
        keep_connection: state.keep_connection.get(&row.id).copied(),
        promise: None,
    };
    if row.revoked_at.is_some() {
        (view.state, view.reason) = ("offline", Some("revoked".into()));
        return view;
    }
    if state.suspended.contains(&row.id) {
        view.state = "suspended";
        return view;
    }
    if state.epochs.suspects(row.id) {
        view.reason = Some("clone_suspected".into());
        return view;
    }
    let Some(entry) = entry else {
        view.reason = Some("never_seen".into());
        return view;
    };
    view.link = match entry.reach {
        Reach::Persistent => "persistent",
        Reach::Wakeable => "wakeable",
        _ => "polling",
    };
    if let Some((relay, _)) = state.directory.cut_off(row.id) {
        let name = state.nodes.get(&relay).map_or_else(|| relay.to_string(), |n| n.name.clone());
        (view.state, view.reason) = ("unknown", Some(format!("behind {name}")));
        return view;
    }
    let missed = |interval_ms: i64| {
        let late = |due: Millis| now.0 > due.0.saturating_add(POLLS_MISSED.saturating_mul(interval_ms));
        view.next_contact.is_some_and(late)
    };
    // What its parent leases; a poll that takes long leaves less than that until the next.
    let leased_ms = entry.poll_interval_ms.and_then(|ms| i64::try_from(ms).ok());
    let interval_ms = leased_ms.unwrap_or_else(|| view.next_contact.map_or(0, |due| due.0 - entry.last_contact.0));
    match entry.reach {
        Reach::Awaited => {
            // The one that lost sight of it: the relay it hangs on, or the server.
            let relay = entry.via.last().and_then(|r| state.nodes.get(r));
            view.reason = Some(relay.map_or_else(|| "awaited".into(), |r| format!("behind {}", r.name)));
        }
        Reach::GoneShutdown => (view.state, view.reason) = ("offline", Some("shutdown".into())),
        Reach::GoneTimeout => (view.state, view.reason) = ("offline", Some("timeout".into())),
        Reach::Polling | Reach::Wakeable if missed(interval_ms) => {
            (view.state, view.reason) = ("offline", Some("timeout".into()));
        }
        _ => view.state = "online",
    }
    if view.state == "online" {
        view.promise = promise(entry.reach, entry.poll_interval_ms);
    }
    if row.role == Role::Relay && view.state != "online" {
        view.unreachable_since = view.last_contact;
    }
    view
}
