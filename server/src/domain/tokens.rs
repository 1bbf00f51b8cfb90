//! Enrolment tokens and the bundles that carry them (ENR-1, TOP-15, TOP-16).

use super::{
    documents::packed,
    office::{Draft, Office, State, TenantState, audit, parents_key, store_refusal},
    upstreams::{Changed, Parent, relist},
};
use crate::{
    api::control::TokenWish,
    store::{Op, TokenRow},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use branchline_node::{
    identity::{BUNDLE_VERSION, Bundle},
    random::Random,
};
use branchline_protocol::{
    document::Upstream,
    hash::Hash,
    id::{NodeId, Role, TenantId},
    refusal::Refusal,
    time::Millis,
};
use bytes::Bytes;

/// The most nodes one token may enrol.
pub const USES_MAX: u32 = 10_000;
/// A token's shortest life: 1 s.
pub const LIFE_MS_MIN: u64 = 1_000;
/// A token's longest life: 365 days.
pub const LIFE_MS_MAX: u64 = 365 * 86_400_000;
/// Bytes of chance in a secret.
pub const SECRET_BYTES: usize = 32;

/// UDP port on which agents hear wake packets (DESIGN 9).
const WAKE_PORT: u16 = 15_000;
/// UDP port on which parents hear notices (DESIGN 9).
const NOTICE_PORT: u16 = 13_000;

/// A new secret: 32 random bytes as base64url.
pub fn new_secret(random: &dyn Random) -> String {
    let mut bytes = [0; SECRET_BYTES];
    random.fill(&mut bytes);
    URL_SAFE_NO_PAD.encode(bytes)
}

/// What is kept of a secret.
pub fn secret_hash(secret: &str) -> Hash {
    Hash::of(secret.as_bytes())
}

impl Office {
    /// Makes an enrolment token; answers its secret, of which only the hash is kept, and its last instant.
    ///
    /// 404 `no_such_site`; 422 `bad_uses`, `bad_life`, `bad_role`; 403 `system_only`.
    pub async fn make_token(
        &self,
        tenant: &TenantId,
        who: &str,
        wish: &TokenWish,
    ) -> Result<(String, Millis), Refusal> {
        self.may_issue()?;
        let turn = self.turn().await;
        let minted = self.mint(tenant, who, wish)?;
        self.keep(turn, Draft::of(minted.ops)).await.map_err(store_refusal)?;
        Ok((minted.secret, minted.expires_at))
    }

    /// Makes a bundle with a fresh token; answers its text and the token's last instant. The parent is `server`,
    /// `gateway`, `any` (the server either way), or a relay's id or name.
    ///
    /// As [`Office::make_token`], and 404 `no_such_parent`, 409 `no_route` and `no_gateway`.
    pub async fn bundle(&self, tenant: &TenantId, who: &str, wish: &TokenWish) -> Result<(String, Millis), Refusal> {
        self.may_issue()?;
        let turn = self.turn().await;
        let mut minted = self.mint(tenant, who, wish)?;
        let (text, parents, lists) = self.read(|state| {
            let held = state.tenants.get(tenant).ok_or_else(no_such_site)?;
            let site = &minted.site;
            let (upstreams, parents) = if wish.role == Role::Gateway {
                (vec![trunk(state.server, &state.server_name, &state.ways.trunk)?], None)
            } else {
                let parent = parent_of(held, &wish.parent)?;
                let parents = held.sites.get(site).ok_or_else(no_such_site)?.parents.with(parent);
                let server = (state.server, &state.server_name[..]);
                (state.ways.for_bundle(parent, server, &parents, &held.relays)?, Some(parents))
            };
            let lists = match &parents {
                Some(parents) => {
                    relist(state, tenant, held, Changed { site: Some((site, parents)), ..Changed::default() })
                }
                None => Vec::new(),
            };
            let bundle = Bundle {
                version: BUNDLE_VERSION,
                tenant: tenant.clone(),
                site: site.clone(),
                role: wish.role,
                token: Some(minted.secret.clone()),
                server: state.server,
                root_key: held.keys.root,
                trust: held.trust.1.clone(),
                upstreams,
                link_token: if parents.is_some() { held.link_token.clone() } else { String::new() },
                outer_roots: if parents.is_some() { state.outer_roots() } else { Vec::new() },
                wake_port: WAKE_PORT,
                notice_port: NOTICE_PORT,
            };
            Ok((bundle.seal(&held.keys.signer), parents, lists))
        })?;
        if let Some(parents) = &parents {
            minted.ops.push(Op::Meta(parents_key(tenant, &minted.site), packed(parents)));
        }
        let (own, site) = (tenant.clone(), minted.site);
        let apply = Box::new(move |state: &mut State| {
            let site = state.tenants.get_mut(&own).and_then(|held| held.sites.get_mut(&site));
            if let (Some(site), Some(parents)) = (site, parents) {
                site.parents = parents;
            }
        });
        let draft = Draft { lists, apply, ..Draft::of(minted.ops) };
        self.keep(turn, draft).await.map_err(store_refusal)?;
        Ok((text, minted.expires_at))
    }

    /// A token that is not kept yet.
    fn mint(&self, tenant: &TenantId, who: &str, wish: &TokenWish) -> Result<Minted, Refusal> {
        check_wish(tenant, wish)?;
        let site = if wish.role == Role::Gateway { String::new() } else { wish.site.clone() };
        let known = |held: &TenantState| wish.role == Role::Gateway || held.sites.contains_key(&site);
        if !self.read(|state| state.tenants.get(tenant).is_some_and(known)) {
            return Err(no_such_site());
        }
        let now = self.now();
        let secret = new_secret(&*self.0.ambient.random);
        let expires_at = now.plus(i64::try_from(wish.life_ms).unwrap_or(i64::MAX));
        let row = TokenRow {
            hash: secret_hash(&secret),
            tenant: tenant.clone(),
            role: wish.role,
            site: site.clone(),
            kind: if wish.parent == "gateway" { "wan".into() } else { "lan".into() },
            uses_left: wish.uses,
            expires_at,
        };
        let detail = format!("{} at {site:?}, {} uses, parent {:?}", wish.role, wish.uses, wish.parent);
        let ops = vec![Op::Token(row), audit(tenant, now, who, "token.make", detail)];
        Ok(Minted { secret, expires_at, site, ops })
    }
}

struct Minted {
    secret: String,
    expires_at: Millis,
    site: String,
    ops: Vec<Op>,
}

/// The bounds of a wish. Gateways belong to the installation, everything else to a tenant with sites.
fn check_wish(tenant: &TenantId, wish: &TokenWish) -> Result<(), Refusal> {
    let system = *tenant == TenantId::system();
    match wish.role {
        Role::Gateway if !system => {
            let message = "gateways belong to the installation: ask with the system token";
            return Err(Refusal::new(403, "system_only", message).field("role"));
        }
        Role::Relay | Role::Agent if system => {
            let message = format!("a {} belongs to a tenant, not to the installation", wish.role);
            return Err(Refusal::new(422, "bad_role", message).field("role"));
        }
        Role::Server => return Err(Refusal::new(422, "bad_role", "servers do not enrol").field("role")),
        _ => {}
    }
    if !(1..=USES_MAX).contains(&wish.uses) {
        let message = format!("a token has 1 to {USES_MAX} uses, not {}", wish.uses);
        return Err(Refusal::new(422, "bad_uses", message).field("uses"));
    }
    if !(LIFE_MS_MIN..=LIFE_MS_MAX).contains(&wish.life_ms) {
        return Err(Refusal::new(422, "bad_life", "a token lives 1 s to 365 d").field("life_s"));
    }
    Ok(())
}

fn parent_of(held: &TenantState, word: &str) -> Result<Parent, Refusal> {
    let unknown = || {
        let message = format!("there is no parent {word:?}: name server, gateway, any or a relay");
        Refusal::new(404, "no_such_parent", message).field("parent")
    };
    match word {
        "server" => Ok(Parent::Server),
        "gateway" => Ok(Parent::Gateway),
        "any" => Ok(Parent::Any),
        _ => {
            let by_id = word.parse::<NodeId>().ok();
            let id = by_id.or_else(|| held.population.by_name(Role::Relay, word));
            id.filter(|id| held.relays.contains_key(id)).map(Parent::Relay).ok_or_else(unknown)
        }
    }
}

/// The server as gateways dial it.
fn trunk(id: NodeId, name: &str, addresses: &[String]) -> Result<Upstream, Refusal> {
    if addresses.is_empty() {
        let message = "the server has told no trunk address that gateways could dial: start it first";
        return Err(Refusal::new(409, "no_route", message).field("parent"));
    }
    let (name, direct) = (name.to_owned(), addresses.to_vec());
    Ok(Upstream { id, role: Role::Server, name, direct, gateways: Vec::new(), near: false })
}

fn no_such_site() -> Refusal {
    Refusal::new(404, "no_such_site", "there is no such site: define it first").field("site")
}

/// Roots without duplicates.
pub(super) fn distinct(roots: impl Iterator<Item = Bytes>) -> Vec<Bytes> {
    let mut all: Vec<Bytes> = Vec::new();
    for root in roots {
        if !all.contains(&root) {
            all.push(root);
        }
    }
    all
}
