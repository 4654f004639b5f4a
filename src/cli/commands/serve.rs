//! `vaultfs serve`: the embedded vault on its own.
//!
//! Standard output is one line, the URL, printed when connections are accepted: a script waits for
//! it, and a service manager is notified at the same moment.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::cli::args::values;
use crate::cli::commands::serve_key;
use crate::cli::commands::serve_key::ServeCommand;
use crate::cli::exit::{Exit, Failure};
use crate::cli::output::Output;
use crate::cli::{log, service};
use crate::display::Shown;
use crate::server::error::ServeError;
use crate::server::instance::data_dir::DataDir;
use crate::server::instance::listen;
use crate::server::instance::listen::Tcp;
use crate::server::instance::serve::{Instance, ServeOptions};
use crate::server::instance::tls;
use crate::sys::allocator;
use crate::sys::hardening;
use crate::sys::hardening::LockState;
use crate::sys::stdio;

/// The database takes a text of a gigabyte, which may be eight times its file.
const MAX_MAX_SIZE: bytesize::ByteSize = bytesize::ByteSize::mib(64);

/// Serve a local vault over HTTP
///
/// Serves the vault in DIR on a TCP address and on the Unix socket DIR/vault.sock. Prints the URL
/// once connections are accepted. The first start creates DIR, a master key and, in DIR/api-key, an
/// API key with all permissions. On SIGTERM and SIGINT the server finishes the requests in progress
/// and ends. Under systemd it is a service of Type=notify.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  vaultfs serve --data ~/vault\n  vaultfs serve --data ~/vault key add --permissions \
                        read\n  vaultfs mount --api-url http://127.0.0.1:8200 --api-key-file ~/vault/api-key ~/secrets"
)]
pub struct ServeArgs {
    /// Directory of the vault; created if it is missing, mode 0700
    #[arg(long, value_name = "DIR")]
    data: PathBuf,

    /// Address and port to listen on; port 0 picks a free port. Other addresses than loopback need
    /// --tls-cert
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8200")]
    listen: SocketAddr,

    /// Also listen on the Unix socket PATH, for other users (--api-url unix:PATH). The API key
    /// decides what they may do
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,

    /// Group that may open the socket of --socket [default: all users]
    #[arg(long, value_name = "GROUP", requires = "socket", value_parser = values::group)]
    socket_group: Option<u32>,

    /// Use TLS with this certificate chain (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,

    /// Private key of the certificate (PEM), readable by its owner only
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,

    /// File with the key that seals the vault (32 bytes in base64) [default: the systemd credential
    /// vaultfs-master-key, else DIR/master-key]
    #[arg(long, value_name = "FILE")]
    master_key_file: Option<PathBuf>,

    /// Size limit of a value
    #[arg(long, value_name = "SIZE", default_value = "1MiB", value_parser = values::some_size)]
    max_size: bytesize::ByteSize,

    /// Requests per minute for each API key; 0 means no limit
    #[arg(long, value_name = "N", default_value_t = 1000)]
    rate_limit: u32,

    /// Proxies in front of this server, as addresses or networks (10.0.0.0/8): X-Forwarded-For of
    /// their requests names the client in the log. May be repeated
    #[arg(long, value_name = "CIDR", value_parser = values::network)]
    trusted_proxy: Vec<ipnet::IpNet>,

    /// Log more on standard error; -vv logs each request
    #[arg(short, long, action = clap::ArgAction::Count)]
    verbose: u8,

    #[command(subcommand)]
    command: Option<ServeCommand>,
}

