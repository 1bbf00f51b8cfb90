//! Jobs: ordered, listed, shown.

use super::{Answer, Shared, devices::selector, listing, no_body, segment};
use crate::api::{
    ApiState,
    auth::Caller,
    control::NewJob,
    error::{ApiError, Code},
    input::{Fields, LIFE_S, Params, within},
    views::{self, Counts, JobView, JobsView, Present},
};
use crate::store::{JobDeviceRow, JobRow};
use actix_web::{HttpRequest, HttpResponse, HttpResponseBuilder, web};
use base64::{Engine, engine::general_purpose::STANDARD};
use branchline_protocol::{
    id::{JobId, NodeId, TenantId},
    job::{CANCEL, Class, RefreshInventory, RunScript, Runnable, SCRIPT_BYTES_MAX, State, verb},
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, ops::RangeInclusive};
use utoipa::ToSchema;

/// 30 days (JOB-4).
pub const LIFE_S_DEFAULT: u64 = 30 * 86_400;
/// A script may run 10 minutes unless told, and a day at most.
const TIME_OUT_S: RangeInclusive<u64> = 1..=86_400;
const TIME_OUT_S_DEFAULT: u64 = 600;
/// Bytes an agent keeps of each of stdout and stderr.
const OUTPUT_BYTES_KEPT: u64 = 65_536;
/// Bytes of a command line with its arguments.
const ARGV_BYTES_MAX: usize = 65_536;
/// Characters of a command that people are shown.
const COMMAND_CHARS_MAX: usize = 1_000;
/// The longest that `wait_ms` may ask for.
const WAIT_MS: RangeInclusive<u64> = 0..=30_000;
/// Jobs a list shows unless told.
const LIST_DEFAULT: u32 = 100;
const LIST: RangeInclusive<u64> = 1..=1_000;

/// A job as ordered.
#[derive(ToSchema)]
#[expect(dead_code, reason = "the API's description of the body; it is read field by field")]
pub struct JobBody {
    /// Which devices: a selector.
    on: String,
    /// `run_script`, `refresh_inventory` or `restart`.
    verb: String,
    /// The verb's arguments. `run_script`: `argv`, or `script_base64` and maybe `interpreter`;
    /// `refresh_inventory`: maybe `full`; `restart`: none.
    args: Option<BTreeMap<String, serde_json::Value>>,
    /// `normal`, `urgent`, `erase`; the verb's own unless told.
    class: Option<String>,
    /// Seconds within which it may be fetched, 1 s to 365 d; 30 d unless told.
    life_s: Option<u64>,
    /// Seconds it may run, 1 s to 1 d; 10 min unless told.
    time_out_s: Option<u64>,
}

/// Newest jobs first.
#[utoipa::path(
    get, path = "/api/v1/jobs", tag = "jobs",
    params(("limit" = Option<u32>, Query, description = "1 to 1000"), ("tenant" = Option<String>, Query)),
    responses((status = 200, body = JobsView))
)]
pub async fn list(caller: Caller, shared: Shared, request: HttpRequest) -> Answer {
    let limit = Params::known(&request, &["limit"])?.number("limit", LIST)?;
    let limit = limit.and_then(|n| u32::try_from(n).ok()).unwrap_or(LIST_DEFAULT);
    let heads = shared.store.jobs(&caller.tenant, limit).await?;
    let now = shared.ambient.clock.wall();
    Ok(HttpResponse::Ok().json(JobsView { jobs: heads.into_iter().map(|head| views::job_head(head, now)).collect() }))
}

