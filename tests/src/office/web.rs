//! HTTPS by the office's CA, for what the command does not show.

use serde_json::Value;
use std::{path::Path, sync::Arc, time::Duration};
use ureq::{
    Agent,
    tls::{Certificate, RootCerts, TlsConfig, TlsProvider},
};

/// A client that trusts one CA.
pub struct Web(Agent);

impl Web {
    /// Trusts the certificates of a PEM file.
    pub fn new(ca_file: &Path) -> Web {
        Web::patient(ca_file, Duration::from_secs(30))
    }

    /// The same with so much patience for each answer.
    pub fn patient(ca_file: &Path, patience: Duration) -> Web {
        let pem = std::fs::read(ca_file).expect("the CA file is there");
        let roots = branchline_node::identity::pem_to_certificates(&pem).expect("certificates");
        let roots: Vec<Certificate<'static>> = roots.iter().map(|c| Certificate::from_der(c).to_owned()).collect();
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .unversioned_rustls_crypto_provider(branchline_node::identity::provider())
            .root_certs(RootCerts::Specific(Arc::new(roots)))
            .build();
        let config = Agent::config_builder()
            .tls_config(tls)
            .https_only(true)
            .proxy(None)
            .http_status_as_error(false)
            .timeout_global(Some(patience))
            .build();
        Web(config.new_agent())
    }

    /// GET with a bearer token: status and JSON body.
    pub fn get(&self, url: &str, token: &str) -> (u16, Value) {
        let call = self.0.get(url).header("authorization", format!("Bearer {token}")).call();
        let mut response = call.unwrap_or_else(|e| panic!("GET {url}: {e}"));
        (response.status().as_u16(), response.body_mut().read_json().unwrap_or_default())
    }

    /// Status and JSON body of a GET with a bearer token, or why there is no answer: the node may be away.
    pub fn try_get(&self, url: &str, token: &str) -> Result<(u16, Value), String> {
        let call = self.0.get(url).header("authorization", format!("Bearer {token}")).call();
        let mut response = call.map_err(|e| format!("GET {url}: {e}"))?;
        let body = response.body_mut().read_json().map_err(|e| format!("GET {url}: {e}"))?;
        Ok((response.status().as_u16(), body))
    }

    /// The same for a POST.
    pub fn try_post(&self, url: &str, token: &str, body: &Value) -> Result<(u16, Value), String> {
        let call = self.0.post(url).header("authorization", format!("Bearer {token}")).send_json(body);
        let mut response = call.map_err(|e| format!("POST {url}: {e}"))?;
        let body = response.body_mut().read_json().map_err(|e| format!("POST {url}: {e}"))?;
        Ok((response.status().as_u16(), body))
    }

    /// GET of a text.
    pub fn text(&self, url: &str) -> String {
        let mut response = self.0.get(url).call().unwrap_or_else(|e| panic!("GET {url}: {e}"));
        assert_eq!(response.status().as_u16(), 200, "GET {url}");
        response.body_mut().read_to_string().expect("a text")
    }

    /// The value of a metric at a node's private port: the sum over all its label sets that contain `label`.
    pub fn metric(&self, node: &str, name: &str, label: &str) -> f64 {
        let text = self.text(&format!("{node}/metrics"));
        let lines = text
            .lines()
            .filter(|l| l.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])) && l.contains(label));
        let values: Vec<f64> = lines.filter_map(|l| l.rsplit(' ').next()?.parse().ok()).collect();
        assert!(!values.is_empty(), "no metric {name} with {label:?} in\n{text}");
        values.iter().sum()
    }
}
