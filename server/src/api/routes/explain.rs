//! Where a job is on one device, and why it has not ended.

use super::{Answer, Shared, find_device, jobs, segment};
use crate::api::{
    auth::Caller,
    error::Code,
    explain::{ExplainView, Known, explain},
    input::Params,
    names::names,
    views::Present,
};
use actix_web::{HttpRequest, HttpResponse};
use branchline_protocol::id::Role;

/// One timeline, hop by hop.
#[utoipa::path(
    get, path = "/api/v1/jobs/{job}/devices/{device}/explain", tag = "jobs",
    params(
        ("job" = String, Path), ("device" = String, Path, description = "id or name"),
        ("tenant" = Option<String>, Query)
    ),
    responses((status = 200, body = ExplainView), (status = 404, body = crate::api::error::ErrorView))
)]
pub async fn show(caller: Caller, shared: Shared, request: HttpRequest) -> Answer {
    Params::known(&request, &[])?;
    let (tenant, store) = (&caller.tenant, &shared.store);
    let job = jobs::named(&shared, tenant, &segment(&request, "job")).await?;
    let words = segment(&request, "device");
    let view = find_device(&shared, tenant, &words).await?;
    let device = view.node.id;
    let not_in = || Code::UnknownDevice.refuse(format!("{words:?} is no device of job {}", job.id));
    let row = store.job_device(tenant, job.id, device).await?.ok_or_else(not_in)?;
    let mut steering = Vec::new();
    for order in store.steering(tenant, job.id).await? {
        let answer = store.job_device(tenant, order.id, device).await?;
        steering.extend(answer.map(|answer| (order, answer)));
    }
    let whereabouts = shared.control.whereabouts(tenant, job.number, device).await?;
    // What is told on the way is told of relays.
    let mut names = names(&shared.control.nodes(tenant, Some(Role::Relay)).await?);
    names.insert(device, view.node.name.clone());
    names.insert(shared.server_id, shared.control.figures().await?.name);
    let mut present = Present { now: shared.ambient.clock.wall(), ..Present::default() };
    present.contacts.suspended.extend((view.standing.state == "suspended").then_some(device));
    let known = Known {
        job: &job,
        row: &row,
        device,
        steering: &steering,
        whereabouts: &whereabouts,
        standing: &view.standing,
        names: &names,
        server: shared.server_id,
        present: &present,
    };
    Ok(HttpResponse::Ok().json(explain(&known)))
}
