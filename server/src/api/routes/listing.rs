//! Answers that may hold a hundred thousand devices: made piece by piece while they are sent. Nobody waits until all of one
//! is in memory, and the dispatcher does other things between two pieces of a list.

use super::super::{
    ApiState,
    control::{Devices, NodeView},
    error::{ApiError, Code},
    views::{self, DeviceView, JobView, ResultView},
};
use crate::store::JobDeviceRow;
use actix_web::{HttpResponse, HttpResponseBuilder, http::header::ContentType};
use branchline_protocol::id::{NodeId, TenantId};
use bytes::Bytes;
use futures_util::{StreamExt, stream};

/// Devices a piece: some hundred kilobytes.
const PIECE: usize = 256;

/// Why a view can always be written.
const PLAIN: &str = "a view is plain data";

struct Listing {
    shared: ApiState,
    tenant: TenantId,
    /// In the order of the answer; those of the next piece begin here.
    devices: Vec<NodeId>,
    next: usize,
    /// Whether one was shown.
    any: bool,
    /// The settings in force.
    wanted: u64,
}

/// Answers `{"devices": [...]}` with these devices.
pub(super) async fn devices(
    shared: ApiState,
    tenant: TenantId,
    devices: Vec<NodeId>,
) -> Result<HttpResponse, ApiError> {
    let wanted = shared.control.settings(&tenant).await?.version;
    let mut listing = Listing { shared, tenant, devices, next: 0, any: false, wanted };
    // What fails at once is answered as an error; later the connection ends before the answer does.
    let first = listing.piece().await?;
    if listing.is_over() {
        return Ok(HttpResponse::Ok().insert_header(ContentType::json()).body(first));
    }
    let rest = stream::try_unfold(listing, |mut listing| async move {
        if listing.is_over() {
            return Ok(None);
        }
        let piece = listing.piece().await.map_err(actix_web::Error::from)?;
        Ok(Some((piece, listing)))
    });
    let pieces = stream::iter([Ok::<_, actix_web::Error>(first)]).chain(rest);
    Ok(HttpResponse::Ok().insert_header(ContentType::json()).streaming(pieces))
}

/// Answers with a job and with a row for each of its devices, as `show` makes it.
pub(super) fn job(
    mut answer: HttpResponseBuilder,
    view: &JobView,
    devices: Vec<JobDeviceRow>,
    show: impl Fn(&JobDeviceRow) -> ResultView + 'static,
) -> HttpResponse {
    answer.insert_header(ContentType::json());
    let mut text = serde_json::to_vec(view).expect(PLAIN);
    // The object is open again for the rows.
    text.pop();
    text.extend_from_slice(br#","results":["#);
    let (mut devices, mut any) = (devices.into_iter(), false);
    let mut piece = move |mut text: Vec<u8>| {
        for row in devices.by_ref().take(PIECE) {
            if std::mem::replace(&mut any, true) {
                text.push(b',');
            }
            serde_json::to_writer(&mut text, &show(&row)).expect(PLAIN);
        }
        let over = devices.len() == 0;
        if over {
            text.extend_from_slice(b"]}");
        }
        (Bytes::from(text), over)
    };
    let (first, over) = piece(text);
    if over {
        return answer.body(first);
    }
    let rest = stream::unfold(Some(piece), |piece| async move {
        let mut piece = piece?;
        let (text, over) = piece(Vec::new());
        Some((text, (!over).then_some(piece)))
    });
    answer.streaming(stream::iter([first]).chain(rest).map(Ok::<_, actix_web::Error>))
}

impl Listing {
    fn is_over(&self) -> bool {
        self.next >= self.devices.len()
    }

    /// The next devices; the first piece with the answer's beginning, the last with its end.
    async fn piece(&mut self) -> Result<Bytes, ApiError> {
        let mut text = Vec::new();
        if self.next == 0 {
            text.extend_from_slice(br#"{"devices":["#);
        }
        let upto = self.devices.len().min(self.next + PIECE);
        for view in views(&self.shared, &self.tenant, self.wanted, &self.devices[self.next..upto]).await? {
            if std::mem::replace(&mut self.any, true) {
                text.push(b',');
            }
            serde_json::to_writer(&mut text, &view).expect(PLAIN);
        }
        self.next = upto;
        if self.is_over() {
            text.extend_from_slice(b"]}");
        }
        Ok(text.into())
    }
}

/// One device as lists show it.
pub(super) async fn device(shared: &ApiState, tenant: &TenantId, device: NodeId) -> Result<DeviceView, ApiError> {
    let wanted = shared.control.settings(tenant).await?.version;
    let view = views(shared, tenant, wanted, &[device]).await?.pop();
    view.ok_or_else(|| Code::UnknownDevice.refuse(format!("there is no device {device} any more")))
}

async fn views(
    shared: &ApiState,
    tenant: &TenantId,
    wanted: u64,
    devices: &[NodeId],
) -> Result<Vec<DeviceView>, ApiError> {
    let Devices { views, names } = shared.control.devices(tenant, devices.to_vec()).await?;
    let inventories = shared.store.inventory_summaries(tenant, devices).await?;
    let last = shared.store.last_deliveries(tenant, devices).await?;
    let shown =
        |view: &NodeView| views::device(view, &names, inventories.get(&view.node.id), wanted, last.get(&view.node.id));
    Ok(views.iter().map(shown).collect())
}
