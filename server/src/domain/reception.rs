//! Where new nodes come in: TLS by the tenant they ask for, one request, one answer (DESIGN 3, 6).
//!
//! The store has the node before the node has its answer. If the answer is lost, the same token and key bring the same
//! node again (ENR-2); if the store fails there is no answer, no node, and the token is still good.

use super::{
    documents::addresses_op,
    enrolment::{Case, Plan, Population, judge},
    office::{Draft, Office, State, audit},
    tenant_keys::{BACKDATE_MS, serial},
    tokens::secret_hash,
    upstreams::{Changed, RelayWays, relist},
};
use crate::store::{NodeRow, Op, StoreError, TokenRow};
use branchline_node::{
    enrol::{SPLICE_S, read_message, write_message},
    identity::{Authority, AuthorityFault, Subject, parse_server_name},
};
use branchline_protocol::{
    document::Kind,
    hash::Hash,
    id::{Epoch, NodeId, Role, TenantId},
    order::{Envelope, PublicKey},
    refusal::Refusal,
    time::Millis,
    wire::{ENROL_BYTES_MAX, EnrolAnswer, EnrolRequest, HANDSHAKE_S},
};
use bytes::Bytes;
use rustls::{ServerConfig, pki_types::CertificateDer, server::Acceptor};
use std::{io, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    time::timeout,
};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};
use x509_parser::{
    oid_registry::OID_SIG_ED25519,
    prelude::{FromDer, X509CertificationRequest},
};

/// How long a node's certificate is valid: 90 days (ENR-8).
pub const CERTIFICATE_LIFE_MS: i64 = 90 * 86_400_000;

/// How an enrolment ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The node is in the store. Its answer may have been lost on the way.
    Enrolled(Box<Admitted>),
    /// It was told no.
    Refused(Refusal),
    /// It was told nothing: nothing readable came, or the store failed. Nothing was stored.
    Unanswered(String),
}

/// A node that enrolled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admitted {
    /// Whose.
    pub tenant: TenantId,
    /// Its id.
    pub node: NodeId,
    /// Its epoch.
    pub epoch: Epoch,
    /// Its role.
    pub role: Role,
    /// Its name.
    pub name: String,
    /// Whether it had this id before.
    pub again: bool,
    /// Its row as the store has it now.
    pub row: NodeRow,
}

/// Why a request did not enrol anybody.
#[derive(Debug)]
enum Denied {
    /// The node may know why.
    Refused(Refusal),
    /// The server's own fault.
    Failed(String),
}

impl From<Refusal> for Denied {
    fn from(refusal: Refusal) -> Denied {
        Denied::Refused(refusal)
    }
}

impl From<StoreError> for Denied {
    fn from(error: StoreError) -> Denied {
        Denied::Failed(error.to_string())
    }
}

impl Office {
    /// TLS for an enrolment with this name (SNI): `None` unless it is this server's in one of its tenants.
    pub fn enrol_config_for(&self, name: &str) -> Option<Arc<ServerConfig>> {
        self.tenant_named(name, |state, tenant| state.tenants.get(tenant).map(|held| held.enrol.clone()))
    }

    /// TLS for a link with this name (SNI), whose child must show a certificate of that tenant.
    pub fn link_config_for(&self, name: &str) -> Option<Arc<ServerConfig>> {
        self.tenant_named(name, |state, tenant| state.tenants.get(tenant).map(|held| held.link.clone()))
    }

