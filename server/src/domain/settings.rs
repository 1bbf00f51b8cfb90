//! A tenant's settings: checked, one version newer with each change, durable before anyone is told (ADM-14, INV-8).

use super::{
    documents::Change,
    office::{Draft, Office, State, audit, store_refusal},
};
use crate::store::Op;
use branchline_protocol::{
    document::{Document, Kind, Settings},
    id::TenantId,
    refusal::Refusal,
};

impl Office {
    /// The settings in force. 404 `no_such_tenant`.
    pub fn settings(&self, tenant: &TenantId) -> Result<Settings, Refusal> {
        self.read(|state| state.tenants.get(tenant).map(|held| held.settings.0.clone())).ok_or_else(no_such_tenant)
    }

    /// Puts settings in force that were made from those of their version; answers them as they are then. Equal ones
    /// change nothing. 422 with the field, 404 `no_such_tenant`, 409 `conflict`.
    pub async fn set_settings(&self, tenant: &TenantId, who: &str, wanted: Settings) -> Result<Settings, Refusal> {
        wanted.check()?;
        self.may_issue()?;
        let turn = self.turn().await;
        let held = self.settings(tenant)?;
        if wanted.version != held.version {
            let message = format!("the settings are of version {} by now; look and set again", held.version);
            return Err(Refusal::new(409, "conflict", message).field("version"));
        }
        let mut settings = Settings { tenant: tenant.clone(), term: held.term, ..wanted };
        if settings == held {
            return Ok(held);
        }
        let signer = self.signer(tenant).ok_or_else(no_such_tenant)?;
        (settings.term, settings.version) = (self.term(), held.version + 1);
        let envelope = settings.seal(&signer);
        let detail = format!("version {}: {}", settings.version, difference(&held, &settings));
        let ops = vec![
            Op::Document(tenant.clone(), Kind::Settings, String::new(), settings.version(), envelope.clone()),
            audit(tenant, self.now(), who, "settings.change", detail),
        ];
        let change = Change { tenant: tenant.clone(), kind: Kind::Settings, site: String::new() };
        let (own, new) = (tenant.clone(), settings.clone());
        let apply = Box::new(move |state: &mut State| {
            if let Some(held) = state.tenants.get_mut(&own) {
                held.settings = (new, envelope);
            }
        });
        self.keep(turn, Draft { changes: vec![change], apply, ..Draft::of(ops) }).await.map_err(store_refusal)?;
        Ok(settings)
    }
}

/// What an audit shows of a change.
fn difference(old: &Settings, new: &Settings) -> String {
    let shown = |s: &Settings| {
        [
            ("poll_normal_s", s.poll_normal_s.to_string()),
            ("poll_urgent_s", s.poll_urgent_s.to_string()),
            ("poll_erase_s", s.poll_erase_s.to_string()),
            ("collect", s.collect.join(",")),
            ("schedule", s.schedule.to_string()),
            ("inventory_hour", s.inventory_hour.to_string()),
            ("catch_up_missed", s.catch_up_missed.to_string()),
            ("collect_on_return", s.collect_on_return.to_string()),
        ]
    };
    let pairs = shown(old).into_iter().zip(shown(new)).filter(|(old, new)| old != new);
    pairs.map(|((name, old), (_, new))| format!("{name} {old:?} to {new:?}")).collect::<Vec<_>>().join(", ")
}

fn no_such_tenant() -> Refusal {
    Refusal::new(404, "no_such_tenant", "there is no such tenant")
}
