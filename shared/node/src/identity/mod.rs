//! Who a node is: its keys, its certificate, the authority that issued it, the tenant's root, the bundle that enrols a
//! node, and the TLS that proves all this to a peer (DESIGN 3, 6).
//!
//! ```text
//! Root ──signs──► TrustDocument ──names──► Authority's certificate ──issues──► node certificates
//!  ▲                     └─────────names──► server key ──signs──► Bundle, orders, documents
//!  └── pinned by Bundle
//! ```
//!
//! Keys are made where they are used and never leave: only requests and certificates travel (ENR-7). Identity is read
//! from a verified certificate and from nowhere else.

mod authority;
mod bundle;
mod certificate;
mod files;
mod keys;
mod root;
mod tls;

pub use authority::{Authority, AuthorityFault, CA_LIFE_MS};
pub use bundle::{BUNDLE_BYTES_MAX, BUNDLE_VERSION, Bundle, BundleFault};
pub use certificate::{
    IdentityFault, PeerIdentity, Subject, parse_server_name, peer_identity, request, server_name, server_name_text,
};
pub use files::{certificates_to_pem, pem_to_certificates};
pub use keys::{KeyFault, KeyPair};
pub use root::{Root, RootKey, verify_trust};
pub use tls::{
    HTTP_ALPN, HTTPS_ALPN, Identity, LINK_ALPN, TlsFault, child_config, enrol_config, https_config, link_keys,
    outer_client_config, parent_config, provider,
};