    /// The TLS handshake of an `enrol` stream, preface already read. Fails after [`HANDSHAKE_S`], and at once for a
    /// name that is not this server's.
    pub async fn accept_enrol<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: S) -> io::Result<TlsStream<S>> {
        accept(stream, |name| self.enrol_config_for(name)).await
    }

    /// The same for a link.
    pub async fn accept_link<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: S) -> io::Result<TlsStream<S>> {
        accept(stream, |name| self.link_config_for(name)).await
    }

    /// Reads one request from an accepted stream, decides it, and answers it. `source` is a hint for the log.
    pub async fn enrol<S: AsyncRead + AsyncWrite + Unpin>(&self, mut stream: S, source: Option<SocketAddr>) -> Outcome {
        let limit = Duration::from_secs(SPLICE_S);
        let request = match timeout(limit, read_message::<EnrolRequest>(&mut stream)).await {
            Ok(Ok(request)) => Ok(request),
            // What came whole and is no request is told so; a broken stream cannot be told anything.
            Ok(Err(e)) if e.kind() == io::ErrorKind::Other => {
                Err(Refusal::new(400, "malformed", format!("read the enrolment request: {e}")))
            }
            Ok(Err(e)) => return Outcome::Unanswered(format!("read the enrolment request: {e}")),
            Err(_) => return Outcome::Unanswered(format!("no enrolment request within {SPLICE_S} s")),
        };
        let decided = match request {
            Ok(request) => self.admit(request).await,
            Err(refusal) => Err(refusal.into()),
        };
        let (answer, outcome) = match decided {
            Ok((admitted, answer)) => (answer, Outcome::Enrolled(Box::new(admitted))),
            Err(Denied::Refused(refusal)) => (EnrolAnswer::Refused(refusal.clone()), Outcome::Refused(refusal)),
            Err(Denied::Failed(fault)) => {
                tracing::error!(?source, fault, "an enrolment could not be decided");
                return Outcome::Unanswered(fault);
            }
        };
        tracing::info!(?source, ?outcome, "enrolment");
        let told = timeout(limit, async {
            write_message(&mut stream, &answer).await?;
            stream.shutdown().await
        });
        match told.await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => tracing::debug!(?source, error = %e, "an enrolment's answer was lost"),
            Err(_) => tracing::debug!(?source, "an enrolment's answer was not taken"),
        }
        outcome
    }

    async fn admit(&self, request: EnrolRequest) -> Result<(Admitted, EnrolAnswer), Denied> {
        self.may_issue()?;
        let turn = self.turn().await;
        let now = self.now();
        let token = self.0.store.token(secret_hash(&request.token)).await?;
        let (plan, token) = self.plan(&request, token, now).await?;
        let tenant = token.tenant.clone();
        let before = match plan.kept {
            Some((node, _)) => Some(self.node_row(&tenant, node).await?.ok_or_else(|| gone(node))?),
            None => None,
        };
        let again = before.is_some();
        let row = self.row(&request, &token, &plan, before, now);
        let facts = &request.facts;
        let draft = self.read(|state| -> Result<_, Denied> {
            let held = state.tenants.get(&tenant).ok_or_else(|| Denied::Failed("the tenant is gone".into()))?;
            let subject = Subject {
                tenant: tenant.clone(),
                role: row.role,
                node: row.id,
                epoch: row.epoch,
                dns: plan.dns.clone(),
                ips: plan.ips.clone(),
            };
            let serial = serial(&*self.0.ambient.random);
            let chain = issue(&held.keys.authority, &request.request, &subject, now, serial)?;
            if row.role != Role::Relay {
                return Ok((chain, None, Vec::new()));
            }
            let mut relays = held.relays.clone();
            let (name, site) = (row.name.clone(), row.site.clone());
            relays.insert(row.id, RelayWays { name, site, addresses: facts.addresses.clone() });
            let lists = relist(state, &tenant, held, Changed { relays: Some(&relays), ..Changed::default() });
            Ok((chain, Some(relays), lists))
        });
        let (chain, relays, lists) = draft?;
        let mut ops = Vec::new();
        if plan.use_token {
            ops.push(Op::UseToken(token.hash));
        }
        ops.push(Op::Node(row.clone()));
        ops.push(Op::Meta(enrolled_with_key(row.id), Bytes::copy_from_slice(&token.hash.0)));
        if row.role != Role::Agent {
            ops.push(addresses_op(row.id, &facts.addresses));
        }
        let detail = format!("{} {:?} at {:?} epoch {} build {}", row.role, row.name, row.site, row.epoch, facts.build);
        ops.push(audit(&tenant, now, &row.id.to_string(), "node.enrol", detail));
        let (own, kept_row) = (tenant.clone(), row.clone());
        let apply = Box::new(move |state: &mut State| {
            if let Some(held) = state.tenants.get_mut(&own) {
                held.population.put(&kept_row);
                if let Some(relays) = relays {
                    held.relays = relays;
                }
            }
        });
        match self.keep(turn, Draft { lists, apply, ..Draft::of(ops) }).await {
            Ok(()) => {}
            Err(StoreError::Conflict(_)) => {
                let message = "the token or the name was taken at the same moment: try again";
                return Err(Refusal::new(409, "conflict", message).into());
            }
            Err(error) => return Err(error.into()),
        }
        let (node, epoch) = (row.id, row.epoch);
        let answer = fitting(node, epoch, chain, self.documents(&tenant, &row.site));
        Ok((Admitted { tenant, node, epoch, role: row.role, name: row.name.clone(), again, row }, answer))
    }

    /// Judges the request by its token and the population of the token's tenant.
    async fn plan(
        &self,
        request: &EnrolRequest,
        token: Option<TokenRow>,
        now: Millis,
    ) -> Result<(Plan, TokenRow), Denied> {
        let key = requested_key(&request.request).map(|key| Hash::of(&key.0));
        let known = self.read(|state| {
            let held = token.as_ref().and_then(|token| state.tenants.get(&token.tenant))?;
            held.population.by_key(key?).cloned()
        });
        let token_before = match known {
            Some(known) => self.0.store.meta(&enrolled_with_key(known.id)).await?,
            None => None,
        };
        let token_before = token_before.and_then(|bytes| <[u8; 32]>::try_from(&bytes[..]).ok()).map(Hash);
        let plan = self.read(|state| {
            let nobody = Population::default();
            let held = token.as_ref().and_then(|token| state.tenants.get(&token.tenant));
            let population = held.map_or(&nobody, |held| &held.population);
            judge(Case { request, key, token: token.as_ref(), token_before, population, now })
        })?;
        let token = token.ok_or_else(|| Denied::Failed("a plan without a token".into()))?;
        Ok((plan, token))
    }

    /// The node's row: new, or the old one with what it says of itself now. Its history stays (ENR-10).
    fn row(
        &self,
        request: &EnrolRequest,
        token: &TokenRow,
        plan: &Plan,
        before: Option<NodeRow>,
        now: Millis,
    ) -> NodeRow {
        let facts = request.facts.clone();
        let new = NodeRow {
            id: NodeId(self.0.ambient.random.id(now)),
            tenant: token.tenant.clone(),
            role: token.role,
            site: token.site.clone(),
            name: facts.name,
            host_name: facts.host_name,
            platform: facts.platform,
            capabilities: facts.capabilities.into(),
            kind: token.kind.clone(),
            epoch: 1,
            attachment: 0,
            route: Vec::new(),
            last_contact: None,
            enrolled_at: now,
            revoked_at: None,
            key_hash: plan.key,
            tags: Vec::new(),
        };
        match before {
            None => new,
            Some(old) => NodeRow {
                id: old.id,
                epoch: old.epoch,
                attachment: old.attachment,
                route: old.route,
                last_contact: old.last_contact,
                enrolled_at: old.enrolled_at,
                tags: old.tags,
                ..new
            },
        }
    }

    fn tenant_named<T>(&self, name: &str, look: impl FnOnce(&State, &TenantId) -> Option<T>) -> Option<T> {
        let (node, tenant) = parse_server_name(name)?;
        self.read(|state| if node == state.server { look(state, &tenant) } else { None })
    }
}

