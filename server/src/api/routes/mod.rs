//! The list of routes, one file a noun.

pub mod audit;
pub mod devices;
pub mod explain;
pub mod jobs;
mod listing;
pub mod nodes;
pub mod recovery;
pub mod settings;
pub mod sites;
pub mod status;
pub mod tenants;
pub mod tokens;
pub mod tree;

use super::{
    ApiState,
    auth::Caller,
    control::NodeView,
    error::{ApiError, Code},
    input::Fields,
};
use actix_web::{HttpRequest, HttpResponse, web};
use branchline_protocol::id::TenantId;

/// What every handler answers.
type Answer = Result<HttpResponse, ApiError>;
type Shared = web::Data<ApiState>;

macro_rules! routes {
    ($($method:ident $path:literal => $handler:path;)*) => {
        /// (method, path) of every route.
        #[cfg(test)]
        pub const LISTED: &[(&str, &str)] = &[$((stringify!($method), $path)),*];

        /// Gives every route to the router.
        pub fn register(config: &mut web::ServiceConfig) {
            $(config.route($path, web::$method().to($handler));)*
        }
    };
}

routes! {
    get "/api/v1/devices" => devices::list;
    get "/api/v1/devices/{device}" => devices::show;
    patch "/api/v1/devices/{device}" => devices::change;
    get "/api/v1/devices/{device}/inventory" => devices::inventory;
    post "/api/v1/devices/{device}/refresh" => devices::refresh;
    post "/api/v1/devices/{device}/suspend" => devices::suspend;
    post "/api/v1/devices/{device}/revive" => devices::revive;
    get "/api/v1/tree" => tree::show;
    get "/api/v1/jobs" => jobs::list;
    post "/api/v1/jobs" => jobs::issue;
    get "/api/v1/jobs/{job}" => jobs::show;
    get "/api/v1/jobs/{job}/devices/{device}/explain" => explain::show;
    post "/api/v1/jobs/{job}/cancel" => jobs::cancel;
    post "/api/v1/jobs/{job}/reissue" => jobs::reissue;
    post "/api/v1/enrol-tokens" => tokens::enrol_token;
    post "/api/v1/bundles" => tokens::bundle;
    post "/api/v1/nodes/{node}/revoke" => nodes::revoke;
    get "/api/v1/gateways" => nodes::gateways;
    post "/api/v1/gateways" => nodes::gateway_address;
    get "/api/v1/settings" => settings::show;
    put "/api/v1/settings" => settings::change;
    get "/api/v1/recovery" => recovery::show;
    post "/api/v1/recovery/end" => recovery::end;
    get "/api/v1/sites" => sites::list;
    post "/api/v1/sites" => sites::add;
    get "/api/v1/tenants" => tenants::list;
    post "/api/v1/tenants" => tenants::add;
    get "/api/v1/audit" => audit::list;
    get "/api/v1/dead-letters" => audit::dead_letters;
    get "/api/v1/openapi.json" => status::openapi;
    get "/getstatus" => status::getstatus;
    get "/metrics" => status::metrics;
}

/// Any other path, and any other method on these.
pub async fn unlisted(request: HttpRequest) -> Answer {
    Err(Code::UnknownRoute.refuse(format!("there is no {} {}", request.method(), request.path())))
}

/// A path's one variable part. A part that is no text names nothing anyway.
fn segment(request: &HttpRequest, name: &str) -> String {
    request.match_info().query(name).to_owned()
}

/// A device of the tenant by id or name.
async fn find_device(shared: &ApiState, tenant: &TenantId, words: &str) -> Result<NodeView, ApiError> {
    let unknown = || Code::UnknownDevice.refuse(format!("there is no device {words:?}"));
    let device = shared.control.device(tenant, words).await?.ok_or_else(unknown)?;
    shared.control.devices(tenant, vec![device]).await?.views.pop().ok_or_else(unknown)
}

/// Whether the caller may see figures that count all tenants: the system may, and who is alone here (TOP-22).
async fn sees_all(shared: &ApiState, caller: &Caller) -> Result<bool, ApiError> {
    if caller.system {
        return Ok(true);
    }
    let tenants = shared.store.tenants().await?;
    Ok(tenants.iter().all(|t| *t == caller.tenant || *t == TenantId::system()))
}

/// Reads the body of a request that has nothing to say.
async fn no_body(payload: web::Payload) -> Result<(), ApiError> {
    Fields::read(payload).await?.finish()
}
