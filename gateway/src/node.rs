//! A gateway as a value: configuration and ambient in, a running gateway out.

use crate::{
    actors::{listener, private, public, trunk},
    anchor::Anchor,
    config::{Certificate, Config},
    flood::Flood,
    gate::{BUILD, Gate},
    limits::PathRule,
};
use branchline_node::{
    enrol::{EnrolFault, SPLICES_AT_ONCE, enrol_or_load},
    identity::{BUNDLE_BYTES_MAX, Bundle, Identity, child_config, https_config, server_name},
    link::dial::{Dialler, Route},
    metrics::Metrics,
    node::{Ambient, EndWatch, NodeEnd, StartFault, Started, exit_code, listen, write_whole},
    supervise::{Supervision, Supervisor},
    time::NodeTime,
};
use branchline_protocol::{
    id::{Role, TenantId},
    wire::DeviceFacts,
};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use std::{fs, path::Path, sync::Arc, time::Duration};
use tokio::{sync::watch, time::timeout};

/// Time for pipes to say goodbye before they are cut.
const PIPES_END: Duration = Duration::from_secs(2);
/// Time for the actors to stop before they are cut.
const ACTORS_STOP: Duration = Duration::from_secs(5);
/// Threads of the public listener. The gateway copies and encrypts, so more than two pay only on larger hosts, which
/// run more gateways.
const PUBLIC_WORKERS: usize = 2;

/// Starts gateways.
pub struct Gateway;

/// A gateway that listens. Stop it with [`RunningGateway::stop`]; dropping it leaves its threads behind.
pub struct RunningGateway {
    /// Who it is and where it listens: `public` and `private`.
    pub started: Started,
    /// Says when and why it ended by itself.
    pub end: EndWatch,
    gate: Arc<Gate>,
    supervision: Supervision,
}

impl Gateway {
    /// Starts a gateway: enrols it if it has no identity, opens its listeners, writes `node.json`, dials the server. It
    /// runs also while the server cannot be reached, once it has enrolled. Needs a running actix system.
    pub async fn start(config: Config, ambient: Ambient) -> Result<RunningGateway, StartFault> {
        let mistakes = config.mistakes();
        if !mistakes.is_empty() {
            return Err(StartFault::new(exit_code::CONFIGURATION, "bad_configuration", mistakes.join("; ")));
        }
        // Listeners first: a taken port should not cost an enrolment token.
        let public_socket = listen("the public listener", config.public)?;
        let private_socket = listen("the private listener", config.private)?;
        let address = |socket: &std::net::TcpListener| {
            socket.local_addr().map_err(|e| StartFault::new(exit_code::LISTEN, "cannot_listen", e.to_string()))
        };
        let (public_address, private_address) = (address(&public_socket)?, address(&private_socket)?);

        let time = NodeTime::new(Arc::clone(&ambient.clock));
        let dialler = Dialler { bind_source: config.bind_source, ..Dialler::new(ambient.resolver.clone()) };
        let (identity, anchor) = identity(&config, &dialler, &time).await?;
        let roots = anchor.certificates().map_err(|e| state_fault(&config.state_dir, &e))?;
        let tls_time = Arc::new(time.clone());
        let unusable = |e: branchline_node::identity::TlsFault| state_fault(&config.state_dir, &e);
        let trunk_tls = child_config(Some(&identity), &roots, tls_time.clone()).map_err(unusable)?;
        let private_tls =
            https_config(identity.chain.clone(), identity.private_key(), tls_time.clone()).map_err(unusable)?;
        let public_tls = match &config.certificate {
            None => private_tls.clone(),
            Some(files) => foreign_certificate(files, tls_time)?,
        };

        let metrics = Metrics::new();
        let clock = Arc::clone(&ambient.clock);
        let flood = Flood::new(config.limits.upgrades_per_second, config.limits.upgrades_burst, Arc::clone(&clock));
        let rule = PathRule::new(&config.public_names, public_address);
        let room = (config.limits.pipes, SPLICES_AT_ONCE);
        let gate = Arc::new(Gate::new(rule, flood, room, time, ambient.random, metrics.clone()));

        let restarts = metrics.counter("branchline_restarts_total", &[]);
        let supervision = Supervisor::start(clock, Some(restarts));
        let way = trunk::Way {
            address: config.server_trunk.clone(),
            dialler,
            tls: trunk_tls,
            server: server_name(anchor.server, &anchor.tenant),
        };
        let mut children: Vec<_> =
            (1..=config.trunks).map(|number| trunk::child(number, way.clone(), Arc::clone(&gate))).collect();
        let shared = Arc::clone(&gate);
        children.push(listener::child("public", public_socket, move |socket| {
            public::serve(socket, public_tls.clone(), PUBLIC_WORKERS, Arc::clone(&shared))
        }));
        let shared = Arc::clone(&gate);
        children.push(listener::child("private", private_socket, move |socket| {
            private::serve(socket, private_tls.clone(), Arc::clone(&shared))
        }));
        for child in children {
            let fault = |e: branchline_node::supervise::SuperviseError| {
                StartFault::new(exit_code::SUPERVISION, "cannot_supervise", e.to_string())
            };
            supervision.start_child(child).await.map_err(fault)?;
        }

        let addresses = [("public".to_owned(), public_address), ("private".to_owned(), private_address)].into();
        let started = Started { id: identity.subject.node, name: config.name, addresses };
        let text = serde_json::to_vec_pretty(&started).expect("ids, names and addresses are plain data");
        write_whole(&config.state_dir.join("node.json"), &text).map_err(|e| state_fault(&config.state_dir, &e))?;
        tracing::info!(id = %started.id, name = %started.name, public = %public_address, private = %private_address,
            build = BUILD, "gateway listens");
        Ok(RunningGateway { started, end: watch_end(supervision.clone()), gate, supervision })
    }
}