/// Runs the command.
pub fn run(args: ServeArgs) -> anyhow::Result<ExitCode> {
    log_to_stderr(args.verbose);
    allocator::tune();
    hardening::raise_descriptors();
    let memory = hardening::lock_memory();
    if let Some(command) = args.command {
        // Of one thread: what the store does in the background is not polled any more when its
        // timers are gone.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let done = runtime.block_on(serve_key::run(&args.data, args.master_key_file, command));
        return done.map(|()| ExitCode::SUCCESS);
    }
    if args.max_size > MAX_MAX_SIZE {
        return Err(Failure::new(Exit::Usage, format!("--max-size can be at most {MAX_MAX_SIZE}")).into());
    }
    if !args.listen.ip().is_loopback() && args.tls_cert.is_none() {
        let message = format!(
            "--listen {} can be reached from other machines, and keys and secrets would travel unencrypted: \
             give --tls-cert and --tls-key, or listen on 127.0.0.1 or [::1]",
            args.listen
        );
        return Err(Failure::new(Exit::Usage, message).into());
    }
    if let LockState::NotLocked(why) = &memory {
        tracing::warn!("memory is not locked, secrets may reach the swap: {why}");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.spawn(allocator::give_back());
    let served = runtime.block_on(serve(args));
    // Requests that outlived the drain are cut off by the end of the process, not waited for. While
    // a runtime is shut down, its other thread may poll a task with a timer that is gone, which is
    // a panic.
    std::mem::forget(runtime);
    served.map(|()| ExitCode::SUCCESS)
}

async fn serve(args: ServeArgs) -> anyhow::Result<()> {
    // Before anything is made: a signal from here on ends it in good order.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let max_value = usize::try_from(args.max_size.as_u64())?;
    let options = ServeOptions {
        max_value,
        master_key_file: args.master_key_file,
        rate_limit: NonZeroU32::new(args.rate_limit),
        ..ServeOptions::default()
    };
    // Both or neither: clap sees to it.
    let tls = match (&args.tls_cert, &args.tls_key) {
        (Some(cert), Some(key)) => Some(tls::acceptor(cert, key)?),
        _ => None,
    };
    let scheme = if tls.is_some() { "https" } else { "http" };
    let dir = DataDir::prepare(&args.data)?;
    let lock = dir.try_lock()?.ok_or_else(|| ServeError::AlreadyServed(dir.path().to_owned()))?;
    let instance = Instance::open(dir, lock, options).await?;
    let listener = listen::bind(args.listen)
        .with_context(|| format!("cannot listen on {}: choose another address with --listen", args.listen))?;
    let address = listener.local_addr()?;
    let listening = instance.listen(Some(Tcp { listener, tls, trusted_proxies: args.trusted_proxy }))?;
    let listening = match &args.socket {
        None => listening,
        Some(path) => {
            let shared = listen::share(path, args.socket_group);
            listening.shared(shared.with_context(|| format!("cannot listen on --socket {}", path.shown()))?)
        }
    };
    say_where(&format!("{scheme}://{address}"))?;
    service::notify(&format!("READY=1\nSTATUS=serving {scheme}://{address}"));
    listening
        .run(async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            // Before it is closed: what lies there afterwards is another server's.
            if let Some(path) = &args.socket {
                let _ = std::fs::remove_file(path);
            }
            service::notify("STOPPING=1\nSTATUS=finishing the requests under way");
        })
        .await;
    Ok(())
}

/// Printed once; a closed standard output does not stop the server.
fn say_where(url: &str) -> Result<(), Failure> {
    let mut out = Output::new();
    out.line(url)?;
    out.finish().map(drop)
}

/// Logs warnings, and more with each `-v`, on standard error.
pub fn log_to_stderr(verbose: u8) {
    let level = ["vaultfs=warn", "vaultfs=info", "vaultfs=debug"][usize::from(verbose.min(2))];
    // https://no-color.org
    let ansi = stdio::is_watched() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let subscriber = tracing_subscriber::fmt()
        .with_writer(|| stdio::LogStream)
        .with_ansi(ansi)
        .fmt_fields(log::fields())
        .log_internal_errors(false);
    // Another subscriber in this process stays: it was there first.
    let _ = subscriber.with_env_filter(EnvFilter::new(level)).try_init();
}
