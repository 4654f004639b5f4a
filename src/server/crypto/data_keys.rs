//! Data keys: what the vault makes for clients that encrypt on their own.
//!
//! A data key is 32 random bytes. The vault keeps none of them: it hands out the key and, beside
//! it, the key wrapped in a blob that only this vault opens. The blob is `scheme(1) ‖ id of the
//! data key(16) ‖ id of the context(16) ‖ sealed key`, where the wrapping key is derived from the
//! context's id, and everything in front is authenticated with the vault's id. So a blob cannot be
//! moved to another context, another vault or another id, and shows nothing of its context's text.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::hmac;
use zeroize::Zeroizing;

use crate::secret::{SecretBytes, SecretString};
use crate::server::crypto::context::KeyContext;
use crate::server::crypto::seal::{KEY_LEN, SealError, aead_key, open_with, random, seal_with};
use crate::server::store::VaultId;

/// First byte of a blob; another layout gets another number.
const SCHEME: u8 = 1;
const ID_LEN: usize = 16;
/// What is in front of the sealed key.
const HEAD_LEN: usize = 1 + 2 * ID_LEN;
/// Associated data of texts that are encrypted under a data key.
const TEXT_AAD: &[u8] = b"vaultfs data\0";

/// Why a key or what was encrypted with it is of no use here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// A data key must be 32 bytes in base64.
    #[error("data_key is not 32 bytes in base64: make a new data key")]
    NotAKey,
    /// The blob is corrupt, or not this vault's.
    #[error("the encrypted key is corrupt or not one of this vault's: make a new data key")]
    ForeignBlob,
    /// The ciphertext is corrupt, or was made with another key.
    #[error("the ciphertext is corrupt or was made with another data_key")]
    ForeignText,
    /// The operating system gave no random numbers.
    #[error(transparent)]
    Seal(SealError),
}

/// A data key with its wrapped form.
#[derive(Debug)]
pub struct Issued {
    /// Its id, the same however often it is wrapped.
    pub id: [u8; ID_LEN],
    /// The key, base64.
    pub key: SecretString,
    /// The wrapped key, base64.
    pub blob: String,
}

/// Makes, wraps and opens data keys.
pub struct DataKeys {
    vault: VaultId,
    root: hmac::Key,
}

impl std::fmt::Debug for DataKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DataKeys")
    }
}

impl DataKeys {
    /// From a key that is used for nothing else.
    pub fn new(root: &[u8; KEY_LEN], vault: VaultId) -> Self {
        Self { vault, root: hmac::Key::new(hmac::HMAC_SHA256, root) }
    }

    /// What the keys of a context are known by. Says nothing of the context's text.
    pub fn context_id(&self, context: &KeyContext) -> [u8; ID_LEN] {
        let tag = self.derive(b"vaultfs context\0", context.text().as_bytes());
        let mut id = [0; ID_LEN];
        id.copy_from_slice(&tag.as_ref()[..ID_LEN]);
        as_uuid(id)
    }

    /// A new data key.
    pub fn issue(&self, context: &KeyContext) -> Result<Issued, KeyError> {
        let id = as_uuid(random().map_err(KeyError::Seal)?);
        let key = Zeroizing::new(random::<KEY_LEN>().map_err(KeyError::Seal)?);
        self.wrap(id, &*key, context)
    }

    /// The id and the key in a blob.
    pub fn open(&self, blob: &str) -> Result<([u8; ID_LEN], SecretString), KeyError> {
        let (id, key) = self.unwrap(blob)?;
        // The answer to the client that asked for the key.
        Ok((id, SecretString::new(BASE64.encode(key.expose()))))
    }

    /// The key in a blob, wrapped anew for another context.
    pub fn rekey(&self, blob: &str, context: &KeyContext) -> Result<Issued, KeyError> {
        let (id, key) = self.unwrap(blob)?;
        self.wrap(id, key.expose(), context)
    }

