//! Pinned links: a program stays attached without any process, and is replaced in one step.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use aya::programs::links::{CgroupAttachMode, FdLink, LinkOrder};
use aya::programs::tc::{SchedClassifier, TcAttachOptions, TcAttachType};
use aya::programs::{CgroupSock, CgroupSockAddr, ProgramError, Xdp};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

/// What a link is attached to, as far as it tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Inode of a cgroup directory.
    Cgroup(u64),
    /// Index of a device.
    Device(u32),
}

/// Why a program could not be attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// A system call on the link or its pin.
    #[error("{0}: {1}")]
    System(&'static str, io::Error),
    /// Attaching by aya.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// The link could not be pinned.
    #[error(transparent)]
    Pin(#[from] aya::pin::PinError),
    /// The kernel gave an attachment that cannot be pinned.
    #[error("this kernel has no links for {0}; version 6.6 or later is needed")]
    NoLink(&'static str),
}

/// A program that is attached to a cgroup directory.
pub trait SocketHook {
    /// Of the loaded program.
    fn fd(&self) -> Result<BorrowedFd<'_>, ProgramError>;
    /// Attaches it; the link goes on without the program's handle.
    fn attach(&mut self, directory: File) -> Result<FdLink, AttachError>;
}

macro_rules! socket_hook {
    ($($program:ty),*) => {$(
        impl SocketHook for $program {
            fn fd(&self) -> Result<BorrowedFd<'_>, ProgramError> {
                Ok(<$program>::fd(self)?.as_fd())
            }

            fn attach(&mut self, directory: File) -> Result<FdLink, AttachError> {
                let id = <$program>::attach(self, directory, CgroupAttachMode::Single)?;
                FdLink::try_from(self.take_link(id)?).map_err(|_| AttachError::NoLink("cgroups"))
            }
        }
    )*};
}
socket_hook!(CgroupSockAddr, CgroupSock);

/// Attaches a socket hook to a cgroup directory, pinned at `pin`; an existing link gets the new program.
pub fn attach_cgroup(program: &mut impl SocketHook, cgroup: &Path, pin: &Path) -> Result<(), AttachError> {
    let directory = File::open(cgroup).map_err(|e| AttachError::System("open the cgroup directory", e))?;
    let inode = directory.metadata().map_err(|e| AttachError::System("stat the cgroup directory", e))?.ino();
    if replace(program.fd()?, Target::Cgroup(inode), pin)? {
        return Ok(());
    }
    program.attach(directory)?.pin(pin)?;
    Ok(())
}

/// Attaches a classifier to a device, pinned at `pin`; an existing link gets the new program.
pub fn attach_tc(
    program: &mut SchedClassifier,
    device: (&str, u32),
    (side, order): (TcAttachType, LinkOrder),
    pin: &Path,
) -> Result<(), AttachError> {
    if replace(program.fd()?.as_fd(), Target::Device(device.1), pin)? {
        return Ok(());
    }
    let id = program.attach_with_options(device.0, side, TcAttachOptions::TcxOrder(order))?;
    let link = program.take_link(id)?;
    let link = FdLink::try_from(link).map_err(|_| AttachError::NoLink("devices"))?;
    link.pin(pin)?;
    Ok(())
}

/// Attaches an XDP program to a device's driver, pinned at `pin`; an existing link gets the new program. A driver that has no
/// XDP is an error: the kernel's generic XDP would cost more than tc.
pub fn attach_xdp(program: &Xdp, index: u32, pin: &Path) -> Result<(), AttachError> {
    let fd = program.fd()?.as_fd();
    if replace(fd, Target::Device(index), pin)? {
        return Ok(());
    }
    #[repr(C)]
    struct Attributes {
        program: u32,
        target: u32,
        attach_type: u32,
        flags: u32,
    }
    const BPF_XDP: u32 = 37;
    const XDP_FLAGS_DRV_MODE: u32 = 4;
    let mut attributes = Attributes { program: fd.as_raw_fd() as u32, target: index, attach_type: BPF_XDP, flags: XDP_FLAGS_DRV_MODE };
    let link = bpf(BPF_LINK_CREATE, &mut attributes).map_err(|e| AttachError::System("attach to the driver", e))?;
    // SAFETY: the call succeeded, so this is a new descriptor that nobody else owns.
    let link = unsafe { OwnedFd::from_raw_fd(link as i32) };
    object_pin(link.as_fd(), pin).map_err(|e| AttachError::System("pin the link", e))
}

/// Has the link at `pin` run this program. One whose cgroup or device is gone runs none.
pub fn hand_over(pin: &Path, program: BorrowedFd<'_>) -> Result<(), AttachError> {
    let link = object_get(pin).map_err(|e| AttachError::System("open the pinned link", e))?;
    match update(link.as_fd(), program) {
        Err(e) if e.raw_os_error() != Some(libc::ENOLINK) => Err(AttachError::System("change the link's program", e)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Whether a link at `pin` is alive on this target and now runs the program. A link that is not is unpinned.
fn replace(program: BorrowedFd<'_>, target: Target, pin: &Path) -> Result<bool, AttachError> {
    let link = match object_get(pin) {
        Ok(link) => link,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(AttachError::System("open the pinned link", e)),
    };
    if self::target(link.as_fd(), target).is_ok_and(|t| t == target) && update(link.as_fd(), program).is_ok() {
        return Ok(true);
    }
    // Its cgroup or device is gone, or the program is of another type: the pin is of no more use.
    std::fs::remove_file(pin).map_err(|e| AttachError::System("remove the stale link pin", e))?;
    Ok(false)
}

/// The root of the hierarchy a cgroup directory is in, as far up as it can be seen.
pub fn cgroup_root(cgroup: &Path) -> PathBuf {
    let is_cgroup = |dir: &Path| statfs(dir).is_ok_and(|s| s.filesystem_type() == CGROUP2_SUPER_MAGIC);
    cgroup.ancestors().take_while(|dir| is_cgroup(dir)).last().unwrap_or(cgroup).to_owned()
}

/// Whether a live link is pinned there, on this cgroup directory.
pub fn is_attached_to(pin: &Path, cgroup: &Path) -> bool {
    std::fs::metadata(cgroup).is_ok_and(|m| is_attached(pin, Target::Cgroup(m.ino())))
}

/// Whether a live link is pinned there.
pub fn is_attached(pin: &Path, target: Target) -> bool {
    object_get(pin).and_then(|link| self::target(link.as_fd(), target)).is_ok_and(|t| t == target)
}

const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_LINK_UPDATE: libc::c_long = 29;

/// `bpf(2)` with an attribute block of our own; the tail is zero, as the kernel wants.
fn bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: the kernel reads (and for info writes) size_of::<T>() bytes at a live, exclusive reference to
    // plain integers; pointers within are kept alive by the callers below.
    let code = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) };
    if code < 0 { Err(io::Error::last_os_error()) } else { Ok(code) }
}

fn object_pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    #[repr(C)]
    struct Attributes {
        path: u64,
        fd: u32,
        flags: u32,
    }
    let path = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    bpf(BPF_OBJ_PIN, &mut Attributes { path: path.as_ptr() as u64, fd: object.as_raw_fd() as u32, flags: 0 }).map(|_| ())
}

