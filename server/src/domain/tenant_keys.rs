//! A tenant's keys on disk: root, authority, the server's signing key and its link identity.
//!
//! ```text
//! tenants/acme/root.key      the root: signs trust documents only, belongs offline
//!              root.pub      its public half, hex
//!              trust.msgpack the first trust document as the root signed it
//!              ca/           the authority: issues certificates
//!              signing.key   signs orders and documents
//!              cert.pem key.pem   the server's identity on links of this tenant
//! ```
//!
//! The folder is made under another name and renamed when it is whole, so a crash leaves all of it or none.

use super::{files, founding::OfficeFault, names::Host};
use branchline_node::{
    identity::{Authority, CA_LIFE_MS, Identity, KeyPair, Root, Subject, verify_trust},
    node::write_whole,
    random::Random,
};
use branchline_protocol::{
    document::{Document, Revocations},
    hash::Hash,
    id::{NodeId, Role, TenantId},
    order::{Envelope, PublicKey, Signer},
    time::Millis,
    trust::{KeyStatus, TrustDocument, TrustedKey},
};
use bytes::Bytes;
use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    path::Path,
    sync::Arc,
};

/// How much earlier than its making a certificate is valid, for nodes whose clock is a little slow: an hour.
pub const BACKDATE_MS: i64 = 3_600_000;

const ROOT_KEY: &str = "root.key";
const ROOT_PUBLIC: &str = "root.pub";
const TRUST: &str = "trust.msgpack";
const AUTHORITY: &str = "ca";
const SIGNING_KEY: &str = "signing.key";
const README: &str = "README.txt";

const README_TEXT: &str = "\
root.key is this tenant's root key: whoever has it can say which authorities and servers
its nodes believe. Move root.key to an offline place. The server runs without it; it is
needed only to add or retire an authority or a signing key.

The other files stay here. All of them but cert.pem, root.pub, trust.msgpack and ca/ca.pem
are secret, and none of them may be copied to a gateway, relay or device.
";

/// A tenant's keys.
#[derive(Clone)]
pub struct TenantKeys {
    /// Public half of the root.
    pub root: PublicKey,
    /// Issues certificates.
    pub authority: Authority,
    /// Signs orders and documents.
    pub signer: Arc<Signer>,
    /// The server's identity on this tenant's links.
    pub identity: Identity,
    /// The first trust document.
    pub trust: Envelope,
}

impl TenantKeys {
    /// Makes a tenant's keys in `folder`, which must not exist. The server answers to `hosts` besides the name made of
    /// its id.
    pub fn create(
        folder: &Path,
        tenant: &TenantId,
        server: NodeId,
        hosts: &[Host],
        now: Millis,
        random: &dyn Random,
    ) -> Result<TenantKeys, OfficeFault> {
        // Tenants' names have no dot.
        let new = folder.with_extension("new");
        if new.exists() {
            fs::remove_dir_all(&new).map_err(OfficeFault::file(&new))?;
        }
        let authority_folder = new.join(AUTHORITY);
        files::make_folder(&authority_folder).map_err(OfficeFault::file(&authority_folder))?;
        let root = Root::create()?;
        root.save(&new.join(ROOT_KEY))?;
        let authority = Authority::create(tenant, now)?;
        authority.save(&authority_folder)?;
        let signing = KeyPair::generate()?;
        signing.save(&new.join(SIGNING_KEY))?;
        let trust = root.sign(&TrustDocument {
            tenant: tenant.clone(),
            term: 1,
            version: 1,
            cas: vec![Bytes::copy_from_slice(authority.certificate())],
            keys: vec![TrustedKey { key: signing.public(), role: "server".into(), status: KeyStatus::Active }],
        });
        let write = |name: &str, bytes: &[u8]| {
            let path = new.join(name);
            write_whole(&path, bytes).map_err(OfficeFault::file(&path))
        };
        write(TRUST, &rmp_serde::to_vec(&trust).expect("an envelope is plain data"))?;
        write(ROOT_PUBLIC, Hash(root.public().0).to_string().as_bytes())?;
        write(README, README_TEXT.as_bytes())?;
        let key = KeyPair::generate()?;
        own_identity(&authority, key, server, hosts, now, random)?.save(&new)?;
        files::sync_folder(&new).and_then(|()| files::rename(&new, folder)).map_err(OfficeFault::file(folder))?;
        Self::load(folder, tenant, server)
    }

