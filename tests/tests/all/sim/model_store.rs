//! The simulator's model of the server's store and SQLite, side by side, under the same random writes.

use branchline_protocol::{
    document::Kind,
    hash::Hash,
    id::{JobId, NodeId, OrderNumber, Role, TenantId, TraceId},
    inventory::Items,
    job::{Class, State},
    order::{Envelope, Signer},
    record::{Lane, StreamId},
    time::Millis,
};
use branchline_server::store::{
    ApiTokenRow, AuditRow, DeadLetterRow, JobDeviceRow, JobRow, NodeRow, Op, ResultRow, SqliteStore, Store, StoreError,
    StreamRow, TokenRow,
};
use branchline_tests::sim::{chance::Chance, server_rows::ServerRows};
use bytes::Bytes;
use serde_json::json;
use std::collections::BTreeMap;
use uuid::Uuid;

const DEVICES: u64 = 5;

struct Writer {
    chance: Chance,
    jobs: u64,
}

fn id(n: u64) -> NodeId {
    NodeId(Uuid::from_u128(n.into()))
}

fn job_id(n: u64) -> JobId {
    JobId(Uuid::from_u128(n.into()))
}

impl Writer {
    fn tenant(&mut self) -> TenantId {
        ["acme", "other"][self.chance.below(2) as usize].parse().unwrap()
    }

    fn device(&mut self) -> NodeId {
        id(1 + self.chance.below(DEVICES))
    }

    fn at(&mut self) -> Millis {
        Millis(self.chance.below(1_000) as i64)
    }

    fn hash(&mut self) -> Hash {
        Hash::of(&self.chance.below(4).to_be_bytes())
    }

    fn text(&mut self, words: &[&str]) -> String {
        words[self.chance.below(words.len() as u64) as usize].into()
    }

    fn node(&mut self) -> NodeRow {
        NodeRow {
            id: self.device(),
            tenant: self.tenant(),
            role: if self.chance.one_in(4) { Role::Relay } else { Role::Agent },
            site: "hq".into(),
            name: self.text(&["ann", "Ann", "bob", "cleo", "dora", "emil"]),
            host_name: self.text(&["a.example", "b.example"]),
            platform: "linux".into(),
            capabilities: [self.text(&["run_script", "other"])].into(),
            kind: "lan".into(),
            epoch: 1 + self.chance.below(3) as u32,
            attachment: self.chance.below(9),
            route: vec![self.device()],
            last_contact: if self.chance.one_in(2) { Some(self.at()) } else { None },
            enrolled_at: self.at(),
            revoked_at: if self.chance.one_in(5) { Some(self.at()) } else { None },
            key_hash: self.hash(),
            tags: vec![self.text(&["desk", "lab"])],
        }
    }

    fn result(&mut self) -> Option<ResultRow> {
        if self.chance.one_in(2) {
            return None;
        }
        Some(ResultRow {
            exit_code: if self.chance.one_in(3) { None } else { Some(self.chance.below(3) as i32) },
            stdout: Bytes::from(self.text(&["out", "", "more"])),
            stderr: Bytes::new(),
            truncated: self.chance.one_in(2),
            started_at: if self.chance.one_in(2) { Some(self.at()) } else { None },
            ended_at: self.at(),
        })
    }

    fn job(&mut self) -> Op {
        // Now and then one that is there already.
        let again = self.jobs > 0 && self.chance.one_in(12);
        self.jobs += u64::from(!again);
        let n = self.jobs;
        let tenant = self.tenant();
        let target = |leaf: Option<u64>, device, state, at| JobDeviceRow {
            job: job_id(n),
            leaf: leaf.map(|leaf| leaf as u32),
            device,
            epoch: 1,
            state,
            reason: None,
            changed_at: at,
            result: None,
            holders: Vec::new(),
            delivered_at: None,
            late: false,
        };
        let mut devices = Vec::new();
        for leaf in 0..1 + self.chance.below(DEVICES) {
            devices.push(target(Some(leaf), Ok(id(1 + leaf)), State::Queued, self.at()));
        }
        if self.chance.one_in(3) {
            devices.push(target(None, Err("nobody".into()), State::NoSuchDevice, self.at()));
        }
        let row = JobRow {
            id: job_id(n),
            tenant,
            number: OrderNumber { term: 1, number: n },
            trace: TraceId(Uuid::from_u128(n.into())),
            verb: "run_script".into(),
            command: self.text(&["uname", "id"]),
            selector: "all".into(),
            class: Class::Normal,
            ordered_by: "admin".into(),
            issued_at: self.at(),
            fetch_by: self.at(),
            report_by: self.at(),
            envelope: Envelope::sign("order", n.to_be_bytes().to_vec(), &Signer::from_seed(&[7; 32])),
            args: Bytes::from(self.text(&["x", "y"])),
            origin: None,
        };
        Op::Job(Box::new(row), devices)
    }

