//! Reading requests: query parameters and JSON bodies, each mistake with its own answer and the field at fault.

use super::error::{ApiError, Code};
use actix_web::{HttpRequest, web};
use futures_util::StreamExt;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::ops::RangeInclusive;

/// Bytes a body may have: a script of 1 MiB in base64 and the rest; one more is 413.
pub const BODY_BYTES_MAX: usize = 2 * 1_048_576;

/// Seconds a job, token or bundle may live: 1 s to 365 d.
pub const LIFE_S: RangeInclusive<u64> = 1..=365 * 86_400;

/// A request's query parameters.
pub struct Params(Vec<(String, String)>);

impl Params {
    /// All of them.
    pub fn of(request: &HttpRequest) -> Result<Params, ApiError> {
        let pairs = web::Query::<Vec<(String, String)>>::from_query(request.query_string());
        pairs.map(|q| Params(q.into_inner())).map_err(|e| Code::Unparsable.refuse(format!("the query: {e}")))
    }

    /// All of them; others than these and `tenant`, which is everywhere, are refused.
    pub fn known(request: &HttpRequest, names: &[&str]) -> Result<Params, ApiError> {
        let params = Params::of(request)?;
        match params.0.iter().find(|(name, _)| name != "tenant" && !names.contains(&name.as_str())) {
            Some((name, _)) => Err(Code::UnknownField.refuse(format!("unknown parameter {name:?}")).field(name)),
            None => Ok(params),
        }
    }

    /// One of them.
    pub fn text(&self, name: &str) -> Result<Option<String>, ApiError> {
        let mut values = self.0.iter().filter(|(n, _)| n == name).map(|(_, value)| value);
        match (values.next(), values.next()) {
            (_, Some(_)) => Err(Code::BadValue.refuse(format!("{name} is given twice")).field(name)),
            (value, None) => Ok(value.cloned()),
        }
    }

    /// A whole number within a range.
    pub fn number(&self, name: &str, range: RangeInclusive<u64>) -> Result<Option<u64>, ApiError> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        let number =
            text.parse().map_err(|_| Code::WrongType.refuse(format!("{name} is a whole number")).field(name))?;
        within(name, number, &range).map(Some)
    }

    /// `true` or `false`.
    pub fn flag(&self, name: &str) -> Result<bool, ApiError> {
        match self.text(name)?.as_deref() {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(_) => Err(Code::WrongType.refuse(format!("{name} is true or false")).field(name)),
        }
    }
}

/// The number, if it is within the range.
pub fn within(name: &str, number: u64, range: &RangeInclusive<u64>) -> Result<u64, ApiError> {
    if range.contains(&number) {
        return Ok(number);
    }
    let (low, high) = (range.start(), range.end());
    Err(Code::OutOfRange.refuse(format!("{name} is {low} to {high}, not {number}")).field(name))
}

/// The fields of a JSON object, taken one by one; what is left at the end is unknown.
pub struct Fields {
    fields: Map<String, Value>,
    within: &'static str,
}

impl Fields {
    /// Reads a body. One that says nothing at all counts as an object without fields.
    pub async fn read(payload: web::Payload) -> Result<Fields, ApiError> {
        let body = read_body(payload).await?;
        if body.is_empty() {
            return Ok(Fields { fields: Map::new(), within: "" });
        }
        let value: Value =
            serde_json::from_slice(&body).map_err(|e| Code::Unparsable.refuse(format!("the body is not JSON: {e}")))?;
        match value {
            Value::Object(fields) => Ok(Fields { fields, within: "" }),
            _ => Err(Code::WrongType.refuse("the body is a JSON object")),
        }
    }

    /// A field that must be there.
    pub fn required<T: DeserializeOwned>(&mut self, name: &str) -> Result<T, ApiError> {
        let missing = || Code::MissingField.refuse(format!("{} is missing", self.path(name))).field(&self.path(name));
        match self.fields.get(name) {
            None | Some(Value::Null) => Err(missing()),
            Some(_) => self.optional(name)?.ok_or_else(|| Code::MissingField.refuse(name).field(name)),
        }
    }

    /// A field that may be missing or null.
    pub fn optional<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, ApiError> {
        let value = self.fields.remove(name).unwrap_or(Value::Null);
        serde_json::from_value(value).map_err(|e| {
            let path = self.path(name);
            Code::WrongType.refuse(format!("{path}: {e}")).field(&path)
        })
    }

    /// A field that is an object of its own.
    pub fn object(&mut self, name: &'static str) -> Result<Option<Fields>, ApiError> {
        let fields: Option<Map<String, Value>> = self.optional(name)?;
        Ok(fields.map(|fields| Fields { fields, within: name }))
    }

    /// Whether the field is there.
    pub fn has(&self, name: &str) -> bool {
        self.fields.contains_key(name)
    }

    /// The field's name as errors show it.
    pub fn path(&self, name: &str) -> String {
        if self.within.is_empty() { name.into() } else { format!("{}.{name}", self.within) }
    }

    /// Refuses what nobody took.
    pub fn finish(self) -> Result<(), ApiError> {
        match self.fields.keys().next() {
            None => Ok(()),
            Some(name) => {
                let path = self.path(name);
                Err(Code::UnknownField.refuse(format!("unknown field {path:?}")).field(&path))
            }
        }
    }
}

async fn read_body(mut payload: web::Payload) -> Result<Vec<u8>, ApiError> {
    let mut body = Vec::new();
    while let Some(chunk) = payload.next().await {
        let chunk = chunk.map_err(|e| Code::Unparsable.refuse(format!("the body did not arrive: {e}")))?;
        if body.len() + chunk.len() > BODY_BYTES_MAX {
            return Err(Code::TooLarge.refuse(format!("the body is over {BODY_BYTES_MAX} bytes")));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}
