//! The ways up of a tree's nodes, and what can be done to them: proxies before server and gateway, names that change, and
//! somebody else at a parent's address.

use super::{Device, SITE, Tree, eventually, holds, local};
use crate::proxy::Proxy;
use branchline_agent::{AgentConfig, platform::Platform};
use branchline_gateway::Gateway;
use branchline_node::{
    config::Reach,
    identity::{Identity, enrol_config},
    link::names::{Resolve, Resolved},
    node::Ambient,
    process::RunningNode,
    time::{NodeTime, SystemClock},
    uplink::spool::Quotas,
};
use branchline_protocol::wire::{Contact, PREFACE_ACCEPTED};
use futures_util::future::BoxFuture;
use serde_json::json;
use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinHandle,
};
use tokio_rustls::TlsAcceptor;

/// How an agent is to find its way.
pub struct Roaming {
    /// Its site.
    pub site: String,
    /// The parent that its bundle names.
    pub parent: String,
    /// The switch of TOP-3.
    pub reach: Reach,
    /// What it asks of its parents.
    pub contact: Contact,
    /// Who resolves its names; the system unless told.
    pub resolver: Option<Arc<dyn Resolve>>,
}

impl Default for Roaming {
    /// A laptop: every way to the server, and a link that stays.
    fn default() -> Self {
        let (site, parent) = (SITE.into(), "any".into());
        Roaming { site, parent, reach: Reach::Any, contact: Contact::Persistent, resolver: None }
    }
}

impl Tree {
    /// Starts a gateway, waits until it reaches the server, and registers where it listens.
    pub async fn gateway(&mut self, name: &str) {
        let config = self.gateway_config(name, local()).await;
        let public = self.start_gateway(name, config).await;
        self.register_gateway(&format!("https://{public}")).await;
    }

    /// The same behind a proxy, which alone is registered.
    pub async fn gateway_behind_proxy(&mut self, name: &str) -> Proxy {
        let mut config = self.gateway_config(name, local()).await;
        config.public = self.start_gateway(name, config.clone()).await;
        let proxy = Proxy::start(local(), config.public).expect("a proxy");
        self.gateways.remove(name).expect("a running gateway").stop().await;
        config.public_names = vec![proxy.address().to_string()];
        self.start_gateway(name, config).await;
        self.register_gateway(&format!("https://{}", proxy.address())).await;
        proxy
    }

    /// The same at an address, under a name of its own that is registered with the port it got.
    pub async fn named_gateway(&mut self, name: &str, listen: IpAddr, public_name: &str) {
        let mut config = self.gateway_config(name, SocketAddr::new(listen, 0)).await;
        config.public_names = vec![public_name.to_owned()];
        let public = self.start_gateway(name, config).await;
        self.register_gateway(&format!("https://{public_name}:{}", public.port())).await;
    }

    async fn gateway_config(&self, name: &str, public: SocketAddr) -> branchline_gateway::config::Config {
        let body = json!({ "role": "gateway", "parent": "server", "uses": 1, "life_s": 3_600 });
        branchline_gateway::config::Config {
            name: name.into(),
            state_dir: self.folder(name),
            public,
            private: local(),
            public_names: Vec::new(),
            server_trunk: self.server().started().addresses["trunk"].to_string(),
            bundle: self.bundle("system", name, body).await,
            bind_source: None,
            certificate: None,
            trunks: 2,
            limits: Default::default(),
        }
    }

    /// Answers where it listens.
    async fn start_gateway(&mut self, name: &str, config: branchline_gateway::config::Config) -> SocketAddr {
        let gateway = Gateway::start(config, Ambient::system()).await.expect("the gateway starts");
        let public = gateway.started.addresses["public"];
        self.gateways.insert(name.into(), gateway);
        eventually("the gateway reaches the server", async || {
            let status = self.status(name).await;
            holds(status["server"] == "reachable", status)
        })
        .await;
        public
    }

    async fn register_gateway(&self, public: &str) {
        self.api("system").post("/api/v1/gateways", json!({ "public": public })).await.good();
    }

    /// From here on children are told a proxy's address for the server's. Before anything else is started. With a `name`
    /// they are told that name and the proxy's port.
    pub async fn server_behind_proxy(&mut self, name: Option<&str>) -> Proxy {
        let proxy = Proxy::start(local(), self.server_config.link).expect("a proxy");
        let port = proxy.address().port();
        let told = name.map_or_else(|| proxy.address().to_string(), |name| format!("{name}:{port}"));
        self.stop_server().await;
        self.server_config.advertise_link = vec![told];
        self.start_server().await;
        proxy
    }

