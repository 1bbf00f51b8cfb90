//! A client of one node's HTTP API that shows statuses as they are. Calls block a thread of their own, never the arbiter
//! on which the nodes of the tree live.

use branchline_node::identity::{pem_to_certificates, provider};
use serde_json::Value;
use std::{path::PathBuf, sync::Arc, time::Duration};
use ureq::{
    Agent,
    tls::{Certificate, RootCerts, TlsConfig, TlsProvider},
};

/// Longer than the longest poll of the API.
const CALL_TIME_OUT: Duration = Duration::from_secs(45);
/// No answer is larger.
const ANSWER_BYTES_MAX: u64 = 64 * 1_048_576;

/// An answer as it came.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// JSON, or the text where it is none.
    pub body: Value,
}

impl Answer {
    /// The body of a good answer.
    #[track_caller]
    pub fn good(self) -> Value {
        assert!((200..300).contains(&self.status), "the API refused: {self:?}");
        self.body
    }

    /// Status and code of a refusal.
    pub fn refusal(&self) -> (u16, &str) {
        (self.status, self.body["code"].as_str().unwrap_or_default())
    }
}

/// A client with one token, or none.
#[derive(Clone)]
pub struct Api {
    agent: Agent,
    base: String,
    token: Option<String>,
}

impl Api {
    /// A client of `https://address` that trusts these CA files.
    pub fn new(address: impl std::fmt::Display, cas: &[PathBuf], token: Option<String>) -> Api {
        let roots: Vec<Certificate<'static>> = cas
            .iter()
            .flat_map(|file| {
                let pem = std::fs::read(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
                pem_to_certificates(&pem).unwrap_or_else(|| panic!("{} is not PEM", file.display()))
            })
            .map(|der| Certificate::from_der(&der).to_owned())
            .collect();
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .unversioned_rustls_crypto_provider(provider())
            .root_certs(RootCerts::Specific(Arc::new(roots)))
            .build();
        let config = Agent::config_builder()
            .tls_config(tls)
            .proxy(None)
            .max_redirects(0)
            .http_status_as_error(false)
            .timeout_global(Some(CALL_TIME_OUT))
            .build();
        Api { agent: config.new_agent(), base: format!("https://{address}"), token }
    }

    /// The same API with another token.
    pub fn with_token(&self, token: String) -> Api {
        Api { token: Some(token), ..self.clone() }
    }

    /// GET of a path.
    pub async fn get(&self, path: impl Into<String>) -> Answer {
        self.call("GET", path.into(), None).await
    }

    /// POST of a body; `Null` sends none.
    pub async fn post(&self, path: impl Into<String>, body: Value) -> Answer {
        self.call("POST", path.into(), Some(body)).await
    }

    /// PATCH of a body.
    pub async fn patch(&self, path: impl Into<String>, body: Value) -> Answer {
        self.call("PATCH", path.into(), Some(body)).await
    }

    /// PUT of a body.
    pub async fn put(&self, path: impl Into<String>, body: Value) -> Answer {
        self.call("PUT", path.into(), Some(body)).await
    }

    async fn call(&self, method: &'static str, path: String, body: Option<Value>) -> Answer {
        let (this, url) = (self.clone(), format!("{}{path}", self.base));
        let call = move || {
            let bearer = this.token.map(|token| format!("Bearer {token}"));
            let answer = match body {
                None => {
                    let request = this.agent.get(&url);
                    bearer.iter().fold(request, |r, b| r.header("authorization", b)).call()
                }
                Some(body) => {
                    let request = match method {
                        "PUT" => this.agent.put(&url),
                        "PATCH" => this.agent.patch(&url),
                        _ => this.agent.post(&url),
                    };
                    let request = bearer.iter().fold(request, |r, b| r.header("authorization", b));
                    if body.is_null() { request.send_empty() } else { request.send_json(&body) }
                }
            };
            let mut answer = answer.unwrap_or_else(|e| panic!("{url}: {e}"));
            let status = answer.status().as_u16();
            let text = answer.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_string();
            let text = text.unwrap_or_else(|e| panic!("{url}: {e}"));
            Answer { status, body: serde_json::from_str(&text).unwrap_or(Value::String(text)) }
        };
        actix_rt::task::spawn_blocking(call).await.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()))
    }
}