async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    choose: impl FnOnce(&str) -> Option<Arc<ServerConfig>>,
) -> io::Result<TlsStream<S>> {
    let handshake = async {
        let start = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
        let config = start.client_hello().server_name().and_then(choose);
        let unknown = || io::Error::new(io::ErrorKind::NotFound, "the name is not this server's");
        start.into_stream(config.ok_or_else(unknown)?).await
    };
    match timeout(Duration::from_secs(HANDSHAKE_S), handshake).await {
        Ok(accepted) => accepted,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("no handshake within {HANDSHAKE_S} s"))),
    }
}

/// The key in a request that proves it. The authority checks again, by itself, before it signs.
fn requested_key(der: &[u8]) -> Option<PublicKey> {
    let (rest, request) = X509CertificationRequest::from_der(der).ok()?;
    let info = &request.certification_request_info;
    if !rest.is_empty() || info.subject_pki.algorithm.algorithm != OID_SIG_ED25519 {
        return None;
    }
    let key = PublicKey(info.subject_pki.subject_public_key.data.as_ref().try_into().ok()?);
    if key.verifies(info.raw, &request.signature_value.data) { Some(key) } else { None }
}

/// The node's certificate and the authority's.
fn issue(
    authority: &Authority,
    request: &[u8],
    subject: &Subject,
    now: Millis,
    serial: u128,
) -> Result<Vec<Bytes>, Denied> {
    let (from, until) = (now.plus(-BACKDATE_MS), now.plus(CERTIFICATE_LIFE_MS));
    let certificate = authority.issue(request, subject, from, until, serial).map_err(|fault| match fault {
        AuthorityFault::Identity(fault) => {
            Denied::Refused(Refusal::new(400, "bad_request_certificate", fault.to_string()).field("request"))
        }
        AuthorityFault::BadName(_) => {
            Denied::Refused(Refusal::new(422, "bad_address", fault.to_string()).field("addresses"))
        }
        fault => Denied::Failed(fault.to_string()),
    })?;
    let der = |certificate: &CertificateDer<'_>| Bytes::copy_from_slice(certificate);
    Ok(vec![der(&certificate), der(authority.certificate())])
}