/// Orders a job.
#[utoipa::path(
    post, path = "/api/v1/jobs", tag = "jobs", request_body = JobBody,
    params(
        ("results" = Option<String>, Query, description = "`all`, or `none` for the counts only"),
        ("tenant" = Option<String>, Query)
    ),
    responses(
        (status = 201, body = JobView), (status = 400, body = crate::api::error::ErrorView),
        (status = 413, body = crate::api::error::ErrorView), (status = 422, body = crate::api::error::ErrorView)
    )
)]
pub async fn issue(caller: Caller, shared: Shared, request: HttpRequest, payload: web::Payload) -> Answer {
    let detail = Detail::of(&Params::known(&request, &["results"])?)?;
    let job = new_job(Fields::read(payload).await?)?;
    let id = shared.control.issue(&caller.tenant, &caller.name, job).await?;
    answer(HttpResponse::Created(), &shared, &caller.tenant, id, detail).await
}

/// One job, at once or when it is complete.
#[utoipa::path(
    get, path = "/api/v1/jobs/{job}", tag = "jobs",
    params(
        ("job" = String, Path), ("tenant" = Option<String>, Query),
        ("results" = Option<String>, Query, description = "`all`, or `none` for the counts only"),
        ("wait_ms" = Option<u64>, Query, description = "answer when complete, or after this long; at most 30000")
    ),
    responses((status = 200, body = JobView), (status = 404, body = crate::api::error::ErrorView))
)]
pub async fn show(caller: Caller, shared: Shared, request: HttpRequest) -> Answer {
    let params = Params::known(&request, &["results", "wait_ms"])?;
    let (detail, wait) = (Detail::of(&params)?, params.number("wait_ms", WAIT_MS)?);
    let words = segment(&request, "job");
    let id: JobId = words.parse().map_err(|_| unknown(&words))?;
    if let Some(ms) = wait.filter(|ms| *ms > 0) {
        // Before the wait only whether there is such a job: a row for each device would be read to be thrown away.
        named(&shared, &caller.tenant, &words).await?;
        shared.control.wait_complete(&caller.tenant, id, ms).await?;
    }
    answer(HttpResponse::Ok(), &shared, &caller.tenant, id, detail).await
}

/// Cancels a job: where nobody can have it, at once; elsewhere it is `queued` with the reason `cancelling` until whoever
/// may have it has answered. What runs is ended if that is possible.
#[utoipa::path(
    post, path = "/api/v1/jobs/{job}/cancel", tag = "jobs",
    params(("job" = String, Path), ("tenant" = Option<String>, Query)),
    responses(
        (status = 200, body = JobView), (status = 404, body = crate::api::error::ErrorView),
        (status = 409, body = crate::api::error::ErrorView)
    )
)]
pub async fn cancel(caller: Caller, shared: Shared, request: HttpRequest, payload: web::Payload) -> Answer {
    Params::known(&request, &[])?;
    no_body(payload).await?;
    let job = named(&shared, &caller.tenant, &segment(&request, "job")).await?;
    let counts = shared.store.job_counts(&caller.tenant, job.id).await?;
    if counts.iter().all(|(state, count)| state.is_end() || *count == 0) {
        return Err(Code::JobFinal.refuse("the job is at its end on every device"));
    }
    shared.control.cancel(&caller.tenant, &caller.name, job.id).await?;
    answer(HttpResponse::Ok(), &shared, &caller.tenant, job.id, Detail::Rows).await
}

/// Issues a job anew, as a job of its own, for the devices on which it did not succeed.
#[utoipa::path(
    post, path = "/api/v1/jobs/{job}/reissue", tag = "jobs",
    params(("job" = String, Path), ("tenant" = Option<String>, Query)),
    responses(
        (status = 201, body = JobView), (status = 404, body = crate::api::error::ErrorView),
        (status = 409, body = crate::api::error::ErrorView)
    )
)]
pub async fn reissue(caller: Caller, shared: Shared, request: HttpRequest, payload: web::Payload) -> Answer {
    Params::known(&request, &[])?;
    no_body(payload).await?;
    let job = named(&shared, &caller.tenant, &segment(&request, "job")).await?;
    let devices = shared.store.job_devices(&caller.tenant, job.id).await?;
    if devices.iter().any(|device| !device.state.is_end()) {
        return Err(Code::JobOpen.refuse("the job is not at its end on every device; wait for it, or cancel it"));
    }
    let left = devices.into_iter().filter(|device| device.state != State::Succeeded);
    let left: Vec<NodeId> = left.filter_map(|device| device.device.ok()).collect();
    if left.is_empty() {
        return Err(Code::NothingToReissue.refuse("the job succeeded on every device there is"));
    }
    let id = shared.control.reissue(&caller.name, job, left).await?;
    answer(HttpResponse::Created(), &shared, &caller.tenant, id, Detail::Rows).await
}

