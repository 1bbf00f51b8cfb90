//! The server's HTTP API as the command uses it: TLS by the product's CA, a bearer token, refusals as failures.

use crate::{
    context::{Access, Context},
    failure::{Failure, exit_code},
};
use serde_json::Value;
use std::{path::Path, sync::Arc, time::Duration};
use ureq::{
    Agent,
    http::StatusCode,
    tls::{Certificate, RootCerts, TlsConfig, TlsProvider},
};

/// Longer than the longest poll the API allows, with room for a slow answer.
const CALL_TIME_OUT: Duration = Duration::from_secs(60);
/// An address that does not answer within this is unreachable.
const CONNECT_TIME_OUT: Duration = Duration::from_secs(5);
/// The largest answer that is read: an inventory is at most 16 MiB of MessagePack, more as JSON text.
const ANSWER_BYTES_MAX: u64 = 256 * 1_048_576;
/// The longest a `wait_ms` poll may ask for.
pub const POLL_MS_MAX: u64 = 30_000;

/// A client of one API with one access. Cheap to clone; shared by threads.
#[derive(Clone)]
pub struct Client {
    agent: Agent,
    api: String,
    access: Access,
}

impl Client {
    /// A client for the context's API, speaking for `tenant`.
    pub fn new(context: &Context, tenant: Option<&str>) -> Result<Client, Failure> {
        let access = context.access(tenant)?;
        Ok(Client { agent: agent(&context.ca_file)?, api: context.api.trim_end_matches('/').to_string(), access })
    }

    /// GET of `/api/v1{path}`.
    pub fn get(&self, path: &str, query: &[(&str, &str)]) -> Result<Value, Failure> {
        let mut request = self.agent.get(format!("{}/api/v1{path}", self.api)).header("authorization", self.bearer());
        for (key, value) in query.iter().copied().chain(self.tenant()) {
            request = request.query(key, value);
        }
        self.answer(path, request.call())
    }

    /// POST of a JSON body to `/api/v1{path}`.
    pub fn post(&self, path: &str, query: &[(&str, &str)], body: &Value) -> Result<Value, Failure> {
        let mut request = self.agent.post(format!("{}/api/v1{path}", self.api)).header("authorization", self.bearer());
        for (key, value) in query.iter().copied().chain(self.tenant()) {
            request = request.query(key, value);
        }
        self.answer(path, request.send_json(body))
    }

    /// PATCH of a JSON body to `/api/v1{path}`.
    pub fn patch(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        let url = format!("{}/api/v1{path}", self.api);
        let mut request = self.agent.patch(url).header("authorization", self.bearer());
        if let Some((key, value)) = self.tenant() {
            request = request.query(key, value);
        }
        self.answer(path, request.send_json(body))
    }

    /// PUT of a JSON body to `/api/v1{path}`.
    pub fn put(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        let mut request = self.agent.put(format!("{}/api/v1{path}", self.api)).header("authorization", self.bearer());
        if let Some((key, value)) = self.tenant() {
            request = request.query(key, value);
        }
        self.answer(path, request.send_json(body))
    }

    fn bearer(&self) -> String {
        format!("Bearer {}", self.access.token)
    }

    fn tenant(&self) -> Option<(&str, &str)> {
        self.access.tenant.as_deref().map(|t| ("tenant", t))
    }

    fn answer(
        &self,
        path: &str,
        result: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
    ) -> Result<Value, Failure> {
        let unreachable = |e: &dyn std::fmt::Display| {
            Failure::unreachable(format!("cannot reach the server's API at {}: {e}; is it running?", self.api))
        };
        let mut response = result.map_err(|e| unreachable(&e))?;
        let status = response.status();
        let read = response.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_vec();
        let bytes = read.map_err(|e| unreachable(&e))?;
        let body = serde_json::from_slice::<Value>(&bytes);
        if !status.is_success() {
            return Err(refusal(status, body.unwrap_or_default(), path));
        }
        body.map_err(|e| Failure::ended("bad_answer", format!("the answer of {} to {path} is not JSON: {e}", self.api)))
    }
}

