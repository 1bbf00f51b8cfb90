//! Signed, versioned documents that travel down every link, revocations first (DESIGN 3, 6).

use crate::{
    id::{Epoch, NodeId, Role, TenantId},
    inventory::SECTIONS,
    job::Class,
    order::{Envelope, PublicKey, Signer},
    refusal::Refusal,
    schedule::Schedule,
    time::Millis,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::ops::RangeInclusive;

/// Seconds that settings may let pass between two polls: 60 s to 7 days (ADM-14).
pub const POLL_S: RangeInclusive<u64> = 60..=7 * 86_400;

/// Device-local hour of the daily collection unless settings say otherwise (INV-2).
pub const INVENTORY_HOUR: u8 = 9;

/// Which document an envelope holds. In the order in which they are applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// [`Revocations`], signed by the server.
    Revocations,
    /// [`crate::trust::TrustDocument`], signed by the root.
    Trust,
    /// [`UpstreamList`], signed by the server.
    Upstreams,
    /// [`Settings`], signed by the server.
    Settings,
    /// [`TimeStatement`], signed by the server.
    Time,
}

impl Kind {
    /// Every kind, in order of application.
    pub const ALL: [Kind; 5] = [Kind::Revocations, Kind::Trust, Kind::Upstreams, Kind::Settings, Kind::Time];

    /// The envelope's payload type.
    pub fn payload_type(self) -> &'static str {
        match self {
            Kind::Revocations => "application/vnd.branchline.revocations.v1+msgpack",
            Kind::Trust => "application/vnd.branchline.trust.v1+msgpack",
            Kind::Upstreams => "application/vnd.branchline.upstreams.v1+msgpack",
            Kind::Settings => "application/vnd.branchline.settings.v1+msgpack",
            Kind::Time => "application/vnd.branchline.time.v1+msgpack",
        }
    }
}

/// A document that knows its kind, tenant and version.
pub trait Document: Serialize + DeserializeOwned {
    /// Its kind.
    const KIND: Kind;
    /// Whose it is.
    fn tenant(&self) -> &TenantId;
    /// (term, version): a newer one replaces an older one, never the other way round.
    fn version(&self) -> (u32, u64);

    /// Signs the document.
    fn seal(&self, signer: &Signer) -> Envelope {
        let payload = rmp_serde::to_vec_named(self).expect("documents are plain data");
        Envelope::sign(Self::KIND.payload_type(), payload, signer)
    }
}

/// Why a document was not taken.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DocumentFault {
    /// The envelope's type is another document's.
    #[error("the envelope holds {found}, not {wanted}")]
    WrongType {
        /// What it says it is.
        found: String,
        /// What was expected.
        wanted: &'static str,
    },
    /// No key that may sign this kind signed it.
    #[error("not signed by a key that may sign it")]
    BadSignature,
    /// The payload is no such document.
    #[error("the payload is malformed: {0}")]
    Malformed(String),
    /// It is another tenant's.
    #[error("the document is tenant {0}'s")]
    OtherTenant(TenantId),
}

/// Opens an envelope as a `D` of `tenant`, signed by one of `keys`.
pub fn open<D: Document>(envelope: &Envelope, tenant: &TenantId, keys: &[PublicKey]) -> Result<D, DocumentFault> {
    if envelope.payload_type != D::KIND.payload_type() {
        let found = envelope.payload_type.chars().take(80).collect();
        return Err(DocumentFault::WrongType { found, wanted: D::KIND.payload_type() });
    }
    envelope.signed_by(keys).ok_or(DocumentFault::BadSignature)?;
    let document: D = rmp_serde::from_slice(&envelope.payload).map_err(|e| DocumentFault::Malformed(e.to_string()))?;
    if document.tenant() != tenant {
        return Err(DocumentFault::OtherTenant(document.tenant().clone()));
    }
    Ok(document)
}

/// Identities that are refused everywhere (ENR-9), devices that are to do nothing for now (JOB-16), and devices that go on
/// in a later epoch than they were enrolled with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revocations {
    /// Whose.
    pub tenant: TenantId,
    /// The server's term.
    pub term: u32,
    /// +1 per change.
    pub version: u64,
    /// A node is refused with every epoch up to the given one.
    pub revoked: Vec<(NodeId, Epoch)>,
    /// Devices that are given no orders, begin nothing and collect nothing until they are revived.
    #[serde(default)]
    pub suspended: Vec<NodeId>,
    /// Devices that go on in the given epoch, whatever their certificate says: their disk was put back to an older state,
    /// and what an earlier epoch was ordered they may have run and forgotten (DESIGN 5).
    #[serde(default)]
    pub raised: Vec<(NodeId, Epoch)>,
    /// Devices of which an administrator has said whether they keep their connection (ADM-1), at most [`KEEP_MAX`] and each
    /// once. A device that is not named asks for a slot as its own configuration says.
    #[serde(default)]
    pub keep_connection: Vec<(NodeId, bool)>,
}

