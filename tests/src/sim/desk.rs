//! The administrator's desk: what is ordered, and with which keys.

use super::{
    chance::Chance,
    place::Place,
    world::{AGENTS, World},
};
use branchline_node::identity::RootKey;
use branchline_protocol::{
    document::{Document, Kind, Revocations, TimeStatement},
    hash::Hash,
    id::{Epoch, JobId, NodeId, OrderNumber, Role, TenantId, TraceId},
    job::{Class, State},
    order::{Envelope, Leaf, ORDER_PAYLOAD_TYPE, OrderMessage, Payload, Signer, Tree},
    time::{Millis, Now},
    trust::{KeyStatus, TrustDocument, TrustedKey},
};
use branchline_server::{
    dispatch::Issue,
    store::{JobDeviceRow, JobRow, NodeRow, Op},
};
use bytes::Bytes;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
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
    /// The list in force: who is suspended, who goes on in another epoch. Nobody is revoked.
    pub list: Arc<Revocations>,
    /// Devices that are suspended by it.
    pub suspended: BTreeSet<NodeId>,
    /// Jobs whose issuer was told that they are durable.
    pub accepted: BTreeSet<JobId>,
    /// Jobs that are being cancelled, by the receipt of the cancel.
    pub cancels: BTreeMap<JobId, JobId>,
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
        let (revoked, suspended, raised) = (vec![], vec![], vec![]);
        let list = Revocations {
            tenant: tenant.clone(),
            term: 1,
            version: 1,
            revoked,
            suspended,
            raised,
            keep_connection: vec![],
        };
        Desk {
            tenant,
            root: Signer::from_seed(&[9; 32]).public(),
            trust,
            list: Arc::new(list),
            suspended: BTreeSet::new(),
            signer,
            accepted: BTreeSet::new(),
            cancels: BTreeMap::new(),
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
            capabilities: [].into(),
            kind: "lan".into(),
            epoch,
            attachment: 0,
            route: vec![],
            last_contact: None,
            enrolled_at: Millis(0),
            revoked_at: None,
            key_hash: Hash::of(&place.signer().public().0),
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
            revocations_version: self.list.version,
            restored_from: None,
        }
        .seal(&self.signer)
    }

    /// The kind and version of the revocations.
    pub fn documents(&self) -> [(Kind, (u32, u64), Envelope); 1] {
        [(Kind::Revocations, self.list.version(), self.list.seal(&self.signer))]
    }

    /// The next list, with another epoch of a device.
    pub fn raise(&mut self, device: NodeId, epoch: Epoch) {
        let mut list = Revocations::clone(&self.list);
        list.raised.retain(|(node, _)| *node != device);
        list.raised.push((device, epoch));
        list.version += 1;
        self.list = Arc::new(list);
    }

    /// The next list, with who is suspended now.
    pub fn revise(&mut self) {
        let suspended = self.suspended.iter().copied().collect();
        self.list =
            Arc::new(Revocations { version: self.list.version + 1, suspended, ..Revocations::clone(&self.list) });
    }

    /// A new id.
    pub fn id(&mut self) -> Uuid {
        Uuid::from_u64_pair(self.chance.next(), self.chance.next())
    }
}

/// An order to be signed.
pub(super) struct Draft {
    /// What to do.
    pub verb: &'static str,
    /// With what.
    pub args: Bytes,
    /// How pressing.
    pub class: Class,
    /// Until when a device may journal it.
    pub fetch_by: Millis,
    /// Milliseconds it may run.
    pub run_ms_max: u64,
    /// For whom.
    pub devices: BTreeSet<NodeId>,
    /// The job it comes of.
    pub origin: Option<JobId>,
}

impl World {
    /// A signed order with its rows, as the dispatcher's shell makes it; its number is taken. `None`: the server is not
    /// there.
    pub(super) fn draft(&mut self, draft: Draft) -> Option<Issue> {
        let Draft { verb, args, class, fetch_by, run_ms_max, devices, origin } = draft;
        let tenant = self.desk.tenant.clone();
        let (id, trace) = (JobId(self.desk.id()), TraceId(self.desk.id()));
        let process = self.server.process.as_mut()?;
        let now: Now = process.time.now();
        process.number += 1;
        let number = OrderNumber { term: 1, number: process.number };
        let state = process.core.tenant(&tenant)?;
        let mut targets: Vec<(Vec<NodeId>, NodeId, u32)> = devices
            .iter()
            .filter_map(|device| state.nodes.get(device))
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
            verb: verb.into(),
            args_hash: Hash::of(&args),
            class,
            issued_at: now.node,
            not_before: Millis(0),
            fetch_by,
            run_ms_max,
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
            verb: verb.into(),
            command: verb.into(),
            selector: "some".into(),
            class,
            ordered_by: "admin".into(),
            issued_at: now.node,
            fetch_by,
            report_by: payload.report_by(),
            envelope,
            args,
            origin,
        };
        Some(Issue { job: row, devices, payload, message: Some(message), who: "admin".into() })
    }
}