fn object_get(path: &Path) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attributes {
        path: u64,
        fd: u32,
        flags: u32,
    }
    let path = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    let fd = bpf(BPF_OBJ_GET, &mut Attributes { path: path.as_ptr() as u64, fd: 0, flags: 0 })?;
    // SAFETY: the call succeeded, so this is a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Pins the object that is pinned at `old` at `new` as well.
pub fn pin_again(old: &Path, new: &Path) -> io::Result<()> {
    object_pin(object_get(old)?.as_fd(), new)
}

fn update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct Attributes {
        link: u32,
        program: u32,
        flags: u32,
        old_program: u32,
    }
    let mut attributes = Attributes { link: link.as_raw_fd() as u32, program: program.as_raw_fd() as u32, flags: 0, old_program: 0 };
    bpf(BPF_LINK_UPDATE, &mut attributes).map(|_| ())
}

fn target(link: BorrowedFd<'_>, kind: Target) -> io::Result<Target> {
    /// `struct bpf_link_info`, as far as the types here fill it.
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        kind: u32,
        id: u32,
        program: u32,
        pad: u32,
        union: [u64; 8],
    }
    #[repr(C)]
    struct Attributes {
        fd: u32,
        len: u32,
        info: u64,
    }
    let mut info = Info::default();
    let mut attributes =
        Attributes { fd: link.as_raw_fd() as u32, len: size_of::<Info>() as u32, info: std::ptr::from_mut(&mut info) as u64 };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attributes)?;
    Ok(match kind {
        Target::Cgroup(_) => Target::Cgroup(info.union[0]),
        // The index is the first 32 bits of the union.
        Target::Device(_) => {
            let bytes = info.union[0].to_ne_bytes();
            Target::Device(u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
        }
    })
}
