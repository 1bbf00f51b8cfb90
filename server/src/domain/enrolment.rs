//! Who may enrol, and as whom. Pure: the request, what its token allows and who is there already go in; a plan or a
//! refusal comes out.
//!
//! | key of the request | token | outcome |
//! |---|---|---|
//! | unknown | has a use left | a new node, one use gone |
//! | unknown | used up | 409 `token_used` |
//! | a node's, enrolled with this token | used up or not | the same node again: its answer was lost (ENR-2) |
//! | a node's, enrolled with another token | has a use left | the same node, one use gone (ENR-10) |
//! | a revoked node's | any | 403 `revoked` (ENR-9) |

use super::names::{check_node_name, fold, hosts_of};
use crate::store::{NodeRow, TokenRow};
use branchline_protocol::{
    hash::Hash,
    id::{Epoch, NodeId, Role},
    refusal::Refusal,
    time::Millis,
    wire::{DeviceFacts, EnrolRequest, PROTOCOL},
};
use std::{collections::BTreeMap, net::IpAddr};

/// Characters a host name may have: DNS's own bound.
const HOST_NAME_CHARS_MAX: usize = 255;
/// Characters of a platform's, build's or capability's name.
const WORD_CHARS_MAX: usize = 64;
/// Capabilities one node may declare.
const CAPABILITIES_MAX: usize = 64;

/// A node as enrolment knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// Its id.
    pub id: NodeId,
    /// Its role.
    pub role: Role,
    /// Its epoch.
    pub epoch: Epoch,
    /// Whether it is revoked.
    pub revoked: bool,
}

/// One tenant's nodes: the population within which names and keys are unique (ENR-3).
#[derive(Clone, Debug, Default)]
pub struct Population {
    by_key: BTreeMap<Hash, Known>,
    by_name: BTreeMap<(Role, String), NodeId>,
    entries: BTreeMap<NodeId, (Hash, (Role, String))>,
}

impl Population {
    /// A node as it is from now on. A revoked one keeps its key but not its name.
    pub fn put(&mut self, row: &NodeRow) {
        let name = (row.role, fold(&row.name));
        if let Some((old_key, old_name)) = self.entries.insert(row.id, (row.key_hash, name.clone())) {
            self.by_key.remove(&old_key);
            if self.by_name.get(&old_name) == Some(&row.id) {
                self.by_name.remove(&old_name);
            }
        }
        let revoked = row.revoked_at.is_some();
        self.by_key.insert(row.key_hash, Known { id: row.id, role: row.role, epoch: row.epoch, revoked });
        if !revoked {
            self.by_name.insert(name, row.id);
        }
    }

    /// The node with this key.
    pub fn by_key(&self, key: Hash) -> Option<&Known> {
        self.by_key.get(&key)
    }

    /// The node of this role with this name, ignoring case; revoked nodes have none.
    pub fn by_name(&self, role: Role, name: &str) -> Option<NodeId> {
        self.by_name.get(&(role, fold(name))).copied()
    }

    /// How many nodes there are, revoked ones too.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// What a decision is made from.
#[derive(Clone, Copy, Debug)]
pub struct Case<'c> {
    /// What is asked.
    pub request: &'c EnrolRequest,
    /// Hash of the public key in the request to sign; `None` when that cannot be read or does not prove its key.
    pub key: Option<Hash>,
    /// The token that was shown, if it exists.
    pub token: Option<&'c TokenRow>,
    /// The token with which the key's node last enrolled.
    pub token_before: Option<Hash>,
    /// The nodes of the token's tenant.
    pub population: &'c Population,
    /// Node time.
    pub now: Millis,
}

/// How to enrol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The id and epoch it keeps; `None` for a new node.
    pub kept: Option<(NodeId, Epoch)>,
    /// Whether one of the token's uses is gone.
    pub use_token: bool,
    /// Hash of its key.
    pub key: Hash,
    /// Host names for its certificate.
    pub dns: Vec<String>,
    /// Addresses for its certificate.
    pub ips: Vec<IpAddr>,
}

