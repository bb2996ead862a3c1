//! The official Python client, in a virtual environment below `target`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use super::server::cluster;

/// The interpreter of an environment that has the client, made on first use.
fn interpreter() -> &'static Path {
    static PYTHON: OnceLock<PathBuf> = OnceLock::new();
    PYTHON.get_or_init(|| {
        let target = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("target");
        let folder = target.join("python-client");
        let python = folder.join("bin/python");
        let works = || Command::new(&python).args(["-c", "import kubernetes"]).output().is_ok_and(|o| o.status.success());
        if !works() {
            run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder));
            run(Command::new(&python).args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "kubernetes>=29"]));
        }
        python
    })
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(
        output.status.success(),
        "{command:?}:\n{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn the_official_client_works() {
    let c = cluster();
    let ns = c.namespace("python");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/api/client.py");
    run(Command::new(interpreter()).arg(script).arg(c.kubeconfig()).arg(&ns));
}
