//! The API's "no": one table of codes with their statuses, and the one shape `{code, message, field?}`.

use crate::store::StoreError;
use actix_web::{HttpResponse, ResponseError, http::StatusCode, http::header};
use branchline_protocol::refusal::Refusal;
use serde::Serialize;
use std::fmt;
use utoipa::ToSchema;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $status:literal $word:literal;)*) => {
        /// Why the API itself refuses. What the running server refuses brings its own code and status.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Code { $($(#[$doc])* $name,)* }

        impl Code {
            /// Every code.
            pub const ALL: &[Code] = &[$(Code::$name),*];

            /// Its HTTP status and its word.
            pub fn row(self) -> (u16, &'static str) {
                match self { $(Code::$name => ($status, $word),)* }
            }
        }
    };
}

codes! {
    /// The body is not JSON, or not all of it arrived.
    Unparsable = 400 "unparsable";
    /// No token, or one nobody has.
    NoIdentity = 401 "no_identity";
    /// The token is good, but not for this.
    NotAllowed = 403 "not_allowed";
    /// No such path, or not with this method.
    UnknownRoute = 404 "unknown_route";
    /// No such device of the tenant.
    UnknownDevice = 404 "unknown_device";
    /// No such node of the tenant.
    UnknownNode = 404 "unknown_node";
    /// No such job of the tenant.
    UnknownJob = 404 "unknown_job";
    /// No such site of the tenant.
    UnknownSite = 404 "unknown_site";
    /// No such tenant.
    UnknownTenant = 404 "unknown_tenant";
    /// The device has sent none yet.
    NoInventory = 404 "no_inventory";
    /// There is one of this name.
    AlreadyExists = 409 "already_exists";
    /// The job is at its end on every device.
    JobFinal = 409 "job_final";
    /// The job is not at its end on every device.
    JobOpen = 409 "job_open";
    /// The job succeeded on every device.
    NothingToReissue = 409 "nothing_to_reissue";
    /// Something else changed in between.
    Conflict = 409 "conflict";
    /// The body, script or command line is over its limit.
    TooLarge = 413 "too_large";
    /// A field or parameter this build does not know.
    UnknownField = 422 "unknown_field";
    /// A field is missing.
    MissingField = 422 "missing_field";
    /// A field is of another type.
    WrongType = 422 "wrong_type";
    /// A field's value is not allowed.
    BadValue = 422 "bad_value";
    /// A field's value is outside its range.
    OutOfRange = 422 "out_of_range";
    /// The selector does not parse.
    BadSelector = 422 "bad_selector";
    /// No such verb.
    UnknownVerb = 422 "unknown_verb";
    /// The store does not answer.
    StoreAway = 503 "store_away";
}

impl Code {
    /// The refusal with this code.
    pub fn refuse(self, message: impl Into<String>) -> ApiError {
        let (status, word) = self.row();
        ApiError(Refusal::new(status, word, message))
    }
}

/// A refusal on its way to the caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError(pub Refusal);

impl ApiError {
    /// The same, naming the field at fault.
    pub fn field(self, field: &str) -> Self {
        ApiError(self.0.field(field))
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        ApiError(refusal)
    }
}

impl From<StoreError> for ApiError {
    /// The caller learns that it did not work; what the database said is for the log.
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Conflict(_) => Code::Conflict.refuse("something else changed in between; look and try again"),
            error => {
                tracing::error!(%error, "the API cannot use the store");
                Code::StoreAway.refuse("the server's store does not answer; its log says why")
            }
        }
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl ResponseError for ApiError {
    fn status_code(&self) -> StatusCode {
        StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    fn error_response(&self) -> HttpResponse {
        let mut response = HttpResponse::build(self.status_code());
        if let Some(ms) = self.0.retry_after_ms {
            response.insert_header((header::RETRY_AFTER, ms.div_ceil(1_000).max(1).to_string()));
        }
        if self.0.status == 401 {
            response.insert_header((header::WWW_AUTHENTICATE, "Bearer"));
        }
        let Refusal { code, message, field, .. } = self.0.clone();
        response.json(ErrorView { code, message, field })
    }
}

/// The body of every answer that is not 2xx.
#[derive(Serialize, ToSchema)]
pub struct ErrorView {
    /// Stable word for programs.
    code: String,
    /// For people.
    message: String,
    /// The input field at fault.
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<String>,
}
