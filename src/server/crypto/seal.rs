//! Sealing: what stands between a value and the disk.
//!
//! One master key (32 bytes, never in the database) gives, by HKDF with the vault's id as salt,
//! separate keys for wrapping, for etags, for API keys and for recognising the master key itself.
//! Every object has a random data key, stored wrapped; every version is sealed under it with
//! AES-256-GCM. The associated data names vault, object, version and form, so that no sealed value
//! opens anywhere but where it was put.
//!
//! Hashes kept in the database (etags, API keys, requests) are HMACs: a plain hash of a secret is
//! an oracle for guesses. Key bytes and opened values are wiped on drop; ring's expanded key
//! schedules are not, which only matters if this process's memory is read.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::{hkdf, hmac};
use ulid::Ulid;
use zeroize::Zeroizing;

use crate::secret::{SecretBytes, SecretString};
use crate::server::crypto::data_keys::DataKeys;
use crate::server::store::{Etag, IdempotencyRecord, KeyHash, StoredForm, VaultId};
use crate::sys::random;

/// Bytes of every key here.
pub(in crate::server) const KEY_LEN: usize = 32;
const TAG_LEN: usize = 16;
/// First byte of everything sealed here; another scheme gets another number.
const SCHEME: u8 = 1;

/// Why something could not be sealed or opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The bytes were changed, moved, or sealed under another master key.
    #[error(
        "a sealed value does not authenticate: the database was changed or belongs to another master key"
    )]
    NotAuthentic,
    /// The operating system gave no random numbers.
    #[error("the system gives no random numbers")]
    NoRandomness,
}

/// `N` random bytes from the operating system.
pub fn random<const N: usize>() -> Result<[u8; N], SealError> {
    random::bytes().map_err(|_| SealError::NoRandomness)
}

/// The key of keys.
#[derive(Debug)]
pub struct MasterKey(SecretBytes);

impl MasterKey {
    /// A new random one.
    pub fn generate() -> Result<Self, SealError> {
        let bytes = Zeroizing::new(random::<KEY_LEN>()?);
        Ok(Self(SecretBytes::new(bytes.to_vec())))
    }

    /// From the text of a key file: base64 of 32 bytes, white space around it ignored.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = Zeroizing::new(BASE64.decode(text.trim()).ok()?);
        (bytes.len() == KEY_LEN).then(|| Self(SecretBytes::new(bytes.to_vec())))
    }

    /// The text of a key file.
    pub fn to_text(&self) -> SecretString {
        // Room for all of it: a buffer that grew would leave an unwiped copy behind.
        let mut text = String::with_capacity(KEY_LEN * 2);
        BASE64.encode_string(self.0.expose(), &mut text);
        text.push('\n');
        SecretString::new(text)
    }
}

/// Where a sealed value belongs.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// Its object.
    pub object: Ulid,
    /// Its version's number.
    pub version: u64,
    /// What the text is.
    pub form: StoredForm,
}

/// An object's data key, opened.
pub struct DataKey(LessSafeKey);

/// Seals and opens everything of one vault.
pub struct Sealer {
    vault: VaultId,
    wrap: LessSafeKey,
    etag: hmac::Key,
    api_key: hmac::Key,
    idempotency: hmac::Key,
    data_keys: DataKeys,
    check: [u8; KEY_LEN],
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sealer")
    }
}

/// A key of [`KEY_LEN`] bytes, ready for use.
pub(in crate::server) fn aead_key(bytes: &[u8]) -> LessSafeKey {
    // Every caller passes KEY_LEN bytes, which is what AES-256 takes.
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, bytes).expect("AES-256-GCM takes 32 bytes"))
}

impl Sealer {
    /// Derives the keys of `vault`.
    pub fn new(master: &MasterKey, vault: VaultId) -> Self {
        let root = hkdf::Salt::new(hkdf::HKDF_SHA256, &vault.0).extract(master.0.expose());
        let derive = |purpose: &str| -> Zeroizing<[u8; KEY_LEN]> {
            let mut key = Zeroizing::new([0; KEY_LEN]);
            // Both lengths are SHA-256's: neither call can be refused.
            let purpose = [purpose.as_bytes()];
            let okm = root.expand(&purpose, hkdf::HKDF_SHA256).expect("32 bytes are within HKDF's limit");
            okm.fill(&mut *key).expect("HKDF-SHA256 gives 32 bytes");
            key
        };
        Self {
            vault,
            wrap: aead_key(&*derive("vaultfs wrap v1")),
            etag: hmac::Key::new(hmac::HMAC_SHA256, &*derive("vaultfs etag v1")),
            api_key: hmac::Key::new(hmac::HMAC_SHA256, &*derive("vaultfs api key v1")),
            idempotency: hmac::Key::new(hmac::HMAC_SHA256, &*derive("vaultfs request v1")),
            data_keys: DataKeys::new(&derive("vaultfs data keys v1"), vault),
            check: *derive("vaultfs check v1"),
        }
    }

