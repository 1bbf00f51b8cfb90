//! What the store promises, told on real files.

mod commits;
mod dead_letters;
mod opening;
mod reads;
mod recalled;
mod volume;
mod way_down;

use super::*;
use branchline_protocol::{order::Signer, record::Lane};
use std::{path::PathBuf, sync::Arc};
use tempfile::TempDir;
use uuid::Uuid;

/// A folder with a store's file in it; gone with the value.
pub struct Place {
    folder: TempDir,
}

impl Place {
    pub fn new() -> Place {
        Place { folder: tempfile::tempdir().unwrap() }
    }

    pub fn file(&self) -> PathBuf {
        self.folder.path().join("server.db")
    }

    pub async fn open(&self) -> Arc<SqliteStore> {
        SqliteStore::open(&self.file()).await.unwrap()
    }
}

pub fn tenant(name: &str) -> TenantId {
    name.parse().unwrap()
}

pub fn node_id(n: u128) -> NodeId {
    NodeId(Uuid::from_u128(n))
}

pub fn job_id(n: u128) -> JobId {
    JobId(Uuid::from_u128(n))
}

pub fn node(of: &str, n: u128, name: &str) -> NodeRow {
    NodeRow {
        id: node_id(n),
        tenant: tenant(of),
        role: Role::Agent,
        site: "osaka".into(),
        name: name.into(),
        host_name: format!("{name}.example"),
        platform: "linux".into(),
        capabilities: ["run_script".into()].into(),
        kind: "lan".into(),
        epoch: 1,
        attachment: 4,
        route: vec![node_id(901), node_id(902)],
        last_contact: Some(Millis(7)),
        enrolled_at: Millis(5),
        revoked_at: None,
        key_hash: Hash::of(name.as_bytes()),
        tags: vec!["desk".into()],
    }
}

pub fn job(of: &str, n: u128, number: u64) -> Box<JobRow> {
    Box::new(JobRow {
        id: job_id(n),
        tenant: tenant(of),
        number: OrderNumber { term: 1, number },
        trace: TraceId(Uuid::from_u128(n + 1)),
        verb: "run_script".into(),
        command: "uname -sr".into(),
        selector: "all".into(),
        class: Class::Urgent,
        ordered_by: "admin".into(),
        issued_at: Millis(10 + number as i64),
        fetch_by: Millis(20),
        report_by: Millis(30),
        envelope: Envelope::sign("order", &b"payload"[..], &Signer::from_seed(&[7; 32])),
        args: Bytes::from_static(b"args"),
        origin: None,
    })
}

pub fn target(n: u128, device: u128, leaf: u32) -> JobDeviceRow {
    JobDeviceRow {
        job: job_id(n),
        leaf: Some(leaf),
        device: Ok(node_id(device)),
        epoch: 1,
        state: State::Queued,
        reason: None,
        changed_at: Millis(10),
        result: None,
        holders: vec![],
        delivered_at: None,
        late: false,
    }
}

pub fn result(text: &str) -> ResultRow {
    ResultRow {
        exit_code: Some(0),
        stdout: Bytes::copy_from_slice(text.as_bytes()),
        stderr: Bytes::new(),
        truncated: false,
        started_at: Some(Millis(11)),
        ended_at: Millis(12),
    }
}

pub fn ended(of: &str, n: u128, device: u128, state: State, result: Option<ResultRow>) -> Op {
    let (tenant, job, device) = (tenant(of), job_id(n), node_id(device));
    Op::JobDevice { tenant, job, device, state, reason: Some("why".into()), at: Millis(40), result }
}

pub fn stream(n: u128, upto: u64) -> StreamRow {
    let stream = StreamId { node: node_id(n), epoch: 1, incarnation: u64::MAX, lane: Lane::Work };
    StreamRow { stream, upto, hash: Hash::of(&upto.to_be_bytes()) }
}

pub fn items(value: serde_json::Value) -> BTreeMap<String, Items> {
    serde_json::from_value(value).unwrap()
}

pub fn inventory(of: &str, device: u128, put: BTreeMap<String, Items>, gone: &[&str], need_full: bool) -> Op {
    Op::Inventory {
        tenant: tenant(of),
        device: node_id(device),
        put,
        gone: gone.iter().map(|s| s.to_string()).collect(),
        digest: Hash::of(b"digest"),
        collected_at: Millis(50),
        settings_version: 3,
        need_full,
        clock_skew: device == 2,
    }
}
