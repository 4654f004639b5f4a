//! `vaultfs key create|unwrap|encrypt|decrypt`: data keys, and data encrypted under them, in both
//! dialects.
//!
//! In the kv dialect data is encrypted here, in the envelope of the official SDKs, which holds the
//! data key as only the vault can open it. In the object dialect the vault encrypts text; what is
//! no text goes in as kv stores it. A plaintext key goes to a file of its own or
//! is asked for by name, never else.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::cli::args::connect::{VaultArgs, connect_keys};
use crate::cli::exit::{Exit, Failure};
use crate::cli::output::Output;
use crate::cli::terminal::read_value;
use crate::clock::SystemClock;
use crate::display::Shown;
use crate::secret::{SecretBytes, SecretString};
use crate::sys::files;
use crate::vault::client::api_key::is_private;
use crate::vault::client::data_keys::KeyService;
use crate::vault::envelope::{DataKey, Envelope, EnvelopeError};
use crate::vault::{Call, Dialect, codec};

/// No file with a data key is longer.
const MAX_KEY_FILE: u64 = 64 * 1024;

/// Data keys, and data encrypted under them
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n\
                  \x20 vaultfs key encrypt < plain > sealed\n\
                  \x20 vaultfs key decrypt < sealed")]
pub struct KeyArgs {
    #[command(subcommand)]
    command: KeyCommand,
}

#[derive(Debug, clap::Subcommand)]
enum KeyCommand {
    /// Create a data key and print it encrypted
    ///
    /// The encrypted key is useless without the vault and can be stored anywhere; `vaultfs key
    /// unwrap` decrypts it.
    #[command(after_help = "Example:\n  vaultfs key create > data-key\n  \
                            vaultfs key encrypt --data-key-file data-key < plain > sealed")]
    Create(CreateArgs),
    /// Decrypt a data key from standard input
    Unwrap(UnwrapArgs),
    /// Encrypt standard input
    ///
    /// With the kv API the result is one line that includes the encrypted data key: vaultfs key
    /// decrypt and vault.decrypt of the official SDKs need nothing else. With the object API it is
    /// the ciphertext, or {"ciphertext", "encrypted_key"} if a new data key was created.
    #[command(
        after_help = "Example:\n  vaultfs key encrypt < plain > sealed\n  vaultfs key decrypt < sealed"
    )]
    Encrypt(EncryptArgs),
    /// Decrypt the output of `vaultfs key encrypt` or of an SDK's vault.encrypt, from standard
    /// input
    Decrypt(DecryptArgs),
}

/// Where a plaintext key goes.
#[derive(Debug, clap::Args)]
struct KeyOutput {
    /// Write the plaintext key to FILE, which must not exist; only you can read it
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Print the plaintext key
    #[arg(long, conflicts_with = "out")]
    show_key: bool,
}

#[derive(Debug, clap::Args)]
struct CreateArgs {
    #[command(flatten)]
    output: KeyOutput,
    /// Key context, kv API only (repeatable)
    #[arg(long, value_name = "K=V", value_parser = crate::cli::args::connect::key_value)]
    context: Vec<(String, String)>,
    #[command(flatten)]
    vault: VaultArgs,
}

#[derive(Debug, clap::Args)]
struct UnwrapArgs {
    #[command(flatten)]
    output: KeyOutput,
    #[command(flatten)]
    vault: VaultArgs,
}

#[derive(Debug, clap::Args)]
struct EncryptArgs {
    /// Use the data key in FILE instead of a new one: as `vaultfs key create` printed it, or
    /// (object API only) as --out wrote it
    #[arg(long, value_name = "FILE")]
    data_key_file: Option<PathBuf>,
    /// Key context of the new data key, kv API only (repeatable)
    #[arg(long, value_name = "K=V", value_parser = crate::cli::args::connect::key_value, conflicts_with = "data_key_file")]
    context: Vec<(String, String)>,
    /// Associated data, kv API only: not encrypted, and needed again to decrypt
    #[arg(long, value_name = "TEXT")]
    aad: Option<String>,
    #[command(flatten)]
    vault: VaultArgs,
}

