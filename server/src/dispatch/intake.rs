//! What a record from below changes (pure): dedupe by position, results once, inventory all or nothing.

use super::core::{Effect, Over, TenantState, Token, Work, advance, cancel_told, end, given_back};
use crate::store::{AuditRow, Op, ResultRow, StreamRow};
use branchline_node::downstream::Child;
use branchline_protocol::{
    hash::Hash,
    id::{NodeId, OrderNumber, Role},
    inventory::{ApplyFault, INVENTORY_BYTES_MAX, Report, ReportKind, SectionChange, Snapshot},
    job::State,
    record::{Alert, Fact, Facts, JobResult, Lane, Progress, Record, Run, class},
    time::{Millis, Now},
    wire::Message,
};
use serde::{Deserialize, de::IgnoredAny};
use std::collections::BTreeMap;

/// A collection dated further ahead of the server than this is kept and marked (INV-13).
pub const SKEW_MS: i64 = 24 * 3_600_000;

/// Inventories as the store holds them: sections, collection time.
pub type Preloaded = BTreeMap<NodeId, (Snapshot, Millis)>;

/// What became of a run.
#[derive(Default)]
pub struct Taken {
    /// Numbers that were refused, with the code.
    pub refused: Vec<(u64, String)>,
    /// The stream is no node's of this tenant: nothing was kept.
    pub foreign: bool,
    /// Devices whose inventory changed.
    pub inventories: Vec<NodeId>,
}

/// Takes a child's run of one stream.
pub fn run(
    state: &mut TenantState,
    now: Now,
    child: &Child,
    run: Run,
    preloaded: &Preloaded,
    token: Token,
    work: &mut Work,
) -> Taken {
    let mut taken = Taken::default();
    let stream = run.stream;
    let known = state.nodes.get(&stream.node).is_some_and(|n| n.revoked_at.is_none());
    if !known {
        // A relay speaks only for nodes of its tenant (RLY-9); what a revoked one says counts no more (S-12).
        taken.foreign = true;
        taken.refused = run.records.iter().map(|r| (r.number, "foreign".to_string())).collect();
        refuse(child, now, &format!("{} records of {}: foreign", run.records.len(), stream.node), work);
        return taken;
    }
    // What it wrote it wrote while it was alive; its clock may be ahead of ours.
    if let Some(last) = run.records.last() {
        state.directory.heard(stream.node, last.at.min(now.node));
    }
    let mut position = state.streams.get(&stream).copied();
    for record in run.records {
        match position {
            Some((upto, _)) if record.number <= upto => continue,
            Some((upto, _)) if record.number > upto + 1 => {
                // The child repeats from the one after `upto` when it greets next; nothing is skipped.
                tracing::warn!(node = %stream.node, upto, got = record.number, "records are missing in between");
                break;
            }
            Some((_, head)) if record.prev != head => {
                taken.refused.push((record.number, "rollback".into()));
                refuse(
                    child,
                    now,
                    &format!("record {} of {} does not continue its stream", record.number, stream.node),
                    work,
                );
                break;
            }
            _ => {}
        }
        position = Some((record.number, record.hash(&stream)));
        if let Err(code) = apply(state, now, child, stream.node, &record, preloaded, token, &mut taken, work) {
            let field = wrong_field(&record).map(|field| format!(" in {field}")).unwrap_or_default();
            refuse(child, now, &format!("record {} of {}: {code}{field}", record.number, stream.node), work);
            taken.refused.push((record.number, code.into()));
        }
    }
    if let Some((upto, hash)) = position
        && state.streams.get(&stream) != Some(&(upto, hash))
    {
        state.streams.insert(stream, (upto, hash));
        work.ops.push(Op::Stream(child.tenant.clone(), StreamRow { stream, upto, hash }));
    }
    taken
}

