//! How values lie in the database: ids and hashes as blobs, times as integer milliseconds, words as text.

use super::StoreError;
use branchline_protocol::{
    document::Kind,
    hash::Hash,
    id::{NodeId, TenantId},
    job::{Class, State},
    order::Envelope,
};
use serde::{Serialize, de::DeserializeOwned};
use sqlx::{Decode, Row, Sqlite, Type, sqlite::SqliteRow};
use std::str::FromStr;
use uuid::Uuid;

/// The database failed to do what was attempted.
pub fn database(attempt: &str, error: impl std::fmt::Display) -> StoreError {
    StoreError::Database(format!("{attempt}: {error}"))
}

/// A column of a row, by place.
pub fn column<'r, T: Decode<'r, Sqlite> + Type<Sqlite>>(row: &'r SqliteRow, place: usize) -> Result<T, StoreError> {
    row.try_get(place).map_err(|e| database("reading a column", e))
}

/// A column that holds a word or number of ours in another form.
fn converted<'r, T, C>(
    row: &'r SqliteRow,
    place: usize,
    what: &str,
    convert: impl FnOnce(C) -> Option<T>,
) -> Result<T, StoreError>
where
    C: Decode<'r, Sqlite> + Type<Sqlite>,
{
    convert(column(row, place)?).ok_or_else(|| StoreError::Database(format!("column {place} holds no {what}")))
}

/// A whole number that is stored as the signed integer the database has. Beyond its range it saturates: such numbers
/// only ever come from a peer that made them up.
pub fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// The inverse of [`signed`].
pub fn unsigned(row: &SqliteRow, place: usize) -> Result<u64, StoreError> {
    converted(row, place, "count", |n: i64| u64::try_from(n).ok())
}

/// A small whole number.
pub fn unsigned_32(row: &SqliteRow, place: usize) -> Result<u32, StoreError> {
    converted(row, place, "small count", |n: i64| u32::try_from(n).ok())
}

/// A 16-byte id.
pub fn uuid(row: &SqliteRow, place: usize) -> Result<Uuid, StoreError> {
    converted(row, place, "id", |bytes: &[u8]| Uuid::from_slice(bytes).ok())
}

/// A 32-byte hash.
pub fn hash(row: &SqliteRow, place: usize) -> Result<Hash, StoreError> {
    converted(row, place, "hash", |bytes: &[u8]| bytes.try_into().ok().map(Hash))
}

/// A tenant's name.
pub fn tenant(row: &SqliteRow, place: usize) -> Result<TenantId, StoreError> {
    parsed(row, place, "tenant")
}

/// Anything with a text form.
pub fn parsed<T: FromStr>(row: &SqliteRow, place: usize, what: &str) -> Result<T, StoreError> {
    converted(row, place, what, |text: &str| text.parse().ok())
}

/// A state's word.
pub fn state(row: &SqliteRow, place: usize) -> Result<State, StoreError> {
    converted(row, place, "job state", State::from_word)
}

/// Ids one after another.
pub fn ids(row: &SqliteRow, place: usize) -> Result<Vec<NodeId>, StoreError> {
    converted(row, place, "list of ids", |bytes: &[u8]| {
        bytes.chunks(16).map(|id| Uuid::from_slice(id).ok().map(NodeId)).collect()
    })
}

/// The inverse of [`ids`].
pub fn ids_blob(ids: &[NodeId]) -> Vec<u8> {
    ids.iter().flat_map(|id| *id.bytes()).collect()
}

/// A JSON column.
pub fn json<T: DeserializeOwned>(row: &SqliteRow, place: usize) -> Result<T, StoreError> {
    converted(row, place, "JSON of the expected shape", |text: &str| serde_json::from_str(text).ok())
}

/// The inverse of [`json`].
pub fn json_text<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("maps with text keys and plain data are always JSON")
}

/// A signed envelope.
pub fn envelope(row: &SqliteRow, place: usize) -> Result<Envelope, StoreError> {
    converted(row, place, "envelope", |bytes: &[u8]| rmp_serde::from_slice(bytes).ok())
}

/// The inverse of [`envelope`].
pub fn envelope_blob(envelope: &Envelope) -> Vec<u8> {
    rmp_serde::to_vec_named(envelope).expect("an envelope is plain data")
}

/// The word of a class.
pub fn class_word(class: Class) -> &'static str {
    match class {
        Class::Normal => "normal",
        Class::Urgent => "urgent",
        Class::Erase => "erase",
    }
}

/// A class by its word.
pub fn class(row: &SqliteRow, place: usize) -> Result<Class, StoreError> {
    converted(row, place, "class", |word: &str| {
        [Class::Normal, Class::Urgent, Class::Erase].into_iter().find(|class| class_word(*class) == word)
    })
}

/// The word of a document's kind.
pub fn kind_word(kind: Kind) -> &'static str {
    match kind {
        Kind::Revocations => "revocations",
        Kind::Trust => "trust",
        Kind::Upstreams => "upstreams",
        Kind::Settings => "settings",
        Kind::Time => "time",
    }
}

/// A document's kind by its word.
pub fn kind(row: &SqliteRow, place: usize) -> Result<Kind, StoreError> {
    converted(row, place, "kind of document", |word: &str| Kind::ALL.into_iter().find(|kind| kind_word(*kind) == word))
}
