//! The smallest traffic there is: one byte to and fro on one connection, and connections made one after another.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

const TIMEOUT: Duration = Duration::from_secs(5);

/// Echoes bytes on every connection; prints its port first, then serves until killed.
pub fn serve(address: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
    println!("{}", listener.local_addr()?.port());
    for socket in listener.incoming() {
        let mut socket = socket.context("accept")?;
        thread::spawn(move || {
            let _ = socket.set_nodelay(true);
            let mut byte = [0; 1];
            // A client that goes away ends its thread.
            while socket.read_exact(&mut byte).is_ok() && socket.write_all(&byte).is_ok() {}
        });
    }
    Ok(())
}

/// Round trips a second on one connection, over `time`.
pub fn round_trips(address: SocketAddr, time: Duration) -> Result<f64> {
    let mut socket = TcpStream::connect_timeout(&address, TIMEOUT).with_context(|| format!("cannot connect to {address}"))?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    let mut byte = [1; 1];
    let (start, mut count) = (Instant::now(), 0_u64);
    loop {
        socket.write_all(&byte)?;
        socket.read_exact(&mut byte)?;
        count += 1;
        if count.is_multiple_of(64) && start.elapsed() >= time {
            return Ok(count as f64 / start.elapsed().as_secs_f64());
        }
    }
}

/// What a stream of connections met.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Connections {
    pub made: u64,
    /// Connects that failed or timed out.
    pub failed: u64,
    /// Connections that were reset or answered nothing.
    pub broken: u64,
}

/// Makes `rate` connections a second for `time`, a byte to and fro on each, and keeps one open all along.
pub fn connections(address: SocketAddr, rate: u32, time: Duration) -> Result<Connections> {
    let mut seen = Connections::default();
    let mut kept = TcpStream::connect_timeout(&address, TIMEOUT).with_context(|| format!("cannot connect to {address}"))?;
    kept.set_read_timeout(Some(TIMEOUT))?;
    let (start, pause) = (Instant::now(), Duration::from_secs(1) / rate);
    let mut next = start;
    while start.elapsed() < time {
        match TcpStream::connect_timeout(&address, TIMEOUT) {
            Err(_) => seen.failed += 1,
            Ok(mut socket) => match exchange(&mut socket) {
                Ok(()) => seen.made += 1,
                Err(_) => seen.broken += 1,
            },
        }
        if exchange(&mut kept).is_err() {
            seen.broken += 1;
            kept = TcpStream::connect_timeout(&address, TIMEOUT).with_context(|| format!("cannot connect to {address} again"))?;
            kept.set_read_timeout(Some(TIMEOUT))?;
        }
        next += pause;
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    Ok(seen)
}

fn exchange(socket: &mut TcpStream) -> std::io::Result<()> {
    socket.set_read_timeout(Some(TIMEOUT))?;
    socket.write_all(&[7])?;
    let mut byte = [0; 1];
    socket.read_exact(&mut byte)?;
    if byte == [7] { Ok(()) } else { Err(ErrorKind::InvalidData.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traffic_over_loopback() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        thread::spawn(move || serve(address));
        let deadline = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(address).is_err() {
            assert!(Instant::now() < deadline, "the server never listened");
            thread::sleep(Duration::from_millis(5));
        }
        assert!(round_trips(address, Duration::from_millis(50)).unwrap() > 1.0);
        let seen = connections(address, 200, Duration::from_millis(100)).unwrap();
        assert!(seen.made > 0 && seen.failed == 0 && seen.broken == 0, "{seen:?}");
    }

    #[test]
    fn nobody_there_is_an_error() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        assert!(round_trips(address, Duration::from_millis(10)).is_err());
    }
}