    fn wrap(&self, id: [u8; ID_LEN], key: &[u8], context: &KeyContext) -> Result<Issued, KeyError> {
        let context_id = self.context_id(context);
        let mut blob = [&[SCHEME][..], &id, &context_id].concat();
        let sealed = seal_with(&aead_key(&*self.wrapping(context_id)), &self.aad(&blob), key);
        blob.extend_from_slice(&sealed.map_err(KeyError::Seal)?);
        Ok(Issued { id, key: SecretString::new(BASE64.encode(key)), blob: BASE64.encode(blob) })
    }

    fn unwrap(&self, blob: &str) -> Result<([u8; ID_LEN], SecretBytes), KeyError> {
        let foreign = KeyError::ForeignBlob;
        let blob = BASE64.decode(blob).map_err(|_| foreign)?;
        let (head, sealed) = blob.split_at_checked(HEAD_LEN).ok_or(foreign)?;
        let (scheme, ids) = head.split_first().ok_or(foreign)?;
        let (id, context_id) = ids.split_at_checked(ID_LEN).ok_or(foreign)?;
        let (Ok(id), Ok(context_id)) = (id.try_into(), context_id.try_into()) else { return Err(foreign) };
        if *scheme != SCHEME {
            return Err(foreign);
        }
        let key = open_with(&aead_key(&*self.wrapping(context_id)), &self.aad(head), sealed);
        let key = key.ok().filter(|key| key.len() == KEY_LEN).ok_or(foreign)?;
        Ok((id, key))
    }

    fn wrapping(&self, context_id: [u8; ID_LEN]) -> Zeroizing<[u8; KEY_LEN]> {
        let mut key = Zeroizing::new([0; KEY_LEN]);
        key.copy_from_slice(self.derive(b"vaultfs wrap\0", &context_id).as_ref());
        key
    }

    fn derive(&self, purpose: &[u8], input: &[u8]) -> hmac::Tag {
        let mut context = hmac::Context::with_key(&self.root);
        context.update(purpose);
        context.update(input);
        context.sign()
    }

    fn aad(&self, head: &[u8]) -> Vec<u8> {
        [b"vaultfs blob\0".as_slice(), &self.vault.0, head].concat()
    }
}

/// Encrypts `text` under any 32 bytes in base64; base64 of what [`decrypt`] takes.
pub fn encrypt(data_key: &SecretString, text: &str) -> Result<String, KeyError> {
    let key = key_bytes(data_key)?;
    let sealed = seal_with(&aead_key(key.expose()), TEXT_AAD, text.as_bytes());
    Ok(BASE64.encode(sealed.map_err(KeyError::Seal)?))
}

/// Decrypts what [`encrypt`] made with the same key.
pub fn decrypt(data_key: &SecretString, ciphertext: &str) -> Result<SecretString, KeyError> {
    let key = key_bytes(data_key)?;
    let sealed = BASE64.decode(ciphertext).map_err(|_| KeyError::ForeignText)?;
    let text = open_with(&aead_key(key.expose()), TEXT_AAD, &sealed).map_err(|_| KeyError::ForeignText)?;
    let text = std::str::from_utf8(text.expose()).map_err(|_| KeyError::ForeignText)?;
    Ok(SecretString::new(text.to_owned()))
}

fn key_bytes(data_key: &SecretString) -> Result<SecretBytes, KeyError> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(data_key.expose().len()));
    // Turned into a key at once; what was decoded before a mistake was found is wiped, too.
    BASE64.decode_vec(data_key.expose(), &mut bytes).map_err(|_| KeyError::NotAKey)?;
    if bytes.len() == KEY_LEN { Ok(SecretBytes::from(&**bytes)) } else { Err(KeyError::NotAKey) }
}

