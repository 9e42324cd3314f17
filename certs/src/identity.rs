//! A process's own key and certificate.

use std::fmt;
use std::path::Path;

use ado_proto::{Principal, Timestamp};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use crate::peer::Leaf;
use crate::{Error, Pin, files, secret};

/// One file for key and chain: a crash cannot leave the key of one beside the certificate of another.
const FILE: &str = "identity.pem";

/// A new key that asks to be certified.
pub struct KeyRequest {
    key: KeyPair,
    csr: Vec<u8>,
}

impl KeyRequest {
    /// Makes a key (ECDSA P-256).
    ///
    /// # Errors
    /// [`Error::Crypto`].
    pub fn new() -> Result<Self, Error> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(Error::crypto("make a key"))?;
        // Whoever signs it decides the names.
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let csr = params.serialize_request(&key).map_err(Error::crypto("make a certificate request"))?;
        Ok(Self { key, csr: csr.der().to_vec() })
    }

    /// The request (PKCS #10) for [`Ca::issue`](crate::Ca::issue).
    pub fn csr_der(&self) -> &[u8] {
        &self.csr
    }

    /// Joins the key with what was issued for it: the leaf, then the CA. Compare [`Identity::pin`] with the pin you have:
    /// nothing here says that this CA is the right one.
    ///
    /// # Errors
    /// [`Error::KeyMismatch`], [`Error::BadCertificate`].
    pub fn into_identity(self, chain: Vec<CertificateDer<'static>>) -> Result<Identity, Error> {
        Identity::new(self.key, chain)
    }
}

impl fmt::Debug for KeyRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyRequest").finish_non_exhaustive()
    }
}

/// A private key and the certificate that says whose it is.
pub struct Identity {
    key: PrivatePkcs8KeyDer<'static>,
    chain: Vec<CertificateDer<'static>>,
    leaf: Leaf,
    pin: Pin,
}

impl Identity {
    fn new(key: KeyPair, chain: Vec<CertificateDer<'static>>) -> Result<Self, Error> {
        let bad = |what: &str| Error::BadCertificate(what.into());
        let [leaf_der, ca] = chain.as_slice() else {
            return Err(bad("a chain is two certificates, the leaf and its CA"));
        };
        let parse = |der| x509_parser::parse_x509_certificate(der).map(|(_, parsed)| parsed);
        let leaf = parse(leaf_der).map_err(|_| bad("the leaf cannot be read"))?;
        let ca = parse(ca).map_err(|_| bad("the CA cannot be read"))?;
        if leaf.public_key().raw != key.subject_public_key_info() {
            return Err(Error::KeyMismatch);
        }
        if !ca.is_ca() || leaf.verify_signature(Some(ca.public_key())).is_err() {
            return Err(bad("the leaf is not signed by the CA that came with it"));
        }
        let pin = Pin(secret::sha256(ca.public_key().raw));
        let leaf = Leaf::of(&leaf).ok_or_else(|| bad("it names no identity"))?;
        Ok(Self { key: PrivatePkcs8KeyDer::from(key.serialize_der()), chain, leaf, pin })
    }

    /// Reads `identity.pem` in `dir`.
    ///
    /// # Errors
    /// [`Error::NoIdentity`] when there is none, [`Error::BadFile`] when it is damaged, [`Error::Io`].
    pub fn load(dir: &Path) -> Result<Self, Error> {
        let path = dir.join(FILE);
        let bytes = files::read(&path)?.ok_or_else(|| Error::NoIdentity(dir.into()))?;
        let damaged =
            |what: &dyn fmt::Display| Error::bad_file(&path, format!("{what}: delete it and `ado join` again"));
        let key = PrivatePkcs8KeyDer::from_pem_slice(&bytes).map_err(|_| damaged(&"no private key in it"))?;
        let key = KeyPair::try_from(&key).map_err(|_| damaged(&"its private key cannot be read"))?;
        let chain: Result<_, _> = CertificateDer::pem_slice_iter(&bytes).collect();
        let chain = chain.map_err(|_| damaged(&"its certificates cannot be read"))?;
        Self::new(key, chain).map_err(|error| damaged(&error))
    }

    /// Writes `identity.pem` (0600) in `dir`, in the place of an earlier one. After a crash there is the old or the new.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn save(&self, dir: &Path) -> Result<(), Error> {
        files::create_folder(dir)?;
        let key = files::to_pem("PRIVATE KEY", self.key.secret_pkcs8_der());
        let text = self.chain.iter().fold(key, |text, der| text + &files::to_pem("CERTIFICATE", der));
        files::replace(&dir.join(FILE), text.as_bytes())
    }

    /// Whose it is.
    pub fn principal(&self) -> &Principal {
        &self.leaf.principal
    }

    /// The certificate's serial number, lower-case hexadecimal.
    pub fn serial(&self) -> &str {
        &self.leaf.serial
    }

    /// The beginning of the certificate's life.
    pub fn not_before(&self) -> Timestamp {
        self.leaf.not_before
    }

    /// The end of the certificate's life.
    pub fn not_after(&self) -> Timestamp {
        self.leaf.not_after
    }

    /// The leaf, then the CA.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The CA's certificate.
    pub fn ca(&self) -> &CertificateDer<'static> {
        &self.chain[1]
    }

    /// The CA's pin.
    pub fn pin(&self) -> Pin {
        self.pin
    }

    /// Whether two thirds of the certificate's life are over: time to have a new one made, with a third left to succeed in.
    pub fn should_renew(&self, now: Timestamp) -> bool {
        let (begin, end) = (self.not_before(), self.not_after());
        now.since(begin) >= end.since(begin) * 2 / 3
    }

    pub(crate) fn key(&self) -> &PrivatePkcs8KeyDer<'static> {
        &self.key
    }
}

impl Clone for Identity {
    fn clone(&self) -> Self {
        Self { key: self.key.clone_key(), chain: self.chain.clone(), leaf: self.leaf.clone(), pin: self.pin }
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Leaf { principal, serial, .. } = &self.leaf;
        f.debug_struct("Identity").field("principal", principal).field("serial", serial).finish_non_exhaustive()
    }
}
