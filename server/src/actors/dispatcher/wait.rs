//! Who waits for a job's end.

use super::Dispatcher;
use actix::prelude::*;
use branchline_protocol::id::{JobId, TenantId};
use tokio::sync::oneshot;

/// Answers when the job has nobody short of an end.
#[derive(Message)]
#[rtype(result = "oneshot::Receiver<()>")]
pub struct WaitComplete(pub TenantId, pub JobId);

impl Handler<WaitComplete> for Dispatcher {
    type Result = MessageResult<WaitComplete>;
    fn handle(&mut self, WaitComplete(tenant, job): WaitComplete, _: &mut Self::Context) -> Self::Result {
        let (tx, rx) = oneshot::channel();
        let open = self.core.tenant(&tenant).is_some_and(|t| t.orders.values().any(|o| o.job == job));
        if open {
            let waiting = self.waiting.entry((tenant, job)).or_default();
            waiting.retain(|w| !w.is_closed());
            waiting.push(tx);
        } else {
            let _ = tx.send(());
        }
        MessageResult(rx)
    }
}
