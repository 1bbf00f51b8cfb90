//! What stands in a node's certificate, and how it is read back.
//!
//! The subject alternative names say who a node is: `branchline://<tenant>/<role>/<node id>/<epoch>` for peers that ask
//! who called, `<node id>.<tenant>.branchline.internal` for TLS, which checks whom it reached.

use super::keys::KeyPair;
use branchline_protocol::{
    id::{Epoch, NodeId, Role, TenantId},
    order::PublicKey,
    time::Millis,
};
use rcgen::{CertificateParams, DistinguishedName, DnType};
use rustls_pki_types::{CertificateDer, ServerName};
use std::net::IpAddr;
use x509_parser::{
    certificate::X509Certificate,
    extensions::GeneralName,
    oid_registry::OID_SIG_ED25519,
    prelude::{FromDer, X509CertificationRequest},
    x509::SubjectPublicKeyInfo,
};

const URI_SCHEME: &str = "branchline://";
/// The end of every node's DNS name. `internal` is reserved for private use and never resolves outside.
pub(super) const DNS_SUFFIX: &str = ".branchline.internal";

/// DER between what is signed and 64 bytes of Ed25519: the algorithm, and a bit string without unused bits.
const ED25519_SIGNATURE_HEAD: [u8; 10] = [0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x41, 0x00];

/// Whom a certificate is for. The authority takes nothing else from anybody but the public key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// Whose node.
    pub tenant: TenantId,
    /// What it is.
    pub role: Role,
    /// Which one.
    pub node: NodeId,
    /// Which of its lives.
    pub epoch: Epoch,
    /// Names it is also reached by, beside the one made of its id; none under `.branchline.internal`.
    pub dns: Vec<String>,
    /// Addresses it is also reached by.
    pub ips: Vec<IpAddr>,
}

impl Subject {
    /// The URI that says who the node is.
    pub(super) fn uri(&self) -> String {
        identity_uri(&self.tenant, self.role, self.node, self.epoch)
    }
}

/// Who a verified certificate says its holder is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerIdentity {
    /// Whose node.
    pub tenant: TenantId,
    /// What it is.
    pub role: Role,
    /// Which one.
    pub node: NodeId,
    /// Which of its lives.
    pub epoch: Epoch,
    /// The certificate's key: what it signs itself, it signs with this.
    pub key: PublicKey,
    /// The certificate's serial number, lower-case hex without leading zeros.
    pub serial_hex: String,
    /// The first instant at which it is certainly valid.
    pub not_before: Millis,
    /// The last instant at which it is valid.
    pub not_after: Millis,
}

/// Why a certificate names no node, or a request no key.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityFault {
    /// The peer showed none.
    #[error("the peer showed no certificate")]
    NoCertificate,
    /// It cannot be read.
    #[error("read a certificate: malformed")]
    MalformedCertificate,
    /// Its names are not exactly those of one node.
    #[error("the certificate does not name exactly one node")]
    NoIdentity,
    /// It was issued by another tenant's authority.
    #[error("the certificate of a node of tenant {0} was not issued by the authority of {0}")]
    OtherTenantsAuthority(TenantId),
    /// The request cannot be read, or its key is not Ed25519.
    #[error("read a certificate request: malformed or not ed25519")]
    MalformedRequest,
    /// Whoever made the request does not hold the key in it.
    #[error("the certificate request is not signed by its own key")]
    RequestNotSigned,
    /// A certificate and a key that do not belong together.
    #[error("the certificate is for another key")]
    OtherKey,
}

/// A request to sign, in DER, proving that its maker holds the key. `hint` is for people who look at it: the authority
/// ignores it.
pub fn request(key: &KeyPair, hint: &str) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, hint);
    let request = params.serialize_request(&key.certificate_signer()).expect("a name and a key make a request");
    request.der().to_vec()
}

