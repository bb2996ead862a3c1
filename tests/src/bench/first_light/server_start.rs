//! From the start of the process to `/readyz`.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, Stream,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};

const DEADLINE: Duration = Duration::from_secs(30);

/// Starts on empty directories: certificates are made, the store's file too.
pub fn empty(xebec: &Path, runs: usize) -> Result<Vec<f64>> {
    (0..runs).map(|_| start(xebec, tempfile::tempdir()?.path())).collect()
}

/// Starts on a directory that has seen a start.
pub fn again(xebec: &Path, runs: usize) -> Result<Vec<f64>> {
    let dir = tempfile::tempdir()?;
    start(xebec, dir.path())?;
    (0..runs).map(|_| start(xebec, dir.path())).collect()
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(xebec: &Path, dir: &Path) -> Result<f64> {
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let begin = Instant::now();
    let mut server = Server(
        Command::new(xebec)
            .args(["server", "--data-dir"])
            .arg(dir)
            .args(["--bind", &format!("127.0.0.1:{port}")])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {}", xebec.display()))?,
    );
    let ca = dir.join("pki/ca.crt");
    while begin.elapsed() < DEADLINE {
        if let Some(status) = server.0.try_wait()? {
            bail!("the server ended with {status} before it was ready");
        }
        if ca.exists() && ready(port, &ca).unwrap_or(false) {
            return Ok(begin.elapsed().as_secs_f64());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    bail!("the server was not ready after {DEADLINE:?}")
}

fn ready(port: u16, ca: &Path) -> Result<bool> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca)?)?;
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut socket = TcpStream::connect(("127.0.0.1", port))?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut tls = ClientConnection::new(Arc::new(config), ServerName::try_from("localhost")?)?;
    let mut stream = Stream::new(&mut tls, &mut socket);
    stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer)?;
    Ok(&answer == b"HTTP/1.1 200")
}
