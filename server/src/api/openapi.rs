//! The API's description, made from the handlers' own attributes.

use super::{BUILD, error::ErrorView, routes};
use utoipa::{
    Modify, OpenApi,
    openapi::security::{Http, HttpAuthScheme, SecurityScheme},
};

#[derive(OpenApi)]
#[openapi(
    info(title = "Branchline", description = "Endpoint management over many tiers: the server's HTTP API."),
    paths(
        routes::devices::list, routes::devices::show, routes::devices::inventory, routes::devices::refresh,
        routes::devices::suspend, routes::devices::revive, routes::devices::change,
        routes::tree::show,
        routes::jobs::list, routes::jobs::issue, routes::jobs::show,
        routes::explain::show, routes::jobs::cancel, routes::jobs::reissue,
        routes::tokens::enrol_token, routes::tokens::bundle,
        routes::nodes::revoke, routes::nodes::gateways, routes::nodes::gateway_address,
        routes::settings::show, routes::settings::change,
        routes::recovery::show, routes::recovery::end,
        routes::sites::list, routes::sites::add,
        routes::audit::list, routes::audit::dead_letters,
        routes::tenants::list, routes::tenants::add,
        routes::status::openapi, routes::status::getstatus, routes::status::metrics
    ),
    components(schemas(ErrorView)),
    security(("token" = [])),
    modifiers(&Installation)
)]
struct Description;

/// What attributes cannot say.
struct Installation;

impl Modify for Installation {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        document.info.version = BUILD.into();
        document.info.license = None;
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("token", SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)));
    }
}

/// The document served at `/api/v1/openapi.json`.
pub fn document() -> utoipa::openapi::OpenApi {
    Description::openapi()
}