/// The public key of a request, after its self-signature was checked. Nothing else in it is looked at.
pub(super) fn requested_key(der: &[u8]) -> Result<PublicKey, IdentityFault> {
    let (head, signature) = der.split_last_chunk::<64>().ok_or(IdentityFault::MalformedRequest)?;
    // The parser takes other tags for those of an algorithm; a request has one spelling only.
    if !head.ends_with(&ED25519_SIGNATURE_HEAD) {
        return Err(IdentityFault::MalformedRequest);
    }
    let (rest, request) = X509CertificationRequest::from_der(der).map_err(|_| IdentityFault::MalformedRequest)?;
    let info = &request.certification_request_info;
    let key = ed25519_key(&info.subject_pki).filter(|_| rest.is_empty()).ok_or(IdentityFault::MalformedRequest)?;
    if !key.verifies(info.raw, signature) {
        return Err(IdentityFault::RequestNotSigned);
    }
    Ok(key)
}

/// Who the holder of this chain is. Call it with the chain that TLS has verified, never before.
pub fn peer_identity(chain: &[CertificateDer<'_>]) -> Result<PeerIdentity, IdentityFault> {
    let certificate = parse(chain.first().ok_or(IdentityFault::NoCertificate)?)?;
    let names = certificate
        .subject_alternative_name()
        .map_err(|_| IdentityFault::MalformedCertificate)?
        .ok_or(IdentityFault::NoIdentity)?;
    let mut uris = Vec::new();
    let mut dns = Vec::new();
    for name in &names.value.general_names {
        match name {
            GeneralName::URI(uri) => uris.push(*uri),
            GeneralName::DNSName(name) if name.ends_with(DNS_SUFFIX) => dns.push(*name),
            _ => {}
        }
    }
    let ([uri], [own_name]) = (&uris[..], &dns[..]) else { return Err(IdentityFault::NoIdentity) };
    let (tenant, role, node, epoch) = parse_uri(uri).ok_or(IdentityFault::NoIdentity)?;
    if *own_name != server_name_text(node, &tenant) {
        return Err(IdentityFault::NoIdentity);
    }
    // A server trusts the authorities of all its tenants; each speaks for its own only.
    let mut issuers = certificate.issuer().iter_organization();
    let issuer = issuers.next().and_then(|name| name.as_str().ok());
    if issuer != Some(tenant.as_str()) || issuers.next().is_some() {
        return Err(IdentityFault::OtherTenantsAuthority(tenant));
    }
    let validity = certificate.validity();
    let key = ed25519_key(certificate.public_key()).ok_or(IdentityFault::MalformedCertificate)?;
    Ok(PeerIdentity {
        tenant,
        role,
        node,
        epoch,
        key,
        serial_hex: certificate.serial.to_str_radix(16),
        not_before: Millis(validity.not_before.timestamp().saturating_mul(1000)),
        not_after: Millis(validity.not_after.timestamp().saturating_mul(1000)),
    })
}

/// The name a child expects its parent to prove in TLS.
pub fn server_name(node: NodeId, tenant: &TenantId) -> ServerName<'static> {
    ServerName::try_from(server_name_text(node, tenant)).expect("an id, a tenant and a suffix are DNS labels")
}

/// The DNS name of a node: `<node id>.<tenant>.branchline.internal`.
pub fn server_name_text(node: NodeId, tenant: &TenantId) -> String {
    format!("{node}.{tenant}{DNS_SUFFIX}")
}

/// The inverse of [`server_name_text`]; `None` for any other text.
pub fn parse_server_name(name: &str) -> Option<(NodeId, TenantId)> {
    let (node, tenant) = name.strip_suffix(DNS_SUFFIX)?.split_once('.')?;
    let (node, tenant) = (node.parse().ok()?, tenant.parse().ok()?);
    // Ids have other spellings, which would name the same node twice.
    if server_name_text(node, &tenant) == name { Some((node, tenant)) } else { None }
}

/// The certificate's key, if it is Ed25519.
pub(super) fn certified_key(certificate: &CertificateDer<'_>) -> Result<PublicKey, IdentityFault> {
    ed25519_key(parse(certificate)?.public_key()).ok_or(IdentityFault::MalformedCertificate)
}

pub(super) fn parse<'c>(certificate: &'c CertificateDer<'_>) -> Result<X509Certificate<'c>, IdentityFault> {
    match X509Certificate::from_der(certificate) {
        Ok(([], parsed)) => Ok(parsed),
        _ => Err(IdentityFault::MalformedCertificate),
    }
}

