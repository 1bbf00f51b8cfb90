//! A tenant's certificate authority, on the server: it signs public keys under names that it is told, not asked for.

use super::{
    certificate::{self, DNS_SUFFIX, IdentityFault, Subject, server_name_text},
    files::{self, Audience},
    keys::{KeyFault, KeyPair},
};
use branchline_protocol::{
    id::{Role, TenantId},
    order::PublicKey,
    time::Millis,
};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyUsagePurpose, SanType, SerialNumber,
};
use rustls_pki_types::{CertificateDer, DnsName};
use std::{fs, io, path::Path, time::Duration};

/// How long an authority's certificate is valid: 10 years of 365.25 days.
pub const CA_LIFE_MS: i64 = 3_652 * 86_400_000 + 43_200_000;

/// An authority's certificate is valid from an hour before it was made, for nodes whose clock is a little slow.
const CA_BACKDATE_MS: i64 = 3_600_000;

/// The last instant X.509 can write: 9999-12-31T23:59:59Z.
const TIME_MAX_S: i64 = 253_402_300_799;

const CERTIFICATE_FILE: &str = "ca.pem";
const KEY_FILE: &str = "ca-key.pem";

/// Why no certificate was issued, or why there is no authority.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityFault {
    /// The request or certificate is unusable.
    #[error(transparent)]
    Identity(#[from] IdentityFault),
    /// The authority's own key.
    #[error(transparent)]
    Key(#[from] KeyFault),
    /// The subject is another tenant's.
    #[error("the authority of {authority} does not issue for tenant {subject}")]
    OtherTenant {
        /// Whose authority it is.
        authority: TenantId,
        /// Whose node it was asked to name.
        subject: TenantId,
    },
    /// A name that is no DNS name, or one that belongs to a node.
    #[error("{0:?} cannot be an additional name of a node")]
    BadName(String),
    /// From is after until, or outside what X.509 can write.
    #[error("the validity is empty or cannot be written")]
    BadValidity,
    /// The certificate file.
    #[error("access certificate file {path}")]
    File {
        /// Which file.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// The certificate in the folder is no authority's of one tenant.
    #[error("the certificate in {0} is no tenant's authority")]
    NotAnAuthority(String),
}

/// A tenant's certificate authority.
#[derive(Clone, Debug)]
pub struct Authority {
    tenant: TenantId,
    key: KeyPair,
    certificate: CertificateDer<'static>,
}

impl Authority {
    /// A new authority with a key of its own, self-signed, valid for [`CA_LIFE_MS`] from `now`. It signs end
    /// certificates only (path length 0).
    pub fn create(tenant: &TenantId, now: Millis) -> Result<Authority, AuthorityFault> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = distinguished_name(tenant, &format!("branchline {tenant} authority"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        set_validity(&mut params, now.plus(-CA_BACKDATE_MS), now.plus(CA_LIFE_MS))?;
        let certificate = params.self_signed(&key.certificate_signer()).expect("names and key were made here").into();
        Ok(Authority { tenant: tenant.clone(), key, certificate })
    }

    /// Writes `ca.pem` and `ca-key.pem` (mode 0600) into an existing folder. An authority is written once.
    pub fn save(&self, folder: &Path) -> Result<(), AuthorityFault> {
        self.key.save_pem(&folder.join(KEY_FILE))?;
        let path = folder.join(CERTIFICATE_FILE);
        let text = files::certificates_to_pem(std::slice::from_ref(&self.certificate));
        files::replace(&path, text.as_bytes(), Audience::Everyone).map_err(file_fault(&path))
    }

    /// Reads what [`Authority::save`] wrote.
    pub fn load(folder: &Path) -> Result<Authority, AuthorityFault> {
        let path = folder.join(CERTIFICATE_FILE);
        let text = fs::read(&path).map_err(file_fault(&path))?;
        let not_one = || AuthorityFault::NotAnAuthority(path.display().to_string());
        let certificate = files::pem_to_certificates(&text).ok_or_else(not_one)?.swap_remove(0);
        let key = KeyPair::load_pem(&folder.join(KEY_FILE))?;
        if certificate::certified_key(&certificate)? != key.public() {
            return Err(IdentityFault::OtherKey.into());
        }
        let parsed = certificate::parse(&certificate)?;
        let name = parsed.subject().iter_organization().next().and_then(|name| name.as_str().ok());
        let tenant = name.filter(|_| parsed.is_ca()).and_then(|name| name.parse().ok()).ok_or_else(not_one)?;
        Ok(Authority { tenant, key, certificate })
    }

    /// Whose it is.
    pub fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    /// Its own certificate: what peers trust, and what stands in the trust document.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Issues for the key of a request. Of the request only the key is taken, after its self-signature was checked.
    /// `not_before` and `not_after` are cut to whole seconds; `serial` must be unique within the authority.
    pub fn issue(
        &self,
        request_der: &[u8],
        subject: &Subject,
        not_before: Millis,
        not_after: Millis,
        serial: u128,
    ) -> Result<CertificateDer<'static>, AuthorityFault> {
        let key = certificate::requested_key(request_der)?;
        self.issue_for_key(key, subject, not_before, not_after, serial)
    }

    /// Issues for a public key that is known to be the subject's: the server's own.
    pub fn issue_for_key(
        &self,
        key: PublicKey,
        subject: &Subject,
        not_before: Millis,
        not_after: Millis,
        serial: u128,
    ) -> Result<CertificateDer<'static>, AuthorityFault> {
        if subject.tenant != self.tenant {
            let (authority, subject) = (self.tenant.clone(), subject.tenant.clone());
            return Err(AuthorityFault::OtherTenant { authority, subject });
        }
        let mut params = CertificateParams::default();
        params.distinguished_name = distinguished_name(&subject.tenant, &subject.node.to_string());
        params.subject_alt_names = names(subject)?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match subject.role {
            // Nobody dials an agent, unless it is asked for its status on its own machine: by an address of that alone.
            Role::Agent if !subject.ips.iter().any(|ip| ip.is_loopback()) => vec![ExtendedKeyUsagePurpose::ClientAuth],
            Role::Agent | Role::Server | Role::Gateway | Role::Relay => {
                vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth]
            }
        };
        params.use_authority_key_identifier_extension = true;
        let bytes = serial.to_be_bytes();
        let leading_zeros = (serial.leading_zeros() as usize / 8).min(bytes.len() - 1);
        params.serial_number = Some(SerialNumber::from_slice(&bytes[leading_zeros..]));
        set_validity(&mut params, not_before, not_after)?;
        let issuer = Issuer::from_ca_cert_der(&self.certificate, self.key.certificate_signer())
            .expect("the authority's certificate was made or read by this build");
        let issued = params.signed_by(&SubjectKey(key), &issuer).expect("names were checked and the key is ours");
        Ok(issued.into())
    }
}

