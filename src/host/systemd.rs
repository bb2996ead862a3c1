//! Units of the node's parts.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

/// (name, text), in the order they are started.
const UNITS: [(&str, &str); 3] = [
    ("xebec-server.service", include_str!("../../deploy/systemd/xebec-server.service")),
    ("xebec-containerd.service", include_str!("../../deploy/systemd/xebec-containerd.service")),
    ("xebec-agent.service", include_str!("../../deploy/systemd/xebec-agent.service")),
];

/// The program the units of deploy/ name.
const PROGRAM: &str = "/usr/local/bin/xebec";

fn file(unit: &str) -> PathBuf {
    Path::new("/etc/systemd/system").join(unit)
}

/// The command lines of the three parts, to be put into the units.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CommandLines {
    pub server: Vec<String>,
    pub containerd: Vec<String>,
    pub import: Vec<String>,
    pub agent: Vec<String>,
}

/// Writes the units and starts one.
pub fn install(program: &Path, lines: &CommandLines) -> Result<()> {
    for (unit, text) in UNITS {
        let path = file(unit);
        fs::write(&path, render(text, program, lines)).with_context(|| format!("cannot write {}", path.display()))?;
    }
    systemctl(&["daemon-reload"])
}

/// Starts a part now and at every boot.
pub fn enable(part: &str) -> Result<()> {
    systemctl(&["enable", &format!("xebec-{part}.service")])?;
    // Not `enable --now`: a part that runs an older build is to be started again.
    systemctl(&["restart", &format!("xebec-{part}.service")])
}

/// Stops all parts and removes the units; no error if they are not there.
pub fn remove() -> Result<()> {
    for (unit, _) in UNITS.iter().rev() {
        if file(unit).exists() {
            systemctl(&["disable", "--now", unit])?;
            fs::remove_file(file(unit)).with_context(|| format!("cannot remove {}", file(unit).display()))?;
        }
    }
    systemctl(&["daemon-reload"])
}

/// The unit with the real program and its arguments.
fn render(text: &str, program: &Path, lines: &CommandLines) -> String {
    let program = program.display().to_string();
    let line = |text: &str| {
        let Some((key, command)) = text.split_once('=').filter(|(_, command)| command.starts_with(PROGRAM)) else {
            return text.to_owned();
        };
        let words = match command.split(' ').nth(1) {
            Some("server") => &lines.server,
            Some("containerd") => &lines.containerd,
            Some("image") => &lines.import,
            _ => &lines.agent,
        };
        let words: Vec<String> = std::iter::once(&program).chain(words).map(|word| quote(word)).collect();
        format!("{key}={}", words.join(" "))
    };
    text.lines().map(line).collect::<Vec<_>>().join("\n") + "\n"
}

/// systemd.syntax(7): blanks need quotes, percent and dollar signs are doubled.
fn quote(word: &str) -> String {
    let word = word.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%").replace('$', "$$");
    if word.contains(char::is_whitespace) { format!("\"{word}\"") } else { word }
}

fn systemctl(args: &[&str]) -> Result<()> {
    let output = Command::new("systemctl").args(args).output().context("cannot run systemctl")?;
    if !output.status.success() {
        bail!("`systemctl {}` failed: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_gets_its_own_command_line() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let lines = CommandLines {
            server: words("server --data-dir /a%b"),
            containerd: words("containerd --root /c"),
            import: words("image import-pause"),
            agent: vec!["agent".to_owned(), "--node-name".to_owned(), "x y".to_owned()],
        };
        let render = |index: usize| render(UNITS[index].1, Path::new("/opt/xebec"), &lines);
        assert!(render(0).contains("\nExecStart=/opt/xebec server --data-dir /a%%b\n"), "{}", render(0));
        assert!(
            render(1).contains("\nExecStart=/opt/xebec containerd --root /c\nExecStartPost=/opt/xebec image import-pause\n"),
            "{}",
            render(1)
        );
        assert!(render(2).contains("\nExecStart=/opt/xebec agent --node-name \"x y\"\n"), "{}", render(2));
        assert!((0..3).all(|index| !render(index).contains(PROGRAM)));
    }
}
