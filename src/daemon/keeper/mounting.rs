//! Makes the mount for the first worker. The mount is attached last (`attach`): a failure before
//! that leaves nothing in the mount table.

use std::io;
use std::path::Path;

use crate::daemon::helper::HelperSupervisor;
use crate::daemon::keeper::{Keeper, StarterPipe};
use crate::daemon::protocol::{ExitError, Outcome, ToWorker};
use crate::daemon::runtime_dir::RuntimeDir;
use crate::display::Shown;
use crate::sys::channel::take_standard;
use crate::sys::mount;
use crate::sys::mount::{AttachError, Way};
use crate::sys::mount_table;
use crate::sys::mount_target::Target;

impl Keeper {
    /// Starts a worker and mounts.
    pub(super) fn start(mut self, target: Target, starter: &mut StarterPipe) -> Result<Self, ExitError> {
        if let Err(e) = self.try_to_mount(&target, starter, Way::Detached)? {
            tracing::info!("a finished mount cannot be attached here ({e}): mounting at once");
            self.try_to_mount(&target, starter, Way::AtOnce)?.map_err(|e| mount_failed(target.path(), &e))?;
        }
        // Whatever is open below the mount would keep that busy when this one is gone.
        drop(target);
        let dev = self.dev().expect("just mounted");
        if !starter.report(&Outcome::Ready { dev, keeper_pid: std::process::id() }) {
            self.abandon();
            return Err(ExitError::new("interrupted when it was mounted"));
        }
        if !self.spawn_config.config.foreground {
            // From here on there is no reader for what is written there.
            drop(take_standard(2));
        }
        Ok(self)
    }

    /// The inner error: this way of mounting is not permitted here. An error leaves nothing behind.
    fn try_to_mount(
        &mut self,
        target: &Target,
        starter: &mut StarterPipe,
        way: Way,
    ) -> Result<io::Result<()>, ExitError> {
        let first = ToWorker::State { takeover: false, fresh_mount: false };
        self.worker = Some(self.spawn_and_verify(None, &first, Some(starter))?);
        self.connect(Some(starter))?;
        self.mount(target, way)?;
        let attached = self.hand_mount(Some(starter)).and_then(|()| match self.attach(target) {
            Ok(()) => Ok(Ok(())),
            Err(AttachError::NotPermitted(e)) => Ok(Err(e)),
            Err(AttachError::Failed(e)) => Err(mount_failed(target.path(), &e)),
        });
        if !matches!(attached, Ok(Ok(()))) {
            self.abandon();
            self.worker = None;
        }
        attached
    }

    /// Makes the mount, its control socket and its record.
    pub(super) fn mount(&mut self, target: &Target, way: Way) -> Result<(), ExitError> {
        let mountpoint = self.mountpoint();
        // A dead one that is to be replaced is the target itself.
        let is_another = |top: mount_table::Entry| top.is_vaultfs() && top.id != target.mount_id();
        let taken = mount_table::top_at(mountpoint).ok().flatten().is_some_and(is_another);
        if taken {
            return Err(ExitError::new(format!(
                "{} was mounted by another vaultfs meanwhile",
                mountpoint.shown()
            )));
        }
        let mounted = mount::mount(target, &self.spawn_config.config.kernel, way)
            .map_err(|e| mount_failed(mountpoint, &e))?;
        let failed = |e| ExitError::new(format!("the control socket cannot be made: {e}"));
        let made = RuntimeDir::listen(mounted.dev, std::process::id()).map_err(failed);
        self.mounted = Some(mounted);
        let (directory, listener) = made.inspect_err(|_| self.abandon())?;
        (self.directory, self.listener) = (directory, Some(listener));
        let dev = self.dev().expect("mounted above");
        let helper = HelperSupervisor::new(self.mountpoint(), dev);
        self.helper = Some(helper.map_err(|e| {
            self.abandon();
            ExitError::new(format!("there is no line to the helper process: {e}"))
        })?);
        self.init_reply.clear();
        Ok(())
    }

    /// Attaches the mount, unless it is attached.
    fn attach(&mut self, target: &Target) -> Result<(), AttachError> {
        let Some(mounted) = &mut self.mounted else { return Ok(()) };
        mounted.attach(target)?;
        tracing::info!(mountpoint = %target.path().shown(), dev = %mounted.dev, "mounted");
        // It works on the mount where that is seen.
        self.supervise_helper();
        Ok(())
    }
}

fn mount_failed(mountpoint: &Path, e: &io::Error) -> ExitError {
    let what = format!("{} cannot be mounted: {e}", mountpoint.shown());
    ExitError::new(match e.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            format!("{what}; a container needs CAP_SYS_ADMIN and the device /dev/fuse for it")
        }
        Some(libc::ENODEV) => format!("{what}; load the kernel's module with `modprobe fuse`"),
        _ => what,
    })
}
