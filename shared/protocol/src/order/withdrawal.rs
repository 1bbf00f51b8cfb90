//! That an order is over on devices, said by the server alone: whoever below still holds it for them lets it go (DESIGN 5).

use super::{
    Envelope, OrderFault, Signer,
    verify::{server_signer, within},
};
use crate::{
    id::{NodeId, OrderNumber, TenantId},
    time::Millis,
    trust::TrustDocument,
};
use serde::{Deserialize, Serialize};

/// The envelope's type of a withdrawal.
pub const WITHDRAWAL_PAYLOAD_TYPE: &str = "application/vnd.branchline.withdrawal.v1+msgpack";
/// Devices one withdrawal names; one more is refused.
pub const WITHDRAWAL_DEVICES_MAX: usize = 1_024;

/// The signed content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Withdrawal {
    /// Whose.
    pub tenant: TenantId,
    /// The order that is over.
    pub target: OrderNumber,
    /// On these devices.
    pub devices: Vec<NodeId>,
    /// Until when it must be known, node time: the order's report_by. Nobody journals the order after it.
    pub until: Millis,
}

impl Withdrawal {
    /// Signs it with the tenant's server key.
    pub fn seal(&self, signer: &Signer) -> Envelope {
        let bytes = rmp_serde::to_vec(self).expect("a withdrawal is plain data");
        Envelope::sign(WITHDRAWAL_PAYLOAD_TYPE, bytes, signer)
    }

    /// What a server key of `tenant` signed that counts for the order's number.
    ///
    /// # Errors
    /// As of an order: over its bounds, another type, malformed, another tenant's, or signed by no such key.
    pub fn open(envelope: &Envelope, tenant: &TenantId, trust: &TrustDocument) -> Result<Withdrawal, OrderFault> {
        server_signer(envelope, tenant, trust)?;
        if envelope.payload_type != WITHDRAWAL_PAYLOAD_TYPE {
            return Err(OrderFault::WrongType);
        }
        let found: Withdrawal =
            rmp_serde::from_slice(&envelope.payload).map_err(|e| OrderFault::Malformed(e.to_string()))?;
        if found.tenant != *tenant {
            return Err(OrderFault::OtherTenant(found.tenant));
        }
        within("number of devices", found.devices.len(), WITHDRAWAL_DEVICES_MAX)?;
        if envelope.signed_by(&trust.server_keys_for(found.target.number)).is_none() {
            return Err(OrderFault::KeyNotValid(found.target.number));
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        order::ENVELOPE_BYTES_MAX,
        trust::{KeyStatus, TrustedKey},
    };
    use uuid::Uuid;

    fn signer() -> Signer {
        Signer::from_seed(&[4; 32])
    }

    fn tenant() -> TenantId {
        "acme".parse().unwrap()
    }

    fn trust(status: KeyStatus) -> TrustDocument {
        let key = TrustedKey { key: signer().public(), role: "server".into(), status };
        TrustDocument { tenant: tenant(), term: 1, version: 1, cas: vec![], keys: vec![key] }
    }

    fn withdrawal(devices: usize) -> Withdrawal {
        let devices = (0..devices as u128).map(|n| NodeId(Uuid::from_u128(n))).collect();
        Withdrawal { tenant: tenant(), target: OrderNumber { term: 1, number: 7 }, devices, until: Millis(9) }
    }

    #[test]
    fn a_withdrawal_is_the_servers_word_for_this_tenant_and_number() {
        let good = withdrawal(2).seal(&signer());
        let open = |envelope: &Envelope, status| Withdrawal::open(envelope, &tenant(), &trust(status));
        assert_eq!(open(&good, KeyStatus::Active), Ok(withdrawal(2)));
        assert_eq!(open(&good, KeyStatus::RetiredAt(8)), Ok(withdrawal(2)));
        assert_eq!(open(&good, KeyStatus::RevokedFrom(7)), Err(OrderFault::KeyNotValid(7)));
        let thief = withdrawal(2).seal(&Signer::from_seed(&[5; 32]));
        assert_eq!(open(&thief, KeyStatus::Active), Err(OrderFault::BadSignature));
        let other = Withdrawal { tenant: "other".parse().unwrap(), ..withdrawal(1) }.seal(&signer());
        assert!(matches!(open(&other, KeyStatus::Active), Err(OrderFault::OtherTenant(_))));
        let order = Envelope::sign(crate::order::ORDER_PAYLOAD_TYPE, good.payload.clone(), &signer());
        assert_eq!(open(&order, KeyStatus::Active), Err(OrderFault::WrongType));
        let torn = Envelope::sign(WITHDRAWAL_PAYLOAD_TYPE, good.payload.slice(1..), &signer());
        assert!(matches!(open(&torn, KeyStatus::Active), Err(OrderFault::Malformed(_))));
    }

    #[test]
    fn a_withdrawal_at_its_bound_is_taken_and_one_past_it_is_not() {
        let full = withdrawal(WITHDRAWAL_DEVICES_MAX).seal(&signer());
        assert!(full.payload.len() < ENVELOPE_BYTES_MAX);
        assert!(Withdrawal::open(&full, &tenant(), &trust(KeyStatus::Active)).is_ok());
        let more = withdrawal(WITHDRAWAL_DEVICES_MAX + 1).seal(&signer());
        let fault = Withdrawal::open(&more, &tenant(), &trust(KeyStatus::Active));
        assert!(matches!(fault, Err(OrderFault::TooLarge { found: 1_025, max: 1_024, .. })), "{fault:?}");
    }
}
