//! What an administrator has set of a relay's way up (RLY-2), over what its site's signed list says: an address, and
//! whether that is a gateway's. Never who is there: only a listed parent with its own certificate is accepted.
//!
//! `STATE/upstream.toml` holds it. `configure` replaces the file as a whole, and the running relay looks at it every second.

use branchline_node::{
    config::{HostPort, Mistakes, Reach, Reader, load},
    identity::{outer_client_config, pem_to_certificates},
    link::dial::Route,
    node::write_whole,
};
use branchline_protocol::{
    document::Upstream,
    id::{NodeId, Role},
};
use bytes::Bytes;
use rustls::{ClientConfig, pki_types::CertificateDer, time_provider::TimeProvider};
use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

/// What is set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamSettings {
    /// A name or an address.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Whether a gateway is there, reached over HTTPS; otherwise the parent itself.
    pub via_gateway: bool,
    /// Which parent of the signed list; the server unless told.
    pub upstream: Option<NodeId>,
    /// PEM text that vouches for the gateway's public certificate, beside the bundle's.
    pub ca_pem: Option<String>,
}

impl UpstreamSettings {
    /// Reads them; `ca` is a file's name from an administrator, `ca_pem` its text where it was saved.
    pub fn read(r: &mut Reader<'_>) -> UpstreamSettings {
        let via_gateway = r.or("via_gateway", true);
        let usual = if via_gateway { 443 } else { 13_000 };
        let settings = UpstreamSettings {
            host: r.required("host"),
            port: r.number_or("port", usual, 1..=u16::MAX),
            via_gateway,
            upstream: r.optional("upstream"),
            ca_pem: r.optional("ca_pem"),
        };
        let plain = HostPort { host: settings.host.clone(), port: settings.port };
        if !settings.host.is_empty() && plain.to_string().parse() != Ok(plain) {
            let message =
                format!("{:?} is neither a name nor an address: write it without https:// and port", settings.host);
            r.mistake("host", "bad_host", message);
        }
        let ca: Option<PathBuf> = r.optional("ca");
        match ca.map(|path| (std::fs::read_to_string(&path), path)) {
            None => settings,
            Some((Ok(text), _)) if pem_to_certificates(text.as_bytes()).is_some() => {
                UpstreamSettings { ca_pem: Some(text), ..settings }
            }
            Some((Ok(_), path)) => {
                r.mistake("ca", "bad_certificate", format!("{} holds no certificates in PEM", path.display()));
                settings
            }
            Some((Err(e), path)) => {
                r.mistake("ca", "unreadable", format!("{}: {e}", path.display()));
                settings
            }
        }
    }

    /// Where they are kept.
    pub fn file(state_dir: &Path) -> PathBuf {
        state_dir.join("upstream.toml")
    }

    /// The kept ones; `None` where nothing is set.
    pub fn kept(state_dir: &Path) -> Result<Option<UpstreamSettings>, Mistakes> {
        let file = UpstreamSettings::file(state_dir);
        if !file.exists() {
            return Ok(None);
        }
        load(&file, UpstreamSettings::read).map(Some)
    }

    /// Keeps them: a crash leaves the former or these.
    pub fn keep(&self, state_dir: &Path) -> io::Result<()> {
        let mut text =
            format!("host = {}\nport = {}\nvia_gateway = {}\n", quoted(&self.host), self.port, self.via_gateway);
        if let Some(upstream) = self.upstream {
            text += &format!("upstream = \"{upstream}\"\n");
        }
        if let Some(pem) = &self.ca_pem {
            text += &format!("ca_pem = {}\n", quoted(pem));
        }
        write_whole(&UpstreamSettings::file(state_dir), text.as_bytes())
    }

    /// The way that is set.
    pub fn route(&self) -> Route {
        let address = HostPort { host: self.host.clone(), port: self.port };
        if self.via_gateway { Route::Gateway(format!("https://{address}")) } else { Route::Direct(address.to_string()) }
    }

    /// Which ways may be used with them.
    pub fn reach(&self) -> Reach {
        if self.via_gateway { Reach::Gateway } else { Reach::Direct }
    }

    /// The parent that is meant, if it is on this list.
    pub fn parent<'l>(&self, listed: &'l [Upstream]) -> Option<&'l Upstream> {
        listed.iter().find(|up| match self.upstream {
            Some(id) => up.id == id,
            None => up.role == Role::Server,
        })
    }

    /// A list with the set way in front; `None` where its parent is not listed.
    pub fn over(&self, listed: &[Upstream]) -> Option<Vec<Upstream>> {
        let parent = self.parent(listed)?;
        let (direct, gateways) = match self.route() {
            Route::Direct(address) => (vec![address], Vec::new()),
            Route::Gateway(url) => (Vec::new(), vec![url]),
        };
        let set = Upstream { direct, gateways, ..parent.clone() };
        Some(std::iter::once(set).chain(listed.iter().filter(|up| up.id != parent.id).cloned()).collect())
    }

    /// Trust for a gateway's public certificate: the bundle's roots and the set one.
    pub fn outer(
        settings: Option<&UpstreamSettings>,
        bundled: &[Bytes],
        time: Arc<dyn TimeProvider>,
    ) -> Result<Option<Arc<ClientConfig>>, String> {
        let mut roots: Vec<CertificateDer<'_>> = bundled.iter().map(|r| CertificateDer::from(r.to_vec())).collect();
        let pem = settings.and_then(|s| s.ca_pem.as_deref()).unwrap_or_default();
        roots.extend(pem_to_certificates(pem.as_bytes()).unwrap_or_default());
        if roots.is_empty() {
            return Ok(None);
        }
        outer_client_config(&roots, time).map(Some).map_err(|e| e.to_string())
    }
}

/// A TOML basic string. JSON's escapes are TOML's too; DEL alone is raw in JSON and forbidden in TOML.
pub(crate) fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string().replace('\u{7f}', "\\u007F")
}

#[cfg(test)]
#[path = "upstream_tests.rs"]
mod tests;
