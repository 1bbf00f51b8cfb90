//! The relay's own way up: the signed list, what is set over it, and the trust that both are reached with.

use super::Exchange;
use crate::upstream::UpstreamSettings;
use actix::prelude::*;
use branchline_node::{
    identity::{child_config, parent_config},
    uplink::{UplinkCommand, path},
};
use branchline_protocol::document::Upstream;
use rustls::pki_types::CertificateDer;
use std::sync::Arc;

/// What is set of the way up is another: [`Parts::set`].
#[derive(Message)]
#[rtype(result = "()")]
pub struct Followed;

impl Exchange {
    /// Others may be parents now, or be reached in another way.
    pub(super) fn reconfigure(&mut self) {
        let core = self.driver.core();
        let roots: Vec<CertificateDer<'_>> =
            core.shelf().trust().cas.iter().map(|ca| CertificateDer::from(ca.to_vec())).collect();
        let time = Arc::new(self.parts.time.clone());
        self.choose_upstreams();
        match (
            child_config(Some(&self.parts.identity), &roots, time.clone()),
            parent_config(&self.parts.identity, &roots, time),
        ) {
            (Ok(child), Ok(parent)) => {
                self.parts.uplink_config.tls = child;
                if let Ok(mut ways) = self.parts.ways.write() {
                    ways.tls = parent;
                    let config = &self.parts.uplink_config;
                    ways.routes = path::routes(&config.upstreams, config.reach);
                    ways.dialler = config.dialler.clone();
                }
            }
            (Err(e), _) | (_, Err(e)) => {
                tracing::error!(error = %e, "the new trust document gives no TLS; the old one is used")
            }
        }
        if let Some(uplink) = self.parts.uplink.get() {
            // Documents change rarely; the uplink always takes them.
            uplink.do_send(UplinkCommand::Configure(Box::new(self.parts.uplink_config.clone())));
        }
    }

    /// The signed list, or before there is one the bundle's, and what is set over it.
    fn choose_upstreams(&mut self) {
        let parts = &mut self.parts;
        let me = parts.identity.subject.node;
        let named = |id| parts.bundled.upstreams.iter().any(|up| up.id == id);
        let listed: Vec<Upstream> = match self.driver.core().shelf().upstreams() {
            // Relays of one site stand beside one another, unless the administrator put one under another.
            Some(list) => {
                let above = |up: &&Upstream| up.id != me && (!up.near || named(up.id));
                list.upstreams.iter().filter(above).cloned().collect()
            }
            None => parts.bundled.upstreams.clone(),
        };
        let set = parts.set.read().ok().and_then(|set| set.clone());
        let over = set.as_ref().and_then(|set| Some((set.reach(), set.over(&listed)?)));
        if let (Some(set), None) = (&set, &over) {
            tracing::error!(upstream = ?set.upstream, "the set upstream is not on the signed list; the list is followed");
        }
        let config = &mut parts.uplink_config;
        (config.reach, config.upstreams) = over.unwrap_or((parts.reach, listed));
        match UpstreamSettings::outer(set.as_ref(), &parts.bundled.outer_roots, Arc::new(parts.time.clone())) {
            Ok(outer) => config.dialler.outer = outer,
            Err(error) => tracing::error!(error, "the set root is unusable; the former ones are used"),
        }
    }
}

impl Handler<Followed> for Exchange {
    type Result = ();
    fn handle(&mut self, _: Followed, _: &mut Self::Context) {
        self.reconfigure();
    }
}