    /// What the database remembers of the master key, to recognise it by. Gives nothing away.
    pub fn check(&self) -> [u8; KEY_LEN] {
        self.check
    }

    /// Makes a data key for `object`; returns it with its wrapped form.
    pub fn new_data_key(&self, object: Ulid) -> Result<(DataKey, Vec<u8>), SealError> {
        let bytes = Zeroizing::new(random::<KEY_LEN>()?);
        let wrapped = seal_with(&self.wrap, &self.key_aad(object), &*bytes)?;
        Ok((DataKey(aead_key(&*bytes)), wrapped))
    }

    /// Opens the wrapped data key of `object`.
    pub fn unwrap_data_key(&self, object: Ulid, wrapped: &[u8]) -> Result<DataKey, SealError> {
        let bytes = open_with(&self.wrap, &self.key_aad(object), wrapped)?;
        if bytes.len() != KEY_LEN {
            return Err(SealError::NotAuthentic);
        }
        Ok(DataKey(aead_key(bytes.expose())))
    }

    /// Seals `text` for `place`.
    pub fn seal(&self, key: &DataKey, place: Place, text: &[u8]) -> Result<Vec<u8>, SealError> {
        seal_with(&key.0, &self.value_aad(place), text)
    }

    /// Opens what was sealed for `place`.
    pub fn open(&self, key: &DataKey, place: Place, sealed: &[u8]) -> Result<SecretBytes, SealError> {
        open_with(&key.0, &self.value_aad(place), sealed)
    }

    /// A keyed hash of an object's value: equal for equal values of one object, says nothing
    /// otherwise.
    pub fn etag(&self, object: Ulid, text: &[u8]) -> Etag {
        let mut context = hmac::Context::with_key(&self.etag);
        context.update(&object.to_bytes());
        context.update(text);
        let mut etag = Etag::default();
        etag.0.copy_from_slice(&context.sign().as_ref()[..16]);
        etag
    }

    /// The form an API key is stored and looked up in.
    pub fn hash_api_key(&self, key: &str) -> KeyHash {
        let mut hash = KeyHash::default();
        hash.0.copy_from_slice(hmac::sign(&self.api_key, key.as_bytes()).as_ref());
        hash
    }

    /// What a request with an idempotency key is recognised by: `scope` has its API key, its path
    /// and with which key, each part on its own.
    pub fn idempotency(&self, scope: [&[u8]; 3], body: &[u8]) -> IdempotencyRecord {
        let mut context = hmac::Context::with_key(&self.idempotency);
        for part in scope {
            // With its length in front, so that no two scopes are one text.
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        }
        let hash = |tag: hmac::Tag| {
            let mut hash = [0; 32];
            hash.copy_from_slice(tag.as_ref());
            hash
        };
        let scope = hash(context.sign());
        let mut context = hmac::Context::with_key(&self.idempotency);
        context.update(&scope);
        context.update(body);
        IdempotencyRecord { scope, request: hash(context.sign()) }
    }

    /// The keys that the vault makes for others.
    pub fn data_keys(&self) -> &DataKeys {
        &self.data_keys
    }

    /// The vault's id.
    pub fn vault(&self) -> VaultId {
        self.vault
    }

    fn key_aad(&self, object: Ulid) -> Vec<u8> {
        [b"vaultfs data key\0".as_slice(), &self.vault.0, &object.to_bytes()].concat()
    }

    fn value_aad(&self, place: Place) -> Vec<u8> {
        let form = [place.form.code()];
        let number = place.version.to_be_bytes();
        [b"vaultfs value\0".as_slice(), &self.vault.0, &place.object.to_bytes(), &number, &form].concat()
    }
}

