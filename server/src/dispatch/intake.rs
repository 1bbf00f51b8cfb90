//! What a record from below changes (pure): dedupe by position, results once, inventory all or nothing.

use super::{
    core::{
        Effect, Over, TenantState, Token, Work, advance, cancel_told, end, given_back, rolled_back, take_order, trust,
    },
    receipts::{Mismatch, Refused},
};
use crate::store::{AuditRow, DEAD_LETTER_BYTES_MAX, DeadLetterRow, Op, ResultRow, StreamRow};
use branchline_node::downstream::Child;
use branchline_protocol::{
    chain::{ChainFault, Next, Position, extent},
    hash::Hash,
    id::{NodeId, OrderNumber, Role},
    inventory::{ApplyFault, CLOCK_SKEW_MS, INVENTORY_BYTES_MAX, Report, ReportKind, SectionChange, Snapshot},
    job::State,
    order::{Envelope, OrderMessage, verify_order},
    receipt::{Head, open_head},
    record::{Alert, Fact, Facts, Gap, JobResult, Lane, Progress, Record, RolledBack, Run, StreamId, class},
    time::{Millis, Now},
    wire::Message,
};
use serde::{Deserialize, de::IgnoredAny};
use std::collections::BTreeMap;

/// Milliseconds between two audits of refusals of the same kind: who sends such records must not fill the disk.
const AUDIT_EVERY_MS: i64 = 60_000;

/// Inventories as the store holds them: sections, collection time.
pub type Preloaded = BTreeMap<NodeId, (Snapshot, Millis)>;

/// What became of a run.
#[derive(Default)]
pub struct Taken {
    /// How far the stream is held, also where other streams of the same message made it forgotten.
    pub upto: u64,
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
    let limit = match heard(state, now, child, &stream, &run.receipts, work) {
        Ok(limit) => limit,
        Err(code) => {
            taken.foreign = true;
            for record in &run.records {
                refuse(state, now, child, stream, record, (code, None), work);
                taken.refused.push((record.number, code.to_string()));
            }
            return taken;
        }
    };
    // What it wrote it wrote while it was alive; its clock may be ahead of ours.
    if let Some(last) = run.records.last() {
        state.directory.heard(stream.node, last.at.min(now.node));
    }
    let before = state.streams.get(&stream);
    let mut position = before;
    let (mut head, mut unsigned) = (false, false);
    for record in run.records {
        if record.number > limit && position.is_none_or(|at| record.number > at.upto) {
            // Its device had gone elsewhere when it wrote this, so it did not give it to this child.
            taken.foreign = true;
            refuse(state, now, child, stream, &record, ("foreign", None), work);
            taken.refused.push((record.number, "foreign".into()));
            continue;
        }
        let next = match follow(position, &stream, &record, run.settled) {
            Ok((Next::Known, _)) => continue,
            Ok((Next::Takes(next), resumed)) => {
                if let Some(held) = resumed {
                    // This server was put back to an older state, or the sender lies; either way nobody has them now.
                    let detail =
                        format!("{}: {} to {} were settled, says the sender", shown(&stream), held + 1, next.upto - 1);
                    work.ops.push(audit(child, now.node, stream.node, "stream.resumed", detail));
                }
                next
            }
            Err(fault) => {
                // Nothing of it is kept. The child repeats from the one after what is acknowledged, if it has that.
                refuse(state, now, child, stream, &record, (fault.code(), None), work);
                taken.refused.push((fault.number(), fault.code().into()));
                break;
            }
        };
        if record.class == class::GAP {
            dropped(child, &stream, &record, position, work);
        } else if record.class == class::HEAD {
            signed(state, now, child, &stream, &record, work);
        } else if let Err(code) = apply(state, now, child, stream.node, &record, preloaded, token, &mut taken, work) {
            refuse(state, now, child, stream, &record, (code, wrong_field(&record)), work);
            taken.refused.push((record.number, code.into()));
        }
        position = Some(next);
        let signs = matches!(record.class, class::GAP | class::HEAD);
        (head, unsigned) = (head || signs, !signs);
        if let Some(mismatch) = state.receipts.reached(&stream, next) {
            altered(state, now, child, mismatch, "another hash than came", work);
        }
    }
    if let Some(at) = position.filter(|at| before != Some(*at)) {
        let gone = state.streams.put(stream, at);
        gone.iter().for_each(|stream| state.receipts.gone(stream));
        work.ops.push(Op::Stream(child.tenant.clone(), StreamRow { stream, upto: at.upto, hash: at.head }));
        work.ops.extend(gone.into_iter().map(|stream| Op::StreamGone(child.tenant.clone(), stream)));
        if child.node != stream.node && state.receipts.came(now.node, &stream, child.node, head, unsigned) {
            let mismatch = Mismatch { stream, number: at.upto };
            altered(state, now, child, mismatch, "nothing of it for a quarter of an hour", work);
        }
    }
    taken.upto = position.map_or(0, |at| at.upto);
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

/// Up to which number a stream is heard from this child, or why not at all. A relay speaks only for nodes of its tenant
/// that attached themselves below it, a device for itself (RLY-9); what a revoked one says counts no more (S-12).
fn heard(
    state: &mut TenantState,
    now: Now,
    child: &Child,
    stream: &StreamId,
    receipts: &[Envelope],
    work: &mut Work,
) -> Result<u64, &'static str> {
    let node = stream.node;
    let row = state.nodes.get(&node).ok_or("foreign")?;
    if row.revoked_at.is_some() {
        return Err("revoked");
    }
    if node == child.node {
        return Ok(u64::MAX);
    }
    if child.role == Role::Agent {
        return Err("foreign");
    }
    let (mismatches, refused) = state.receipts.take(&child.tenant, &state.nodes, &state.streams, receipts);
    for mismatch in mismatches {
        altered(state, now, child, mismatch, "another hash than came", work);
    }
    if let Some(Refused { of, fault }) = refused
        && may_audit(state, now, child.node, "receipt").is_some()
    {
        let of = of.map_or_else(|| "somebody".into(), |of| of.to_string());
        let detail = format!("a receipt of {of}, for records of {node}: {fault}");
        work.ops.push(audit(child, now.node, child.node, "receipt.refused", detail));
    }
    state.receipts.limit(child.node, stream).ok_or("foreign")
}

