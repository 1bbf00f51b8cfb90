//! What a child says on its link (pure).

use super::{
    After, Core, Effect, Work, epochs,
    orders::{self, attached_op, end_poll, note},
    recall,
};
use crate::dispatch::{
    intake::{self, Preloaded, Taken},
    left,
};
use branchline_node::{
    defects::{Defect, Defects},
    downstream::Child,
};
use branchline_protocol::{
    id::Role,
    record::Lane,
    time::Now,
    wire::{Ack, Message},
};
use std::sync::Arc;

impl<D: Defects> Core<D> {
    pub(super) fn said(
        &mut self,
        now: Now,
        child: &Arc<Child>,
        message: Message,
        credit: (Lane, u32),
        preloaded: Preloaded,
        out: &mut Vec<Effect>,
    ) {
        let Some(state) = self.tenants.get_mut(&child.tenant) else { return };
        if state.links.get(&child.node).is_none_or(|l| l.session != child.session) {
            return;
        }
        state.directory.heard(child.node, now.node);
        let mut work = Work::default();
        let mut after = After::default();
        let token = self.next_token + 1;
        match message {
            Message::Records(runs) => {
                let mut streams = Vec::new();
                for run in runs {
                    let stream = run.stream;
                    let taken = intake::run(state, now, child, run, &preloaded, token, &mut work);
                    after.inventories.extend(taken.inventories.iter().map(|d| (child.tenant.clone(), *d)));
                    streams.push((stream, taken));
                }
                let mut acks = Vec::new();
                for (stream, Taken { upto, refused, foreign, .. }) in streams {
                    if foreign {
                        // One that is where it was brought from had its disk put back: it hears so.
                        let newest = state.receipts.newest(stream.node).map(|(key, _)| key);
                        let newer = newest.map(|key| Message::Newer(stream.node, key));
                        let tell = |newer| Effect::Send(child.node, child.session, Lane::Control, newer);
                        work.after.extend(newer.map(tell));
                        // Nothing of it is kept, and it must not block the child's queue.
                        let upto = refused.iter().map(|(n, _)| *n).max().unwrap_or(0);
                        acks.push(Ack { stream, stored: upto, settled: upto, refused });
                        continue;
                    }
                    acks.push(Ack { stream, stored: upto, settled: upto, refused });
                }
                let early = D::SEEDED && self.defects.has(Defect::SETTLES_BEFORE_COMMIT);
                let told = if early { &mut *out } else { &mut work.after };
                told.push(Effect::Send(child.node, child.session, Lane::Control, Message::Acks(acks)));
            }
            Message::Taken(orders) => {
                for (number, devices) in orders {
                    let changes = state.ledger.taken(child.node, number, &devices);
                    note(state, now, changes, &mut work);
                }
            }
            Message::Presence { snapshot, entries } => {
                let known: Vec<_> = entries.into_iter().filter(|e| state.nodes.contains_key(&e.node)).collect();
                work.after.extend(epochs::overtake(state, child.node, &known));
                let mut met = Vec::new();
                let touched = state.directory.presence(child.node, snapshot, known);
                for node in touched {
                    let overlooked = D::SEEDED && self.defects.has(Defect::OVERLOOKS_MOVES);
                    let hop = state.directory.next_hop(node).filter(|_| !overlooked);
                    let changes = state.ledger.moved(node, hop);
                    note(state, now, changes, &mut work);
                    work.look.insert(node);
                    let Some(entry) = state.directory.get(node).cloned() else { continue };
                    if let Some(row) = state.nodes.get_mut(&node)
                        && (row.epoch, row.attachment, &row.route)
                            != (entry.key.epoch, entry.key.attachment, &entry.via)
                    {
                        if row.attachment != entry.key.attachment {
                            met.push(node);
                        }
                        row.attachment = entry.key.attachment;
                        row.route = entry.via.clone();
                        row.capabilities = entry.capabilities.clone();
                        work.ops.push(attached_op(
                            &child.tenant,
                            node,
                            entry.key,
                            entry.via,
                            entry.last_contact,
                            &entry.capabilities,
                        ));
                        if state.need_full.contains(&node) {
                            let ask = Message::Sections(node, Vec::new());
                            work.after.push(Effect::Send(child.node, child.session, Lane::Control, ask));
                        }
                    }
                }
                work.after.extend(met.into_iter().filter_map(|node| epochs::remind(state, child.node, node)));
            }
            Message::Versions(documents) => state.directory.holds(child.node, &documents),
            Message::Disk(disk, age) if child.role == Role::Relay => {
                state.directory.aged(child.node, child.key.epoch, age);
                orders::child_disk(&self.defects, state, now, child, disk, &mut work);
            }
            Message::Withdrawn(list) => state.withdrawals.known(child.node, &list),
            Message::Left(left) => left::left(state, now, child, left, &mut work),
            Message::Recalled(recalled) => {
                recall::recalled(&mut self.recovery, self.term, state, now, child, recalled, &mut work);
            }
            other => {
                tracing::debug!(child = %child.node, kind = ?std::mem::discriminant(&other), "a message that only flows down");
            }
        }
        let (lane, bytes) = credit;
        work.after.push(Effect::Release(child.node, child.session, lane, bytes));
        self.commit(now, &child.tenant.clone(), work, after, out);
        if let Some(state) = self.tenants.get_mut(&child.tenant) {
            end_poll(state, child.node, self.waiting.len(), out);
        }
        self.look_at_recovery(now, out);
    }
}