/// How much of a job, or of a list, is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// A row for each device, of which there may be a hundred thousand.
    Rows,
    /// How many devices are in which state: as cheap for many devices as for one.
    Counts,
}

impl Detail {
    /// As `results` says; all unless it does.
    pub fn of(params: &Params) -> Result<Detail, ApiError> {
        match params.text("results")?.as_deref() {
            None | Some("all") => Ok(Detail::Rows),
            Some("none") => Ok(Detail::Counts),
            Some(other) => {
                Err(Code::BadValue.refuse(format!("results is all or none, not {other:?}")).field("results"))
            }
        }
    }
}

/// The job that a path names. Steering orders are nobody's jobs.
pub async fn named(shared: &ApiState, tenant: &TenantId, words: &str) -> Result<JobRow, ApiError> {
    let id: JobId = words.parse().map_err(|_| unknown(words))?;
    let job = shared.store.job(tenant, id).await?.filter(|job| job.verb != CANCEL);
    job.ok_or_else(|| unknown(words))
}

fn unknown(words: &str) -> ApiError {
    Code::UnknownJob.refuse(format!("there is no job {words:?}"))
}

/// Answers with a job of the tenant as it stands.
pub async fn answer(
    with: HttpResponseBuilder,
    shared: &ApiState,
    tenant: &TenantId,
    id: JobId,
    detail: Detail,
) -> Answer {
    let job = named(shared, tenant, &id.to_string()).await?;
    let now = shared.ambient.clock.wall();
    let mut with = with;
    if detail == Detail::Counts {
        let counts = Counts(shared.store.job_counts(tenant, id).await?);
        // What is late is shown by each device's reason.
        if counts.complete() || now <= job.fetch_by {
            return Ok(with.json(views::job(&job, counts)));
        }
    }
    let devices = shared.store.job_devices(tenant, job.id).await?;
    let mut present = Present { now, ..Present::default() };
    let open = devices.iter().filter(|device| !device.state.is_end());
    let open: Vec<NodeId> = open.filter_map(|device| device.device.as_ref().ok().copied()).collect();
    let complete = open.is_empty();
    if !complete {
        present.contacts = shared.control.contacts(tenant, open).await?;
    }
    // From the rows themselves, so that they always add up to them.
    let counts = Counts::of(&devices, job.fetch_by, &present);
    let mut view = views::job(&job, counts);
    view.complete = complete;
    match detail {
        Detail::Counts => Ok(with.json(view)),
        Detail::Rows => {
            let show = move |row: &JobDeviceRow| views::result(row, job.fetch_by, &present);
            Ok(listing::job(with, &view, devices, show))
        }
    }
}