/// A child greeted: its own word on where it is and how far it has written.
pub(super) fn greeted(state: &mut TenantState, now: Now, child: &Child, work: &mut Work) {
    let Some(receipt) = &child.greeting.receipt else { return };
    for mismatch in state.receipts.attached(receipt, &state.streams) {
        altered(state, now, child, mismatch, "another hash than came", work);
    }
}

/// A head among the records: what comes before it must be what its node wrote.
fn signed(state: &mut TenantState, now: Now, child: &Child, stream: &StreamId, record: &Record, work: &mut Work) {
    let Some(key) = state.receipts.key_of(stream.node) else { return };
    let why = match open_head(&record.body, &child.tenant, stream.node, &key) {
        Ok(head) if head == Head::of(stream, record.number - 1, record.prev) => return,
        Ok(_) => "another hash than came",
        Err(_) => "nothing of what came",
    };
    altered(state, now, child, Mismatch { stream: *stream, number: record.number - 1 }, why, work);
}

/// Somebody between the device and this server altered, left out or added records: who brought them is named.
fn altered(state: &mut TenantState, now: Now, child: &Child, mismatch: Mismatch, why: &str, work: &mut Work) {
    let Mismatch { stream, number } = mismatch;
    let Some(count) = may_audit(state, now, stream.node, "stream_head_mismatch") else { return };
    let by = state.receipts.bringer(&stream).unwrap_or(child.node);
    tracing::error!(device = %stream.node, %by, number, "records are not what their device signed");
    let parents: Vec<String> = state.receipts.parents_of(stream.node).map(|parent| parent.to_string()).collect();
    let (what, parents) = (shown(&stream), parents.join(", "));
    let detail = format!(
        "{what} up to number {number}, brought by {by}: the device signed {why}; it was attached to {parents}; {count} \
         since the last alert"
    );
    work.ops.push(audit(child, now.node, stream.node, "alert.stream_head_mismatch", detail));
}

/// Whether an audit of this kind about a node is due, and of how many: once a minute.
fn may_audit(state: &mut TenantState, now: Now, node: NodeId, code: &'static str) -> Option<u64> {
    let (last, count) = state.refusals.entry((node, code, None)).or_insert((Millis(i64::MIN), 0));
    *count += 1;
    if now.node.0 < last.0.saturating_add(AUDIT_EVERY_MS) {
        return None;
    }
    *last = now.node;
    Some(std::mem::take(count))
}