/// Devices of one tenant that the list may name as keeping their connection or not. It travels to every device, at some
/// 20 bytes each: 80 KB.
pub const KEEP_MAX: usize = 4_096;

impl Revocations {
    /// Whether this identity is refused.
    pub fn covers(&self, node: NodeId, epoch: Epoch) -> bool {
        self.revoked.iter().any(|(n, e)| *n == node && epoch <= *e)
    }

    /// The epoch in which a device with a certificate of this epoch goes on.
    pub fn epoch_of(&self, device: NodeId, certified: Epoch) -> Epoch {
        let raised = self.raised.iter().filter(|(node, _)| *node == device).map(|(_, epoch)| *epoch);
        raised.fold(certified, Epoch::max)
    }

    /// Whether this device is to keep its connection, if anybody has said so (ADM-1).
    pub fn keeps(&self, device: NodeId) -> Option<bool> {
        self.keep_connection.iter().find(|(node, _)| *node == device).map(|(_, keep)| *keep)
    }

    /// Whether this device is suspended.
    pub fn suspends(&self, device: NodeId) -> bool {
        self.suspended.contains(&device)
    }
}

/// How nodes of a site behave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Whose.
    pub tenant: TenantId,
    /// The server's term.
    pub term: u32,
    /// +1 per change.
    pub version: u64,
    /// Seconds between polls of class normal (ADM-8).
    pub poll_normal_s: u64,
    /// Seconds between polls of class urgent (ADM-9).
    pub poll_urgent_s: u64,
    /// Seconds between polls of class erase (ADM-10).
    pub poll_erase_s: u64,
    /// Inventory sections to collect; empty means all.
    pub collect: Vec<String>,
    /// When a device collects by itself (INV-8).
    #[serde(default)]
    pub schedule: Schedule,
    /// Device-local hour of [`Schedule::Daily`], 0 to 23 (INV-2).
    #[serde(default = "inventory_hour")]
    pub inventory_hour: u8,
    /// Whether a collection missed while the device was off is made at its next start (INV-3).
    #[serde(default)]
    pub catch_up_missed: bool,
    /// Whether a device collects once more when newer settings reach it (INV-10).
    #[serde(default)]
    pub collect_on_return: bool,
}

fn inventory_hour() -> u8 {
    INVENTORY_HOUR
}

impl Settings {
    /// What a tenant is founded with: ADM-8 to ADM-10's intervals, everything collected by the 09:00 rule.
    pub fn first(tenant: TenantId, term: u32) -> Settings {
        Settings {
            tenant,
            term,
            version: 1,
            poll_normal_s: 3_600,
            poll_urgent_s: 600,
            poll_erase_s: 900,
            collect: Vec::new(),
            schedule: Schedule::default(),
            inventory_hour: INVENTORY_HOUR,
            catch_up_missed: false,
            collect_on_return: false,
        }
    }

    /// Milliseconds between polls, once an administrator has said so; before that, in the first settings, a parent's own
    /// configuration holds. Within [`POLL_S`] whatever a document says.
    pub fn poll_interval_ms(&self) -> Option<u64> {
        (self.version > 1).then_some(self.poll_normal_s.clamp(*POLL_S.start(), *POLL_S.end()) * 1_000)
    }

    /// Milliseconds between polls that the most pressing of these classes asks for, whatever the normal interval is: one
    /// poll serves all classes (DESIGN 3). `None`: none of them presses. Within [`POLL_S`] whatever a document says.
    pub fn pressing_ms(&self, classes: impl IntoIterator<Item = Class>) -> Option<u64> {
        let seconds = classes.into_iter().filter_map(|class| match class {
            Class::Normal => None,
            Class::Urgent => Some(self.poll_urgent_s),
            Class::Erase => Some(self.poll_erase_s),
        });
        seconds.map(|s| s.clamp(*POLL_S.start(), *POLL_S.end()) * 1_000).min()
    }