fn new_job(mut fields: Fields) -> Result<NewJob, ApiError> {
    let on: String = fields.required("on")?;
    let on = selector("on", &on)?;
    let name: String = fields.required("verb")?;
    let verb =
        verb(&name).ok_or_else(|| Code::UnknownVerb.refuse(format!("there is no verb {name:?}")).field("verb"))?;
    let class = match fields.optional::<String>("class")? {
        None => None,
        Some(word) => Some(class(&word)?),
    };
    let life_s = within("life_s", fields.optional("life_s")?.unwrap_or(LIFE_S_DEFAULT), &LIFE_S)?;
    let time_out_s = within("time_out_s", fields.optional("time_out_s")?.unwrap_or(TIME_OUT_S_DEFAULT), &TIME_OUT_S)?;
    let args = fields.object("args")?;
    fields.finish()?;
    let (args, command) = match (verb.name, args) {
        ("run_script", Some(args)) => run_script(args, time_out_s * 1_000)?,
        ("run_script", None) => return Err(Code::MissingField.refuse("run_script needs args").field("args")),
        ("restart", args) => {
            args.map_or(Ok(()), Fields::finish)?;
            (Bytes::new(), "restart".into())
        }
        (_, args) => {
            let mut wish = RefreshInventory::default();
            if let Some(mut args) = args {
                wish.full = args.optional("full")?.unwrap_or(false);
                args.finish()?;
            }
            refresh_inventory(wish)
        }
    };
    if args.len() > verb.args_max {
        let message = format!("the arguments of {} are over {} bytes", verb.name, verb.args_max);
        return Err(Code::TooLarge.refuse(message).field("args"));
    }
    let (life_ms, run_ms_max) = (life_s * 1_000, time_out_s * 1_000);
    Ok(NewJob { on, verb: verb.name.into(), args, command, class, life_ms, run_ms_max })
}

fn class(word: &str) -> Result<Class, ApiError> {
    let value = serde::de::value::StrDeserializer::<serde::de::value::Error>::new(word);
    Class::deserialize(value)
        .map_err(|_| Code::BadValue.refuse(format!("class is normal, urgent or erase, not {word:?}")).field("class"))
}

/// The arguments of `refresh_inventory` and how people read them.
pub fn refresh_inventory(wish: RefreshInventory) -> (Bytes, String) {
    let command = if wish.full { "refresh inventory, whole" } else { "refresh inventory" };
    (encoded(&wish), command.into())
}

fn run_script(mut args: Fields, time_out_ms: u64) -> Result<(Bytes, String), ApiError> {
    let bad = |code: Code, field: &str, message: &str| Err(code.refuse(message).field(&format!("args.{field}")));
    if args.has("argv") == args.has("script_base64") {
        return Err(Code::BadValue.refuse("args holds either argv or script_base64").field("args"));
    }
    let (run, command) = if let Some(argv) = args.optional::<Vec<String>>("argv")? {
        if argv.first().is_none_or(String::is_empty) {
            return bad(Code::BadValue, "argv", "argv names a program first");
        }
        if argv.iter().any(|word| word.contains('\0')) {
            return bad(Code::BadValue, "argv", "argv holds a zero byte");
        }
        if argv.iter().map(|word| word.len() + 1).sum::<usize>() > ARGV_BYTES_MAX {
            return bad(Code::TooLarge, "argv", &format!("argv is over {ARGV_BYTES_MAX} bytes"));
        }
        let command = argv.join(" ");
        (Runnable::Argv(argv), command)
    } else {
        let script: String = args.required("script_base64")?;
        let Ok(content) = STANDARD.decode(script) else {
            return bad(Code::BadValue, "script_base64", "script_base64 is not base64");
        };
        if content.len() > SCRIPT_BYTES_MAX {
            return bad(Code::TooLarge, "script_base64", &format!("a script is at most {SCRIPT_BYTES_MAX} bytes"));
        }
        let interpreter: Option<String> = args.optional("interpreter")?;
        if interpreter.as_ref().is_some_and(|i| i.is_empty() || i.len() > 4_096 || i.contains('\0')) {
            return bad(Code::BadValue, "interpreter", "interpreter is a path or name of at most 4096 bytes");
        }
        let shown = interpreter.as_deref().unwrap_or("/bin/sh");
        let command = format!("{shown}, a script of {} bytes", content.len());
        (Runnable::Script { interpreter, content: content.into() }, command)
    };
    args.finish()?;
    let args = RunScript { run, time_out_ms, output_cap: OUTPUT_BYTES_KEPT };
    Ok((encoded(&args), command.chars().take(COMMAND_CHARS_MAX).collect()))
}

fn encoded(args: &impl Serialize) -> Bytes {
    rmp_serde::to_vec_named(args).expect("arguments are plain data").into()
}
