//! One table from what went wrong to what a program sees. Nothing else in the project chooses an
//! errno for a vault's answer.

use crate::vault::{Error, ErrorKind};

/// An errno value of Linux.
#[derive(Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Errno(pub i32);

macro_rules! errno {
    ($($name:ident),* $(,)?) => {
        impl Errno {
            $(#[doc = concat!("errno(3) ", stringify!($name))] pub const $name: Errno = Errno(libc::$name);)*
        }

        impl std::fmt::Debug for Errno {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                match self.0 {
                    $(libc::$name => f.write_str(stringify!($name)),)*
                    other => write!(f, "errno {other}"),
                }
            }
        }
    };
}

errno!(
    EACCES,
    EBADF,
    EBUSY,
    EEXIST,
    EFBIG,
    EINVAL,
    EIO,
    EISDIR,
    ENAMETOOLONG,
    ENODATA,
    ENOENT,
    ENOSPC,
    ENOTDIR,
    ENOTEMPTY,
    EOPNOTSUPP,
    EPERM,
    ERANGE,
    EROFS,
    ESTALE,
    ETIMEDOUT,
    EXDEV,
    ENOTTY,
    ENXIO,
);

/// What the caller of a failed vault operation sees (DESIGN.md, "Errno, one table").
impl From<ErrorKind> for Errno {
    fn from(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::Unauthorized | ErrorKind::Forbidden => Errno::EACCES,
            ErrorKind::NotFound => Errno::ENOENT,
            ErrorKind::AlreadyExists => Errno::EEXIST,
            ErrorKind::VersionMismatch | ErrorKind::MadeAndDeleted => Errno::ESTALE,
            ErrorKind::Invalid => Errno::EINVAL,
            ErrorKind::TooLarge => Errno::EFBIG,
            ErrorKind::NameTooLong => Errno::ENAMETOOLONG,
            ErrorKind::RateLimited | ErrorKind::ShareSpent | ErrorKind::NameNotFree => Errno::EBUSY,
            ErrorKind::Deadline | ErrorKind::Unreachable => Errno::ETIMEDOUT,
            ErrorKind::Full => Errno::ENOSPC,
            ErrorKind::Server | ErrorKind::BadAnswer | ErrorKind::OtherObject => Errno::EIO,
            ErrorKind::Unsupported => Errno::EOPNOTSUPP,
        }
    }
}

impl From<&Error> for Errno {
    fn from(e: &Error) -> Self {
        e.kind.into()
    }
}

/// The result of a file system operation.
pub type Result<T, E = Errno> = std::result::Result<T, E>;
