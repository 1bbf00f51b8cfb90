//! What a greeting must satisfy (pure): TOP-20, ENR-7, ENR-9, GW-10, RLY-9, RLY-11.

use super::admission::Need;
use crate::identity::PeerIdentity;
use branchline_protocol::{
    document::{Revocations, Settings},
    hash::Hash,
    id::{NodeId, Role, TenantId},
    job::Class,
    receipt::Receipt,
    refusal::Refusal,
    wire::{CAPABILITIES_BYTES_MAX, Contact, DEPTH_MAX, Greeting, PROTOCOL, Preface},
};
use std::{collections::BTreeMap, sync::Arc};

/// Milliseconds until a device whose list of epochs is newer than its parent's tries again.
const UNKNOWN_EPOCH_RETRY_MS: u64 = 5_000;

/// What the checks need to know, kept up to date by the owner.
#[derive(Clone, Default)]
pub struct Facts {
    /// This node's ancestors and itself, nearest the server first.
    pub ancestors: Vec<(NodeId, String)>,
    /// Refused identities per tenant.
    pub revocations: BTreeMap<TenantId, Arc<Revocations>>,
    /// Direct children with a link, for the spread of reconnects.
    pub children: u64,
    /// Whether children are taken at all.
    pub open: bool,
    /// How often devices poll, for tenants whose settings are known (ADM-14).
    pub polls: BTreeMap<TenantId, Polls>,
}

/// How often the devices of a tenant poll, as its settings say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Polls {
    /// Milliseconds between normal polls; `None`: the node's own configuration holds.
    pub normal_ms: Option<u64>,
    /// Between those of class urgent.
    pub urgent_ms: u64,
    /// Between those of class erase.
    pub erase_ms: u64,
}

impl Polls {
    /// By these settings.
    pub fn of(settings: &Settings) -> Polls {
        let pressing = |class| settings.pressing_ms([class]).unwrap_or(u64::MAX);
        let (urgent_ms, erase_ms) = (pressing(Class::Urgent), pressing(Class::Erase));
        Polls { normal_ms: settings.poll_interval_ms(), urgent_ms, erase_ms }
    }

    /// Milliseconds that the most pressing class of these capabilities allows between polls: one poll serves all classes,
    /// so that a device polls at the shortest interval of those it can do (DESIGN 3, ADM-9, ADM-10).
    pub fn pressing_ms(&self, capabilities: &[String]) -> Option<u64> {
        let of = |word: &String| match Class::of_capability(word) {
            Class::Normal => None,
            Class::Urgent => Some(self.urgent_ms),
            Class::Erase => Some(self.erase_ms),
        };
        capabilities.iter().filter_map(of).min()
    }
}

impl Facts {
    /// How much a device needs a slot, without its orders: what the tenant's signed list says of it, and only where that
    /// says nothing what the device asks for (ADM-1).
    pub fn need(&self, tenant: &TenantId, device: NodeId, contact: Contact) -> Need {
        match (self.revocations.get(tenant).and_then(|list| list.keeps(device)), contact) {
            (Some(true), _) => Need::Keep,
            (Some(false), _) | (None, Contact::Poll) => Need::None,
            (None, Contact::Persistent) => Need::Ordinary,
        }
    }
}

/// The preface is a hint that bought a place in the relays' part of the rate.
pub(super) fn check_preface(preface: Preface, peer: &PeerIdentity) -> Result<(), Refusal> {
    if preface == Preface::Uplink && peer.role != Role::Relay {
        return Err(Refusal::new(403, "wrong_role", "only relays may open a relay's stream").field("preface"));
    }
    Ok(())
}

