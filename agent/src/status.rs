//! An agent's private port: how it stands, to whoever may look at the machine itself (DESIGN 9).

use crate::actors::Parts;
use branchline_node::{identity::https_config, status, status::Handle};
use serde_json::json;
use std::{net::TcpListener, sync::Arc};

/// Serves `/getstatus` and `/metrics` with the agent's own certificate until the handle is stopped.
pub(crate) fn serve(listener: TcpListener, parts: &Arc<Parts>) -> Result<Handle, String> {
    let identity = &parts.identity;
    let tls = https_config(identity.chain.clone(), identity.private_key(), Arc::new(parts.time.clone()));
    let tls = tls.map_err(|e| e.to_string())?;
    let (board, figures, node) = (parts.board.clone(), parts.figures.subscribe(), parts.me.node);
    let show: status::Status = Arc::new(move || {
        let (uplink, figures) = (board.standing(), figures.borrow().clone());
        json!({
            "build": env!("CARGO_PKG_VERSION"),
            "id": node,
            "state": uplink.state,
            "uplink": uplink,
            "figures": {
                "revoked": figures.revoked,
                "rolled_back": figures.rolled_back,
                "epoch": figures.epoch,
                "attachment": figures.attachment,
                "open_orders": figures.open_orders,
                "queues": {
                    "spool_records": figures.spool.spool_records,
                    "spool_bytes": figures.spool.spool_bytes,
                    "oldest_unsettled_at": figures.spool.oldest_unsettled_at,
                },
            },
        })
    });
    status::serve(listener, tls, show, parts.metrics.clone()).map_err(|e| e.to_string())
}
