//! The actor around [`Admission`]: asks it for each greeting, closes whom it displaces, ticks it.

use super::{
    admission::{Admission, Ask, Demand, Effect, Event, Gauge, Need, Want},
    checks::Facts,
    child::FromChild,
};
use crate::{
    link::{WeakLink, engine::LinkCommand},
    node::Ambient,
    supervise::{ChildAddr, Drain, Exit, ExitGuard},
    time::NodeTime,
};
use actix::prelude::*;
use branchline_protocol::{
    document::Revocations,
    id::{NodeId, Role, TenantId},
    refusal::Refusal,
    time::Now,
    wire::{Contact, Goodbye, Lease},
};
use metrics::Gauge as Meter;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::sync::watch;

/// The answer to a greeting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admitted {
    /// The link holds a slot, or is a relay's uplink.
    Persistent,
    /// The link is a poll.
    Poll(Lease),
}

/// Asks for a link just greeted.
#[derive(Message)]
#[rtype(result = "Result<Admitted, Refusal>")]
pub struct AskAdmission {
    /// What it asks for.
    pub ask: Ask,
    /// Whose it is: the tenant's list may say something else of its need while the link is up.
    pub tenant: TenantId,
    /// What the child itself wants.
    pub contact: Contact,
}

/// What the open orders of the node's own children ask for, all of them.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Demands(pub BTreeMap<NodeId, Demand>);

/// The link that was asked for is up: displaced and replaced links are closed through this handle.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Registered {
    /// Who.
    pub node: NodeId,
    /// Its session.
    pub session: u64,
    /// Its link.
    pub link: WeakLink,
}

/// A session ended, or never came up after it was asked for.
#[derive(Message)]
#[rtype(result = "()")]
pub struct SessionGone {
    /// Who.
    pub node: NodeId,
    /// Its session.
    pub session: u64,
}

/// Changes the number of slots, live.
#[derive(Message)]
#[rtype(result = "()")]
pub struct SetCap(pub super::admission::Cap);

/// Tells a gatekeeper what the open orders ask for, whenever that has changed or the gatekeeper is another one.
pub struct DemandTeller {
    gatekeeper: ChildAddr<Gatekeeper>,
    told: Option<(Addr<Gatekeeper>, BTreeMap<NodeId, Demand>)>,
}

impl DemandTeller {
    /// To the present gatekeeper of this handle.
    pub fn new(gatekeeper: ChildAddr<Gatekeeper>) -> Self {
        DemandTeller { gatekeeper, told: None }
    }

    /// What they ask for now.
    pub fn tell(&mut self, demands: BTreeMap<NodeId, Demand>) {
        let Some(gatekeeper) = self.gatekeeper.get() else { return };
        let same = |(to, told): &(Addr<Gatekeeper>, BTreeMap<NodeId, Demand>)| *to == gatekeeper && *told == demands;
        // A full mailbox is told at the next look.
        if !self.told.as_ref().is_some_and(same) && gatekeeper.try_send(Demands(demands.clone())).is_ok() {
            self.told = Some((gatekeeper, demands));
        }
    }
}

/// The gauge as others read it: one writer, this actor.
pub type SharedGauge = Arc<Mutex<Gauge>>;

/// The actor.
pub struct Gatekeeper {
    guard: ExitGuard,
    core: Admission,
    time: NodeTime,
    ambient: Ambient,
    links: BTreeMap<u64, WeakLink>,
    sessions: BTreeMap<u64, Of>,
    /// What the reception checks; the lists in it say how much a device needs a slot.
    facts: watch::Receiver<Facts>,
    /// The lists that the devices with a link were looked at by.
    lists: BTreeMap<TenantId, Arc<Revocations>>,
    /// A replaced session whose link is not up yet is closed as soon as it is.
    doomed: BTreeMap<u64, Refusal>,
    owner: Recipient<FromChild>,
    gauge: SharedGauge,
    meters: Meters,
    timer: Option<SpawnHandle>,
}

/// Whose a session is.
struct Of {
    node: NodeId,
    role: Role,
    tenant: TenantId,
    contact: Contact,
}

/// `branchline_slots_used|peak|cap`.
#[derive(Clone)]
pub struct Meters {
    /// Held and reserved.
    pub used: Meter,
    /// The most there ever were.
    pub peak: Meter,
    /// The cap.
    pub cap: Meter,
}

impl Meters {
    /// In a node's registry.
    pub fn new(metrics: &crate::metrics::Metrics) -> Self {
        Meters {
            used: metrics.gauge("branchline_slots_used", &[]),
            peak: metrics.gauge("branchline_slots_peak", &[]),
            cap: metrics.gauge("branchline_slots_cap", &[]),
        }
    }
}