#[derive(Debug, clap::Args)]
struct DecryptArgs {
    /// Use the data key in FILE: as `vaultfs key create` printed it, or as --out wrote it
    #[arg(long, value_name = "FILE")]
    data_key_file: Option<PathBuf>,
    /// Associated data of the encryption, kv API only
    #[arg(long, value_name = "TEXT")]
    aad: Option<String>,
    #[command(flatten)]
    vault: VaultArgs,
}

/// What a file of `--data-key-file` holds.
enum KeyFile {
    /// The key itself.
    Plain(SecretString),
    /// The key as only the vault can open it.
    Wrapped(String),
}

/// What the object dialect's `encrypt` prints for a new data key.
#[derive(Deserialize)]
struct Sealed {
    ciphertext: String,
    encrypted_key: String,
}

/// Runs the command.
pub fn run(args: KeyArgs) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let code = runtime.block_on(async {
        match args.command {
            KeyCommand::Create(args) => create(args).await,
            KeyCommand::Unwrap(args) => unwrap(args).await,
            KeyCommand::Encrypt(args) => encrypt(args).await,
            KeyCommand::Decrypt(args) => decrypt(args).await,
        }
    })?;
    Ok(code)
}

/// What one command works with.
struct KeySession {
    keys: KeyService,
    /// Of `--key-context`.
    key_context: BTreeMap<String, String>,
    timeout: Duration,
    max_size: u64,
}

impl KeySession {
    /// Connects, does `work`, and lets go of the vault whatever comes of it.
    async fn with<T>(
        args: &VaultArgs,
        work: impl AsyncFnOnce(&KeySession) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let (spec, key) = args.resolve(&mut [])?;
        let (keys, embedded) = connect_keys(&spec, key, Arc::new(SystemClock)).await?;
        let (timeout, max_size) = (spec.timeout, spec.max_size);
        let result = work(&KeySession { keys, key_context: spec.key_context, timeout, max_size }).await;
        if let Some(embedded) = embedded {
            embedded.shutdown().await;
        }
        result
    }

    fn call(&self) -> Call {
        Call::foreground(Instant::now() + self.timeout)
    }

    /// The context of `--context`, or of `--key-context`.
    fn context(&self, given: &[(String, String)]) -> Result<BTreeMap<String, String>, Failure> {
        if !given.is_empty() && self.keys.dialect() == Dialect::Object {
            return Err(usage("--context: the object API knows no key contexts, see --api"));
        }
        Ok(if given.is_empty() { self.key_context.clone() } else { given.iter().cloned().collect() })
    }

    fn refuse_aad(&self, aad: Option<&str>) -> Result<(), Failure> {
        match (self.keys.dialect(), aad) {
            (Dialect::Object, Some(_)) => {
                Err(usage("--aad: the object API knows no associated data, see --api"))
            }
            _ => Ok(()),
        }
    }

    async fn plain(&self, file: KeyFile) -> Result<SecretString, Failure> {
        match file {
            KeyFile::Plain(key) => Ok(key),
            KeyFile::Wrapped(wrapped) => Ok(self.keys.unwrap(&self.call(), &wrapped).await?),
        }
    }

    /// Standard input as text: something that was encrypted, which is longer than what it stands
    /// for.
    fn encrypted_input(&self) -> Result<String, Failure> {
        let bytes = read_value(self.max_size.saturating_mul(8).saturating_add(MAX_KEY_FILE))?;
        let text = std::str::from_utf8(bytes.expose()).map(|text| text.trim().to_owned());
        text.map_err(|_| usage("standard input is not text, and nothing that was encrypted here"))
    }
}