/// What a greeting must satisfy; the refusals of REQUIREMENTS TOP-20, ENR-7, ENR-9, GW-10, RLY-9. The receipt's signature
/// is verified last, once for each attachment.
pub fn check(me: NodeId, facts: &Facts, peer: &PeerIdentity, greeting: &Greeting) -> Result<(), Refusal> {
    if !facts.open {
        return Err(Refusal::new(503, "not_ready", "this node takes no children yet").retry_after(1_000));
    }
    let said = (&greeting.tenant, greeting.node, greeting.role);
    if said != (&peer.tenant, peer.node, peer.role) || greeting.epoch < peer.epoch {
        return Err(Refusal::new(401, "foreign_identity", "the greeting names another node than the certificate"));
    }
    if !matches!(peer.role, Role::Agent | Role::Relay) {
        let what = format!("a {} has no parent; enrol this host as agent or relay", peer.role);
        return Err(Refusal::new(403, "wrong_role", what).field("role"));
    }
    let capabilities: usize = greeting.capabilities.iter().map(String::len).sum();
    if capabilities > CAPABILITIES_BYTES_MAX {
        let what = format!("{capabilities} bytes of capabilities, {CAPABILITIES_BYTES_MAX} are allowed");
        return Err(Refusal::new(422, "too_large", what).field("capabilities"));
    }
    if greeting.protocol < *PROTOCOL.start() {
        let wanted = format!("protocol {} to {} is spoken here", PROTOCOL.start(), PROTOCOL.end());
        return Err(Refusal::new(409, "incompatible", wanted).field("protocol"));
    }
    if facts.revocations.get(&peer.tenant).is_some_and(|r| r.covers(peer.node, peer.epoch)) {
        return Err(Refusal::new(401, "revoked", "this identity was revoked; enrol anew with a new token"));
    }
    let known = facts.revocations.get(&peer.tenant).map_or(peer.epoch, |r| r.epoch_of(peer.node, peer.epoch));
    if greeting.epoch > known {
        let what = format!("epoch {} of this node is not known here yet", greeting.epoch);
        return Err(Refusal::new(409, "unknown_epoch", what).field("epoch").retry_after(UNKNOWN_EPOCH_RETRY_MS));
    }
    if peer.node == me || facts.ancestors.iter().any(|(a, _)| *a == peer.node) {
        return Err(Refusal::new(409, "loop", "this relay is above or is the node it attaches to").field("node"));
    }
    let below = if peer.role == Role::Relay { 1 + usize::from(greeting.depth_below) } else { 0 };
    let depth = facts.ancestors.len() + below;
    if depth > DEPTH_MAX {
        let what = format!("the tree would be {depth} tiers deep, {DEPTH_MAX} are allowed");
        return Err(Refusal::new(422, "too_deep", what).field("depth"));
    }
    check_receipt(me, peer, greeting)
}

/// Without its receipt a child's records would count nowhere above, so it is told at once.
fn check_receipt(me: NodeId, peer: &PeerIdentity, greeting: &Greeting) -> Result<(), Refusal> {
    let bad = |what: String| Refusal::new(401, "bad_receipt", what).field("receipt");
    let envelope = greeting.receipt.as_ref().ok_or_else(|| bad("the greeting has no receipt".into()))?;
    let receipt = Receipt::open(envelope, Hash::of(&peer.key.0)).map_err(|fault| bad(fault.to_string()))?;
    let said = (&receipt.tenant, receipt.node, receipt.epoch, receipt.attachment, receipt.parent);
    if said != (&peer.tenant, peer.node, greeting.epoch, greeting.attachment, me) {
        return Err(bad("the receipt is for another attachment".into()));
    }
    Ok(())
}

