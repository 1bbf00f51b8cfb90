//! Which devices keep their connection, as an administrator says (ADM-1). It stands in the same list as suspensions: every
//! node on the way holds that, and a device's parent decides by it at the device's next contact.

use super::{
    documents::Change,
    office::{Draft, Office, State, audit, store_refusal},
};
use crate::store::Op;
use branchline_protocol::{
    document::{Document, KEEP_MAX, Kind, Revocations},
    id::{NodeId, Role, TenantId},
    refusal::Refusal,
};
use std::sync::Arc;

impl Office {
    /// Says that a device keeps its connection, or that it does not, or with `None` nothing any more: then it asks for a
    /// slot as its own configuration says. Once durable it is answered; what is so already changes nothing.
    ///
    /// # Errors
    /// 404 `no_such_node` for anything but a device in service, 422 `too_many_kept` past [`KEEP_MAX`] devices of a tenant.
    pub async fn keep_connection(
        &self,
        tenant: &TenantId,
        who: &str,
        device: NodeId,
        keep: Option<bool>,
    ) -> Result<(), Refusal> {
        self.may_issue()?;
        let turn = self.turn().await;
        let row = self.node_row(tenant, device).await?;
        let row = row.filter(|row| row.revoked_at.is_none() && row.role == Role::Agent).ok_or_else(no_such_device)?;
        let draft = self.read(|state| {
            let held = state.tenants.get(tenant)?;
            let own = &held.revocations.0;
            if own.keeps(device) == keep {
                return Some(None);
            }
            let mut list = Revocations::clone(own);
            list.keep_connection.retain(|(known, _)| *known != device);
            list.keep_connection.extend(keep.map(|keep| (device, keep)));
            (list.term, list.version) = (state.term, list.version + 1);
            let envelope = list.seal(&held.keys.signer);
            Some(Some((list, envelope)))
        });
        let Some((list, envelope)) = draft.ok_or_else(no_such_device)? else { return Ok(()) };
        if list.keep_connection.len() > KEEP_MAX {
            let message = format!("{KEEP_MAX} devices are named already; set some back to their own configuration");
            return Err(Refusal::new(422, "too_many_kept", message).field("keep_connection"));
        }
        let what = keep.map_or("default", |keep| if keep { "on" } else { "off" });
        let detail = format!("{} {:?} {}: {what}", row.role, row.name, row.id);
        let ops = vec![
            Op::Document(tenant.clone(), Kind::Revocations, String::new(), list.version(), envelope.clone()),
            audit(tenant, self.now(), who, "device.keep_connection", detail),
        ];
        let change = Change { tenant: tenant.clone(), kind: Kind::Revocations, site: String::new() };
        let own = tenant.clone();
        let apply = Box::new(move |state: &mut State| {
            if let Some(held) = state.tenants.get_mut(&own) {
                held.revocations = (Arc::new(list), envelope);
            }
        });
        self.keep(turn, Draft { changes: vec![change], apply, ..Draft::of(ops) }).await.map_err(store_refusal)
    }
}

#[cfg(test)]
impl Office {
    /// The list names so many devices that nobody knows.
    pub(super) fn name_strangers(&self, tenant: &TenantId, count: usize) {
        self.write(|state| {
            if let Some(held) = state.tenants.get_mut(tenant) {
                let mut list = Revocations::clone(&held.revocations.0);
                list.keep_connection = (0..count as u128).map(|n| (NodeId(uuid::Uuid::from_u128(n)), true)).collect();
                held.revocations.0 = Arc::new(list);
            }
        });
    }
}

fn no_such_device() -> Refusal {
    Refusal::new(404, "no_such_node", "there is no such device, or it was revoked")
}