async fn create(args: CreateArgs) -> Result<ExitCode, Failure> {
    let file = args.output.file()?;
    KeySession::with(&args.vault, async |session| {
        let context = session.context(&args.context)?;
        let key = session.keys.create(&session.call(), &context).await?;
        let mut out = Output::new();
        // Without the encrypted key the other one is of no use: what was not delivered is not
        // written down.
        if !out.line(&key.wrapped)? || !out.flush()? {
            return Err(Failure::new(Exit::Failed, "nobody reads the encrypted key"));
        }
        args.output.put(&key.plain, file, &mut out)?;
        out.finish()
    })
    .await
}

async fn unwrap(args: UnwrapArgs) -> Result<ExitCode, Failure> {
    if args.output.out.is_none() && !args.output.show_key {
        return Err(usage("where to? --out FILE writes the plaintext key to a file, --show-key prints it"));
    }
    let file = args.output.file()?;
    KeySession::with(&args.vault, async |session| {
        let wrapped = session.encrypted_input()?;
        let key = session.keys.unwrap(&session.call(), &wrapped).await?;
        let mut out = Output::new();
        args.output.put(&key, file, &mut out)?;
        out.finish()
    })
    .await
}

async fn encrypt(args: EncryptArgs) -> Result<ExitCode, Failure> {
    let file = args.data_key_file.as_deref().map(read_data_key).transpose()?;
    KeySession::with(&args.vault, async |session| {
        session.refuse_aad(args.aad.as_deref())?;
        let context = session.context(&args.context)?;
        let plain = read_value(session.max_size)?;
        let text = match session.keys.dialect() {
            Dialect::Kv => seal(session, file, &context, args.aad.as_deref(), &plain).await?,
            Dialect::Object => encrypt_there(session, file, &plain).await?,
        };
        let mut out = Output::new();
        out.line(&text)?;
        out.finish()
    })
    .await
}

async fn seal(
    session: &KeySession,
    file: Option<KeyFile>,
    context: &BTreeMap<String, String>,
    aad: Option<&str>,
    plain: &SecretBytes,
) -> Result<String, Failure> {
    let (key, wrapped) = match file {
        None => {
            let key = session.keys.create(&session.call(), context).await?;
            (key.plain, key.wrapped)
        }
        Some(KeyFile::Wrapped(wrapped)) => (session.keys.unwrap(&session.call(), &wrapped).await?, wrapped),
        Some(KeyFile::Plain(_)) => {
            let sentence = "--data-key-file: with the kv API the encrypted data key is a part of the result, so give \
                            the key as `vaultfs key create` printed it";
            return Err(usage(sentence));
        }
    };
    let blob = STANDARD.decode(wrapped.trim()).map_err(|_| usage("the encrypted data key is not base64"))?;
    let sealed = Envelope::seal(&DataKey::new(&key)?, &blob, aad.unwrap_or_default().as_bytes(), plain)?;
    Ok(sealed.to_text())
}

async fn encrypt_there(
    session: &KeySession,
    file: Option<KeyFile>,
    plain: &SecretBytes,
) -> Result<String, Failure> {
    let text = codec::encode_value(plain.expose());
    let Some(file) = file else {
        let key = session.keys.create(&session.call(), &BTreeMap::new()).await?;
        let ciphertext = session.keys.encrypt(&session.call(), &key.plain, &text).await?;
        return Ok(serde_json::json!({ "ciphertext": ciphertext, "encrypted_key": key.wrapped }).to_string());
    };
    let key = session.plain(file).await?;
    Ok(session.keys.encrypt(&session.call(), &key, &text).await?)
}

async fn decrypt(args: DecryptArgs) -> Result<ExitCode, Failure> {
    let file = args.data_key_file.as_deref().map(read_data_key).transpose()?;
    KeySession::with(&args.vault, async |session| {
        session.refuse_aad(args.aad.as_deref())?;
        let input = session.encrypted_input()?;
        let plain = match session.keys.dialect() {
            Dialect::Kv => {
                let envelope = Envelope::parse(&input)?;
                let file = file.unwrap_or_else(|| KeyFile::Wrapped(envelope.blob()));
                let key = session.plain(file).await?;
                envelope.open(&DataKey::new(&key)?, args.aad.as_deref().unwrap_or_default().as_bytes())?
            }
            Dialect::Object => decrypt_there(session, file, &input).await?,
        };
        let mut out = Output::new();
        // To standard output, because that is what was asked for.
        out.bytes(plain.expose())?;
        out.finish()
    })
    .await
}

