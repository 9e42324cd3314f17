//! Who is who: the mesh's private CA, join strings, certificates, TLS configurations, peer identity.
//!
//! One CA per mesh signs short-lived leaves; a leaf's SAN URI names its [`Principal`](ado_proto::Principal). Whoever wants
//! in pins the CA by the hash in a [`JoinString`], proves a secret, and has a key of its own certified: private keys never
//! travel. TLS checks chains on full handshakes only, so [`verify_peer`] is the gate of every connection: it also sees
//! resumed ones.
//!
//! What a shared store keeps for the mesh is closed under a [`MasterKey`] that lies elsewhere: see [`envelope`].
//!
//! Must never know: tasks, sockets, storage other than its own key files.

mod ca;
pub mod envelope;
mod error;
mod files;
mod identity;
mod join;
pub mod outer;
mod peer;
mod pinned;
pub mod secret;
mod server_keys;
mod sessions;
mod tls;

pub use ca::{Ca, Issued};
pub use envelope::MasterKey;
pub use error::Error;
pub use files::{create_folder as create_private_folder, replace as write_private};
pub use identity::{Identity, KeyRequest};
pub use join::{JoinString, Pin};
pub use peer::{Denied, Peer, PeerError, VerifiedPeer, verify_peer};
pub use server_keys::ServerSecrets;
pub use tls::{ALPN_JOIN, ALPN_MESH, ClientTls, Clock, ServerTls};

/// The name every controller's certificate carries and every client asks for, whatever address it dials.
pub const SERVER_NAME: &str = "controller.ado";