/// The first field of an inventory report that is not what it should be, for whoever reads the audit (INV-13).
fn wrong_field(record: &Record) -> Option<&'static str> {
    type Any = IgnoredAny;
    fn fits<'a, T: Deserialize<'a>>(body: &'a [u8]) -> bool {
        rmp_serde::from_slice::<T>(body).is_ok()
    }
    let body = &record.body[..];
    if record.class != class::INVENTORY || body.len() > INVENTORY_BYTES_MAX || fits::<Report>(body) {
        return None;
    }
    let fields = [
        ("kind", fits::<Fields<ReportKind, Any, Any, Any, Any, Any>>(body)),
        ("collected_at", fits::<Fields<Any, Millis, Any, Any, Any, Any>>(body)),
        ("settings_version", fits::<Fields<Any, Any, u64, Any, Any, Any>>(body)),
        ("order", fits::<Fields<Any, Any, Any, Option<OrderNumber>, Any, Any>>(body)),
        ("changes", fits::<Fields<Any, Any, Any, Any, Vec<SectionChange>, Any>>(body)),
        ("digest", fits::<Fields<Any, Any, Any, Any, Any, Hash>>(body)),
    ];
    fields.into_iter().find_map(|(field, fits)| (!fits).then_some(field))
}

/// A [`Report`] of which only some fields matter.
#[derive(Deserialize)]
#[allow(dead_code, reason = "read to see whether they can be")]
struct Fields<K, A, S, O, C, D> {
    kind: K,
    collected_at: A,
    settings_version: S,
    order: O,
    changes: C,
    digest: D,
}

fn refuse(child: &Child, now: Now, detail: &str, work: &mut Work) {
    work.ops.push(Op::Audit(AuditRow {
        tenant: child.tenant.clone(),
        at: now.node,
        who: child.node.to_string(),
        what: "record.refused".into(),
        detail: detail.into(),
    }));
}

#[allow(clippy::too_many_arguments, reason = "one record in its context")]
fn apply(
    state: &mut TenantState,
    now: Now,
    child: &Child,
    device: NodeId,
    record: &Record,
    preloaded: &Preloaded,
    token: Token,
    taken: &mut Taken,
    work: &mut Work,
) -> Result<(), &'static str> {
    match record.class {
        class::RESULT => {
            let result: JobResult = rmp_serde::from_slice(&record.body).map_err(|_| "malformed")?;
            let row = ResultRow {
                exit_code: result.exit_code,
                stdout: result.stdout,
                stderr: result.stderr,
                truncated: result.truncated,
                started_at: result.started_at,
                ended_at: result.ended_at,
            };
            let (order, to, reason, at) = (result.order, State::from(result.end), result.reason, now.node);
            let open = state.orders.get(&order).filter(|open| open.open.contains_key(&device));
            let Some(target) = open.map(|open| open.target) else {
                // The first result stands. Only an end that the server had concluded from silence gives way, once.
                let tenant = child.tenant.clone();
                work.ops.push(Op::LateResult { tenant, order, device, state: to, reason, at, result: row });
                return Ok(());
            };
            if let Some(target) = target {
                cancel_told(state, now, target, device, reason.as_deref(), work);
            }
            end(state, order, device, Over { state: to, reason, at, result: Some(row) }, Some(child.node), work);
        }
        class::PROGRESS => {
            let progress: Progress = rmp_serde::from_slice(&record.body).map_err(|_| "malformed")?;
            state.ledger.handed_over(progress.order, device);
            advance(state, progress.order, device, State::Running, progress.started_at, work);
        }
        class::FACTS => {
            let facts: Facts = rmp_serde::from_slice(&record.body).map_err(|_| "malformed")?;
            let (by, relay) = (device, state.nodes.get(&device).is_some_and(|n| n.role == Role::Relay));
            for (order, fact, devices) in facts.facts {
                // A device speaks for itself only (RLY-9).
                for device in devices.into_iter().filter(|device| relay || *device == by) {
                    match fact {
                        Fact::HandedOver => {
                            state.ledger.handed_over(order, device);
                            advance(state, order, device, State::Delivered, record.at, work);
                        }
                        Fact::RefusedBadSignature => {
                            refuse(
                                child,
                                now,
                                &format!("order {order} for {device}: bad_signature at the relay"),
                                work,
                            );
                        }
                        Fact::GivenBack => given_back(state, now, order, device, by, work),
                        Fact::Held => {}
                    }
                }
            }
        }
        class::INVENTORY => {
            if record.body.len() > INVENTORY_BYTES_MAX {
                return Err("too_large");
            }
            let report: Report = rmp_serde::from_slice(&record.body).map_err(|_| "malformed")?;
            inventory(state, now, child, device, report, record, preloaded, token, taken, work)?;
        }
        class::ALERT => {
            let alert: Alert = rmp_serde::from_slice(&record.body).map_err(|_| "malformed")?;
            work.ops.push(Op::Audit(AuditRow {
                tenant: child.tenant.clone(),
                at: record.at,
                who: device.to_string(),
                what: format!("alert.{}", alert.code),
                detail: alert.message,
            }));
        }
        // Carried this far untouched; a later build reads it.
        other => tracing::debug!(%device, class = other, "a record of a class without a use here"),
    }
    Ok(())
}