async fn decrypt_there(
    session: &KeySession,
    file: Option<KeyFile>,
    input: &str,
) -> Result<SecretBytes, Failure> {
    let sealed = serde_json::from_str::<Sealed>(input).ok();
    let (ciphertext, own) = match &sealed {
        Some(sealed) => (sealed.ciphertext.as_str(), Some(KeyFile::Wrapped(sealed.encrypted_key.clone()))),
        None => (input, None),
    };
    let file = file.or(own).ok_or_else(|| usage("which data key? Give it with --data-key-file FILE"))?;
    let key = session.plain(file).await?;
    let text = session.keys.decrypt(&session.call(), &key, ciphertext).await?;
    Ok((*codec::decode_value(text.expose()).bytes).clone())
}

impl KeyOutput {
    /// The file of `--out`, still empty: made before the vault is asked for a key.
    fn file(&self) -> Result<Option<NewFile>, Failure> {
        let Some(path) = &self.out else { return Ok(None) };
        NewFile::create(path).map(Some).map_err(|e| out_failed(path, &e))
    }

    /// Hands a plaintext key out as asked for, if it was.
    fn put(&self, key: &SecretString, file: Option<NewFile>, out: &mut Output) -> Result<(), Failure> {
        let mut line = Zeroizing::new(Vec::with_capacity(key.expose().len() + 1));
        line.extend_from_slice(key.expose().as_bytes());
        line.push(b'\n');
        if let Some(mut file) = file {
            file.keep(&line).map_err(|e| out_failed(&file.path, &e))?;
        }
        if self.show_key {
            out.bytes(&line)?;
        }
        Ok(())
    }
}

fn out_failed(path: &Path, e: &std::io::Error) -> Failure {
    Failure::new(Exit::Failed, format!("--out {}: {e}", path.shown()))
}

/// A new file, which goes again unless all of it was written.
struct NewFile {
    path: PathBuf,
    file: File,
    kept: bool,
}

impl NewFile {
    fn create(path: &Path) -> std::io::Result<Self> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        Ok(Self { path: path.to_owned(), file, kept: false })
    }

    fn keep(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.file.write_all(bytes)?;
        self.file.sync_all()?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.kept {
            // The command has failed and says why.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Tells a plaintext key, which is 32 bytes, from an encrypted one, which is longer. A plaintext
/// key that others can read is refused.
fn read_data_key(path: &Path) -> Result<KeyFile, Failure> {
    let failed = |why: String| usage(format!("--data-key-file {}: {why}", path.shown()));
    let file = files::open(path, None).map_err(|e| failed(e.to_string()))?;
    let private = is_private(&file, path);
    let read = file.read(MAX_KEY_FILE).map_err(|e| failed(e.to_string()))?;
    let text =
        std::str::from_utf8(&read).map_err(|_| failed("this is no data key: not base64".into()))?.trim();
    let mut bytes = Zeroizing::new(Vec::new());
    STANDARD.decode_vec(text, &mut bytes).map_err(|_| failed("this is no data key: not base64".into()))?;
    match bytes.len() {
        32 => {
            private.map_err(|e| failed(e.to_string()))?;
            Ok(KeyFile::Plain(SecretString::new(text.to_owned())))
        }
        33.. => Ok(KeyFile::Wrapped(text.to_owned())),
        _ => Err(failed("this is no data key: too short".into())),
    }
}

fn usage(message: impl Into<String>) -> Failure {
    Failure::new(Exit::Usage, message)
}

impl From<EnvelopeError> for Failure {
    fn from(e: EnvelopeError) -> Self {
        Self::new(Exit::Failed, e.to_string())
    }
}