/// Scheme ‖ nonce ‖ ciphertext ‖ tag. The plaintext's copy is overwritten in place by the
/// ciphertext.
pub(in crate::server) fn seal_with(key: &LessSafeKey, aad: &[u8], text: &[u8]) -> Result<Vec<u8>, SealError> {
    let nonce = random::<NONCE_LEN>()?;
    let mut out = Vec::with_capacity(1 + NONCE_LEN + text.len() + TAG_LEN);
    out.push(SCHEME);
    out.extend_from_slice(&nonce);
    out.extend_from_slice(text);
    let tag = key
        .seal_in_place_separate_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(aad),
            &mut out[1 + NONCE_LEN..],
        )
        .map_err(|_| SealError::NotAuthentic)?;
    out.extend_from_slice(tag.as_ref());
    Ok(out)
}

/// Opens what [`seal_with`] sealed.
pub(in crate::server) fn open_with(
    key: &LessSafeKey,
    aad: &[u8],
    sealed: &[u8],
) -> Result<SecretBytes, SealError> {
    let (nonce, body) = match sealed.split_first() {
        Some((&SCHEME, rest)) => rest.split_at_checked(NONCE_LEN).ok_or(SealError::NotAuthentic)?,
        _ => return Err(SealError::NotAuthentic),
    };
    let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| SealError::NotAuthentic)?;
    let mut buffer = Zeroizing::new(body.to_vec());
    let opened =
        key.open_in_place(nonce, Aad::from(aad), &mut buffer).map_err(|_| SealError::NotAuthentic)?;
    Ok(SecretBytes::from(&*opened))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealer() -> Sealer {
        Sealer::new(&MasterKey::generate().unwrap(), VaultId(random().unwrap()))
    }

    #[test]
    fn opens_only_where_it_was_sealed() {
        let s = sealer();
        let object = Ulid::from(7u128);
        let (key, wrapped) = s.new_data_key(object).unwrap();
        let place = Place { object, version: 3, form: StoredForm::Object };
        let sealed = s.seal(&key, place, b"hunter2").unwrap();
        assert!(!sealed.windows(7).any(|w| w == b"hunter2"));
        let again = s.unwrap_data_key(object, &wrapped).unwrap();
        assert_eq!(s.open(&again, place, &sealed).unwrap().expose(), b"hunter2");

        for moved in [
            Place { version: 4, ..place },
            Place { object: Ulid::from(8u128), ..place },
            Place { form: StoredForm::Kv, ..place },
        ] {
            assert_eq!(s.open(&again, moved, &sealed), Err(SealError::NotAuthentic));
        }
        assert!(s.unwrap_data_key(Ulid::from(8u128), &wrapped).is_err());
        assert!(sealer().unwrap_data_key(object, &wrapped).is_err());
    }

    #[test]
    fn every_changed_or_missing_byte_is_noticed() {
        let s = sealer();
        let (key, _) = s.new_data_key(Ulid::from(7u128)).unwrap();
        let place = Place { object: Ulid::from(7u128), version: 1, form: StoredForm::Kv };
        let sealed = s.seal(&key, place, b"").unwrap();
        assert_eq!(s.open(&key, place, &sealed).unwrap().expose(), b"");
        for at in 0..sealed.len() {
            let mut bent = sealed.clone();
            bent[at] ^= 1;
            assert_eq!(s.open(&key, place, &bent), Err(SealError::NotAuthentic), "byte {at}");
            assert_eq!(s.open(&key, place, &sealed[..at]), Err(SealError::NotAuthentic), "cut at {at}");
        }
    }

    #[test]
    fn a_master_key_survives_its_file() {
        let key = MasterKey::generate().unwrap();
        let vault = VaultId([1; 16]);
        let again = MasterKey::parse(key.to_text().expose()).unwrap();
        assert_eq!(Sealer::new(&key, vault).check(), Sealer::new(&again, vault).check());
        assert!(MasterKey::parse("AAAA").is_none());
        assert!(MasterKey::parse("not base64").is_none());
    }

    #[test]
    fn hashes_are_keyed() {
        let (a, b) = (sealer(), sealer());
        assert_ne!(a.hash_api_key("sk_x"), b.hash_api_key("sk_x"));
        let object = Ulid::from(7u128);
        assert_eq!(a.etag(object, b"v"), a.etag(object, b"v"));
        assert_ne!(a.etag(object, b"v"), a.etag(Ulid::from(8u128), b"v"));
        assert_ne!(a.etag(object, b"v"), b.etag(object, b"v"));
    }
}