/// A public key as rcgen takes it.
struct SubjectKey(PublicKey);

impl rcgen::PublicKeyData for SubjectKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0.0
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ED25519
    }
}

fn distinguished_name(tenant: &TenantId, common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, tenant.as_str());
    name.push(DnType::CommonName, common_name);
    name
}

fn names(subject: &Subject) -> Result<Vec<SanType>, AuthorityFault> {
    let text = |name: String| name.clone().try_into().map_err(|_| AuthorityFault::BadName(name));
    let mut names = vec![
        SanType::URI(text(subject.uri())?),
        SanType::DnsName(text(server_name_text(subject.node, &subject.tenant))?),
    ];
    for name in &subject.dns {
        // Under this suffix a name is another node's, or a second one of this node's.
        let of_a_node = name.to_ascii_lowercase().trim_end_matches('.').ends_with(DNS_SUFFIX);
        if of_a_node || DnsName::try_from(name.as_str()).is_err() {
            return Err(AuthorityFault::BadName(name.clone()));
        }
        names.push(SanType::DnsName(text(name.clone())?));
    }
    names.extend(subject.ips.iter().map(|ip| SanType::IpAddress(*ip)));
    Ok(names)
}

fn set_validity(params: &mut CertificateParams, from: Millis, until: Millis) -> Result<(), AuthorityFault> {
    let (from, until) = (from.0.div_euclid(1000), until.0.div_euclid(1000));
    if from < 0 || from > until || until > TIME_MAX_S {
        return Err(AuthorityFault::BadValidity);
    }
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + Duration::from_secs(from as u64);
    params.not_after = epoch + Duration::from_secs(until as u64);
    Ok(())
}

fn file_fault(path: &Path) -> impl FnOnce(io::Error) -> AuthorityFault + '_ {
    move |source| AuthorityFault::File { path: path.display().to_string(), source }
}

#[cfg(test)]
#[path = "authority_tests.rs"]
mod tests;
