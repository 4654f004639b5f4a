//! A command at a terminal of its own: what a person would type and see.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use nix::fcntl::OFlag;
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::termios::{LocalFlags, tcgetattr};

use super::common::{COMMAND_TIME, until, wait};

pub struct Terminal {
    keyboard: File,
    side: OwnedFd,
    seen: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
    pub child: Child,
}

impl Terminal {
    /// Runs it with all three standard streams there.
    pub fn run(command: &mut Command) -> Self {
        Self::with(command, |_| {})
    }

    /// The same; `change` may put other streams in place.
    pub fn with(command: &mut Command, change: impl FnOnce(&mut Command)) -> Self {
        // Other commands, which are started meanwhile, must not inherit it.
        let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let side = File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOCTTY)
            .open(ptsname_r(&master).unwrap())
            .unwrap();
        let tty = side.as_raw_fd();
        let stream = || Stdio::from(side.try_clone().unwrap());
        command.stdin(stream()).stdout(stream()).stderr(stream());
        command.env_remove("CI").env_remove("CLICOLOR_FORCE").env_remove("NO_COLOR").env("TERM", "xterm");
        change(command);
        // SAFETY: setsid and ioctl may be called between fork and exec.
        unsafe {
            command.pre_exec(move || {
                nix::unistd::setsid()?;
                match libc::ioctl(tty, libc::TIOCSCTTY, 0) {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                }
            });
        }
        let child = command.spawn().unwrap();
        // The command holds the other side as long as it has these.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let seen = Arc::new(Mutex::new(String::new()));
        let keyboard = File::from(OwnedFd::from(master));
        let (mut screen, shown) = (keyboard.try_clone().unwrap(), seen.clone());
        let reader = std::thread::spawn(move || {
            let mut part = [0; 4096];
            // EIO when the last one closes the other side.
            while let Ok(n @ 1..) = screen.read(&mut part) {
                shown.lock().unwrap().push_str(&String::from_utf8_lossy(&part[..n]));
            }
        });
        Self { keyboard, side: side.into(), seen, reader: Some(reader), child }
    }

    pub fn seen(&self) -> String {
        self.seen.lock().unwrap().clone()
    }

    #[track_caller]
    pub fn expect(&self, text: &str) {
        let shown = wait(|| self.seen().contains(text).then_some(()), COMMAND_TIME);
        assert!(shown.is_some(), "no {text:?} in {:?}", self.seen());
    }

    pub fn type_in(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    /// At a terminal as a killed editor leaves it: keys instead of lines, and `x` ends one.
    pub fn spoil(command: &mut Command) -> Self {
        let stty = "stty -icanon -isig eol x; exec \"$0\" \"$@\"";
        let mut shell = Command::new("sh");
        shell.args(["-c", stty]).arg(command.get_program()).args(command.get_args()).env_clear();
        let set = command.get_envs().filter_map(|(name, value)| Some((name, value?)));
        shell.envs(set).env("PATH", std::env::var_os("PATH").unwrap());
        Self::run(&mut shell)
    }

    /// Whether the terminal shows what is typed.
    pub fn echoes(&self) -> bool {
        tcgetattr(self.side.as_fd()).unwrap().local_flags.contains(LocalFlags::ECHO)
    }

    /// Bytes that were typed and that nobody has read: the shell would.
    pub fn left(&self) -> i32 {
        let mut left = 0;
        // SAFETY: writes one number.
        unsafe { libc::ioctl(self.side.as_raw_fd(), libc::FIONREAD, &mut left) };
        left
    }

    /// How it ends, and all that was shown.
    #[track_caller]
    pub fn ends(mut self) -> (ExitStatus, String) {
        let mut status = None;
        until("the command ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        drop(std::mem::replace(&mut self.side, File::open("/dev/null").unwrap().into()));
        let _ = self.reader.take().unwrap().join();
        (status.unwrap(), self.seen())
    }
}