    /// Reads what [`TenantKeys::create`] made; `root.key` may be gone.
    pub fn load(folder: &Path, tenant: &TenantId, server: NodeId) -> Result<TenantKeys, OfficeFault> {
        let damaged = |what: &str| OfficeFault::Damaged { tenant: tenant.clone(), what: what.into() };
        let path = folder.join(ROOT_PUBLIC);
        let text = fs::read_to_string(&path).map_err(OfficeFault::file(&path))?;
        let root = Hash::from_hex(text.trim()).map(|h| PublicKey(h.0)).ok_or_else(|| damaged("root.pub is no key"))?;
        let path = folder.join(TRUST);
        let bytes = fs::read(&path).map_err(OfficeFault::file(&path))?;
        let trust: Envelope = rmp_serde::from_slice(&bytes).map_err(|_| damaged("trust.msgpack is no envelope"))?;
        verify_trust(&trust, tenant, root).map_err(|e| damaged(&format!("the trust document: {e}")))?;
        let authority = Authority::load(&folder.join(AUTHORITY))?;
        let identity = Identity::load(folder)?;
        let subject = &identity.subject;
        if authority.tenant() != tenant || (&subject.tenant, subject.node) != (tenant, server) {
            return Err(damaged("the keys are another tenant's or another server's"));
        }
        let signer = Arc::new(KeyPair::load(&folder.join(SIGNING_KEY))?.signer());
        Ok(TenantKeys { root, authority, signer, identity, trust })
    }

    /// Makes the server answer to other hosts: a new certificate for the same key.
    pub fn rename(
        &mut self,
        folder: &Path,
        hosts: &[Host],
        now: Millis,
        random: &dyn Random,
    ) -> Result<(), OfficeFault> {
        let key = self.identity.key.clone();
        let identity = own_identity(&self.authority, key, self.identity.subject.node, hosts, now, random)?;
        identity.save(folder)?;
        self.identity = identity;
        Ok(())
    }
}

/// The first revocation list of a tenant: empty.
pub fn first_revocations(tenant: &TenantId, term: u32) -> Revocations {
    Revocations {
        tenant: tenant.clone(),
        term,
        version: 1,
        revoked: Vec::new(),
        suspended: Vec::new(),
        raised: Vec::new(),
        keep_connection: Vec::new(),
    }
}

/// Seals with the tenant's signing key.
pub fn seal<D: Document>(keys: &TenantKeys, document: &D) -> Envelope {
    document.seal(&keys.signer)
}

/// A serial number: positive and never met twice.
pub fn serial(random: &dyn Random) -> u128 {
    let mut bytes = [0; 16];
    random.fill(&mut bytes);
    // The top bit would be a sign; the next one makes sure that there is a number at all.
    u128::from_be_bytes(bytes) & (u128::MAX >> 1) | (1 << 126)
}

/// The server's own certificate. It lives as long as the authority, whose key lies beside it: a shorter life would
/// protect nothing.
fn own_identity(
    authority: &Authority,
    key: KeyPair,
    server: NodeId,
    hosts: &[Host],
    now: Millis,
    random: &dyn Random,
) -> Result<Identity, OfficeFault> {
    let mut subject = Subject {
        tenant: authority.tenant().clone(),
        role: Role::Server,
        node: server,
        epoch: 1,
        dns: Vec::new(),
        ips: Vec::new(),
    };
    for host in hosts {
        match host {
            Host::Ip(ip) => subject.ips.push(*ip),
            Host::Dns(name) => subject.dns.push(name.clone()),
        }
    }
    let (from, until) = (now.plus(-BACKDATE_MS), now.plus(CA_LIFE_MS));
    let certificate = authority.issue_for_key(key.public(), &subject, from, until, serial(random))?;
    Ok(Identity::new(vec![certificate, authority.certificate().clone()], key)?)
}

/// What every API certificate answers to.
pub fn loopback() -> [Host; 2] {
    [Host::Ip(IpAddr::V4(Ipv4Addr::LOCALHOST)), Host::Dns("localhost".into())]
}