impl Gatekeeper {
    /// Around a core, new or recovering; its gauge is shown in both ways.
    pub fn new(
        guard: ExitGuard,
        core: Admission,
        time: NodeTime,
        ambient: Ambient,
        owner: Recipient<FromChild>,
        facts: watch::Receiver<Facts>,
        (gauge, meters): (SharedGauge, Meters),
    ) -> Self {
        Gatekeeper {
            guard,
            core,
            time,
            ambient,
            links: BTreeMap::new(),
            sessions: BTreeMap::new(),
            facts,
            lists: BTreeMap::new(),
            doomed: BTreeMap::new(),
            owner,
            gauge,
            meters,
            timer: None,
        }
    }

    /// The facts have changed. Devices with a link are looked at only for a newer list of their tenant: facts change with
    /// every child that comes.
    fn look_at_needs(&mut self, ctx: &mut Context<Self>) {
        let facts = self.facts.borrow_and_update().clone();
        let same = |(a, b): (&Arc<Revocations>, &Arc<Revocations>)| Arc::ptr_eq(a, b);
        let known = |tenant: &TenantId| self.lists.get(tenant).zip(facts.revocations.get(tenant)).is_some_and(same);
        let devices = self.sessions.values().filter(|of| of.role == Role::Agent && !known(&of.tenant));
        let needs: Vec<_> = devices.map(|of| (of.node, facts.need(&of.tenant, of.node, of.contact))).collect();
        self.lists = facts.revocations;
        for (node, need) in needs {
            self.feed(Event::Need { node, need }, None, ctx);
        }
    }

    fn now(&self) -> Now {
        self.time.now()
    }

    /// Carries out what is not an answer to `asking`; returns the answer.
    fn feed(
        &mut self,
        event: Event,
        asking: Option<u64>,
        ctx: &mut Context<Self>,
    ) -> Option<Result<Admitted, Refusal>> {
        let mut effects = Vec::new();
        self.core.handle(self.now(), event, &mut effects);
        let mut answer = None;
        for effect in effects {
            match effect {
                Effect::Admitted { session } | Effect::Already { session } if Some(session) == asking => {
                    answer = Some(Ok(Admitted::Persistent));
                }
                Effect::Deferred { session, lease } if Some(session) == asking => {
                    answer = Some(Ok(Admitted::Poll(wire_lease(lease))));
                }
                Effect::Busy { session, retry_after_ms } if Some(session) == asking => {
                    let busy = Refusal::new(429, "busy", "all links of this kind are taken; come again later");
                    answer = Some(Err(busy.retry_after(retry_after_ms)));
                }
                Effect::Stale { session } if Some(session) == asking => {
                    answer =
                        Some(Err(Refusal::new(409, "stale_attachment", "a newer attachment of this node is here")));
                }
                Effect::WrongRole { session } if Some(session) == asking => {
                    answer = Some(Err(Refusal::new(403, "wrong_role", "only agents and relays have parents")));
                }
                Effect::Replaced { session } => {
                    let refusal = Refusal::new(409, "replaced", "a newer attachment of this node took over");
                    match self.links.remove(&session) {
                        Some(link) => {
                            link.ask(LinkCommand::Goodbye(Goodbye::Replaced));
                        }
                        None => {
                            self.doomed.insert(session, refusal);
                        }
                    }
                }
                Effect::Displace { session, lease } => {
                    let lease = wire_lease(lease);
                    let Some(link) = self.links.get(&session) else { continue };
                    link.ask(LinkCommand::Lease(lease));
                    if let Some(node) = self.node_of(session) {
                        // Rate-bounded by the cap; the owner only notes the lease, so a lost notice costs a display.
                        let _ = self.owner.try_send(FromChild::Displaced { node, session, lease });
                    }
                }
                Effect::Wake { node } => {
                    // Lost, the waiter comes at its next poll.
                    let _ = self.owner.try_send(FromChild::SlotKept { node });
                }
                _ => {}
            }
        }
        self.publish();
        self.arm(ctx);
        answer
    }

    fn node_of(&self, session: u64) -> Option<NodeId> {
        self.sessions.get(&session).map(|of| of.node)
    }

    fn publish(&mut self) {
        let gauge = self.core.gauge();
        self.meters.used.set(f64::from(gauge.used));
        self.meters.peak.set(f64::from(gauge.peak));
        self.meters.cap.set(f64::from(gauge.cap));
        if let Ok(mut shared) = self.gauge.lock() {
            *shared = gauge;
        }
    }

