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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use super::*;
    use crate::Ca;

    const NOW: Timestamp = Timestamp(1_893_456_000_000_000);
    const ANN: &str = "ado://default/user/ann";

    fn ca() -> Ca {
        Ca::open_or_create(tempfile::tempdir().unwrap().path(), NOW).unwrap()
    }

    fn identity(ca: &Ca, lifetime: Duration) -> Identity {
        let request = KeyRequest::new().unwrap();
        let issued = ca.issue(request.csr_der(), &ANN.parse().unwrap(), lifetime, NOW).unwrap();
        request.into_identity(issued.chain).unwrap()
    }

    #[test]
    fn saving_and_loading_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("new");
        let ca = ca();
        // Twice: the second takes the first one's place.
        for lifetime in [60, 3600] {
            let saved = identity(&ca, Duration::from_secs(lifetime));
            saved.save(&dir).unwrap();
            let loaded = Identity::load(&dir).unwrap();
            assert_eq!((&loaded.key, &loaded.chain, &loaded.leaf), (&saved.key, &saved.chain, &saved.leaf));
            assert_eq!(loaded.principal().to_string(), ANN);
            assert_eq!((loaded.ca(), loaded.pin()), (&ca.certificate(), ca.pin()));
            assert_eq!(loaded.not_after(), NOW.after(Duration::from_secs(lifetime)));
        }
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
    }

    #[cfg(unix)]
    #[test]
    fn only_the_owner_may_read_it() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        identity(&ca(), Duration::from_secs(60)).save(dir.path()).unwrap();
        assert_eq!(fs::metadata(dir.path().join(FILE)).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn key_and_certificate_belong_together() {
        let (ca, other) = (ca(), ca());
        let request = KeyRequest::new().unwrap();
        let chain =
            |ca: &Ca, csr: &[u8]| ca.issue(csr, &ANN.parse().unwrap(), Duration::from_secs(60), NOW).unwrap().chain;
        let check = |chain: Vec<CertificateDer<'static>>| {
            let key = KeyPair::try_from(request.key.serialize_der()).unwrap();
            Identity::new(key, chain)
        };
        let good = chain(&ca, request.csr_der());
        check(good.clone()).unwrap();
        let foreign = chain(&ca, KeyRequest::new().unwrap().csr_der());
        assert!(matches!(check(foreign), Err(Error::KeyMismatch)));
        let bad = [
            vec![],
            vec![good[0].clone()],
            vec![good[0].clone(), other.certificate()],
            vec![good[0].clone(), good[0].clone()],
            vec![good[0].clone(), good[1].clone(), good[1].clone()],
            vec![good[0].clone(), vec![1, 2, 3].into()],
            vec![vec![].into(), good[1].clone()],
        ];
        // One that a member signed, as if it were a CA.
        let ann = KeyPair::generate().unwrap();
        let csr = CertificateParams::default().serialize_request(&ann).unwrap();
        let ann_leaf = chain(&ca, csr.der())[0].clone();
        let issuer = rcgen::Issuer::from_ca_cert_der(&ann_leaf, ann).unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![rcgen::SanType::URI(ANN.try_into().unwrap())];
        let forged = params.signed_by(&request.key, &issuer).unwrap();
        for chain in bad.into_iter().chain([vec![forged.into(), ann_leaf]]) {
            let error = check(chain).unwrap_err();
            assert!(matches!(error, Error::BadCertificate(_)), "{error}");
        }
    }

    #[test]
    fn errors_name_the_file_and_the_way_out() {
        let dir = tempfile::tempdir().unwrap();
        let error = Identity::load(dir.path()).unwrap_err();
        assert!(matches!(error, Error::NoIdentity(_)));
        assert!(error.to_string().contains("`ado join` first"), "{error}");

        let ca = ca();
        identity(&ca, Duration::from_secs(60)).save(dir.path()).unwrap();
        let path = dir.path().join(FILE);
        let mine = fs::read_to_string(&path).unwrap();
        identity(&ca, Duration::from_secs(60)).save(dir.path()).unwrap();
        let theirs = fs::read_to_string(&path).unwrap();
        let certificates = mine.find("-----BEGIN CERTIFICATE").unwrap();
        let check = |text: &str, problem: &str| {
            fs::write(&path, text).unwrap();
            let error = Identity::load(dir.path()).unwrap_err().to_string();
            for part in [path.to_str().unwrap(), problem, "delete it and `ado join` again"] {
                assert!(error.contains(part), "{error}");
            }
        };
        check("", "no private key");
        check(&mine[certificates..], "no private key");
        check(&mine[..certificates], "a chain is two certificates");
        check(&format!("{}{}", &theirs[..certificates], &mine[certificates..]), "not of this key");
        check(&files::to_pem("PRIVATE KEY", b"?"), "private key cannot be read");
    }

    #[test]
    fn it_is_renewed_in_the_last_third_of_its_life() {
        let after = |seconds| NOW.after(Duration::from_secs(seconds));
        // Begins five minutes early.
        let day = identity(&ca(), Duration::from_secs(24 * 3600));
        assert!(!day.should_renew(NOW) && !day.should_renew(after(57_499)));
        assert!(day.should_renew(after(57_500)) && day.should_renew(after(1_000_000)));
        // A short one is not born old.
        let minute = identity(&ca(), Duration::from_secs(60));
        assert!(!minute.should_renew(after(19)) && minute.should_renew(after(20)));
    }

    #[test]
    fn debug_shows_no_key() {
        let identity = identity(&ca(), Duration::from_secs(60));
        let text = format!("{identity:?}");
        assert!(text.contains("ann") && text.contains(identity.serial()) && !text.contains("key"), "{text}");
    }
}