impl RunningGateway {
    /// Stops: pipes are closed, then the listeners, then the trunks say goodbye. Waits until all that is done, or cut.
    pub async fn stop(self) {
        self.gate.stop.cancel();
        if timeout(PIPES_END, self.gate.drained()).await.is_err() {
            tracing::warn!(links = self.gate.links(), "pipes did not end in time and are cut");
        }
        match self.supervision.stop(ACTORS_STOP).await {
            Ok(report) => tracing::info!(?report, "gateway stopped"),
            Err(e) => tracing::warn!(reason = %e, "gateway stopped without its supervisor"),
        }
    }
}

/// Tells the owner when the node has to end by itself.
fn watch_end(supervision: Supervision) -> EndWatch {
    let (told, end) = watch::channel(None);
    actix_rt::spawn(async move {
        let must = tokio::select! {
            must = supervision.must_end() => must,
            () = told.closed() => return,
        };
        let first_fault = must.first_fault.map(|fault| fault.text).unwrap_or_default();
        let end = NodeEnd { exit_code: must.exit_code, first_fault: format!("{}: {first_fault}", must.child) };
        told.send_replace(Some(end));
    });
    end
}

/// The identity in the state folder, or a new one from the server.
async fn identity(config: &Config, dialler: &Dialler, time: &NodeTime) -> Result<(Identity, Anchor), StartFault> {
    let folder = config.state_dir.join("identity");
    fs::create_dir_all(&folder).map_err(|e| state_fault(&folder, &e))?;
    if folder.join("cert.pem").exists() {
        let identity = Identity::load(&folder).map_err(|e| state_fault(&folder, &e))?;
        return Ok((identity, Anchor::load(&folder).map_err(|e| state_fault(&folder, &e))?));
    }
    let bad_bundle = |why: String| {
        let message = format!("{}: {why}; ask for a new bundle", config.bundle.display());
        StartFault::new(exit_code::ENROLMENT, "bad_bundle", message)
    };
    let size = fs::metadata(&config.bundle).map_err(|e| bad_bundle(e.to_string()))?.len();
    if size > BUNDLE_BYTES_MAX as u64 {
        return Err(bad_bundle(format!("{size} bytes are too many")));
    }
    let text = fs::read_to_string(&config.bundle).map_err(|e| bad_bundle(e.to_string()))?;
    let bundle = Bundle::open(&text).map_err(|e| bad_bundle(e.to_string()))?;
    if bundle.role != Role::Gateway || bundle.tenant != TenantId::system() {
        return Err(bad_bundle(format!("it is for a {} of tenant {}", bundle.role, bundle.tenant)));
    }
    let anchor = Anchor::of(&bundle).map_err(bad_bundle)?;
    // Before the certificate, whose file says that there is nothing left to do.
    anchor.save(&folder).map_err(|e| state_fault(&folder, &e))?;
    let routes = [Route::Direct(config.server_trunk.clone())];
    let enrolled = enrol_or_load(&folder, &bundle, &routes, dialler, facts(config), time).await.map_err(|e| {
        let code = match &e {
            EnrolFault::Offline(_) => "cannot_register_offline",
            EnrolFault::Bundle(_) | EnrolFault::BundleFile(..) | EnrolFault::NoToken => "bad_bundle",
            EnrolFault::Refused(_) => "enrolment_refused",
            EnrolFault::Identity(_) => "bad_identity",
        };
        StartFault::new(exit_code::ENROLMENT, code, format!("enrol at {}: {e}", config.server_trunk))
    })?;
    Ok((enrolled.identity, anchor))
}