/// The answer with as many documents as fit, the largest left out first: the rest comes down the first link.
fn fitting(node: NodeId, epoch: Epoch, chain: Vec<Bytes>, mut documents: Vec<(Kind, Envelope)>) -> EnrolAnswer {
    loop {
        let answer = EnrolAnswer::Enrolled { node, epoch, chain: chain.clone(), documents: documents.clone() };
        let bytes = rmp_serde::to_vec_named(&answer).map_or(usize::MAX, |body| body.len());
        let largest = (0..documents.len()).max_by_key(|at| documents[*at].1.payload.len());
        match largest {
            Some(largest) if bytes > ENROL_BYTES_MAX => {
                documents.remove(largest);
            }
            _ => return answer,
        }
    }
}

fn enrolled_with_key(node: NodeId) -> String {
    format!("enrolled_with/{node}")
}

fn gone(node: NodeId) -> Denied {
    Denied::Failed(format!("node {node} is not in the store"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use branchline_protocol::order::Signer;

    #[test]
    fn an_answer_leaves_out_what_does_not_fit_and_keeps_the_rest() {
        let signer = Signer::from_seed(&[1; 32]);
        let envelope = |size: usize| Envelope::sign("document", vec![7; size], &signer);
        let node = NodeId(uuid::Uuid::from_u128(1));
        let big = vec![(Kind::Revocations, envelope(ENROL_BYTES_MAX)), (Kind::Trust, envelope(500))];
        let EnrolAnswer::Enrolled { documents, .. } = fitting(node, 1, vec![], big) else { panic!("refused") };
        assert_eq!(documents.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(), [Kind::Trust]);
        let small = vec![(Kind::Revocations, envelope(30_000)), (Kind::Trust, envelope(30_000))];
        let EnrolAnswer::Enrolled { documents, .. } = fitting(node, 1, vec![], small) else { panic!("refused") };
        assert_eq!(documents.len(), 2);
    }
}
