//! What a verb works with once the command line is read.

use crate::{args::Global, client::Client, context::Context, failure::Failure};

/// One verb's way to the API. Nothing is looked up before a client is asked for, so that a wrong command line is told
/// as such, installation or not.
pub struct Session {
    global: Global,
}

impl Session {
    /// With the options that every verb takes.
    pub fn new(global: &Global) -> Session {
        Session { global: global.clone() }
    }

    /// Which installation it is.
    pub fn context(&self) -> Result<Context, Failure> {
        Context::load(self.global.context.as_deref())
    }

    /// Speaks for the tenant of the command line, or for the usual one.
    pub fn client(&self) -> Result<Client, Failure> {
        self.client_for(self.global.tenant.as_deref())
    }

    /// Speaks for the tenant of the command line, or for another one if none was named.
    pub fn client_or(&self, tenant: &str) -> Result<Client, Failure> {
        self.client_for(Some(self.global.tenant.as_deref().unwrap_or(tenant)))
    }

    fn client_for(&self, tenant: Option<&str>) -> Result<Client, Failure> {
        Client::new(&Context::load(self.global.context.as_deref())?, tenant)
    }
}
