//! The mesh's private CA.

use std::path::Path;
use std::time::Duration;

use ado_proto::{Principal, Role, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType,
    SerialNumber,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

use crate::{Error, Pin, SERVER_NAME, files, secret};

/// A certificate's life begins this much before it is made, or its own life's length if that is shorter: clocks differ.
const BACKDATE: Duration = Duration::from_secs(5 * 60);

const KEY_FILE: &str = "ca.key";
const CERTIFICATE_FILE: &str = "ca.pem";

/// Signs the certificates of one mesh (ECDSA P-256). Whoever holds its key is the mesh.
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    pin: Pin,
}

/// A certificate just made.
#[derive(Debug, Clone)]
pub struct Issued {
    /// The leaf, then the CA.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's serial number, lower-case hexadecimal.
    pub serial: String,
    /// The end of the leaf's life, in whole seconds.
    pub not_after: Timestamp,
}

impl Ca {
    /// Reads `ca.key` and `ca.pem` (both 0600) in `dir`, or makes a new CA there. Of processes that race to make it, all
    /// get the same. A lost `ca.pem` is made again from the key, and everybody's certificates and pins stay good.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::BadFile`] when a file is damaged, they do not belong together, or the key alone is missing
    /// (it is never replaced silently: that would lock everybody out).
    pub fn open_or_create(dir: &Path, now: Timestamp) -> Result<Self, Error> {
        let (key_path, certificate_path) = (dir.join(KEY_FILE), dir.join(CERTIFICATE_FILE));
        // In this order: the key is written before the certificate.
        let certificate = files::read(&certificate_path)?;
        let key = match files::read(&key_path)? {
            Some(key) => key,
            None if certificate.is_some() => {
                return Err(Error::bad_file(
                    &key_path,
                    "missing beside ca.pem: restore it from a backup, or delete ca.pem to start a new mesh (everybody has \
                     to join again)",
                ));
            }
            None => {
                files::create_folder(dir)?;
                let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(Error::crypto("make the CA's key"))?;
                files::create(&key_path, key.serialize_pem().as_bytes())?
            }
        };
        let bad_key = || Error::bad_file(&key_path, "not a PEM file of an ECDSA P-256 key: restore it from a backup");
        let key = read_key(&key).ok_or_else(bad_key)?;
        let certificate = match certificate {
            Some(certificate) => certificate,
            None => files::create(&certificate_path, &self_sign(&key, now)?)?,
        };
        let wrong = |problem: &str| Error::bad_file(&certificate_path, problem);
        let certificate = CertificateDer::from_pem_slice(&certificate)
            .map_err(|_| wrong("not a PEM certificate: delete it, and it is made again from ca.key"))?;
        let other = || wrong("not the certificate of ca.key: restore both from one backup");
        Self::of(key, certificate)?.ok_or_else(other)
    }

    /// Reads `ca.key` and `ca.pem` in `dir`; `None` when neither is there.
    ///
    /// # Errors
    /// Those of [`Ca::open_or_create`].
    pub fn open(dir: &Path, now: Timestamp) -> Result<Option<Self>, Error> {
        let is_there = [KEY_FILE, CERTIFICATE_FILE].iter().any(|file| dir.join(file).exists());
        if is_there { Self::open_or_create(dir, now).map(Some) } else { Ok(None) }
    }

