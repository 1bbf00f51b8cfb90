//! What happens at a quota (RLY-10): logs are held back where they are, results are taken on, orders stay with the parent
//! while there is no room for their results, and an administrator hears of it once.

use super::Effect;
use super::state::{After, RelayCore};
use branchline_node::{
    defects::Defects,
    downstream::Child,
    store::Batch,
    uplink::spool::{Kind, Quotas},
};
use branchline_protocol::{
    id::{NodeId, OrderNumber},
    job::Class,
    record::Lane,
    time::Now,
    wire::Message,
};
use std::collections::BTreeMap;

/// Bytes reserved for the result of each open (order, device): what a result without output weighs, and some output.
/// A larger one finds room too, or waits at its device, which keeps it until it is settled.
pub const RESULT_ROOM: u64 = 1_024;
/// Milliseconds until a child that had no room is offered orders again.
pub const LEFT_FOR_MS: u64 = 15_000;
/// Milliseconds between two alerts of the same kind about what children send: none of them must fill the disk.
const ALERT_EVERY_MS: u64 = 60_000;
/// The reason of an order that is left with the parent.
pub(super) const NO_SPACE: &str = "no_space";

/// What is over which bound, and what is owed for it.
#[derive(Default)]
pub(super) struct Bounds {
    low_space: bool,
    /// Credit that is not given back: by child, session and lane.
    held: BTreeMap<(NodeId, u64, Lane), u32>,
    /// Kinds about which an alert went up; armed again when half of the quota is free.
    alerted: [bool; 3],
    /// Whether an alert went up that no order is taken; armed again by the next one that is.
    no_room: bool,
    /// Alerts about children: by code, when the last went up, on the monotonic clock.
    told: BTreeMap<&'static str, u64>,
    /// Children that had no room for an order, and until when they are offered none, on the monotonic clock.
    full: BTreeMap<NodeId, u64>,
}

impl Bounds {
    /// Whether this child may be offered orders.
    pub fn may_offer(&self, child: NodeId) -> bool {
        !self.full.contains_key(&child)
    }

    /// The child greets anew, or is gone: nothing is known of its room, and nothing is owed to its old session.
    pub fn renew(&mut self, child: NodeId) {
        self.full.remove(&child);
        self.held.retain(|(node, ..), _| *node != child);
    }
}

impl<D: Defects> RelayCore<D> {
    /// Other quotas than the usual ones.
    pub fn set_quotas(&mut self, quotas: Quotas) {
        self.spool.set_quotas(quotas);
    }

    /// Another bound of bodies in memory than [`branchline_node::uplink::spool::MEMORY_BYTES`].
    pub fn set_memory(&mut self, bytes: usize) {
        self.spool.set_memory(bytes);
    }

    /// Bytes of a kind from which on the lane's credit is held back. Results may use a quarter more than the quota at
    /// which no order is taken any more: they were promised room.
    fn hold_from(&self, kind: Kind) -> u64 {
        let quota = self.spool.quotas().of(kind);
        if kind == Kind::Results { quota + quota / 4 } else { quota }
    }

    /// Credit for what a child sent, once that is durable: given back, or held while its kind is at the quota.
    pub(super) fn owe(
        &mut self,
        now: Now,
        child: &Child,
        (lane, bytes): (Lane, u32),
        after: &mut After,
        out: &mut Vec<Effect>,
    ) {
        let kind = Kind::of(lane);
        // The control lane carries what frees room: it is never held.
        if lane == Lane::Control || self.spool.used(kind) < self.hold_from(kind) {
            after.effects.push(Effect::ReleaseChild(child.node, child.session, lane, bytes));
            return;
        }
        *self.bounds.held.entry((child.node, child.session, lane)).or_default() += bytes;
        self.at_quota(now, kind, out);
    }

    fn at_quota(&mut self, now: Now, kind: Kind, out: &mut Vec<Effect>) {
        if !std::mem::replace(&mut self.bounds.alerted[kind as usize], true) {
            let (used, quota) = (self.spool.used(kind), self.spool.quotas().of(kind));
            tracing::warn!(kind = kind.as_str(), used, quota, "at the quota");
            let message = format!("{}: {used} bytes wait here, the quota is {quota}", kind.as_str());
            self.alert(now, "quota_reached", message, out);
        }
    }

