//! Who calls. A handler that wants data names [`Caller`] or [`SystemCaller`] among its arguments: there is no other way
//! to a tenant, so no route can forget to ask.

use super::{
    ApiState,
    error::{ApiError, Code},
    input::Params,
};
use crate::store::Store;
use actix_web::{FromRequest, HttpRequest, dev::Payload, http::header, web};
use branchline_protocol::{hash::Hash, id::TenantId};
use futures_util::future::LocalBoxFuture;

/// Whoever holds a valid API token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// For whom: the token's tenant, or with a system token the one named by `?tenant=`.
    pub tenant: TenantId,
    /// Whether the token is the installation's own.
    pub system: bool,
    /// The token's name, as audits show it.
    pub name: String,
}

/// Whoever holds a system token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SystemCaller(pub Caller);

impl FromRequest for Caller {
    type Error = ApiError;
    type Future = LocalBoxFuture<'static, Result<Self, ApiError>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let state = request.app_data::<web::Data<ApiState>>().cloned();
        let secret = bearer(request);
        let tenant = Params::of(request).and_then(|params| params.text("tenant"));
        Box::pin(async move {
            let state = state.ok_or_else(|| Code::StoreAway.refuse("the API is not configured"))?;
            identify(state.store.as_ref(), secret, tenant).await
        })
    }
}

impl FromRequest for SystemCaller {
    type Error = ApiError;
    type Future = LocalBoxFuture<'static, Result<Self, ApiError>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let caller = Caller::from_request(request, payload);
        Box::pin(async move {
            let caller = caller.await?;
            if !caller.system {
                return Err(Code::NotAllowed.refuse("this needs a system token"));
            }
            Ok(SystemCaller(caller))
        })
    }
}

fn bearer(request: &HttpRequest) -> Option<Hash> {
    let value = request.headers().get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, secret) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| Hash::of(secret.trim().as_bytes()))
}

/// The token is looked up by its hash: how long that takes tells nothing of the secret.
async fn identify(
    store: &dyn Store,
    secret: Option<Hash>,
    tenant: Result<Option<String>, ApiError>,
) -> Result<Caller, ApiError> {
    let no_identity = || Code::NoIdentity.refuse("send a valid API token as `Authorization: Bearer …`");
    let token = store.api_token(secret.ok_or_else(no_identity)?).await?.ok_or_else(no_identity)?;
    let system = token.tenant == TenantId::system();
    let caller = Caller { tenant: token.tenant, system, name: token.name };
    let Some(named) = tenant? else { return Ok(caller) };
    if !system {
        return Err(Code::NotAllowed.refuse("only a system token may name a tenant").field("tenant"));
    }
    let unknown = || Code::UnknownTenant.refuse(format!("there is no tenant {named:?}")).field("tenant");
    let tenant: TenantId = named.parse().map_err(|_| unknown())?;
    if tenant != TenantId::system() && !store.tenants().await?.contains(&tenant) {
        return Err(unknown());
    }
    Ok(Caller { tenant, ..caller })
}
