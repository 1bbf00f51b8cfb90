//! How an installation comes to be and comes back: made, opened, and each tenant's part of it.

use super::{
    documents::{addresses_key, packed},
    enrolment::Population,
    files,
    names::{Host, check_site_name, host_of},
    office::{CHANGES_KEPT, Draft, Inner, Office, SiteState, State, TenantState, WAYS, audit, parents_key},
    recovery::{RECOVERING, RESTORED_FROM},
    tenant_keys::{TenantKeys, first_revocations, loopback, seal},
    tokens::{SECRET_BYTES, new_secret, secret_hash},
    upstreams::{Changed, Parents, RelayWays, relist},
};
use crate::{
    dispatch::recovery::Progress,
    store::{ApiTokenRow, NodeRow, Op, Store, StoreError},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use branchline_node::{
    identity::{
        AuthorityFault, IdentityFault, KeyFault, TlsFault, certificates_to_pem, enrol_config, parent_config,
        verify_trust,
    },
    node::{Ambient, write_whole},
    time::NodeTime,
};
use branchline_protocol::{
    document::{self, Document, Kind, Revocations, Settings, UpstreamList},
    id::{NodeId, Role, TenantId},
    order::Envelope,
    refusal::Refusal,
    trust::TrustDocument,
};
use bytes::Bytes;
use rustls::{ServerConfig, pki_types::CertificateDer};
use serde::de::DeserializeOwned;
use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, RwLock},
};
use tokio::sync::{broadcast, watch};

const SERVER_ID: &str = "server_id";
const SERVER_NAME: &str = "server_name";
pub(super) const TERM: &str = "term";
const API_HOSTS: &str = "api_hosts";