    /// A new CA that is in no file.
    ///
    /// # Errors
    /// [`Error::Crypto`].
    pub fn generate(now: Timestamp) -> Result<Self, Error> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(Error::crypto("make the CA's key"))?;
        Self::from_pem(&[key.serialize_pem().as_bytes(), b"\n", &self_sign(&key, now)?].concat())
    }

    /// The key and the certificate in PEM: whoever has this is the mesh.
    pub fn to_pem(&self) -> Zeroizing<String> {
        let key = Zeroizing::new(self.issuer.key().serialize_pem());
        Zeroizing::new(format!("{}\n{}", *key, files::to_pem("CERTIFICATE", &self.certificate)))
    }

    /// Reads what [`Ca::to_pem`] gave.
    ///
    /// # Errors
    /// [`Error::BadCertificate`].
    pub fn from_pem(pem: &[u8]) -> Result<Self, Error> {
        let bad = || Error::BadCertificate("there is no CA in it, or its certificate is another one's".into());
        let key = PrivatePkcs8KeyDer::from_pem_slice(pem).ok().and_then(|key| KeyPair::try_from(&key).ok());
        let key = key.filter(|key| key.is_compatible(&PKCS_ECDSA_P256_SHA256)).ok_or_else(bad)?;
        let certificate = CertificateDer::from_pem_slice(pem).map_err(|_| bad())?;
        Self::of(key, certificate)?.ok_or_else(bad)
    }

    /// `None`: the certificate is not the key's.
    fn of(key: KeyPair, certificate: CertificateDer<'static>) -> Result<Option<Self>, Error> {
        let own = Pin(secret::sha256(&key.subject_public_key_info()));
        let Some(pin) = Pin::of(&certificate).filter(|pin| *pin == own) else { return Ok(None) };
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(Error::crypto("read the CA's certificate"))?;
        Ok(Some(Self { issuer, certificate, pin }))
    }

    /// What everybody who joins knows it by.
    pub fn pin(&self) -> Pin {
        self.pin
    }

    /// Its certificate, signed by itself.
    pub fn certificate(&self) -> CertificateDer<'static> {
        self.certificate.clone()
    }

    /// Certifies that the key of `csr_der` (PKCS #10) is `who`'s, for `lifetime` from `now` in whole seconds. The request's
    /// signature proves that whoever asks has the key; the names and uses it asks for are ignored.
    ///
    /// # Errors
    /// [`Error::BadRequest`] when it is no request, its signature is wrong or its key is not ECDSA P-256;
    /// [`Error::BadName`] when `who` cannot be written into a certificate and read back.
    pub fn issue(&self, csr_der: &[u8], who: &Principal, lifetime: Duration, now: Timestamp) -> Result<Issued, Error> {
        let request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr_der))
            .map_err(|cause| Error::BadRequest(cause.to_string()))?;
        if *request.public_key.algorithm() != PKCS_ECDSA_P256_SHA256 {
            return Err(Error::BadRequest("its key is not ECDSA P-256".into()));
        }
        let mut params = leaf_params(who)?;
        set_life(&mut params, before(now, BACKDATE.min(lifetime)), now.after(lifetime));
        let serial = serial();
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        let leaf =
            params.signed_by(&request.public_key, &self.issuer).map_err(Error::crypto("sign the certificate"))?;
        Ok(Issued {
            chain: vec![leaf.into(), self.certificate()],
            serial: secret::to_hex(&serial),
            not_after: Timestamp(params.not_after.unix_timestamp() * 1_000_000),
        })
    }
}

impl std::fmt::Debug for Ca {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ca").field("pin", &self.pin).finish_non_exhaustive()
    }
}

fn read_key(pem: &[u8]) -> Option<KeyPair> {
    let key = KeyPair::from_pem(std::str::from_utf8(pem).ok()?).ok()?;
    key.is_compatible(&PKCS_ECDSA_P256_SHA256).then_some(key)
}

/// The CA's certificate in PEM. It has no end: trust in a CA ends when its pin is replaced, and a date would only lock a
/// mesh out of itself.
fn self_sign(key: &KeyPair, now: Timestamp) -> Result<Vec<u8>, Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    // Of the key, so that meshes can be told apart, and a certificate made again is the same CA's.
    let pin = Pin(secret::sha256(&key.subject_public_key_info())).to_string();
    params.distinguished_name.push(DnType::CommonName, format!("ado CA {}", &pin[..16]));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_life(&mut params, before(now, BACKDATE), Timestamp(i64::MAX));
    params.serial_number = Some(SerialNumber::from_slice(&serial()));
    let certificate = params.self_signed(key).map_err(Error::crypto("sign the CA's certificate"))?;
    Ok(files::to_pem("CERTIFICATE", certificate.der()).into_bytes())
}

