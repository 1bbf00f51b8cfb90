//! Which version of a document an envelope bears.

use branchline_protocol::{
    document::{Document, Kind, Revocations, Settings, TimeStatement, UpstreamList},
    order::Envelope,
    trust::TrustDocument,
};

/// (term, version) of a sealed document.
pub(super) fn version_of(kind: Kind, envelope: &Envelope) -> Option<(u32, u64)> {
    fn read<D: Document>(envelope: &Envelope) -> Option<(u32, u64)> {
        rmp_serde::from_slice::<D>(&envelope.payload).ok().map(|d| d.version())
    }
    match kind {
        Kind::Revocations => read::<Revocations>(envelope),
        Kind::Trust => read::<TrustDocument>(envelope),
        Kind::Upstreams => read::<UpstreamList>(envelope),
        Kind::Settings => read::<Settings>(envelope),
        Kind::Time => read::<TimeStatement>(envelope),
    }
}