    /// Whether every value is one that may be set. The schedule was checked when it was read.
    ///
    /// # Errors
    /// 422 `out_of_range` or `unknown_item`, with the field.
    pub fn check(&self) -> Result<(), Refusal> {
        let polls = [
            ("poll_normal_s", self.poll_normal_s),
            ("poll_urgent_s", self.poll_urgent_s),
            ("poll_erase_s", self.poll_erase_s),
        ];
        if let Some((field, seconds)) = polls.into_iter().find(|(_, seconds)| !POLL_S.contains(seconds)) {
            let message = format!("{field} is {} to {} s, not {seconds}", POLL_S.start(), POLL_S.end());
            return Err(Refusal::new(422, "out_of_range", message).field(field));
        }
        if self.inventory_hour > 23 {
            let message = format!("inventory_hour is 0 to 23, not {}", self.inventory_hour);
            return Err(Refusal::new(422, "out_of_range", message).field("inventory_hour"));
        }
        let mut items = self.collect.iter().enumerate();
        match items.find(|(at, item)| !SECTIONS.contains(&item.as_str()) || self.collect[..*at].contains(item)) {
            Some((_, item)) => {
                let item: String = item.chars().take(40).collect();
                let message = format!("{item:?} is none of {}, or is named twice", SECTIONS.join(", "));
                Err(Refusal::new(422, "unknown_item", message).field("collect"))
            }
            None => Ok(()),
        }
    }
}

/// A parent's address as a child may use it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upstream {
    /// The parent's id: the only certificate accepted at these addresses.
    pub id: NodeId,
    /// Server or relay.
    pub role: Role,
    /// Its name, for people.
    pub name: String,
    /// `host:port` of its link listener, tried first; empty when it cannot be reached directly.
    pub direct: Vec<String>,
    /// `https://host:port` of gateways that lead to it; only the server is behind gateways.
    pub gateways: Vec<String>,
    /// A relay that stands at the site itself: all such are equals among which the site's devices are shared, and no
    /// relay of the site hangs on one unless its bundle says so.
    #[serde(default)]
    pub near: bool,
}

/// Who may be a parent at a site, in order of preference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpstreamList {
    /// Whose.
    pub tenant: TenantId,
    /// The site it is for.
    pub site: String,
    /// The server's term.
    pub term: u32,
    /// +1 per change.
    pub version: u64,
    /// Tried in order.
    pub upstreams: Vec<Upstream>,
}

/// The server's word on time, every 60 s (DESIGN 6).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimeStatement {
    /// Whose server says so.
    pub tenant: TenantId,
    /// The server's wall clock.
    pub time: Millis,
    /// The server's term.
    pub term: u32,
    /// Rises with each statement.
    pub version: u64,
    /// Orders below this number are settled everywhere; an agent may forget them.
    pub order_floor: u64,
    /// Newest version of each document.
    pub trust_version: u64,
    /// Newest settings.
    pub settings_version: u64,
    /// Newest revocation list.
    pub revocations_version: u64,
    /// When the state was saved that the server was restored to last; what was settled after that it may not know.
    /// `None`: it never was (OPS-7).
    #[serde(default)]
    pub restored_from: Option<Millis>,
}