    /// Gives held credit back as soon as there is room again.
    pub(super) fn let_go(&mut self, out: &mut Vec<Effect>) {
        for kind in Kind::ALL {
            let (used, quotas) = (self.spool.used(kind), *self.spool.quotas());
            if used <= quotas.of(kind) / 2 {
                self.bounds.alerted[kind as usize] = false;
            }
            if used > quotas.low(kind) {
                continue;
            }
            self.bounds.held.retain(|(node, session, lane), bytes| {
                let free = Kind::of(*lane) == kind;
                if free {
                    out.push(Effect::ReleaseChild(*node, *session, *lane, *bytes));
                }
                !free
            });
        }
    }

    /// Whether an order may be taken for so many devices. Urgent ones have an eighth of the quota to themselves.
    pub(super) fn has_room(&mut self, class: Class, devices: usize) -> bool {
        let quota = self.spool.quotas().results;
        let quota = if class == Class::Normal { quota } else { quota + quota / 8 };
        let promised = (self.ledger.open_rows() + devices as u64) * RESULT_ROOM;
        let room = !self.bounds.low_space && self.spool.used(Kind::Results) + promised <= quota;
        self.bounds.no_room &= !(room && class == Class::Normal);
        room
    }

    /// An order stays with the parent, which is told why.
    pub(super) fn leave(&mut self, now: Now, order: OrderNumber, devices: Vec<NodeId>, out: &mut Vec<Effect>) {
        tracing::warn!(%order, devices = devices.len(), "order left with the parent: no space");
        out.push(Effect::Refused(NO_SPACE));
        out.push(Effect::ToParent(Lane::Control, Message::Left(vec![(order, devices, NO_SPACE.into())])));
        if !std::mem::replace(&mut self.bounds.no_room, true) {
            let used = self.spool.used(Kind::Results);
            let message = format!("no order is taken: {used} bytes of results wait here, and more are promised room");
            self.alert(now, "no_space", message, out);
        }
    }

    /// A child left orders here. It is offered none for a while; the server hears why they wait.
    pub(super) fn left(
        &mut self,
        now: Now,
        child: &Child,
        left: Vec<(OrderNumber, Vec<NodeId>, String)>,
        out: &mut Vec<Effect>,
    ) {
        self.bounds.full.insert(child.node, now.mono.0 + LEFT_FOR_MS);
        let below = self.directory.below(child.node);
        let devices: Vec<NodeId> = left.iter().flat_map(|(_, devices, _)| devices.iter().copied()).collect();
        // Of what is below it only: a child speaks for nobody else (RLY-9).
        let mine: Vec<NodeId> = devices.into_iter().filter(|d| *d == child.node || below.contains(d)).collect();
        self.ledger.child_gone(child.node, &mine);
        if self.parent_up {
            let told = left.into_iter().map(|(order, devices, why)| {
                (order, devices.into_iter().filter(|d| mine.contains(d)).collect(), why.chars().take(64).collect())
            });
            out.push(Effect::ToParent(Lane::Control, Message::Left(told.collect())));
        }
    }

    /// Children whose time is over are offered their orders again.
    pub(super) fn retry_left(&mut self, now: Now, out: &mut Vec<Effect>) {
        let due: Vec<NodeId> = self.bounds.full.iter().filter(|(_, at)| **at <= now.mono.0).map(|(n, _)| *n).collect();
        for child in due {
            self.bounds.full.remove(&child);
            let mut devices = self.directory.below(child);
            devices.push(child);
            self.offer(now, Some(&devices), out);
        }
    }

    /// The disk is nearly full, or is so no more.
    pub(super) fn low_space(&mut self, now: Now, low: bool, out: &mut Vec<Effect>) {
        if std::mem::replace(&mut self.bounds.low_space, low) == low || !low {
            return;
        }
        let mut batch = Batch::new();
        let shed = self.spool.relieve(&mut batch);
        tracing::warn!(dropped = shed.dropped, freed = shed.freed, "the disk is nearly full");
        self.commit(now, batch, After::default(), out);
        let message = format!("no order is taken; {} log records and needless reports were dropped", shed.dropped);
        self.alert(now, "disk_nearly_full", message, out);
    }

    /// An alert about what a child or a parent sent, once a minute for each code.
    pub(super) fn alert_rarely(&mut self, now: Now, code: &'static str, message: String, out: &mut Vec<Effect>) {
        if self.bounds.told.get(code).is_none_or(|at| now.mono.0 >= at + ALERT_EVERY_MS) {
            self.bounds.told.insert(code, now.mono.0);
            self.alert(now, code, message, out);
        }
    }
}
