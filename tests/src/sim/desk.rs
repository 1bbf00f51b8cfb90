//! The administrator's desk: what is ordered, and with which keys.

use super::{
    chance::Chance,
    place::Place,
    world::{AGENTS, What, World},
};
use branchline_node::{identity::RootKey, time::NodeTime};
use branchline_protocol::{
    document::{Document, Kind, Revocations, TimeStatement},
    hash::Hash,
    id::{JobId, NodeId, OrderNumber, Role, TenantId, TraceId},
    job::{Class, RunScript, Runnable, State},
    order::{Envelope, Leaf, ORDER_PAYLOAD_TYPE, OrderMessage, Payload, Signer, Tree},
    time::Millis,
    trust::{KeyStatus, TrustDocument, TrustedKey},
};
use branchline_server::{
    dispatch::{Event, Issue},
    store::{JobDeviceRow, JobRow, NodeRow, Op},
};
use bytes::Bytes;
use std::collections::BTreeSet;
use uuid::Uuid;

/// Keys, and what was ordered.
pub struct Desk {
    /// The tenant.
    pub tenant: TenantId,
    /// Signs orders and documents.
    pub signer: Signer,
    /// Signs the trust document; only its public half is used.
    pub root: RootKey,
    /// What everybody was enrolled with.
    pub trust: TrustDocument,
    /// Revocations, empty.
    pub revocations: Envelope,
    /// Jobs whose issuer was told that they are durable.
    pub accepted: BTreeSet<JobId>,
    /// Jobs that were checked off.
    pub forgotten: BTreeSet<JobId>,
    /// Dice of the orders alone.
    pub chance: Chance,
}

impl Desk {
    /// The desk of a run.
    pub fn new(seed: u64) -> Desk {
        let signer = Signer::from_seed(&[1; 32]);
        let tenant: TenantId = "acme".parse().expect("a tenant's name");
        let key = TrustedKey { key: signer.public(), role: "server".into(), status: KeyStatus::Active };
        let trust = TrustDocument { tenant: tenant.clone(), term: 1, version: 1, cas: vec![], keys: vec![key] };
        let revocations =
            Revocations { tenant: tenant.clone(), term: 1, version: 1, revoked: vec![], suspended: vec![] }
                .seal(&signer);
        Desk {
            tenant,
            root: Signer::from_seed(&[9; 32]).public(),
            trust,
            revocations,
            signer,
            accepted: BTreeSet::new(),
            forgotten: BTreeSet::new(),
            chance: Chance::new(seed, 3),
        }
    }

    /// A node as it is enrolled.
    pub fn row(&self, place: Place, epoch: u32) -> NodeRow {
        let role = match place {
            Place::Server => Role::Server,
            Place::Gateway => Role::Gateway,
            Place::Relay(_) => Role::Relay,
            Place::Agent(_) => Role::Agent,
        };
        NodeRow {
            id: place.id(),
            tenant: self.tenant.clone(),
            role,
            site: "hq".into(),
            name: place.to_string(),
            host_name: place.to_string(),
            platform: "virtual".into(),
            capabilities: vec![],
            kind: "lan".into(),
            epoch,
            attachment: 0,
            route: vec![],
            last_contact: None,
            enrolled_at: Millis(0),
            revoked_at: None,
            key_hash: Hash::of(place.to_string().as_bytes()),
            tags: vec![],
        }
    }

    /// What the server has to hold before anybody is there.
    pub fn founding(&self) -> Vec<Op> {
        let nodes = (0..super::world::RELAYS).map(Place::Relay).chain((0..AGENTS).map(Place::Agent));
        let rows = nodes.map(|place| Op::Node(self.row(place, 1)));
        [Op::Tenant(self.tenant.clone()), Op::Site(self.tenant.clone(), "hq".into())].into_iter().chain(rows).collect()
    }

    /// A time statement.
    pub fn statement(&self, time: Millis, version: u64) -> Envelope {
        TimeStatement {
            tenant: self.tenant.clone(),
            time,
            term: 1,
            version,
            order_floor: 0,
            trust_version: 1,
            settings_version: 0,
            revocations_version: 1,
        }
        .seal(&self.signer)
    }

    /// The kind and version of the revocations.
    pub fn documents(&self) -> [(Kind, (u32, u64), Envelope); 1] {
        [(Kind::Revocations, (1, 1), self.revocations.clone())]
    }

