//! The server's store by itself, under whatever is preloaded: a process that takes records as the server settles them.
//!
//! `sqlite-under-fault FILE COUNT` goes on from the record after the last that the file holds, up to COUNT, and prints
//! `settled N` once the Nth is durable. It ends with 0, or with 70 when the store refuses to open or to go on; then it
//! has checked that the store takes nothing more. At the end it prints `holds N` and that each of them is there once.

use branchline_protocol::{
    hash::Hash,
    id::{NodeId, TenantId},
    record::{Lane, StreamId},
    time::Millis,
};
use branchline_server::store::{AuditRow, Op, SqliteStore, Store, StoreError, StreamRow};
use std::{collections::BTreeMap, path::Path, process::ExitCode};

/// As much as a result with some output.
const BYTES: usize = 3_000;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    let (Some(file), Some(count)) = (args.get(1), args.get(2).and_then(|n| n.parse().ok())) else {
        eprintln!("usage: sqlite-under-fault FILE COUNT");
        return ExitCode::from(2);
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    match runtime.block_on(settle(Path::new(file), count)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            println!("stopped: {fault}");
            ExitCode::from(70)
        }
    }
}

fn tenant() -> TenantId {
    "main".parse().expect("a literal tenant")
}

fn stream() -> StreamId {
    let node: NodeId = "0190f0e0-0000-7000-8000-000000000001".parse().expect("a literal id");
    StreamId { node, epoch: 1, incarnation: 1, lane: Lane::Work }
}

async fn settle(file: &Path, count: u64) -> Result<(), StoreError> {
    let store = SqliteStore::open(file).await?;
    let settled = async {
        for n in held(&store).await? + 1..=count {
            store.commit(batch(n)).await?;
            println!("settled {n}");
        }
        Ok(())
    };
    let settled: Result<(), StoreError> = settled.await;
    if settled.is_err() {
        // Whatever the disk does from here on: what is after the failure is never acknowledged.
        assert!(store.commit(batch(count + 1)).await.is_err(), "a store that failed took another batch");
        store.close().await;
        return settled;
    }
    let upto = held(&store).await?;
    let mut times: BTreeMap<String, u64> = BTreeMap::new();
    for row in store.audit(&tenant(), 100_000).await? {
        *times.entry(row.detail).or_default() += 1;
    }
    for n in 1..=upto {
        assert_eq!(times.remove(&n.to_string()), Some(1), "record {n}");
        assert!(store.meta(&format!("record/{n}")).await?.is_some_and(|body| body == content(n)), "record {n}");
    }
    assert!(times.is_empty(), "beyond the stream's end: {times:?}");
    println!("holds {upto}");
    store.close().await;
    Ok(())
}

/// The number of the last record whose stream position is stored.
async fn held(store: &SqliteStore) -> Result<u64, StoreError> {
    Ok(store.streams().await?.iter().map(|(_, row)| row.upto).max().unwrap_or(0))
}

fn content(n: u64) -> bytes::Bytes {
    vec![(n % 251) as u8; BYTES].into()
}

/// A record's effect and the stream's position, as the server writes them together.
fn batch(n: u64) -> Vec<Op> {
    let row = StreamRow { stream: stream(), upto: n, hash: Hash::of(&n.to_be_bytes()) };
    let audit = AuditRow {
        tenant: tenant(),
        at: Millis(n as i64),
        who: "test".into(),
        what: "record".into(),
        detail: n.to_string(),
    };
    vec![Op::Meta(format!("record/{n}"), content(n)), Op::Audit(audit), Op::Stream(tenant(), row)]
}