/// 150 ms a child, so that 300 children come back over 45 s and 20 over 3 s; at most 5 min; relays 0 to 5 s (DESIGN 3).
pub fn reconnect_spread_ms(role: Role, children: u64) -> u64 {
    if role == Role::Relay { 5_000 } else { (150 * children).min(300_000) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use branchline_protocol::{order::Signer, time::Millis};
    use uuid::Uuid;

    fn node(n: u128) -> NodeId {
        NodeId(Uuid::from_u128(n))
    }

    fn signer() -> Signer {
        Signer::from_seed(&[5; 32])
    }

    fn peer(role: Role) -> PeerIdentity {
        PeerIdentity {
            tenant: "acme".parse().unwrap(),
            role,
            node: node(5),
            epoch: 2,
            key: signer().public(),
            serial_hex: "1".into(),
            not_before: Millis(0),
            not_after: Millis(1),
        }
    }

    fn receipt(peer: &PeerIdentity) -> Receipt {
        Receipt {
            tenant: peer.tenant.clone(),
            node: peer.node,
            key: peer.key,
            epoch: peer.epoch,
            attachment: 1,
            parent: node(1),
            heads: vec![],
            complete: true,
        }
    }

    fn greeting(peer: &PeerIdentity) -> Greeting {
        Greeting {
            protocol: 1,
            build: "0".into(),
            tenant: peer.tenant.clone(),
            node: peer.node,
            role: peer.role,
            epoch: peer.epoch,
            attachment: 1,
            incarnation: 1,
            disk: 0,
            age: 0,
            contact: Contact::Persistent,
            depth_below: 0,
            stored_at: None,
            documents: vec![],
            term: 1,
            wake_port: 0,
            receipt: Some(receipt(peer).seal(&signer())),
            capabilities: [].into(),
            next_poll_s: None,
        }
    }

    fn facts(ancestors: u128) -> Facts {
        let ancestors = (100..100 + ancestors).map(|n| (node(n), "r".into())).collect();
        Facts { ancestors, open: true, ..Facts::default() }
    }

    fn code(facts: &Facts, peer: &PeerIdentity, greeting: &Greeting) -> Option<(u16, String)> {
        check(node(1), facts, peer, greeting).err().map(|r| (r.status, r.code))
    }

    #[test]
    fn gw_10_another_devices_id_inside_a_valid_session_is_401() {
        let peer = peer(Role::Agent);
        assert_eq!(code(&facts(1), &peer, &greeting(&peer)), None);
        let others = [
            Greeting { node: node(6), ..greeting(&peer) },
            Greeting { epoch: 1, ..greeting(&peer) },
            Greeting { role: Role::Relay, ..greeting(&peer) },
            Greeting { tenant: "other".parse().unwrap(), ..greeting(&peer) },
        ];
        for other in others {
            assert_eq!(code(&facts(1), &peer, &other), Some((401, "foreign_identity".into())));
        }
    }

    #[test]
    fn rly_9_a_greeting_without_its_own_receipt_is_401() {
        let peer = peer(Role::Agent);
        let with = |receipt: Option<Receipt>, signer: &Signer| {
            let greeting = Greeting { receipt: receipt.map(|r| r.seal(signer)), ..greeting(&peer) };
            code(&facts(1), &peer, &greeting)
        };
        let good = receipt(&peer);
        assert_eq!(with(Some(good.clone()), &signer()), None);
        let bad = Some((401, "bad_receipt".to_string()));
        assert_eq!(with(None, &signer()), bad);
        let thief = Signer::from_seed(&[6; 32]);
        assert_eq!(with(Some(good.clone()), &thief), bad, "forged");
        assert_eq!(with(Some(Receipt { key: thief.public(), ..good.clone() }), &thief), bad, "with a key of its own");
        for other in [
            Receipt { tenant: "other".parse().unwrap(), ..good.clone() },
            Receipt { node: node(6), ..good.clone() },
            Receipt { epoch: 1, ..good.clone() },
            Receipt { attachment: 0, ..good.clone() },
            Receipt { attachment: 2, ..good.clone() },
            Receipt { parent: node(2), ..good },
        ] {
            assert_eq!(with(Some(other.clone()), &signer()), bad, "{other:?}");
        }
    }

    #[test]
    fn enr_7_a_gateway_or_server_certificate_is_no_childs() {
        for role in [Role::Gateway, Role::Server] {
            let peer = peer(role);
            assert_eq!(code(&facts(1), &peer, &greeting(&peer)), Some((403, "wrong_role".into())));
        }
    }

    #[test]
    fn rly_11_only_a_relay_may_use_the_relays_part_of_the_rate() {
        let told = |preface, role| check_preface(preface, &peer(role)).err().map(|r| (r.status, r.code, r.field));
        assert_eq!(told(Preface::Uplink, Role::Relay), None);
        assert_eq!(told(Preface::Link, Role::Relay), None);
        assert_eq!(told(Preface::Link, Role::Agent), None);
        let refused = Some((403, "wrong_role".into(), Some("preface".into())));
        assert_eq!(told(Preface::Uplink, Role::Agent), refused);
    }

    #[test]
    fn top_20_loops_are_409_and_the_ninth_tier_is_422() {
        let relay = peer(Role::Relay);
        let hello = greeting(&relay);
        let mut above = facts(2);
        above.ancestors.push((node(5), "itself".into()));
        assert_eq!(code(&above, &relay, &hello), Some((409, "loop".into())));
        assert_eq!(check(node(5), &facts(2), &relay, &hello).unwrap_err().code, "loop");
        assert_eq!(code(&facts(7), &relay, &hello), None, "the eighth tier");
        assert_eq!(code(&facts(8), &relay, &hello), Some((422, "too_deep".into())));
        let deep = Greeting { depth_below: 3, ..hello };
        assert_eq!(code(&facts(4), &relay, &deep), None);
        assert_eq!(code(&facts(5), &relay, &deep), Some((422, "too_deep".into())));
        let agent = peer(Role::Agent);
        assert_eq!(code(&facts(8), &agent, &greeting(&agent)), None, "an agent is no tier");
    }

    #[test]
    fn capabilities_at_the_bound_pass_and_one_byte_more_is_422() {
        let agent = peer(Role::Agent);
        let of = |bytes| Greeting { capabilities: ["x".repeat(bytes - 1), "y".into()].into(), ..greeting(&agent) };
        assert_eq!(code(&facts(1), &agent, &of(CAPABILITIES_BYTES_MAX)), None);
        assert_eq!(code(&facts(1), &agent, &of(CAPABILITIES_BYTES_MAX + 1)), Some((422, "too_large".into())));
    }

    #[test]
    fn enr_9_a_revoked_epoch_is_refused_and_the_next_one_is_not() {
        let peer = peer(Role::Agent);
        let mut facts = facts(1);
        let list = |epoch| Revocations {
            tenant: peer.tenant.clone(),
            term: 1,
            version: 1,
            revoked: vec![(peer.node, epoch)],
            suspended: vec![],
            raised: vec![],
            keep_connection: vec![],
        };
        facts.revocations.insert(peer.tenant.clone(), Arc::new(list(2)));
        assert_eq!(code(&facts, &peer, &greeting(&peer)), Some((401, "revoked".into())));
        facts.revocations.insert(peer.tenant.clone(), Arc::new(list(1)));
        assert_eq!(code(&facts, &peer, &greeting(&peer)), None);
    }

    #[test]
    fn gw_10_a_later_epoch_than_the_certificates_is_taken_as_far_as_the_list_gives_it() {
        let peer = peer(Role::Agent);
        let mut facts = facts(1);
        let with = |epoch| {
            let receipt = Receipt { epoch, ..receipt(&peer) }.seal(&signer());
            Greeting { epoch, receipt: Some(receipt), ..greeting(&peer) }
        };
        let unknown = Some((409, "unknown_epoch".into()));
        assert_eq!(code(&facts, &peer, &with(3)), unknown, "claimed by the device alone");
        let raised = vec![(peer.node, 4), (node(6), 9)];
        let (tenant, revoked, suspended) = (peer.tenant.clone(), vec![], vec![]);
        let list = Revocations { tenant, term: 1, version: 1, revoked, suspended, raised, keep_connection: vec![] };
        facts.revocations.insert(peer.tenant.clone(), Arc::new(list.clone()));
        for epoch in 2..=4 {
            assert_eq!(code(&facts, &peer, &with(epoch)), None, "an earlier one learns of its own from here");
        }
        assert_eq!(code(&facts, &peer, &with(5)), unknown);
        facts.revocations.insert(peer.tenant.clone(), Arc::new(Revocations { revoked: vec![(peer.node, 2)], ..list }));
        assert_eq!(
            code(&facts, &peer, &with(4)),
            Some((401, "revoked".into())),
            "it is the certificate that is revoked"
        );
    }

    #[test]
    fn rly_11_the_spread_follows_the_number_of_children() {
        assert_eq!(reconnect_spread_ms(Role::Agent, 300), 45_000);
        assert_eq!(reconnect_spread_ms(Role::Agent, 20), 3_000);
        assert_eq!(reconnect_spread_ms(Role::Agent, 1_000_000), 300_000);
        assert_eq!(reconnect_spread_ms(Role::Relay, 300), 5_000);
    }

    #[test]
    fn adm_1_the_signed_list_says_what_a_device_needs_whatever_it_asks_for() {
        let tenant: TenantId = "acme".parse().unwrap();
        let (revoked, suspended, raised) = (vec![], vec![], vec![]);
        let keep_connection = vec![(node(1), true), (node(2), false)];
        let list =
            Revocations { tenant: tenant.clone(), term: 1, version: 1, revoked, suspended, raised, keep_connection };
        let facts = Facts { revocations: [(tenant.clone(), Arc::new(list))].into(), ..Facts::default() };
        for (device, poll, persistent) in
            [(1, Need::Keep, Need::Keep), (2, Need::None, Need::None), (3, Need::None, Need::Ordinary)]
        {
            let asks = [Contact::Poll, Contact::Persistent].map(|contact| facts.need(&tenant, node(device), contact));
            assert_eq!(asks, [poll, persistent], "device {device}");
        }
        let other = "other".parse().unwrap();
        assert_eq!(facts.need(&other, node(1), Contact::Poll), Need::None, "another tenant's list says nothing");
    }

    #[test]
    fn adm_9_adm_10_of_several_classes_the_most_pressing_counts() {
        let polls = Polls::of(&Settings::first("acme".parse().unwrap(), 1));
        let of = |words: &[&str]| polls.pressing_ms(&words.iter().map(|w| w.to_string()).collect::<Vec<_>>());
        assert_eq!(of(&["delete_path", "lock", "run_script"]), Some(600_000));
        assert_eq!(of(&["run_script", "delete_path"]), Some(900_000));
        assert_eq!((of(&["run_script"]), of(&[])), (None, None));
    }
}