/// Why there is no office, or no new tenant in it.
#[derive(Debug, thiserror::Error)]
pub enum OfficeFault {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file or folder.
    #[error("access {path}")]
    File {
        /// Which.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// A key.
    #[error(transparent)]
    Key(#[from] KeyFault),
    /// An authority.
    #[error(transparent)]
    Authority(#[from] AuthorityFault),
    /// A certificate.
    #[error(transparent)]
    Identity(#[from] IdentityFault),
    /// TLS.
    #[error(transparent)]
    Tls(#[from] TlsFault),
    /// A tenant's keys or documents do not fit together.
    #[error("the keys or documents of tenant {tenant} are damaged: {what}")]
    Damaged {
        /// Whose.
        tenant: TenantId,
        /// What is wrong.
        what: String,
    },
    /// There is no installation in the store.
    #[error("the state folder holds no installation: initialise it first")]
    NotInitialised,
    /// The folder and the store are different servers'.
    #[error("the state folder is server {folder}'s, the store is server {store}'s")]
    OtherServer {
        /// Whose folder.
        folder: String,
        /// Whose store.
        store: String,
    },
    /// A value of the installation cannot be read.
    #[error("the store's value {0} cannot be read")]
    BadValue(String),
    /// A name the API should answer to is none.
    #[error("{0:?} is no host name or address that the api could answer to")]
    BadHost(String),
    /// The wish itself is wrong.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

impl OfficeFault {
    pub(super) fn file(path: &Path) -> impl FnOnce(io::Error) -> OfficeFault + '_ {
        move |source| OfficeFault::File { path: path.display().to_string(), source }
    }
}

/// What an installation is to have.
#[derive(Clone, Debug, Default)]
pub struct InitWish {
    /// The server's name, for people.
    pub server_name: String,
    /// Host names and addresses, with or without port, that the API answers to besides `localhost` and `127.0.0.1`.
    pub api_hosts: Vec<String>,
    /// Tenants and their sites.
    pub tenants: Vec<(TenantId, Vec<String>)>,
}

impl Office {
    /// Makes what is missing of an installation and opens it. What exists is kept: keys, sites, tenants that the wish
    /// does not name. Must be called within a tokio runtime, and by one process at a time: the store sees to that.
    pub async fn init(
        folder: &Path,
        store: Arc<dyn Store>,
        ambient: Ambient,
        wish: InitWish,
    ) -> Result<Office, OfficeFault> {
        for part in [folder.to_owned(), folder.join("tenants"), folder.join("tokens")] {
            files::make_folder(&part).map_err(OfficeFault::file(&part))?;
        }
        let mut hosts = loopback().to_vec();
        for name in &wish.api_hosts {
            let host = host_of(name).ok_or_else(|| OfficeFault::BadHost(name.clone()))?;
            if !hosts.contains(&host) {
                hosts.push(host);
            }
        }
        let server = first_server_id(folder, &*store, &ambient).await?;
        keep_server_id(folder, server)?;
        if store.meta(SERVER_ID).await?.is_none() {
            let value = |text: String| Bytes::from(text.into_bytes());
            let mut ops = vec![Op::Meta(SERVER_ID.into(), value(server.to_string()))];
            if store.meta(TERM).await?.is_none() {
                ops.push(Op::Meta(TERM.into(), value("1".into())));
            }
            store.commit(ops).await?;
        }
        let office = Self::load(folder, store, ambient, Some(&wish.server_name)).await?;
        if office.recovery().is_some() {
            // What is missing is made at the next start: a server that recovers issues nothing.
            return Ok(office);
        }
        let system = TenantId::system();
        if !office.knows(&system) {
            office.make_tenant("init", &system, Vec::new(), &hosts).await?;
        }
        office.answer_to(&hosts).await?;
        for (tenant, sites) in wish.tenants {
            if office.knows(&tenant) {
                let missing = |site: &String| !office.has_site(&tenant, site);
                for site in sites.into_iter().filter(missing).collect::<Vec<_>>() {
                    office.add_site(&tenant, "init", site).await?;
                }
            } else {
                office.make_tenant("init", &tenant, sites, &[]).await?;
            }
        }
        Ok(office)
    }

    /// Opens an installation as it is. [`OfficeFault::NotInitialised`] when there is none.
    pub async fn open(folder: &Path, store: Arc<dyn Store>, ambient: Ambient) -> Result<Office, OfficeFault> {
        let office = Self::load(folder, store, ambient, None).await?;
        if office.knows(&TenantId::system()) { Ok(office) } else { Err(OfficeFault::NotInitialised) }
    }

    /// What a server does that may be started on an empty folder: [`Office::init`] with whatever is there.
    pub async fn open_or_init(
        folder: &Path,
        store: Arc<dyn Store>,
        ambient: Ambient,
        wish: InitWish,
    ) -> Result<Office, OfficeFault> {
        Self::init(folder, store, ambient, wish).await
    }

    fn has_site(&self, tenant: &TenantId, site: &str) -> bool {
        self.read(|state| state.tenants.get(tenant).is_some_and(|held| held.sites.contains_key(site)))
    }

    async fn load(
        folder: &Path,
        store: Arc<dyn Store>,
        ambient: Ambient,
        name: Option<&str>,
    ) -> Result<Office, OfficeFault> {
        let text = meta_text(&*store, SERVER_ID).await?.ok_or(OfficeFault::NotInitialised)?;
        let server: NodeId = text.parse().map_err(|_| OfficeFault::BadValue(SERVER_ID.into()))?;
        keep_server_id(folder, server)?;
        let term = meta_text(&*store, TERM).await?.unwrap_or_else(|| "1".into());
        let term: u32 = term.parse().map_err(|_| OfficeFault::BadValue(TERM.into()))?;
        let held_name = meta_text(&*store, SERVER_NAME).await?;
        if let Some(name) = name.filter(|name| held_name.as_deref() != Some(name)) {
            store.commit(vec![Op::Meta(SERVER_NAME.into(), Bytes::copy_from_slice(name.as_bytes()))]).await?;
        }
        let server_name = name.map(str::to_owned).or(held_name).unwrap_or_default();
        let ways = meta_value(&*store, WAYS).await?.unwrap_or_default();
        let time = NodeTime::new(ambient.clock.clone());
        let mut rows: BTreeMap<TenantId, Vec<NodeRow>> = BTreeMap::new();
        for row in store.nodes().await? {
            rows.entry(row.tenant.clone()).or_default().push(row);
        }
        let mut tenants = BTreeMap::new();
        for tenant in store.tenants().await? {
            let keys = TenantKeys::load(&keys_folder(folder, &tenant), &tenant, server)?;
            let rows = rows.remove(&tenant).unwrap_or_default();
            let held = load_tenant(&*store, &tenant, keys, &rows, &time).await?;
            tenants.insert(tenant, held);
        }
        let restored_from = meta_value(&*store, RESTORED_FROM).await?;
        let listens = store.meta(RECOVERING).await?.is_some_and(|value| !value.is_empty());
        let recovery = listens.then(|| Progress { heard: 0, awaited: 0, until: time.now().mono });
        let state = State { server, server_name, term, ways, tenants, last_statement: 0, restored_from, recovery };
        let office = Office(Arc::new(Inner {
            folder: folder.to_owned(),
            store,
            ambient,
            time,
            turn: Arc::default(),
            changes: broadcast::Sender::new(CHANGES_KEPT),
            state: RwLock::new(state),
            link_tokens: watch::Sender::new(Vec::new()),
        }));
        office.count_link_tokens();
        office.show_ca()?;
        Ok(office)
    }

    pub(super) async fn make_tenant(
        &self,
        who: &str,
        tenant: &TenantId,
        sites: Vec<String>,
        hosts: &[Host],
    ) -> Result<String, OfficeFault> {
        for (at, site) in sites.iter().enumerate() {
            check_site_name(site)?;
            if sites[..at].contains(site) {
                let message = format!("the site {site:?} is named twice");
                return Err(Refusal::new(422, "duplicate_site", message).field("sites").into());
            }
        }
        let turn = self.turn().await;
        let (now, random) = (self.now(), &*self.0.ambient.random);
        let (server, term) = self.read(|state| (state.server, state.term));
        let folder = keys_folder(&self.0.folder, tenant);
        let keys = if folder.exists() {
            TenantKeys::load(&folder, tenant, server)?
        } else {
            TenantKeys::create(&folder, tenant, server, hosts, now, random)?
        };
        let secret = self.api_secret(tenant)?;
        let damaged = |e: document::DocumentFault| OfficeFault::Damaged { tenant: tenant.clone(), what: e.to_string() };
        let trust = verify_trust(&keys.trust, tenant, keys.root).map_err(damaged)?;
        let revocations = first_revocations(tenant, term);
        let settings = Settings::first(tenant.clone(), term);
        let (link, enrol) = listeners(&keys, &trust, &self.0.time)?;
        let parents = Parents::default();
        let held = TenantState {
            trust: (trust, keys.trust.clone()),
            revocations: (Arc::new(revocations.clone()), seal(&keys, &revocations)),
            settings: (settings.clone(), seal(&keys, &settings)),
            sites: BTreeMap::new(),
            relays: BTreeMap::new(),
            link_token: new_secret(random),
            population: Population::default(),
            link,
            enrol,
            keys,
        };
        let document = |kind, version, envelope: &Envelope| {
            Op::Document(tenant.clone(), kind, String::new(), version, envelope.clone())
        };
        let mut ops = vec![
            Op::Tenant(tenant.clone()),
            document(Kind::Trust, held.trust.0.version(), &held.trust.1),
            document(Kind::Revocations, revocations.version(), &held.revocations.1),
            document(Kind::Settings, settings.version(), &held.settings.1),
            Op::Meta(link_token_key(tenant), Bytes::copy_from_slice(held.link_token.as_bytes())),
            Op::ApiToken(ApiTokenRow { hash: secret_hash(&secret), tenant: tenant.clone(), name: "admin".into() }),
            audit(tenant, now, who, "tenant.make", format!("sites {}", sites.join(" "))),
        ];
        ops.extend(sites.iter().map(|site| Op::Site(tenant.clone(), site.clone())));
        let lists = self.read(|state| {
            let list = |site: &String| {
                relist(state, tenant, &held, Changed { site: Some((site, &parents)), ..Changed::default() })
            };
            sites.iter().flat_map(list).collect()
        });
        let own = tenant.clone();
        let apply = Box::new(move |state: &mut State| {
            state.tenants.insert(own, held);
        });
        self.keep(turn, Draft { lists, apply, ..Draft::of(ops) }).await?;
        self.show_ca()?;
        Ok(secret)
    }

    /// The secret in the tenant's token file, made if there is none.
    fn api_secret(&self, tenant: &TenantId) -> Result<String, OfficeFault> {
        let path = self.0.folder.join("tokens").join(tenant.as_str());
        let is_secret = |text: &String| URL_SAFE_NO_PAD.decode(text).is_ok_and(|bytes| bytes.len() == SECRET_BYTES);
        let held = files::read_text(&path).map_err(OfficeFault::file(&path))?;
        if let Some(secret) = held.map(|text| text.trim().to_owned()).filter(is_secret) {
            return Ok(secret);
        }
        let secret = new_secret(&*self.0.ambient.random);
        files::write_secret(&path, secret.as_bytes()).map_err(OfficeFault::file(&path))?;
        Ok(secret)
    }

    /// Makes the API's certificate one for these hosts, if it is not.
    async fn answer_to(&self, hosts: &[Host]) -> Result<(), OfficeFault> {
        let system = TenantId::system();
        let wanted = packed(&format!("{hosts:?}"));
        if self.0.store.meta(API_HOSTS).await?.as_ref() == Some(&wanted) {
            return Ok(());
        }
        let turn = self.turn().await;
        let held = self.read(|state| state.tenants.get(&system).map(|held| (held.keys.clone(), held.trust.0.clone())));
        let (mut keys, trust) = held.ok_or(OfficeFault::NotInitialised)?;
        keys.rename(&keys_folder(&self.0.folder, &system), hosts, self.now(), &*self.0.ambient.random)?;
        let (link, enrol) = listeners(&keys, &trust, &self.0.time)?;
        let apply = Box::new(move |state: &mut State| {
            if let Some(held) = state.tenants.get_mut(&system) {
                (held.keys, held.link, held.enrol) = (keys, link, enrol);
            }
        });
        let ops = vec![Op::Meta(API_HOSTS.into(), wanted)];
        Ok(self.keep(turn, Draft { apply, ..Draft::of(ops) }).await?)
    }

    /// `ca.pem`: what clients of the API and of every node's private port trust. The installation's own authority comes
    /// first, then the tenants', whose relays answer with certificates of theirs.
    fn show_ca(&self) -> Result<(), OfficeFault> {
        let system = TenantId::system();
        let cas: Vec<_> = self.read(|state| {
            let own = state.tenants.get(&system);
            let others = state.tenants.iter().filter(|(tenant, _)| **tenant != system).map(|(_, held)| held);
            own.into_iter().chain(others).map(|held| held.keys.authority.certificate().clone()).collect()
        });
        if cas.is_empty() {
            return Ok(());
        }
        let (path, text) = (self.0.folder.join("ca.pem"), certificates_to_pem(&cas));
        let same = files::read_text(&path).map_err(OfficeFault::file(&path))?.is_some_and(|held| held == text);
        if same { Ok(()) } else { write_whole(&path, text.as_bytes()).map_err(OfficeFault::file(&path)) }
    }
}

fn link_token_key(tenant: &TenantId) -> String {
    format!("link_token/{tenant}")
}

fn keys_folder(folder: &Path, tenant: &TenantId) -> PathBuf {
    folder.join("tenants").join(tenant.as_str())
}

pub(super) async fn meta_text(store: &dyn Store, key: &str) -> Result<Option<String>, OfficeFault> {
    let bytes = store.meta(key).await?;
    bytes.map(|b| String::from_utf8(b.to_vec())).transpose().map_err(|_| OfficeFault::BadValue(key.into()))
}

pub(super) async fn meta_value<T: DeserializeOwned>(store: &dyn Store, key: &str) -> Result<Option<T>, OfficeFault> {
    let bytes = store.meta(key).await?;
    bytes.map(|b| rmp_serde::from_slice(&b)).transpose().map_err(|_| OfficeFault::BadValue(key.into()))
}

/// The id in the store, else that of a folder whose store was not written yet, else a new one.
async fn first_server_id(folder: &Path, store: &dyn Store, ambient: &Ambient) -> Result<NodeId, OfficeFault> {
    if let Some(text) = meta_text(store, SERVER_ID).await? {
        return text.parse().map_err(|_| OfficeFault::BadValue(SERVER_ID.into()));
    }
    let path = folder.join("server.id");
    let held = files::read_text(&path).map_err(OfficeFault::file(&path))?;
    let held = held.and_then(|text| text.trim().parse::<NodeId>().ok());
    Ok(held.unwrap_or_else(|| NodeId(ambient.random.id(ambient.clock.wall()))))
}

/// Sees that `server.id` says what the store says.
fn keep_server_id(folder: &Path, server: NodeId) -> Result<(), OfficeFault> {
    let path = folder.join("server.id");
    match files::read_text(&path).map_err(OfficeFault::file(&path))? {
        Some(text) if text.trim() == server.to_string() => Ok(()),
        Some(text) => Err(OfficeFault::OtherServer { folder: text.trim().into(), store: server.to_string() }),
        None => write_whole(&path, server.to_string().as_bytes()).map_err(OfficeFault::file(&path)),
    }
}

pub(super) fn listeners(
    keys: &TenantKeys,
    trust: &TrustDocument,
    time: &NodeTime,
) -> Result<(Arc<ServerConfig>, Arc<ServerConfig>), OfficeFault> {
    let cas: Vec<CertificateDer<'_>> = trust.cas.iter().map(|ca| CertificateDer::from(&ca[..])).collect();
    let link = parent_config(&keys.identity, &cas, Arc::new(time.clone()))?;
    Ok((link, enrol_config(&keys.identity, Arc::new(time.clone()))?))
}

async fn load_tenant(
    store: &dyn Store,
    tenant: &TenantId,
    keys: TenantKeys,
    rows: &[NodeRow],
    time: &NodeTime,
) -> Result<TenantState, OfficeFault> {
    let damaged = |what: &str| OfficeFault::Damaged { tenant: tenant.clone(), what: what.into() };
    let mut documents: BTreeMap<(Kind, String), Envelope> = BTreeMap::new();
    for (kind, site, envelope) in store.documents(tenant).await? {
        documents.insert((kind, site), envelope);
    }
    let mut take = |kind: Kind, site: &str| documents.remove(&(kind, site.to_owned()));
    let envelope = take(Kind::Trust, "").ok_or_else(|| damaged("no trust document"))?;
    let trust = verify_trust(&envelope, tenant, keys.root).map_err(|e| damaged(&format!("trust document: {e}")))?;
    let signers = trust.server_keys();
    if !signers.contains(&keys.signer.public()) {
        return Err(damaged("signing.key is not a server key of the trust document"));
    }
    let trust = (trust, envelope);
    let opened = |e: document::DocumentFault| damaged(&e.to_string());
    let envelope = take(Kind::Revocations, "").ok_or_else(|| damaged("no revocation list"))?;
    let revocations: Revocations = document::open(&envelope, tenant, &signers).map_err(opened)?;
    let revocations = (Arc::new(revocations), envelope);
    let envelope = take(Kind::Settings, "").ok_or_else(|| damaged("no settings"))?;
    let settings = (document::open::<Settings>(&envelope, tenant, &signers).map_err(opened)?, envelope);
    let mut sites = BTreeMap::new();
    for site in store.sites(tenant).await? {
        let parents = meta_value(store, &parents_key(tenant, &site)).await?.unwrap_or_default();
        let list = match take(Kind::Upstreams, &site) {
            Some(envelope) => {
                Some((document::open::<UpstreamList>(&envelope, tenant, &signers).map_err(opened)?, envelope))
            }
            None => None,
        };
        sites.insert(site, SiteState { parents, list });
    }
    let mut population = Population::default();
    let mut relays = BTreeMap::new();
    for row in rows {
        population.put(row);
        if row.role == Role::Relay && row.revoked_at.is_none() {
            let addresses = meta_value(store, &addresses_key(row.id)).await?.unwrap_or_default();
            relays.insert(row.id, RelayWays { name: row.name.clone(), site: row.site.clone(), addresses });
        }
    }
    let key = link_token_key(tenant);
    let link_token = meta_text(store, &key).await?.ok_or(OfficeFault::BadValue(key))?;
    let (link, enrol) = listeners(&keys, &trust.0, time)?;
    Ok(TenantState { keys, trust, revocations, settings, sites, relays, link_token, population, link, enrol })
}