    fn id(&mut self) -> Uuid {
        Uuid::from_u64_pair(self.chance.next(), self.chance.next())
    }
}

impl World {
    /// An administrator orders a script on some devices, as the dispatcher's shell would take it.
    pub(super) fn issue(&mut self) {
        if !self.storm {
            return;
        }
        let wait = self.desk.chance.between(500, 3_500);
        self.after(wait, What::Issue);
        let count = self.desk.chance.between(1, 12);
        let chosen: BTreeSet<usize> = (0..count).map(|_| self.desk.chance.below(AGENTS as u64) as usize).collect();
        let class = if self.desk.chance.one_in(4) { Class::Urgent } else { Class::Normal };
        let exit = if self.desk.chance.one_in(5) { "1" } else { "0" };
        let run_ms = [0, 5, 300, 2_500, 6_000][self.desk.chance.below(5) as usize];
        let (id, trace) = (JobId(self.desk.id()), TraceId(self.desk.id()));
        let reachable = self.machines[&Place::Server].frozen_until <= self.now;
        let Some(process) = self.server.process.as_mut().filter(|_| reachable) else { return };
        let run = RunScript {
            run: Runnable::Argv(vec!["run".into(), exit.into(), run_ms.to_string()]),
            time_out_ms: 600_000,
            output_cap: 65_536,
        };
        let args: Bytes = rmp_serde::to_vec_named(&run).expect("arguments are plain data").into();
        let now = NodeTime::now(&process.time);
        process.number += 1;
        let number = OrderNumber { term: 1, number: process.number };
        let tenant = self.desk.tenant.clone();
        let Some(state) = process.core.tenant(&tenant) else { return };
        let mut targets: Vec<(Vec<NodeId>, NodeId, u32)> = chosen
            .iter()
            .filter_map(|agent| state.nodes.get(&Place::Agent(*agent).id()))
            .map(|row| (state.directory.get(row.id).map_or(row.route.clone(), |e| e.via.clone()), row.id, row.epoch))
            .collect();
        targets.sort();
        let leaves = targets.iter().map(|(_, device, epoch)| Leaf { device: *device, epoch: *epoch }).collect();
        let tree = Tree::build(&tenant, number, leaves);
        let payload = Payload {
            tenant: tenant.clone(),
            number,
            job: id,
            trace,
            verb: "run_script".into(),
            args_hash: Hash::of(&args),
            class,
            issued_at: now.node,
            not_before: Millis(0),
            fetch_by: now.node.plus(30 * 86_400_000),
            run_ms_max: 600_000,
            policy_version: 0,
            root: tree.root(),
            leaf_count: tree.leaf_count(),
            targets: Vec::new(),
        };
        let bytes = rmp_serde::to_vec_named(&payload).expect("a payload is plain data");
        let envelope = Envelope::sign(ORDER_PAYLOAD_TYPE, bytes, &self.desk.signer);
        let devices: Vec<JobDeviceRow> = tree
            .leaves()
            .iter()
            .enumerate()
            .map(|(leaf, l)| JobDeviceRow {
                job: id,
                leaf: Some(leaf as u32),
                device: Ok(l.device),
                epoch: l.epoch,
                state: State::Queued,
                reason: None,
                changed_at: now.node,
                result: None,
                holders: Vec::new(),
                delivered_at: None,
                late: false,
            })
            .collect();
        let all: Vec<u32> = (0..tree.leaf_count()).collect();
        let message = OrderMessage { envelope: envelope.clone(), args: args.clone(), proof: tree.prove(&all) };
        let row = JobRow {
            id,
            tenant,
            number,
            trace,
            verb: "run_script".into(),
            command: "run".into(),
            selector: "some".into(),
            class,
            ordered_by: "admin".into(),
            issued_at: now.node,
            fetch_by: payload.fetch_by,
            report_by: payload.report_by(),
            envelope,
            args,
            origin: None,
        };
        process.issuing.insert(id);
        let message = Some(message);
        let issue = Issue { job: row, devices, payload, message, who: "admin".into() };
        self.note(format_args!("issue {number} to {} devices", tree.leaf_count()));
        self.feed_server(Event::Issue(Box::new(issue)));
    }
}