/// GET of a node's `/getstatus` on its private port.
pub fn getstatus(ca_file: &Path, private: &str) -> Result<Value, Failure> {
    let unreachable = |e: &dyn std::fmt::Display| Failure::unreachable(format!("no status from {private}: {e}"));
    let mut response = agent(ca_file)?.get(format!("{private}/getstatus")).call().map_err(|e| unreachable(&e))?;
    response.body_mut().read_json().map_err(|e| unreachable(&e))
}

/// A node's figures as Prometheus scrapes them from its private port.
pub fn metrics(ca_file: &Path, private: &str) -> Result<String, Failure> {
    let unreachable = |e: &dyn std::fmt::Display| Failure::unreachable(format!("no figures from {private}: {e}"));
    let mut response = agent(ca_file)?.get(format!("{private}/metrics")).call().map_err(|e| unreachable(&e))?;
    response.body_mut().read_to_string().map_err(|e| unreachable(&e))
}

fn agent(ca_file: &Path) -> Result<Agent, Failure> {
    let unusable =
        |why: String| Failure::wrong("bad_ca", format!("the CA file {} is no use: {why}", ca_file.display()));
    let pem = std::fs::read(ca_file).map_err(|e| unusable(e.to_string()))?;
    let roots = branchline_node::identity::pem_to_certificates(&pem).filter(|c| !c.is_empty());
    let roots = roots.ok_or_else(|| unusable("it holds no PEM certificates".into()))?;
    let roots: Vec<Certificate<'static>> = roots.iter().map(|c| Certificate::from_der(c).to_owned()).collect();
    let tls = TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .unversioned_rustls_crypto_provider(branchline_node::identity::provider())
        .root_certs(RootCerts::Specific(Arc::new(roots)))
        .build();
    let config = Agent::config_builder()
        .tls_config(tls)
        .https_only(true)
        // A token is for one address only: no proxy from the environment, no redirect.
        .proxy(None)
        .max_redirects(0)
        .http_status_as_error(false)
        .timeout_connect(Some(CONNECT_TIME_OUT))
        .timeout_global(Some(CALL_TIME_OUT))
        .build();
    Ok(config.new_agent())
}

/// The failure that a refusal of the API is. 4xx: the request was wrong; 503: something on the way is away.
fn refusal(status: StatusCode, body: Value, path: &str) -> Failure {
    let exit = match status.as_u16() {
        503 => exit_code::UNREACHABLE,
        429 => exit_code::ENDED_BADLY,
        400..=499 => exit_code::WRONG_REQUEST,
        _ => exit_code::ENDED_BADLY,
    };
    let text = |key: &str| body[key].as_str().map(str::to_string);
    let code = text("code").unwrap_or_else(|| format!("http_{}", status.as_u16()));
    let message = text("message").unwrap_or_else(|| format!("the server answered {status} to {path}"));
    Failure { exit, code, message, field: text("field") }
}

/// A name or id as one segment of a path.
pub fn segment(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'~');
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn refusals_keep_their_words_and_say_whose_fault_it_is() {
        let body = json!({ "code": "unknown_site", "message": "no site osaca", "field": "site" });
        let failure = refusal(StatusCode::NOT_FOUND, body, "/bundles");
        assert_eq!(failure.json(), json!({ "code": "unknown_site", "message": "no site osaca", "field": "site" }));
        let exit = |status| refusal(StatusCode::from_u16(status).unwrap(), Value::Null, "/x").exit;
        for status in [400, 401, 403, 404, 409, 413, 422] {
            assert_eq!(exit(status), 2, "{status}");
        }
        assert_eq!([exit(429), exit(500), exit(502), exit(503)], [1, 1, 1, 3]);
        assert_eq!(refusal(StatusCode::BAD_GATEWAY, Value::Null, "/x").code, "http_502");
    }

    #[test]
    fn a_segment_never_leaves_its_place_in_the_path() {
        assert_eq!(segment("osaka-pc-01"), "osaka-pc-01");
        assert_eq!(segment("a/../b?c#d é"), "a%2F..%2Fb%3Fc%23d%20%C3%A9");
    }
}
