//! A child comes, and it goes (pure).

use super::{
    After, Core, Effect, Link, Work, epochs,
    orders::{self, attached_op, note, send_documents},
    recall, sleepers,
};
use crate::{
    dispatch::{intake, withdrawals},
    store::Op,
};
use branchline_node::{
    defects::{Defect, Defects},
    downstream::{Child, directory::Attach},
    link::engine::LinkEnd,
};
use branchline_protocol::{
    id::{AttachmentKey, Role},
    record::Lane,
    refusal::Refusal,
    time::Now,
    wire::{Goodbye, Message, Reach},
};
use std::sync::Arc;

impl<D: Defects> Core<D> {
    pub(super) fn up(&mut self, now: Now, child: Arc<Child>, out: &mut Vec<Effect>) {
        let Some(state) = self.tenants.get_mut(&child.tenant) else {
            out.push(Effect::Refuse(
                child.node,
                child.session,
                Refusal::new(401, "unknown_tenant", "no such tenant here"),
            ));
            return;
        };
        if epochs::is_past(state, &child) {
            return epochs::hand_list(state, &child, out);
        }
        if !state.nodes.get(&child.node).is_some_and(|n| n.revoked_at.is_none() && n.epoch <= child.key.epoch) {
            let refusal = Refusal::new(401, "unknown_node", "this identity is not enrolled here; enrol anew");
            out.push(Effect::Refuse(child.node, child.session, refusal));
            return;
        }
        let attach = Attach {
            node: child.node,
            role: child.role,
            key: match D::SEEDED && self.defects.has(Defect::NO_EPOCH_IN_ATTACHMENT) {
                true => AttachmentKey { epoch: 1, ..child.key },
                false => child.key,
            },
            session: child.session,
            lease: child.lease,
            wakeable: child.is_wakeable(),
            at: now.node,
            capabilities: child.greeting.capabilities.clone(),
        };
        let behind = state.receipts.is_stale(child.node, child.key)
            || (child.role == Role::Relay && state.directory.is_behind(child.node, child.key, child.greeting.age));
        if behind || !state.directory.attach(attach) {
            out.push(Effect::Refuse(
                child.node,
                child.session,
                Refusal::new(409, "stale_attachment", "a newer attachment is here"),
            ));
            return self.refused_as_stale(now, &child.tenant, child.node, child.key, out);
        }
        state.directory.holds(child.node, &child.greeting.documents);
        let (poll, wakeable) = (child.lease.is_some(), child.is_wakeable());
        state.links.insert(child.node, Link { session: child.session, poll, wakeable, ..Link::default() });
        if let Some(recall) = recall::recall_for(&self.recovery, self.term, state, &child) {
            // Before any document: what it holds may be what is asked for.
            out.push(Effect::Send(child.node, child.session, Lane::Control, Message::Recall(recall)));
        }
        if self.recovery.is_none() {
            send_documents(state, &child, out);
        }
        withdrawals::tell(state, &child.tenant, child.node, out);
        out.extend(epochs::remind(state, child.node, child.node));
        state.gateways.insert(child.node, child.gateway);
        let below = state.directory.below(child.node);
        let mut work = Work::default();
        sleepers::met(state, &child, &mut work, out);
        intake::greeted(state, now, &child, &mut work);
        state.ledger.child_gone(child.node, &below);
        if child.role == Role::Relay {
            orders::child_disk(&self.defects, state, now, &child, child.greeting.disk, &mut work);
            let opening = child.greeting.incarnation;
            if state.openings.insert(child.node, opening) != Some(opening) {
                let changes = state.ledger.child_reopened(child.node);
                note(state, now, changes, &mut work);
            }
        }
        if !(D::SEEDED && self.defects.has(Defect::OVERLOOKS_MOVES)) {
            let changes = state.ledger.moved(child.node, Some(child.node));
            note(state, now, changes, &mut work);
        }
        work.ops.push(attached_op(
            &child.tenant,
            child.node,
            child.key,
            Vec::new(),
            now.node,
            &child.greeting.capabilities,
        ));
        if let Some(row) = state.nodes.get_mut(&child.node) {
            if row.epoch < child.key.epoch {
                // Its certificate is this server's word, given after the backup that it was restored from.
                row.epoch = child.key.epoch;
                work.ops.insert(0, Op::Node(row.as_ref().clone()));
            }
            row.capabilities = child.greeting.capabilities.clone();
            row.attachment = child.key.attachment;
            row.route.clear();
        }
        // Whoever is below is looked at too: a relay may bring devices that have waited.
        work.look.extend(below);
        work.look.insert(child.node);
        if state.need_full.contains(&child.node) {
            let ask = Message::Sections(child.node, Vec::new());
            work.after.push(Effect::Send(child.node, child.session, Lane::Control, ask));
        }
        self.commit(now, &child.tenant, work, After::default(), out);
    }

    pub(super) fn gone(&mut self, now: Now, child: &Child, end: &LinkEnd, out: &mut Vec<Effect>) {
        let Some(state) = self.tenants.get_mut(&child.tenant) else { return };
        let any = D::SEEDED && self.defects.has(Defect::LATE_CLEANUP_IN_CORE);
        if state.links.get(&child.node).is_none_or(|l| l.session != child.session && !any) {
            return;
        }
        let poll = state.links.remove(&child.node).is_some_and(|l| l.poll);
        let reach = match end {
            LinkEnd::Goodbye(Goodbye::ShuttingDown | Goodbye::Stopping) => Reach::GoneShutdown,
            LinkEnd::Closed(Goodbye::Done | Goodbye::Continue) | LinkEnd::Goodbye(Goodbye::Done) if poll => {
                state.directory.rests(child.node)
            }
            // The server ended it, because it stops or rebuilds a part of itself: that says nothing of the child.
            LinkEnd::Closed(Goodbye::Stopping) => Reach::Awaited,
            // It is on its way to another parent, or here by another way.
            LinkEnd::Goodbye(Goodbye::Moving) => Reach::Awaited,
            _ => Reach::GoneTimeout,
        };
        if !(D::SEEDED && self.defects.has(Defect::KEEPS_PRESENCE)) {
            state.directory.detach(child.node, child.session, reach, now.node);
        }
        let below = state.directory.below(child.node);
        // What was on the link only was never durable there: it waits again.
        state.ledger.child_gone(child.node, &below);
        if reach == Reach::Wakeable {
            // What came while its poll was ending.
            self.look(now, &child.tenant, &[child.node], out);
        }
    }
}
