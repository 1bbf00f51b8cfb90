//! A device's inventory: sections that changed, and what lists show of them.

use super::Done;
use crate::store::{
    codec::{json_text, signed},
    summary::summary,
};
use branchline_protocol::{
    hash::Hash,
    id::{NodeId, TenantId},
    inventory::Items,
    time::Millis,
};
use sqlx::{SqliteConnection, query};
use std::collections::BTreeMap;

pub(super) async fn inventory(
    connection: &mut SqliteConnection,
    tenant: &TenantId,
    device: NodeId,
    put: &BTreeMap<String, Items>,
    gone: &[String],
    (digest, collected_at, settings_version, clock_skew): (Hash, Millis, u64, bool),
) -> Done {
    for section in gone {
        query("DELETE FROM inventory_section WHERE tenant = ? AND device = ? AND section = ?")
            .bind(tenant.as_str())
            .bind(&device.bytes()[..])
            .bind(section)
            .execute(&mut *connection)
            .await?;
    }
    for (section, items) in put {
        query(
            "INSERT INTO inventory_section (tenant, device, section, items) VALUES (?, ?, ?, ?) \
             ON CONFLICT DO UPDATE SET items = excluded.items",
        )
        .bind(tenant.as_str())
        .bind(&device.bytes()[..])
        .bind(section)
        .bind(json_text(items))
        .execute(&mut *connection)
        .await?;
    }
    // A column changes only with the section it is taken from.
    let touched = |section: &str| put.contains_key(section) || gone.iter().any(|g| g == section);
    let shown = summary(put);
    query(
        "INSERT INTO inventory (tenant, device, digest, collected_at, settings_version, os, cpu, memory_bytes, packages, \
         clock_skew) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?13) ON CONFLICT DO UPDATE SET digest = excluded.digest, \
         collected_at = excluded.collected_at, settings_version = excluded.settings_version, \
         clock_skew = excluded.clock_skew, os = iif(?10, excluded.os, os), cpu = iif(?11, excluded.cpu, cpu), \
         memory_bytes = iif(?11, excluded.memory_bytes, memory_bytes), packages = iif(?12, excluded.packages, packages)",
    )
    .bind(tenant.as_str())
    .bind(&device.bytes()[..])
    .bind(&digest.0[..])
    .bind(collected_at.0)
    .bind(signed(settings_version))
    .bind(shown.os)
    .bind(shown.cpu)
    .bind(shown.memory_bytes.map(signed))
    .bind(signed(shown.packages))
    .bind(touched("os"))
    .bind(touched("hardware"))
    .bind(touched("software"))
    .bind(clock_skew)
    .execute(connection)
    .await?;
    Ok(())
}

pub(super) async fn wanted(connection: &mut SqliteConnection, tenant: &TenantId, device: NodeId, wanted: bool) -> Done {
    let sql = match wanted {
        true => "INSERT INTO inventory_wanted (tenant, device) VALUES (?, ?) ON CONFLICT DO NOTHING",
        false => "DELETE FROM inventory_wanted WHERE tenant = ? AND device = ?",
    };
    query(sql).bind(tenant.as_str()).bind(&device.bytes()[..]).execute(connection).await?;
    Ok(())
}