/// Decides an enrolment (ENR-1, ENR-3, ENR-4, ENR-7, ENR-9, ENR-10).
pub fn judge(case: Case<'_>) -> Result<Plan, Refusal> {
    let Case { request, token_before, population, now, .. } = case;
    if !PROTOCOL.contains(&request.protocol) {
        let (oldest, newest) = (PROTOCOL.start(), PROTOCOL.end());
        let message = format!("protocol {} is not spoken here, only {oldest} to {newest}", request.protocol);
        return Err(Refusal::new(409, "incompatible", message).field("protocol"));
    }
    let token = allowed(request, case.token, now)?;
    let no_key = || {
        let message = "the certificate request is malformed, not for an ed25519 key, or not signed by its own key";
        Refusal::new(400, "bad_request_certificate", message).field("request")
    };
    let key = case.key.ok_or_else(no_key)?;
    let known = population.by_key(key);
    if let Some(known) = known {
        if known.revoked {
            return Err(Refusal::new(403, "revoked", "this key was revoked: enrol with a new key and a new token"));
        }
        if known.role != request.role {
            let message = format!("the key is that of a {} already: make a key of its own for each node", known.role);
            return Err(Refusal::new(409, "key_in_use", message).field("request"));
        }
    }
    let again = known.is_some() && token_before == Some(token.hash);
    if !again && token.uses_left == 0 {
        return Err(Refusal::new(409, "token_used", "the token has been used: ask for a new one").field("token"));
    }
    let facts = &request.facts;
    let own = known.map(|known| known.id);
    let taken = |name: &str| population.by_name(request.role, name).is_some_and(|id| Some(id) != own);
    check_node_name(request.role, &facts.name, &taken)?;
    check_facts(facts)?;
    let (dns, ips) = match request.role {
        // For its private port. Nobody comes to an agent from elsewhere, so it is vouched for nothing of elsewhere.
        Role::Agent => (Vec::new(), hosts_of(&facts.addresses)?.1.into_iter().filter(IpAddr::is_loopback).collect()),
        _ => hosts_of(&facts.addresses)?,
    };
    Ok(Plan { kept: known.map(|known| (known.id, known.epoch)), use_token: !again, key, dns, ips })
}

/// Whether the token lets this request in at all.
fn allowed<'t>(request: &EnrolRequest, token: Option<&'t TokenRow>, now: Millis) -> Result<&'t TokenRow, Refusal> {
    let unknown = || Refusal::new(401, "unknown_token", "the token is unknown: ask for a new bundle").field("token");
    let token = token.ok_or_else(unknown)?;
    if now > token.expires_at {
        return Err(Refusal::new(403, "token_expired", "the token has expired: ask for a new one").field("token"));
    }
    if request.tenant != token.tenant {
        // The same answer whether or not that tenant exists.
        return Err(Refusal::new(403, "wrong_tenant", "the token is another tenant's").field("tenant"));
    }
    if request.role != token.role {
        let message = format!("the token enrols a {}, not a {}", token.role, request.role);
        return Err(Refusal::new(403, "wrong_role", message).field("role"));
    }
    if request.site != token.site {
        return Err(Refusal::new(403, "wrong_site", "the token is for another site").field("site"));
    }
    Ok(token)
}

/// Bounds on what a node says of itself; what is over them is refused, never cut.
fn check_facts(facts: &DeviceFacts) -> Result<(), Refusal> {
    let fits = |text: &str, max: usize| text.chars().count() <= max && !text.chars().any(char::is_control);
    let bad = |field: &str, message: String| Err(Refusal::new(422, "bad_facts", message).field(field));
    if !fits(&facts.host_name, HOST_NAME_CHARS_MAX) {
        let message = format!("a host name has at most {HOST_NAME_CHARS_MAX} characters and no control characters");
        return bad("host_name", message);
    }
    for (field, text) in [("platform", &facts.platform), ("build", &facts.build)] {
        if !fits(text, WORD_CHARS_MAX) {
            return bad(field, format!("{field} has at most {WORD_CHARS_MAX} characters and no control characters"));
        }
    }
    if facts.capabilities.len() > CAPABILITIES_MAX || facts.capabilities.iter().any(|c| !fits(c, WORD_CHARS_MAX)) {
        let message = format!("at most {CAPABILITIES_MAX} capabilities of {WORD_CHARS_MAX} characters each");
        return bad("capabilities", message);
    }
    Ok(())
}

#[cfg(test)]
#[path = "tests/enrolment_rules.rs"]
mod tests;