    /// A job that comes back: a new one, or some devices of one that may be there.
    fn recalled(&mut self) -> Op {
        let (jobs, known) = (self.jobs, self.chance.one_in(2));
        if known && jobs > 0 {
            self.jobs = self.chance.below(jobs);
        }
        let Op::Job(row, devices) = self.job() else { unreachable!("it makes jobs") };
        self.jobs = self.jobs.max(jobs);
        let unknown = |row: JobDeviceRow| JobDeviceRow { state: State::OutcomeUnknown, ..row };
        let some = devices.into_iter().filter(|row| row.leaf.is_some_and(|leaf| leaf % 2 == (jobs as u32) % 2));
        Op::Recalled(row, some.map(unknown).collect())
    }

    fn sections(&mut self) -> BTreeMap<String, Items> {
        let name = self.text(&["os", "hardware", "software"]);
        let items = json!({"pretty_name": self.text(&["Debian", "Arch"]), "cpu_model": "x"});
        [(name, serde_json::from_value(items).unwrap())].into()
    }

    fn op(&mut self) -> Op {
        match self.chance.below(32) {
            30..=31 => self.recalled(),
            0 => Op::Tenant(self.tenant()),
            1 => Op::Site(self.tenant(), self.text(&["hq", "osaka", "lima"])),
            2..=4 => Op::Node(self.node()),
            5..=6 => Op::Attached {
                tenant: self.tenant(),
                node: self.device(),
                epoch: 1 + self.chance.below(3) as u32,
                attachment: self.chance.below(9),
                route: vec![self.device(), self.device()],
                last_contact: self.at(),
                capabilities: [self.text(&["run_script", "new"])].into(),
            },
            7 => Op::Token(TokenRow {
                hash: self.hash(),
                tenant: self.tenant(),
                role: Role::Agent,
                site: "hq".into(),
                kind: "lan".into(),
                uses_left: self.chance.below(3) as u32,
                expires_at: self.at(),
            }),
            8 => Op::UseToken(self.hash()),
            9 => Op::ApiToken(ApiTokenRow { hash: self.hash(), tenant: self.tenant(), name: self.text(&["a", "b"]) }),
            10..=12 => self.job(),
            13..=16 => Op::JobDevice {
                tenant: self.tenant(),
                job: job_id(1 + self.chance.below(self.jobs.max(1))),
                device: id(1 + self.chance.below(DEVICES + 1)),
                state: State::ALL[self.chance.below(11) as usize],
                reason: if self.chance.one_in(2) { Some(self.text(&["cut", "time_out"])) } else { None },
                at: self.at(),
                result: self.result(),
            },
            17 => Op::Stream(
                self.tenant(),
                StreamRow {
                    stream: StreamId {
                        node: self.device(),
                        epoch: 1,
                        incarnation: self.chance.below(3),
                        lane: Lane::ALL[self.chance.below(5) as usize],
                    },
                    upto: self.chance.below(100),
                    hash: self.hash(),
                },
            ),
            18 => Op::Inventory {
                tenant: self.tenant(),
                device: self.device(),
                put: self.sections(),
                gone: vec![self.text(&["os", "users", "software"])],
                digest: self.hash(),
                collected_at: self.at(),
                settings_version: self.chance.below(3),
                need_full: self.chance.one_in(2),
                clock_skew: self.chance.one_in(2),
            },
            19 => Op::InventoryHistory {
                tenant: self.tenant(),
                device: self.device(),
                collected_at: self.at(),
                report: Bytes::from(self.chance.next().to_be_bytes().to_vec()),
            },
            20 => Op::NeedFull(self.tenant(), self.device()),
            21 => {
                let version = (1, self.chance.below(4));
                let envelope = Envelope::sign("doc", vec![self.chance.below(9) as u8], &Signer::from_seed(&[7; 32]));
                Op::Document(self.tenant(), Kind::Upstreams, self.text(&["hq", "osaka"]), version, envelope)
            }
            24 => Op::Holders {
                tenant: self.tenant(),
                job: job_id(1 + self.chance.below(self.jobs.max(1))),
                device: id(1 + self.chance.below(DEVICES + 1)),
                holders: vec![self.device()],
            },
            25..=26 => Op::LateResult {
                tenant: self.tenant(),
                order: OrderNumber { term: 1, number: 1 + self.chance.below(self.jobs.max(1)) },
                device: id(1 + self.chance.below(DEVICES + 1)),
                state: State::Succeeded,
                reason: None,
                at: self.at(),
                result: ResultRow {
                    exit_code: Some(0),
                    stdout: Bytes::new(),
                    stderr: Bytes::new(),
                    truncated: false,
                    started_at: None,
                    ended_at: self.at(),
                },
            },
            27 => Op::StreamGone(
                self.tenant(),
                StreamId {
                    node: self.device(),
                    epoch: 1,
                    incarnation: self.chance.below(3),
                    lane: Lane::ALL[self.chance.below(5) as usize],
                },
            ),
            28..=29 => Op::DeadLetter(DeadLetterRow {
                tenant: self.tenant(),
                at: self.at(),
                via: self.device(),
                stream: StreamId { node: self.device(), epoch: 1, incarnation: u64::MAX, lane: Lane::Work },
                number: self.chance.next(),
                class: 1,
                code: self.text(&["foreign", "malformed"]),
                bytes: 3,
                body: Bytes::from_static(b"abc"),
            }),
            22 => Op::Meta(self.text(&["order/acme", "address"]), Bytes::from(self.text(&["1", "2"]))),
            _ => Op::Audit(AuditRow {
                tenant: self.tenant(),
                at: self.at(),
                who: "admin".into(),
                what: "job.issue".into(),
                detail: self.chance.below(99).to_string(),
            }),
        }
    }
}