fn ed25519_key(info: &SubjectPublicKeyInfo<'_>) -> Option<PublicKey> {
    if info.algorithm.algorithm != OID_SIG_ED25519 || info.algorithm.parameters.is_some() {
        return None;
    }
    let bits = &info.subject_public_key;
    if bits.unused_bits != 0 {
        return None;
    }
    bits.data.as_ref().try_into().ok().map(PublicKey)
}

fn identity_uri(tenant: &TenantId, role: Role, node: NodeId, epoch: Epoch) -> String {
    format!("{URI_SCHEME}{tenant}/{role}/{node}/{epoch}")
}

fn parse_uri(uri: &str) -> Option<(TenantId, Role, NodeId, Epoch)> {
    let mut parts = uri.strip_prefix(URI_SCHEME)?.split('/');
    let tenant = parts.next()?.parse().ok()?;
    let role = parts.next()?.parse().ok()?;
    let node = parts.next()?.parse().ok()?;
    let epoch = parts.next()?.parse().ok()?;
    // Ids and numbers have other spellings, and there may be parts left.
    if identity_uri(&tenant, role, node, epoch) == uri { Some((tenant, role, node, epoch)) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: &str = "0190f0e0-0000-7000-8000-000000000001";

    #[test]
    fn names_come_back_and_other_spellings_do_not() {
        let (node, tenant): (NodeId, TenantId) = (NODE.parse().unwrap(), "acme".parse().unwrap());
        let text = server_name_text(node, &tenant);
        assert_eq!(parse_server_name(&text), Some((node, tenant.clone())));
        assert!(matches!(server_name(node, &tenant), ServerName::DnsName(name) if name.as_ref() == text));
        let longest: TenantId = "t".repeat(40).parse().unwrap();
        server_name(node, &longest);
        for bad in [
            String::new(),
            format!("{NODE}.acme"),
            format!("{NODE}.acme.branchline.internal."),
            format!("{NODE}.a.b.branchline.internal"),
            format!("{}.acme.branchline.internal", NODE.to_uppercase()),
            format!("{}.acme.branchline.internal", NODE.replace('-', "")),
            ".branchline.internal".into(),
        ] {
            assert_eq!(parse_server_name(&bad), None, "{bad}");
        }
    }

    #[test]
    fn identity_uris_come_back_and_other_spellings_do_not() {
        let good = format!("branchline://acme/relay/{NODE}/7");
        let parsed = parse_uri(&good).unwrap();
        assert_eq!(parsed, ("acme".parse().unwrap(), Role::Relay, NODE.parse().unwrap(), 7));
        for bad in [
            format!("branchline://acme/relay/{NODE}"),
            format!("branchline://acme/relay/{NODE}/7/"),
            format!("branchline://acme/relay/{NODE}/07"),
            format!("branchline://acme/relay/{NODE}/+7"),
            format!("branchline://acme/relay/{NODE}/4294967296"),
            format!("branchline://acme/king/{NODE}/7"),
            format!("branchline://ACME/relay/{NODE}/7"),
            format!("branchline://acme/relay/{}/7", NODE.to_uppercase()),
            format!("https://acme/relay/{NODE}/7"),
        ] {
            assert_eq!(parse_uri(&bad), None, "{bad}");
        }
    }

    #[test]
    fn a_request_proves_that_its_maker_holds_the_key() {
        let key = KeyPair::generate().unwrap();
        let der = request(&key, "host-7");
        assert_eq!(requested_key(&der), Ok(key.public()));
        for position in 0..der.len() {
            let mut bad = der.clone();
            bad[position] ^= 1;
            assert!(requested_key(&bad).is_err(), "byte {position}");
        }
        let mut longer = der;
        longer.push(0);
        assert_eq!(requested_key(&longer), Err(IdentityFault::MalformedRequest));
        assert_eq!(requested_key(b""), Err(IdentityFault::MalformedRequest));
    }

    #[test]
    fn no_certificate_is_nobody() {
        assert_eq!(peer_identity(&[]), Err(IdentityFault::NoCertificate));
        let garbage = CertificateDer::from(vec![0x30, 0x03, 1, 2, 3]);
        assert_eq!(peer_identity(&[garbage]), Err(IdentityFault::MalformedCertificate));
    }
}
