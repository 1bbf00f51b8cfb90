//! What the gatekeeper does around the production admission: asks it, serves the deferred as polls, and says which
//! sessions are to be closed.

use branchline_node::downstream::admission::{Admission, AdmissionConfig, Ask, Effect, Event, Gauge, Want};
use branchline_protocol::{
    id::NodeId,
    refusal::Refusal,
    time::{Mono, Now},
    wire::Lease,
};
use std::collections::BTreeMap;

/// What a greeting came to, and what has to be done to others for it.
pub struct Admitted {
    /// The link's lease, if it is a poll; or why it is refused.
    pub answer: Result<Option<Lease>, Refusal>,
    /// Sessions whose node has a newer link.
    pub replaced: Vec<u64>,
    /// Sessions that lost their slot.
    pub displaced: Vec<(u64, Lease)>,
}

/// See the module.
pub struct Gate {
    core: Admission,
    nodes: BTreeMap<u64, NodeId>,
}

impl Gate {
    /// With no session.
    pub fn new(config: AdmissionConfig) -> Gate {
        Gate { core: Admission::new(config), nodes: BTreeMap::new() }
    }

    /// The slots.
    pub fn gauge(&self) -> Gauge {
        self.core.gauge()
    }

    /// When [`Gate::tick`] is due.
    pub fn next_deadline(&self) -> Option<Mono> {
        self.core.next_deadline()
    }

    /// A greeting was checked.
    pub fn ask(&mut self, now: Now, ask: Ask) -> Admitted {
        let session = ask.session;
        self.nodes.insert(session, ask.node);
        let mut admitted = Admitted { answer: Ok(None), replaced: Vec::new(), displaced: Vec::new() };
        let no_answer = || Err(Refusal::new(503, "no_answer", "admission gave no answer").retry_after(1_000));
        let answer = self.feed(now, Event::Ask(ask.clone()), Some(session), &mut admitted).unwrap_or_else(no_answer);
        admitted.answer = match answer {
            Ok(Some(lease)) if ask.want == Want::Persistent => {
                let poll = Ask { want: Want::Poll, ..ask };
                let polled = self.feed(now, Event::Ask(poll), Some(session), &mut admitted);
                polled.unwrap_or_else(no_answer).map(|_| Some(lease))
            }
            Ok(None) if ask.want == Want::Poll => Ok(Some(wire_lease(self.core.lease(ask.node)))),
            other => other,
        };
        if admitted.answer.is_err() {
            self.nodes.remove(&session);
        }
        admitted
    }

    /// A session ended.
    pub fn gone(&mut self, now: Now, session: u64) {
        if let Some(node) = self.nodes.remove(&session) {
            self.core.handle(now, Event::Gone { node, session }, &mut Vec::new());
        }
    }

    /// Time went by.
    pub fn tick(&mut self, now: Now) {
        self.core.handle(now, Event::Tick, &mut Vec::new());
    }

    fn feed(
        &mut self,
        now: Now,
        event: Event,
        asking: Option<u64>,
        admitted: &mut Admitted,
    ) -> Option<Result<Option<Lease>, Refusal>> {
        let mut effects = Vec::new();
        self.core.handle(now, event, &mut effects);
        let mut answer = None;
        for effect in effects {
            match effect {
                Effect::Admitted { session } | Effect::Already { session } if Some(session) == asking => {
                    answer = Some(Ok(None));
                }
                Effect::Deferred { session, lease } if Some(session) == asking => {
                    answer = Some(Ok(Some(wire_lease(lease))));
                }
                Effect::Busy { session, retry_after_ms } if Some(session) == asking => {
                    answer = Some(Err(Refusal::new(429, "busy", "come again later").retry_after(retry_after_ms)));
                }
                Effect::Stale { session } if Some(session) == asking => {
                    answer = Some(Err(Refusal::new(409, "stale_attachment", "a newer attachment is here")));
                }
                Effect::WrongRole { session } if Some(session) == asking => {
                    answer = Some(Err(Refusal::new(403, "wrong_role", "only agents and relays have parents")));
                }
                Effect::Replaced { session } => admitted.replaced.push(session),
                Effect::Displace { session, lease } => admitted.displaced.push((session, wire_lease(lease))),
                _ => {}
            }
        }
        answer
    }
}

fn wire_lease(lease: branchline_node::downstream::admission::Lease) -> Lease {
    Lease { interval_ms: lease.interval_ms, phase_ms: lease.phase_ms, waiter: lease.waiter }
}