/// What a certificate of `who` says apart from times and serial.
fn leaf_params(who: &Principal) -> Result<CertificateParams, Error> {
    let uri = who.to_string();
    if uri.parse::<Principal>().as_ref() != Ok(who) {
        return Err(Error::BadName(uri));
    }
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, who.name.clone());
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let bad_name = |_| Error::BadName(who.to_string());
    params.subject_alt_names = vec![SanType::URI(uri.try_into().map_err(bad_name)?)];
    if who.role == Role::Controller {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        params.subject_alt_names.push(SanType::DnsName(SERVER_NAME.try_into().map_err(bad_name)?));
    }
    Ok(params)
}

/// 128 bits, 126 of them random (RFC 5280 asks for a positive number); never shorter when written.
fn serial() -> [u8; 16] {
    let mut serial: [u8; 16] = secret::random();
    serial[0] = serial[0] & 0x3f | 0x40;
    serial
}

fn before(at: Timestamp, by: Duration) -> Timestamp {
    Timestamp(at.0.saturating_sub(i64::try_from(by.as_micros()).unwrap_or(i64::MAX)))
}

/// In whole seconds, between the first and the last instant a certificate can say: 1970 and 9999.
fn set_life(params: &mut CertificateParams, from: Timestamp, to: Timestamp) {
    const LAST: Duration = Duration::from_secs(253_402_300_799);
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let seconds = |at: Timestamp| Duration::from_secs(at.since(Timestamp(0)).as_secs()).min(LAST);
    params.not_before = epoch + seconds(from);
    params.not_after = epoch + seconds(to);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;

    use x509_parser::prelude::*;

    use super::*;
    use crate::KeyRequest;

    const NOW: Timestamp = Timestamp(1_893_456_000_000_000);
    const HOUR: Duration = Duration::from_secs(3600);

    fn new_ca() -> (tempfile::TempDir, Ca) {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::open_or_create(dir.path(), NOW).unwrap();
        (dir, ca)
    }

    fn who(text: &str) -> Principal {
        text.parse().unwrap()
    }

    #[test]
    fn reopening_gives_the_same_ca() {
        let (dir, ca) = new_ca();
        let again = Ca::open_or_create(dir.path(), NOW.after(HOUR)).unwrap();
        assert_eq!((again.pin(), again.certificate()), (ca.pin(), ca.certificate()));
        assert_ne!(new_ca().1.pin(), ca.pin());
    }

    #[test]
    fn of_many_openers_all_get_the_same_ca() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new");
        let seen: Vec<_> = std::thread::scope(|scope| {
            let open = || Ca::open_or_create(&path, NOW).map(|ca| (ca.pin(), ca.certificate())).unwrap();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(open)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(seen.iter().all(|ca| *ca == seen[0]));
    }

    #[test]
    fn a_lost_certificate_is_made_again_and_what_was_issued_stays_good() {
        let (dir, ca) = new_ca();
        let request = KeyRequest::new().unwrap();
        let issued = ca.issue(request.csr_der(), &who("ado://default/user/ann"), HOUR, NOW).unwrap();
        fs::remove_file(dir.path().join(CERTIFICATE_FILE)).unwrap();
        let again = Ca::open_or_create(dir.path(), NOW.after(HOUR)).unwrap();
        assert_eq!(again.pin(), ca.pin());
        let chain = vec![issued.chain[0].clone(), again.certificate()];
        assert_eq!(request.into_identity(chain).unwrap().pin(), ca.pin());
        let subject = |ca: &Ca| X509Certificate::from_der(&ca.certificate).unwrap().1.subject().to_string();
        assert_eq!(subject(&again), subject(&ca));
    }

    #[test]
    fn a_damaged_or_lost_key_is_never_replaced() {
        let check = |break_it: &dyn Fn(&Path), words: &[&str]| {
            let (dir, _) = new_ca();
            break_it(dir.path());
            let before = fs::read(dir.path().join(KEY_FILE)).ok();
            let error = Ca::open_or_create(dir.path(), NOW).unwrap_err().to_string();
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
            assert_eq!(fs::read(dir.path().join(KEY_FILE)).ok(), before);
        };
        check(&|dir| fs::remove_file(dir.join(KEY_FILE)).unwrap(), &["ca.key: missing", "start a new mesh"]);
        check(&|dir| fs::write(dir.join(KEY_FILE), "no key").unwrap(), &["ca.key: not a PEM", "backup"]);
        check(&|dir| fs::write(dir.join(KEY_FILE), [0xff; 9]).unwrap(), &["ca.key: not a PEM"]);
        check(&|dir| fs::write(dir.join(CERTIFICATE_FILE), "").unwrap(), &["ca.pem: not a PEM", "delete it"]);
        let other = new_ca().0;
        check(
            &|dir| fs::rename(other.path().join(KEY_FILE), dir.join(KEY_FILE)).unwrap(),
            &["ca.pem: not the certificate of ca.key"],
        );
        let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap().serialize_pem();
        check(&|dir| fs::write(dir.join(KEY_FILE), &p384).unwrap(), &["not a PEM file of an ECDSA P-256 key"]);
    }

    #[test]
    fn a_ca_can_be_kept_elsewhere() {
        let ca = Ca::generate(NOW).unwrap();
        let again = Ca::from_pem(ca.to_pem().as_bytes()).unwrap();
        assert_eq!((again.pin(), again.certificate()), (ca.pin(), ca.certificate()));
        let request = KeyRequest::new().unwrap();
        let issued = again.issue(request.csr_der(), &who("ado://default/user/ann"), HOUR, NOW).unwrap();
        assert_eq!(request.into_identity(issued.chain).unwrap().pin(), ca.pin());
        let mixed = [KeyPair::generate().unwrap().serialize_pem().as_bytes(), ca.to_pem().as_bytes()].concat();
        for bad in [&b""[..], b"no PEM", &ca.to_pem().as_bytes()[200..], &mixed] {
            assert!(Ca::from_pem(bad).is_err());
        }
        let dir = tempfile::tempdir().unwrap();
        assert!(Ca::open(dir.path(), NOW).unwrap().is_none());
        let made = Ca::open_or_create(dir.path(), NOW).unwrap();
        assert_eq!(Ca::open(dir.path(), NOW).unwrap().unwrap().pin(), made.pin());
    }

    #[cfg(unix)]
    #[test]
    fn only_the_owner_may_read_the_key() {
        use std::os::unix::fs::MetadataExt;
        let (dir, _) = new_ca();
        assert_eq!(fs::metadata(dir.path().join(KEY_FILE)).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn names_and_uses_are_the_cas_choice() {
        let (_dir, ca) = new_ca();
        // Asks for everything.
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([SERVER_NAME.to_owned()]).unwrap();
        params.subject_alt_names.push(SanType::URI("ado://default/admin/eve".try_into().unwrap()));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let csr = params.serialize_request(&key).unwrap();

        let check = |who: &Principal, serves: bool| {
            let issued = ca.issue(csr.der(), who, HOUR, NOW).unwrap();
            assert_eq!(issued.chain[1], ca.certificate());
            let (_, leaf) = X509Certificate::from_der(&issued.chain[0]).unwrap();
            let mut names = vec![who.to_string()];
            names.extend(serves.then(|| SERVER_NAME.to_owned()));
            let found = leaf.subject_alternative_name().unwrap().unwrap().value.general_names.iter();
            let found: Vec<_> = found
                .map(|name| match name {
                    GeneralName::URI(name) | GeneralName::DNSName(name) => (*name).to_owned(),
                    other => panic!("{other:?}"),
                })
                .collect();
            assert_eq!(found, names);
            let usage = leaf.extended_key_usage().unwrap().unwrap().value;
            assert_eq!((usage.client_auth, usage.server_auth, usage.any), (true, serves, false));
            let usage = leaf.key_usage().unwrap().unwrap().value;
            assert!(usage.digital_signature() && !usage.key_cert_sign() && !leaf.is_ca());
            assert_eq!(leaf.raw_serial_as_string().replace(':', ""), issued.serial);
            assert_eq!(issued.serial.len(), 32);
            assert_eq!(leaf.validity().not_after.timestamp() * 1_000_000, issued.not_after.0);
        };
        check(&who("ado://default/user/ann"), false);
        check(&who("ado://default/worker/w1"), false);
        check(&who("ado://default/admin/root"), false);
        check(&who("ado://default/controller/c1"), true);
    }

    #[test]
    fn serials_differ() {
        let (_dir, ca) = new_ca();
        let request = KeyRequest::new().unwrap();
        let issue = || ca.issue(request.csr_der(), &who("ado://default/user/ann"), HOUR, NOW).unwrap().serial;
        assert_eq!((0..50).map(|_| issue()).collect::<BTreeSet<_>>().len(), 50);
    }

    #[test]
    fn requests_without_proof_are_refused() {
        let (_dir, ca) = new_ca();
        let good = KeyRequest::new().unwrap().csr_der().to_vec();
        let check = |csr: &[u8]| {
            let error = ca.issue(csr, &who("ado://default/user/ann"), HOUR, NOW).unwrap_err();
            assert!(matches!(error, Error::BadRequest(_)), "{error}");
            error.to_string()
        };
        // Whatever is wrong in what is signed: key, names, attributes.
        let signed = X509CertificationRequest::from_der(&good).unwrap().1.certification_request_info.raw.to_vec();
        let begin = good.windows(signed.len()).position(|window| window == signed).unwrap();
        for i in begin..begin + signed.len() {
            let mut bad = good.clone();
            bad[i] ^= 1;
            check(&bad);
        }
        // The signature is the last thing in it.
        let mut bad = good.clone();
        *bad.last_mut().unwrap() ^= 1;
        assert!(check(&bad).to_lowercase().contains("signature"));
        for len in 0..good.len() {
            check(&good[..len]);
        }
        let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        let csr = CertificateParams::default().serialize_request(&p384).unwrap();
        assert!(check(csr.der()).contains("not ECDSA P-256"));
    }

    #[test]
    fn names_that_cannot_be_read_back_are_refused() {
        let (_dir, ca) = new_ca();
        let request = KeyRequest::new().unwrap();
        let long = "n".repeat(64);
        for name in ["", "a/b", "ann smith", "é", long.as_str()] {
            let who = Principal { name: name.into(), ..who("ado://default/user/ann") };
            let error = ca.issue(request.csr_der(), &who, HOUR, NOW).unwrap_err();
            assert!(matches!(error, Error::BadName(_)), "{name}: {error}");
        }
        let who = Principal { name: "n".repeat(63), ..who("ado://default/user/ann") };
        ca.issue(request.csr_der(), &who, HOUR, NOW).unwrap();
    }

    #[test]
    fn no_time_is_too_far_away() {
        let (_dir, ca) = new_ca();
        let request = KeyRequest::new().unwrap();
        for now in [-1, 0, i64::MAX] {
            let issued =
                ca.issue(request.csr_der(), &who("ado://default/user/ann"), Duration::MAX, Timestamp(now)).unwrap();
            assert_eq!(issued.not_after, Timestamp(253_402_300_799_000_000));
        }
    }
}