async fn compare(store: &SqliteStore, model: &ServerRows) {
    assert_eq!(store.tenants().await.unwrap(), model.tenants.iter().cloned().collect::<Vec<_>>());
    assert_eq!(store.nodes().await.unwrap(), model.nodes.values().cloned().collect::<Vec<_>>());
    let mut streams = store.streams().await.unwrap();
    streams.sort_by_key(|(tenant, row)| (tenant.clone(), row.stream.key()));
    let expected: Vec<_> = model.streams.iter().map(|((tenant, _), row)| (tenant.clone(), *row)).collect();
    assert_eq!(streams, expected);
    let mut wanted = store.need_full().await.unwrap();
    wanted.sort();
    assert_eq!(wanted, model.wanted.iter().cloned().collect::<Vec<_>>());
    let mut open: Vec<_> = store.open_jobs().await.unwrap();
    open.sort_by_key(|job| (job.tenant.clone(), job.id));
    let expected: Vec<_> = model.open.iter().map(|key| model.jobs[key].row.clone()).collect();
    assert_eq!(open, expected);
    for ((tenant, job), held) in &model.jobs {
        assert_eq!(store.job(tenant, *job).await.unwrap().as_ref(), Some(&held.row));
        assert_eq!(store.job_devices(tenant, *job).await.unwrap(), held.devices);
    }
    for tenant in ["acme", "other"].map(|name| name.parse::<TenantId>().unwrap()) {
        let sites = model.sites.iter().filter(|(of, _)| *of == tenant).map(|(_, site)| site.clone());
        assert_eq!(store.sites(&tenant).await.unwrap(), sites.collect::<Vec<_>>());
        for n in 1..=DEVICES {
            assert_eq!(store.inventory(&tenant, id(n)).await.unwrap(), model.inventory(&tenant, id(n)));
            let history = model.history.get(&(tenant.clone(), id(n))).cloned().unwrap_or_default();
            assert_eq!(store.inventory_history(&tenant, id(n)).await.unwrap(), history);
        }
        let mut documents = store.documents(&tenant).await.unwrap();
        documents.sort_by_key(|(kind, site, _)| (*kind, site.clone()));
        let of_tenant = model.documents.iter().filter(|((of, ..), _)| *of == tenant);
        let expected = of_tenant.map(|((_, kind, site), (_, envelope))| (*kind, site.clone(), envelope.clone()));
        assert_eq!(documents, expected.collect::<Vec<_>>());
        let audit: Vec<_> = model.audit.iter().rev().filter(|row| row.tenant == tenant).cloned().collect();
        assert_eq!(store.audit(&tenant, 100_000).await.unwrap(), audit);
        let dead: Vec<_> = model.dead_letters.get(&tenant).into_iter().flatten().rev().cloned().collect();
        assert_eq!(store.dead_letters(&tenant, 100_000).await.unwrap(), dead);
    }
    for n in 0..4u64 {
        let hash = Hash::of(&n.to_be_bytes());
        assert_eq!(store.token(hash).await.unwrap().as_ref(), model.tokens.get(&hash));
        assert_eq!(store.api_token(hash).await.unwrap().as_ref(), model.api_tokens.get(&hash));
    }
    for key in ["order/acme", "address"] {
        assert_eq!(store.meta(key).await.unwrap().as_ref(), model.meta.get(key));
    }
}

#[test]
fn the_model_of_the_servers_store_and_sqlite_hold_the_same() {
    let system = actix_rt::System::new();
    system.block_on(async {
        for seed in 1..=4 {
            let folder = tempfile::tempdir().unwrap();
            let store = SqliteStore::open(&folder.path().join("server.db")).await.unwrap();
            let mut model = ServerRows::default();
            let mut writer = Writer { chance: Chance::new(seed, 0), jobs: 0 };
            let mut conflicts = 0;
            for round in 0..120 {
                let batch: Vec<Op> = (0..1 + writer.chance.below(6)).map(|_| writer.op()).collect();
                let stored = store.commit(batch.clone()).await;
                let modelled = model.commit(&batch);
                match (&stored, &modelled) {
                    (Ok(()), Ok(())) => {}
                    (Err(StoreError::Conflict(_)), Err(_)) => conflicts += 1,
                    _ => panic!("seed {seed} round {round}: {stored:?} and {modelled:?} of {batch:#?}"),
                }
                if round % 20 == 19 {
                    compare(&store, &model).await;
                }
            }
            assert!((5..100).contains(&conflicts), "seed {seed}: {conflicts} conflicts");
            store.close().await;
        }
    });
}
