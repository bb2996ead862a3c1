//! Running other programs: each call says what it runs when that fails.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

/// The command line as a person would type it.
pub fn line(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args() {
        let arg = arg.to_string_lossy();
        text.push(' ');
        if arg.is_empty() || arg.contains(char::is_whitespace) {
            text.push_str(&format!("'{arg}'"));
        } else {
            text.push_str(&arg);
        }
    }
    text
}

/// Runs with the caller's output; an exit code other than 0 is an error.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.stdin(Stdio::null()).status().with_context(|| format!("cannot run `{}`", line(command)))?;
    if !status.success() {
        bail!("`{}` ended with {status}", line(command));
    }
    Ok(())
}

/// Runs without output; on failure the error holds what it wrote.
pub fn quiet(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run `{}`", line(command)))?;
    if !output.status.success() {
        let said = [&output.stdout[..], &output.stderr[..]].concat();
        bail!("`{}` ended with {}: {}", line(command), output.status, String::from_utf8_lossy(&said).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whether the command can be run and exits with 0.
pub fn succeeds(command: &mut Command) -> bool {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// A command with arguments.
pub fn cmd<I, S>(program: impl AsRef<OsStr>, args: I) -> Command
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let mut command = Command::new(program);
    command.args(args);
    command
}

/// Where a program is: on `PATH`, or in the administrator's directories that a user's `PATH` may lack.
pub fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    file.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// Whether this process is root.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// A command that runs as root: itself for root, else through sudo, which is said once per command.
pub fn as_root(program: &str) -> Result<Command> {
    if is_root() {
        return Ok(Command::new(program));
    }
    if which("sudo").is_none() {
        bail!("`{program}` must run as root, and there is no sudo: run this command as root");
    }
    eprintln!("==> using sudo for `{program}`");
    Ok(cmd("sudo", [program]))
}

/// Runs this very command again as root, with more arguments.
pub fn again_as_root(more: &[&str]) -> Result<()> {
    if which("sudo").is_none() {
        bail!("this must run as root, and there is no sudo: run it as root");
    }
    step("network namespaces, cgroups and BPF need root: going on under sudo");
    let me = std::env::current_exe().context("cannot find this program's own file")?;
    let mut command = cmd("sudo", ["env"]);
    // sudo resets these; the build directory and the programs must stay the same.
    for name in ["PATH", "CARGO_TARGET_DIR", "RUST_LOG", "XEBEC_PROFILE"] {
        if let Ok(value) = std::env::var(name) {
            command.arg(format!("{name}={value}"));
        }
    }
    let status = command.arg(me).args(std::env::args_os().skip(1)).args(more).status().context("cannot run sudo")?;
    if !status.success() {
        bail!("ended with {status}");
    }
    Ok(())
}

/// A step of progress, on stderr.
pub fn step(text: impl std::fmt::Display) {
    eprintln!("==> {text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failure_names_the_command_and_what_it_said() {
        let error = quiet(&mut cmd("sh", ["-c", "echo broken >&2; exit 3"])).unwrap_err().to_string();
        assert!(error.contains("sh -c 'echo broken >&2; exit 3'"), "{error}");
        assert!(error.contains("exit status: 3") && error.contains("broken"), "{error}");
    }

    #[test]
    fn which_finds_programs_and_only_those() {
        assert!(which("sh").is_some());
        assert!(which("no-such-program-anywhere").is_none());
    }
}
