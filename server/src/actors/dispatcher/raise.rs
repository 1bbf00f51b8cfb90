//! Makes other epochs of devices durable, as the core decided (DESIGN 5).

use super::Dispatcher;
use crate::dispatch::Event;
use actix::prelude::*;
use branchline_protocol::id::{Epoch, NodeId, TenantId};

/// Devices that are given another epoch at once; the office does nothing else meanwhile.
const AT_ONCE: usize = 256;

/// What the core asked for.
#[derive(Default)]
pub(super) struct Raising {
    /// A device at most once: the core asks for another epoch of it only when this one is given, or was not.
    waiting: Vec<(TenantId, NodeId, Epoch)>,
    /// Whether the office is at it.
    under_way: bool,
}

impl Raising {
    pub fn add(&mut self, tenant: TenantId, device: NodeId, epoch: Epoch) {
        self.waiting.push((tenant, device, epoch));
    }

    /// The next ones of one tenant, if the last are done.
    fn next(&mut self) -> Option<(TenantId, Vec<(NodeId, Epoch)>)> {
        let tenant = self.waiting.first().filter(|_| !self.under_way)?.0.clone();
        let (mut devices, mut later) = (Vec::new(), Vec::new());
        for (of, device, epoch) in std::mem::take(&mut self.waiting) {
            match of == tenant && devices.len() < AT_ONCE {
                true => devices.push((device, epoch)),
                false => later.push((of, device, epoch)),
            }
        }
        (self.waiting, self.under_way) = (later, true);
        Some((tenant, devices))
    }
}

impl Dispatcher {
    /// Has the office write what the core asked for; what is asked for meanwhile is written together. The list that says so
    /// comes back as a document; what did not get that far is tried again.
    pub(super) fn raise(&mut self, ctx: &mut Context<Self>) {
        let Some((tenant, devices)) = self.raising.next() else { return };
        let office = self.parts.office.clone();
        let work = async move {
            if let Err(refusal) = office.raise_epochs(&tenant, &devices).await {
                tracing::error!(%tenant, devices = devices.len(), %refusal, "other epochs were not given");
            }
            (tenant, devices)
        };
        ctx.spawn(work.into_actor(self).map(|(tenant, devices), actor, ctx| {
            actor.raising.under_way = false;
            actor.take_documents(&tenant, ctx);
            actor.publish_facts();
            for (device, _) in devices {
                actor.feed(Event::NotRaised(tenant.clone(), device), ctx);
            }
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rolled_back_devices_that_come_meanwhile_are_taken_together_and_in_bounds() {
        let node = |n: usize| NodeId(uuid::Uuid::from_u128(n as u128));
        let (acme, other): (TenantId, TenantId) = ("acme".parse().unwrap(), "other".parse().unwrap());
        let mut raising = Raising::default();
        assert!(raising.next().is_none());
        raising.add(acme.clone(), node(0), 2);
        assert_eq!(raising.next(), Some((acme.clone(), vec![(node(0), 2)])), "a lone one waits for nobody");
        raising.add(other.clone(), node(9_000), 5);
        (1..=AT_ONCE + 1).for_each(|n| raising.add(acme.clone(), node(n), 3));
        assert!(raising.next().is_none(), "one turn of the office at a time");
        raising.under_way = false;
        assert_eq!(raising.next(), Some((other, vec![(node(9_000), 5)])), "the first come, and its tenant's only");
        raising.under_way = false;
        let full = raising.next().map(|(_, devices)| devices.len());
        raising.under_way = false;
        assert_eq!((full, raising.next()), (Some(AT_ONCE), Some((acme, vec![(node(AT_ONCE + 1), 3)]))));
    }
}
