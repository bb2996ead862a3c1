//! Makes the binary smaller: functions that came out identical, of which generic code makes many, are folded (an eighth of
//! it), and the addresses it puts right at its start are packed (a twentieth).

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // rustc links with its own lld here; other targets use the system's linker, which may not know the options.
    let target = std::env::var("TARGET").unwrap_or_default();
    let is_release = std::env::var("PROFILE").is_ok_and(|p| p == "release");
    if target != "x86_64-unknown-linux-gnu" || !is_release {
        return;
    }
    println!("cargo::rustc-link-arg-bins=-Wl,--icf=all");
    // A static binary does so with the C library it was linked with, and older ones read no packed addresses.
    if glibc().is_some_and(|version| version >= (2, 36)) {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

/// Version of this machine's C library, which is also the one to link with.
#[cfg(target_env = "gnu")]
fn glibc() -> Option<(u32, u32)> {
    unsafe extern "C" {
        fn gnu_get_libc_version() -> *const std::ffi::c_char;
    }
    // SAFETY: it returns a constant of the library's, terminated by zero.
    let version = unsafe { std::ffi::CStr::from_ptr(gnu_get_libc_version()) };
    let (major, minor) = version.to_str().ok()?.split_once('.')?;
    Some((major.parse().ok()?, minor.split('.').next()?.parse().ok()?))
}

#[cfg(not(target_env = "gnu"))]
fn glibc() -> Option<(u32, u32)> {
    None
}
