//! Which installation a command speaks to: the API's address, its CA and the operator's tokens.

use crate::failure::Failure;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// Where `up` keeps its states, below the folder it is called in.
pub const STATES_FOLDER: &str = ".branchline";
/// The link in [`STATES_FOLDER`] to the state of the newest `up`.
pub const CURRENT: &str = "current";
/// The context's file in a state folder.
pub const CONTEXT_FILE: &str = "context.json";
/// The tenant whose token may name any other tenant.
pub const SYSTEM: &str = "system";
/// The schema this build reads and writes.
pub const SCHEMA: u32 = 1;

/// The content of `context.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Context {
    /// [`SCHEMA`].
    pub schema: u32,
    /// `https://host:port` of the server's API.
    pub api: String,
    /// PEM of the product's CA.
    pub ca_file: PathBuf,
    /// Token file of each tenant, `system` included.
    pub tokens: BTreeMap<String, PathBuf>,
    /// The tenant meant when none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_tenant: Option<String>,
    /// The process that keeps the installation running, if `up` does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
}

/// A token, and the tenant to name with it.
#[derive(Clone, PartialEq, Eq)]
pub struct Access {
    /// The bearer token.
    pub token: String,
    /// Named in the query, since a `system` token speaks for every tenant.
    pub tenant: Option<String>,
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Access").field("token", &"***").field("tenant", &self.tenant).finish()
    }
}

impl Context {
    /// Loads the named file, or the one of the newest `up` in this folder.
    pub fn load(file: Option<&Path>) -> Result<Context, Failure> {
        let newest = || Path::new(STATES_FOLDER).join(CURRENT).join(CONTEXT_FILE);
        let path = file.map_or_else(newest, Path::to_path_buf);
        let text = std::fs::read_to_string(&path).map_err(|e| match (file, e.kind()) {
            (None, std::io::ErrorKind::NotFound) => Failure::wrong(
                "no_context",
                "no running installation is known in this folder: start one with `branchline up TOPOLOGY`, \
                 or name its context with --context FILE",
            ),
            _ => Failure::wrong("bad_context", format!("cannot read the context {}: {e}", path.display())),
        })?;
        let bad =
            |why: String| Failure::wrong("bad_context", format!("the context {} is no use: {why}", path.display()));
        let context: Context = serde_json::from_str(&text).map_err(|e| bad(e.to_string()))?;
        if context.schema != SCHEMA {
            return Err(bad(format!("its schema is {}, this build reads {SCHEMA}", context.schema)));
        }
        Ok(context)
    }

    /// The token for a tenant: its own, or the system's with the tenant named.
    pub fn access(&self, tenant: Option<&str>) -> Result<Access, Failure> {
        let tenant = match tenant {
            Some(tenant) => tenant.to_string(),
            None => self.usual_tenant()?,
        };
        if let Some(file) = self.tokens.get(&tenant) {
            return Ok(Access { token: token(file)?, tenant: None });
        }
        match self.tokens.get(SYSTEM) {
            Some(file) => Ok(Access { token: token(file)?, tenant: Some(tenant) }),
            None => {
                let known: Vec<&str> = self.tokens.keys().map(String::as_str).collect();
                let message =
                    format!("there is no token for tenant {tenant:?}; there are tokens for {}", known.join(", "));
                Err(Failure::wrong("no_token", message).field("tenant"))
            }
        }
    }

    fn usual_tenant(&self) -> Result<String, Failure> {
        if let Some(tenant) = &self.default_tenant {
            return Ok(tenant.clone());
        }
        let mut own = self.tokens.keys().filter(|t| *t != SYSTEM);
        match (own.next(), own.next()) {
            (Some(only), None) => Ok(only.clone()),
            (None, _) => Err(Failure::wrong("tenant_required", "say which tenant: --tenant NAME").field("tenant")),
            (Some(_), Some(_)) => {
                let known: Vec<&str> = self.tokens.keys().filter(|t| *t != SYSTEM).map(String::as_str).collect();
                let message = format!("say which tenant with --tenant: {}", known.join(", "));
                Err(Failure::wrong("tenant_required", message).field("tenant"))
            }
        }
    }
}

fn token(file: &Path) -> Result<String, Failure> {
    let text = std::fs::read_to_string(file)
        .map_err(|e| Failure::wrong("no_token", format!("cannot read the token file {}: {e}", file.display())))?;
    match text.trim() {
        "" => Err(Failure::wrong("no_token", format!("the token file {} is empty", file.display()))),
        token => Ok(token.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(folder: &Path, tenants: &[&str]) -> Context {
        let tokens = tenants.iter().map(|t| {
            let file = folder.join(t);
            std::fs::write(&file, format!("token-of-{t}\n")).unwrap();
            (t.to_string(), file)
        });
        Context {
            schema: SCHEMA,
            api: "https://127.0.0.1:1".into(),
            ca_file: folder.join("ca.pem"),
            tokens: tokens.collect(),
            default_tenant: None,
            pid: None,
        }
    }

    #[test]
    fn the_only_tenant_is_meant_and_several_must_be_named() {
        let folder = tempfile::tempdir().unwrap();
        let one = context(folder.path(), &["main", "system"]);
        assert_eq!(one.access(None).unwrap(), Access { token: "token-of-main".into(), tenant: None });
        let two = context(folder.path(), &["acme", "globex", "system"]);
        let failure = two.access(None).unwrap_err();
        assert_eq!((failure.exit, failure.code.as_str()), (2, "tenant_required"));
        assert!(failure.message.contains("acme, globex"), "{failure}");
        assert_eq!(two.access(Some("globex")).unwrap().token, "token-of-globex");
        let usual = Context { default_tenant: Some("acme".into()), ..two };
        assert_eq!(usual.access(None).unwrap().token, "token-of-acme");
    }

    #[test]
    fn the_system_token_speaks_for_a_tenant_without_one() {
        let folder = tempfile::tempdir().unwrap();
        let context = context(folder.path(), &["main", "system"]);
        let access = context.access(Some("late")).unwrap();
        assert_eq!(access, Access { token: "token-of-system".into(), tenant: Some("late".into()) });
        assert!(!format!("{access:?}").contains("token-of"), "a token masks itself");
    }

    #[test]
    fn without_a_token_the_known_tenants_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let failure = context(folder.path(), &["main"]).access(Some("acme")).unwrap_err();
        assert_eq!((failure.code.as_str(), failure.field.as_deref()), ("no_token", Some("tenant")));
        assert!(failure.message.contains("main"), "{failure}");
    }

    #[test]
    fn what_is_written_reads_back_and_another_schema_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let context = context(folder.path(), &["main"]);
        let file = folder.path().join(CONTEXT_FILE);
        std::fs::write(&file, serde_json::to_string(&context).unwrap()).unwrap();
        assert_eq!(Context::load(Some(&file)).unwrap(), context);
        std::fs::write(&file, serde_json::to_string(&Context { schema: 2, ..context }).unwrap()).unwrap();
        assert_eq!(Context::load(Some(&file)).unwrap_err().code, "bad_context");
        std::fs::write(&file, "{").unwrap();
        assert_eq!(Context::load(Some(&file)).unwrap_err().code, "bad_context");
        assert_eq!(Context::load(Some(&folder.path().join("absent"))).unwrap_err().code, "bad_context");
    }
}