#[allow(clippy::too_many_arguments, reason = "one report in its context")]
fn inventory(
    state: &mut TenantState,
    now: Now,
    child: &Child,
    device: NodeId,
    report: Report,
    record: &Record,
    preloaded: &Preloaded,
    token: Token,
    taken: &mut Taken,
    work: &mut Work,
) -> Result<(), &'static str> {
    let tenant = child.tenant.clone();
    let current = state
        .pending_inventory
        .get(&device)
        .map(|(_, s, at)| (s.clone(), *at))
        .or_else(|| preloaded.get(&device).cloned());
    let (before, collected_before) = current.unwrap_or_default();
    let history = || Op::InventoryHistory {
        tenant: tenant.clone(),
        device,
        collected_at: report.collected_at,
        report: record.body.clone(),
    };
    let ahead = |at: Millis| at.0 > now.node.0.saturating_add(SKEW_MS);
    // One from a clock that was wrong must not shut out what comes after it.
    if report.collected_at < collected_before && !ahead(collected_before) {
        // Older than what is shown: kept, but it overwrites nothing (INV-13).
        work.ops.push(history());
        return Ok(());
    }
    let mut after = before.clone();
    match after.apply(&report) {
        Ok(()) => {}
        Err(ApplyFault::BaseMissing(sections)) => {
            work.ops.push(history());
            ask_for(state, child, device, sections, work);
            return Ok(());
        }
        Err(ApplyFault::WrongDigest) if report.kind == ReportKind::Diff => {
            work.ops.push(history());
            ask_for(state, child, device, Vec::new(), work);
            return Ok(());
        }
        Err(fault) => {
            tracing::warn!(%device, %fault, "an inventory that contradicts itself");
            return Err("malformed");
        }
    }
    let unchanged = after == before && collected_before != Millis(0) && !ahead(collected_before);
    let collected_at = if unchanged { collected_before } else { report.collected_at };
    let put = after.sections.iter().filter(|(name, items)| before.sections.get(*name) != Some(items));
    let put = put.map(|(name, items)| (name.clone(), items.clone())).collect();
    let gone = before.sections.keys().filter(|name| !after.sections.contains_key(*name)).cloned().collect();
    state.need_full.remove(&device);
    work.ops.push(Op::Inventory {
        tenant,
        device,
        put,
        gone,
        digest: report.digest,
        collected_at,
        settings_version: report.settings_version,
        need_full: false,
        clock_skew: ahead(collected_at),
    });
    state.pending_inventory.insert(device, (token, after, collected_at));
    taken.inventories.push(device);
    Ok(())
}

/// The server lacks the base: the device is asked for what is missing, now and at each contact until it came (INV-6).
fn ask_for(state: &mut TenantState, child: &Child, device: NodeId, sections: Vec<String>, work: &mut Work) {
    state.need_full.insert(device);
    work.ops.push(Op::NeedFull(child.tenant.clone(), device));
    let ask = Message::Sections(device, sections);
    work.after.push(Effect::Send(child.node, child.session, Lane::Control, ask));
}
