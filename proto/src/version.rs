//! Protocol versions: the ALPN names say the major version, [`MINOR`] what a peer of it understands.

/// ALPN of the mesh: every peer has a certificate of the mesh's CA.
pub const ALPN_MESH: &[u8] = b"ado/1";
/// ALPN of enrolment: the client has no certificate yet and may send [`crate::request::Enrol`] only.
pub const ALPN_JOIN: &[u8] = b"ado-join/1";

/// Newest minor version this build speaks. A request header carries the sender's; the receiver answers
/// [`crate::ErrorCode::UnsupportedVersion`] when it is below [`OLDEST_MINOR`].
pub const MINOR: u16 = 1;
/// Oldest minor version this build still answers.
pub const OLDEST_MINOR: u16 = 1;