    /// Starts an agent that finds its way by itself, looks for a better one every second, and shows how it stands.
    pub async fn roaming(&mut self, tenant: &str, name: &str, platform: Arc<dyn Platform>, wish: Roaming) {
        let body = json!({ "role": "agent", "site": wish.site, "parent": wish.parent, "uses": 1, "life_s": 3_600 });
        let config = AgentConfig {
            name: name.into(),
            state_dir: self.folder(name),
            bundle: self.bundle(tenant, name, body).await,
            bind_source: None,
            reach: wish.reach,
            probe_interval_s: 1,
            private: Some(local()),
            contact: wish.contact,
            wake_port: None,
            quotas: Quotas::AGENT,
            restart: true,
        };
        let system = Ambient::system();
        let ambient = Ambient { resolver: wish.resolver.unwrap_or_else(|| system.resolver.clone()), ..system };
        self.devices.insert(name.into(), Device { config, platform, ambient, running: None });
        self.start_agent(name).await;
    }

    /// Starts a stopped agent with another switch.
    pub async fn start_agent_reaching(&mut self, name: &str, reach: Reach) {
        self.devices.get_mut(name).expect("a device of this tree").config.reach = reach;
        self.start_agent(name).await;
    }

    /// A relay's configuration as a file, as its own verbs read it.
    pub fn relay_config_file(&self, name: &str) -> std::path::PathBuf {
        let config = &self.relay_configs[name];
        let text = format!(
            "name = {name:?}\nstate_dir = {:?}\nbundle = {:?}\nlink = \"{}\"\nreach = \"{}\"\n",
            config.state_dir,
            config.bundle,
            config.link,
            config.reach.as_str()
        );
        let file = self.folder(&format!("{name}.toml"));
        std::fs::write(&file, text).expect("the temporary folder can be written");
        file
    }

    /// Waits until a node stands so towards its parent, by its own status.
    pub async fn stands(&self, node: &str, state: &str, route: Option<&str>) -> serde_json::Value {
        eventually(&format!("{node} is {state} by {route:?}"), async || {
            let status = self.status(node).await;
            let uplink = &status["uplink"];
            let good = uplink["state"] == state && uplink["route"].as_str() == route;
            if good { Ok(status) } else { Err(status.to_string()) }
        })
        .await
    }
}

/// A resolver of one name, whose address the scenario sets. It does not tell how long its answers are good: a minute.
pub struct OneName {
    name: String,
    address: Mutex<IpAddr>,
    asked: AtomicU64,
}

impl OneName {
    /// The name stands for this address at first.
    pub fn new(name: &str, address: IpAddr) -> Arc<OneName> {
        Arc::new(OneName { name: name.into(), address: Mutex::new(address), asked: AtomicU64::new(0) })
    }

    /// From here on it stands for another.
    pub fn set(&self, address: IpAddr) {
        *self.address.lock().expect("no panic holds it") = address;
    }

    /// How often it was asked.
    pub fn asked(&self) -> u64 {
        self.asked.load(Ordering::SeqCst)
    }
}

impl Resolve for OneName {
    fn resolve(&self, host: &str) -> BoxFuture<'static, io::Result<Resolved>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let (known, address) = (host == self.name, *self.address.lock().expect("no panic holds it"));
        Box::pin(async move {
            if known {
                Ok(Resolved { addresses: vec![address], life: None })
            } else {
                Err(io::Error::other("no such name"))
            }
        })
    }
}

/// Somebody at a parent's address who takes prefaces like a parent, with a certificate of another.
pub struct Impostor {
    knocks: Arc<AtomicU64>,
    links: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Impostor {
    /// Listens where nobody does at present.
    pub async fn start(address: SocketAddr, identity: &Identity) -> (Impostor, SocketAddr) {
        let time = Arc::new(NodeTime::new(SystemClock::shared()));
        let acceptor = TlsAcceptor::from(enrol_config(identity, time).expect("its certificate can be used"));
        let listener = TcpListener::bind(address).await.expect("the address is free");
        let address = listener.local_addr().expect("it listens");
        let (knocks, links) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (knocked, linked) = (knocks.clone(), links.clone());
        let task = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                knocked.fetch_add(1, Ordering::SeqCst);
                if stream.read_u8().await.is_err() || stream.write_all(&[PREFACE_ACCEPTED]).await.is_err() {
                    continue;
                }
                let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                // Whoever believes it says something now.
                if stream.read_u8().await.is_ok() {
                    linked.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
        (Impostor { knocks, links, task }, address)
    }

    /// Who came, and who went on to say anything.
    pub fn seen(&self) -> (u64, u64) {
        (self.knocks.load(Ordering::SeqCst), self.links.load(Ordering::SeqCst))
    }

    /// Goes away.
    pub async fn stop(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}