/// Where a record leads to from where the stream is held; with the number held before, if what lies between was settled
/// by a server that remembered more than this one.
fn follow(
    position: Option<Position>,
    stream: &StreamId,
    record: &Record,
    settled: u64,
) -> Result<(Next, Option<u64>), ChainFault> {
    let (first, _) = extent(stream, record)?;
    let before = Position::before(first, record.prev);
    let (at, resumed) = match position {
        // What comes before was not taken, or is forgotten: whoever has it has to send it first.
        None if before.upto > settled => return Err(ChainFault::Hole { held: settled, got: first }),
        // Its beginning was settled before this server knew the stream.
        None => (before, None),
        Some(at) if before.upto > at.upto && settled >= before.upto => (before, Some(at.upto)),
        Some(at) => (at, None),
    };
    Ok((at.follow(stream, record)?, resumed))
}

fn shown(stream: &StreamId) -> String {
    format!("{:?} records of {}", stream.lane, stream.node).to_lowercase()
}

fn audit(child: &Child, at: Millis, who: NodeId, what: &str, detail: String) -> Op {
    Op::Audit(AuditRow { tenant: child.tenant.clone(), at, who: who.to_string(), what: what.into(), detail })
}

/// Records that were dropped below, counted (LOG-4, RLY-10): those of them that did not arrive before.
fn dropped(child: &Child, stream: &StreamId, record: &Record, held: Option<Position>, work: &mut Work) {
    let Ok(gap) = rmp_serde::from_slice::<Gap>(&record.body) else { return };
    let (first, last) = (gap.numbers.0.max(held.map_or(0, |at| at.upto) + 1), gap.numbers.1);
    let (count, bytes, reason) = (last - first + 1, gap.bytes, gap.reason.chars().take(64).collect::<String>());
    let detail = format!("{}: {first} to {last}, {count} in number, {bytes} bytes, {reason}", shown(stream));
    work.ops.push(audit(child, record.at, stream.node, "records.dropped", detail));
}

/// Keeps what was refused, and audits it: each node and code once a minute, with the count since.
fn refuse(
    state: &mut TenantState,
    now: Now,
    child: &Child,
    stream: StreamId,
    record: &Record,
    (code, field): (&'static str, Option<&'static str>),
    work: &mut Work,
) {
    let body = record.body.slice(..record.body.len().min(DEAD_LETTER_BYTES_MAX));
    work.ops.push(Op::DeadLetter(DeadLetterRow {
        tenant: child.tenant.clone(),
        at: now.node,
        via: child.node,
        stream,
        number: record.number,
        class: record.class,
        code: code.into(),
        bytes: record.body.len() as u64,
        body,
    }));
    let (last, count) = state.refusals.entry((stream.node, code, field)).or_insert((Millis(i64::MIN), 0));
    *count += 1;
    if now.node.0 < last.0.saturating_add(AUDIT_EVERY_MS) {
        return;
    }
    let count = std::mem::take(count);
    *last = now.node;
    let field = field.map(|field| format!(" in {field}")).unwrap_or_default();
    let what = format!("record {} of the {}", record.number, shown(&stream));
    let detail = format!("{what}, {count} since the last audit: {code}{field}");
    work.ops.push(audit(child, now.node, child.node, "record.refused", detail));
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
                if let Some(target) = state.recalled.get(&order).copied() {
                    cancel_told(state, now, target, device, reason.as_deref(), work);
                }
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
        class::ORDER => {
            let message: OrderMessage = rmp_serde::from_slice(&record.body).map_err(|_| "malformed")?;
            let trust = trust(state).ok_or("malformed")?;
            let verified = verify_order(&message, &child.tenant, &trust).map_err(|fault| fault.code())?;
            // A device tells of its own orders only.
            let mut leaves = message.proof.leaves.iter();
            if !leaves.all(|(_, leaf)| leaf.device == device) {
                return Err("foreign");
            }
            take_order(state, now, &child.tenant, verified.payload, message, work);
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
                            let detail = format!("order {order} for {device}: bad_signature at the relay");
                            work.ops.push(audit(child, now.node, child.node, "record.refused", detail));
                        }
                        Fact::GivenBack => given_back(state, now, order, device, by, work),
                        Fact::Held => state.is_held(order, device, by, record.at),
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
        class::ROLLED_BACK => {
            let told: RolledBack = rmp_serde::from_slice(&record.body).map_err(|_| "malformed")?;
            rolled_back(state, now, device, told, work);
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
    let ahead = |at: Millis| at.0 > now.node.0.saturating_add(CLOCK_SKEW_MS);
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