/// Marks 16 bytes as a UUID of version 4, as kv shows ids.
pub fn as_uuid(mut bytes: [u8; ID_LEN]) -> [u8; ID_LEN] {
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(vault: u8) -> DataKeys {
        DataKeys::new(&[7; KEY_LEN], VaultId([vault; 16]))
    }

    fn context(text: &str) -> KeyContext {
        KeyContext::from_text(text).unwrap()
    }

    #[test]
    fn a_blob_gives_its_key_back_to_its_own_vault_only() {
        let issued = keys(1).issue(&context(r#"{"org":"a"}"#)).unwrap();
        assert_eq!(BASE64.decode(issued.key.expose()).unwrap().len(), KEY_LEN);
        assert_eq!(keys(1).open(&issued.blob).unwrap(), (issued.id, issued.key.clone()));
        let raw = BASE64.decode(issued.key.expose()).unwrap();
        assert!(!BASE64.decode(&issued.blob).unwrap().windows(8).any(|w| raw.windows(8).any(|k| k == w)));
        assert_eq!(keys(2).open(&issued.blob), Err(KeyError::ForeignBlob));
        let other = DataKeys::new(&[8; KEY_LEN], VaultId([1; 16]));
        assert_eq!(other.open(&issued.blob), Err(KeyError::ForeignBlob));
    }

    #[test]
    fn every_changed_or_missing_byte_of_a_blob_is_noticed() {
        let keys = keys(1);
        let blob = BASE64.decode(keys.issue(&KeyContext::default()).unwrap().blob).unwrap();
        for at in 0..blob.len() {
            let mut bent = blob.clone();
            bent[at] ^= 1;
            assert_eq!(keys.open(&BASE64.encode(bent)), Err(KeyError::ForeignBlob), "byte {at}");
            assert_eq!(keys.open(&BASE64.encode(&blob[..at])), Err(KeyError::ForeignBlob), "cut at {at}");
        }
        assert_eq!(keys.open("*"), Err(KeyError::ForeignBlob));
    }

    #[test]
    fn a_context_is_bound_and_a_rekeyed_key_is_the_same_key() {
        let keys = keys(1);
        let (a, b) = (context(r#"{"org":"a"}"#), context(r#"{"org":"b"}"#));
        let first = keys.issue(&a).unwrap();
        let second = keys.rekey(&first.blob, &b).unwrap();
        assert_eq!((second.id, &second.key), (first.id, &first.key));
        assert_eq!(keys.open(&second.blob).unwrap(), (first.id, first.key));
        // The context's id of one blob in the other: it does not open.
        let (one, other) = (BASE64.decode(first.blob).unwrap(), BASE64.decode(second.blob).unwrap());
        let mixed = [&one[..1 + ID_LEN], &other[1 + ID_LEN..HEAD_LEN], &one[HEAD_LEN..]].concat();
        assert_eq!(keys.open(&BASE64.encode(mixed)), Err(KeyError::ForeignBlob));
        assert_ne!(keys.context_id(&a), keys.context_id(&b));
        assert_eq!(keys.context_id(&a), keys.context_id(&a));
    }

    #[test]
    fn texts_open_with_their_own_key_only() {
        let key = |byte: u8| SecretString::new(BASE64.encode([byte; KEY_LEN]));
        for text in ["", "sensitive data", "\0é\u{10ffff}"] {
            let sealed = encrypt(&key(1), text).unwrap();
            assert_ne!(sealed, encrypt(&key(1), text).unwrap(), "a fresh nonce each time");
            assert_eq!(decrypt(&key(1), &sealed).unwrap().expose(), text);
            assert_eq!(decrypt(&key(2), &sealed), Err(KeyError::ForeignText));
            assert_eq!(decrypt(&key(1), &sealed[4..]), Err(KeyError::ForeignText));
        }
        for bad in ["", "*", "AAAA"] {
            let bad = SecretString::new(bad.to_owned());
            assert_eq!(encrypt(&bad, "x"), Err(KeyError::NotAKey));
            assert_eq!(decrypt(&bad, "AAAA"), Err(KeyError::NotAKey));
        }
        assert_eq!(decrypt(&key(1), "not base64"), Err(KeyError::ForeignText));
    }
}