macro_rules! document {
    ($type:ty, $kind:expr) => {
        impl Document for $type {
            const KIND: Kind = $kind;
            fn tenant(&self) -> &TenantId {
                &self.tenant
            }
            fn version(&self) -> (u32, u64) {
                (self.term, self.version)
            }
        }
    };
}
document!(Revocations, Kind::Revocations);
document!(Settings, Kind::Settings);
document!(UpstreamList, Kind::Upstreams);
document!(TimeStatement, Kind::Time);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adm_14_poll_intervals_at_their_bounds_and_one_past_them() {
        let with = |normal, urgent, erase| {
            let first = Settings::first("acme".parse().unwrap(), 1);
            Settings { poll_normal_s: normal, poll_urgent_s: urgent, poll_erase_s: erase, ..first }.check()
        };
        assert_eq!(with(60, 604_800, 60), Ok(()));
        for (normal, urgent, erase, field) in [
            (59, 60, 60, "poll_normal_s"),
            (604_801, 60, 60, "poll_normal_s"),
            (60, 59, 60, "poll_urgent_s"),
            (60, 60, u64::MAX, "poll_erase_s"),
            (0, 60, 60, "poll_normal_s"),
        ] {
            let refusal = with(normal, urgent, erase).unwrap_err();
            assert_eq!((refusal.status, refusal.code.as_str()), (422, "out_of_range"));
            assert_eq!(refusal.field.as_deref(), Some(field));
        }
    }

    #[test]
    fn adm_9_adm_10_the_most_pressing_class_sets_the_interval() {
        let first = Settings::first("acme".parse().unwrap(), 1);
        assert_eq!(first.pressing_ms([Class::Normal]), None);
        assert_eq!(first.pressing_ms([Class::Normal, Class::Erase]), Some(900_000));
        assert_eq!(first.pressing_ms([Class::Erase, Class::Urgent]), Some(600_000));
        let odd = Settings { poll_urgent_s: 0, poll_erase_s: u64::MAX, ..first };
        assert_eq!(odd.pressing_ms([Class::Urgent]), Some(60_000), "whatever a document says");
        assert_eq!(odd.pressing_ms([Class::Erase]), Some(604_800_000));
    }

    #[test]
    fn adm_1_a_device_that_nobody_spoke_of_is_not_named() {
        let [kept, polls, other] = [1, 2, 3].map(|n| NodeId(uuid::Uuid::from_u128(n)));
        let list = Revocations {
            tenant: "acme".parse().unwrap(),
            term: 1,
            version: 2,
            revoked: vec![],
            suspended: vec![],
            raised: vec![],
            keep_connection: vec![(kept, true), (polls, false)],
        };
        assert_eq!([kept, polls, other].map(|node| list.keeps(node)), [Some(true), Some(false), None]);
    }

    #[test]
    fn inv_8_unknown_items_and_hours_are_refused() {
        let first = Settings::first("acme".parse().unwrap(), 1);
        let collecting = |items: &[&str]| {
            Settings { collect: items.iter().map(|i| i.to_string()).collect(), ..first.clone() }.check()
        };
        assert_eq!(collecting(&SECTIONS), Ok(()));
        for bad in [&["os", "printers"][..], &["os", "os"], &[""], &["OS"]] {
            let refusal = collecting(bad).unwrap_err();
            assert_eq!(
                (refusal.status, &*refusal.code, refusal.field.as_deref()),
                (422, "unknown_item", Some("collect"))
            );
        }
        assert_eq!(Settings { inventory_hour: 23, ..first.clone() }.check(), Ok(()));
        let refusal = Settings { inventory_hour: 24, ..first }.check().unwrap_err();
        assert_eq!((refusal.status, refusal.field.as_deref()), (422, Some("inventory_hour")));
    }

    /// Settings of a build that knew no schedules are settings still.
    #[test]
    fn settings_without_the_newer_fields_have_their_defaults() {
        #[derive(Serialize)]
        struct Older {
            tenant: &'static str,
            term: u32,
            version: u64,
            poll_normal_s: u64,
            poll_urgent_s: u64,
            poll_erase_s: u64,
            collect: Vec<String>,
        }
        let older = Older {
            tenant: "acme",
            term: 1,
            version: 1,
            poll_normal_s: 3_600,
            poll_urgent_s: 600,
            poll_erase_s: 900,
            collect: vec![],
        };
        let read: Settings = rmp_serde::from_slice(&rmp_serde::to_vec_named(&older).unwrap()).unwrap();
        assert_eq!(read, Settings::first("acme".parse().unwrap(), 1));
    }

    #[test]
    fn a_document_is_never_taken_for_another_kind_or_tenant() {
        let signer = Signer::from_seed(&[1; 32]);
        let keys = [signer.public()];
        let tenant: TenantId = "acme".parse().unwrap();
        let list = Revocations {
            tenant: tenant.clone(),
            term: 1,
            version: 4,
            revoked: vec![],
            suspended: vec![],
            raised: vec![],
            keep_connection: vec![],
        };
        let envelope = list.seal(&signer);
        assert_eq!(open::<Revocations>(&envelope, &tenant, &keys).unwrap(), list);
        assert!(matches!(open::<Settings>(&envelope, &tenant, &keys), Err(DocumentFault::WrongType { .. })));
        let other = "other".parse().unwrap();
        assert_eq!(open::<Revocations>(&envelope, &other, &keys), Err(DocumentFault::OtherTenant(tenant.clone())));
        let stranger = [Signer::from_seed(&[2; 32]).public()];
        assert_eq!(open::<Revocations>(&envelope, &tenant, &stranger), Err(DocumentFault::BadSignature));
    }
}
