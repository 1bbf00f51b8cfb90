//! The newest job that each device had: a row a device, so that an order to a whole fleet adds nothing to a history of each device.

use super::{Done, ManySql, rows};
use branchline_protocol::{
    id::{JobId, NodeId, TenantId},
    job::State,
    time::Millis,
};
use sqlx::SqliteConnection;
use std::collections::BTreeMap;

/// Of devices that are of the job. An older job, and a later word on the same one, change nothing.
pub const DELIVERIES: ManySql = ManySql {
    before: "WITH v (tenant, device, job, at) AS (VALUES ",
    values: 4,
    after: ") INSERT INTO last_delivery (tenant, device, job, delivered_at) SELECT v.* FROM v CROSS JOIN job_device d \
            ON d.tenant = v.tenant AND d.job = v.job AND d.device = v.device WHERE true \
            ON CONFLICT DO UPDATE SET job = excluded.job, delivered_at = excluded.delivered_at WHERE excluded.job > job",
};

/// Those of a batch.
#[derive(Default)]
pub(super) struct Deliveries(BTreeMap<(TenantId, NodeId, JobId), Millis>);

impl Deliveries {
    /// A device's new state. Ends that only a device asserts count as deliveries, too: a result may come before anything else is heard.
    pub fn add(&mut self, tenant: &TenantId, job: JobId, device: NodeId, state: State, at: Millis) {
        use State::{Delivered, Failed, Refused, Succeeded, Unsupported};
        if matches!(state, Delivered | Succeeded | Failed | Unsupported | Refused) {
            self.0.entry((tenant.clone(), device, job)).or_insert(at);
        }
    }

    pub async fn write(&mut self, connection: &mut SqliteConnection) -> Done {
        let deliveries = std::mem::take(&mut self.0).into_iter();
        rows(connection, DELIVERIES, deliveries, |((tenant, device, job), at), arguments| {
            arguments.text(tenant.as_str()).blob(device.bytes()).blob(job.bytes()).add(at.0);
        })
        .await
    }
}