/// What the server is told of the gateway; the addresses go into its certificate.
fn facts(config: &Config) -> DeviceFacts {
    let mut addresses: Vec<String> = config.public_names.iter().map(|name| without_port(name).to_owned()).collect();
    for listener in [config.public, config.private] {
        if !listener.ip().is_unspecified() {
            addresses.push(listener.ip().to_string());
        }
    }
    addresses.sort();
    addresses.dedup();
    DeviceFacts {
        name: config.name.clone(),
        host_name: config.name.clone(),
        platform: std::env::consts::OS.into(),
        capabilities: Vec::new(),
        build: BUILD.into(),
        addresses,
    }
}

/// `name` of `name:port`, `address` of `[address]:port`.
fn without_port(name: &str) -> &str {
    if let Some(rest) = name.strip_prefix('[') {
        return rest.split(']').next().unwrap_or(rest);
    }
    match name.split_once(':') {
        Some((host, port)) if !port.contains(':') => host,
        _ => name,
    }
}

fn foreign_certificate(files: &Certificate, time: Arc<NodeTime>) -> Result<ServerConfig, StartFault> {
    let fault = |path: &Path, why: String| {
        let message = format!("the public certificate: {}: {why}", path.display());
        StartFault::new(exit_code::CONFIGURATION, "bad_certificate", message)
    };
    let chain: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(&files.chain).and_then(|certificates| certificates.collect());
    let chain = chain.map_err(|e| fault(&files.chain, e.to_string()))?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|e| fault(&files.key, e.to_string()))?;
    https_config(chain, key, time).map_err(|e| fault(&files.chain, e.to_string()))
}

fn state_fault(path: &Path, why: &dyn std::fmt::Display) -> StartFault {
    StartFault::new(exit_code::STATE, "bad_state", format!("{}: {why}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lose_their_port_and_addresses_their_brackets() {
        for (name, host) in [
            ("gw.example.com", "gw.example.com"),
            ("gw.example.com:8443", "gw.example.com"),
            ("192.0.2.1:443", "192.0.2.1"),
            ("[2001:db8::1]:443", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("2001:db8::1", "2001:db8::1"),
        ] {
            assert_eq!(without_port(name), host, "{name}");
        }
    }
}