    fn arm(&mut self, ctx: &mut Context<Self>) {
        if let Some(timer) = self.timer.take() {
            ctx.cancel_future(timer);
        }
        if let Some(at) = self.core.next_deadline() {
            let wait = at.since(self.ambient.clock.mono()).max(1);
            self.timer = Some(ctx.run_later(Duration::from_millis(wait), |actor, ctx| {
                actor.timer = None;
                actor.feed(Event::Tick, None, ctx);
            }));
        }
    }
}

fn wire_lease(lease: super::admission::Lease) -> Lease {
    Lease { interval_ms: lease.interval_ms, phase_ms: lease.phase_ms, waiter: lease.waiter }
}

impl Actor for Gatekeeper {
    type Context = Context<Self>;
    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(1024);
        self.publish();
        self.arm(ctx);
        ctx.add_stream(futures_util::stream::unfold(self.facts.clone(), |mut facts| async move {
            facts.changed().await.ok().map(|()| (FactsChanged, facts))
        }));
    }
}

struct FactsChanged;

impl StreamHandler<FactsChanged> for Gatekeeper {
    fn handle(&mut self, _: FactsChanged, ctx: &mut Self::Context) {
        self.look_at_needs(ctx);
    }

    /// Whoever gave the facts is gone, and the node with it.
    fn finished(&mut self, _: &mut Self::Context) {}
}

impl Handler<AskAdmission> for Gatekeeper {
    type Result = Result<Admitted, Refusal>;

    fn handle(&mut self, asked: AskAdmission, ctx: &mut Self::Context) -> Self::Result {
        let AskAdmission { mut ask, tenant, contact } = asked;
        let session = ask.session;
        if ask.role == Role::Agent && ask.want != Want::Bulk {
            // The newest list, also where the reception looked at it a moment earlier.
            ask.need = self.facts.borrow().need(&tenant, ask.node, contact);
            ask.want = if ask.need == Need::None { Want::Poll } else { Want::Persistent };
        }
        self.sessions.insert(session, Of { node: ask.node, role: ask.role, tenant, contact });
        let no_answer =
            || Err(Refusal::new(503, "no_answer", "admission gave no answer; come again").retry_after(1_000));
        let answer = self.feed(Event::Ask(ask.clone()), Some(session), ctx).unwrap_or_else(no_answer);
        let answer = match answer {
            Ok(Admitted::Poll(lease)) if ask.want == Want::Persistent => {
                // A deferred link is served as a poll, out of the polls' pool, and keeps its place in line.
                let poll = Ask { want: Want::Poll, ..ask };
                match self.feed(Event::Ask(poll), Some(session), ctx).unwrap_or_else(no_answer) {
                    Ok(_) => Ok(Admitted::Poll(lease)),
                    Err(refusal) => Err(refusal),
                }
            }
            Ok(Admitted::Persistent) if ask.want == Want::Poll => {
                Ok(Admitted::Poll(wire_lease(self.core.lease(ask.node))))
            }
            other => other,
        };
        if answer.is_err() {
            self.sessions.remove(&session);
        }
        answer
    }
}

impl Handler<Registered> for Gatekeeper {
    type Result = ();
    fn handle(&mut self, up: Registered, _: &mut Self::Context) {
        match self.doomed.remove(&up.session) {
            Some(refusal) => {
                up.link.ask(LinkCommand::Refuse(refusal.into()));
            }
            None => {
                self.links.insert(up.session, up.link);
            }
        }
    }
}

impl Handler<SessionGone> for Gatekeeper {
    type Result = ();
    fn handle(&mut self, gone: SessionGone, ctx: &mut Self::Context) {
        self.links.remove(&gone.session);
        self.doomed.remove(&gone.session);
        self.sessions.remove(&gone.session);
        self.feed(Event::Gone { node: gone.node, session: gone.session }, None, ctx);
    }
}

impl Handler<SetCap> for Gatekeeper {
    type Result = ();
    fn handle(&mut self, SetCap(cap): SetCap, ctx: &mut Self::Context) {
        self.feed(Event::SetCap { cap }, None, ctx);
    }
}

impl Handler<Demands> for Gatekeeper {
    type Result = ();
    fn handle(&mut self, Demands(demands): Demands, ctx: &mut Self::Context) {
        self.feed(Event::Demands(demands), None, ctx);
    }
}

impl Handler<Drain> for Gatekeeper {
    type Result = ();
    fn handle(&mut self, _: Drain, ctx: &mut Self::Context) {
        self.guard.set(Exit::Stopped);
        ctx.stop();
    }
}
