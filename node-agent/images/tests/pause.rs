//! The embedded program, run for real.

use std::{
    fs, io,
    os::unix::{fs::PermissionsExt, process::CommandExt, process::ExitStatusExt},
    process::{Child, Command},
    time::{Duration, Instant},
};

/// Starts the program; if `orphan`, with a child of its own that has already ended (a process keeps its children over exec).
fn start(orphan: bool) -> (tempfile::TempDir, Child) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pause");
    fs::write(&file, xebec_images::PAUSE_PROGRAM).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new(&file);
    if orphan {
        command = Command::new("sh");
        command.arg("-c").arg(format!("sleep 0.3 & exec {}", file.display()));
    }
    // SAFETY: nothing but an async-signal-safe call between fork and exec.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        })
    };
    let child = command.spawn().unwrap();
    (dir, child)
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn signal(child: &Child, signal: i32) {
    // SAFETY: a signal to a child that has not been waited for, so its id cannot belong to another process.
    assert_eq!(unsafe { libc::kill(child.id() as i32, signal) }, 0);
}

fn is_waiting(child: &Child) -> bool {
    let name = fs::read_to_string(format!("/proc/{}/comm", child.id())).unwrap_or_default();
    // 128 is rt_sigtimedwait: its signals are blocked by then.
    let call = fs::read_to_string(format!("/proc/{}/syscall", child.id())).unwrap_or_default();
    name.trim() == "pause" && (call.starts_with("128 ") || call.is_empty())
}

#[test]
fn ends_with_success_on_sigterm_and_sigint() {
    for number in [libc::SIGTERM, libc::SIGINT] {
        let (_dir, mut child) = start(false);
        until("it waits for signals", || is_waiting(&child));
        signal(&child, number);
        let status = child.wait().unwrap();
        assert_eq!((status.code(), status.signal()), (Some(0), None), "signal {number}");
    }
}

#[test]
fn reaps_children_it_did_not_start_itself() {
    let (_dir, mut child) = start(true);
    let children = || fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).unwrap_or_default();
    until("it waits for signals", || is_waiting(&child));
    until("its child is gone", || children().trim().is_empty());
    assert!(child.try_wait().unwrap().is_none(), "it must go on after reaping");
    child.kill().unwrap();
    child.wait().unwrap();
}
