//! What is measured between two places: round trips on one connection, connections one after another, one stream.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::bench::{processes, traffic};

const TIMEOUT: Duration = Duration::from_secs(5);
/// What a stream writes at once.
const BLOCK: usize = 256 << 10;

/// What a client does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Load {
    /// A byte to and fro, on one connection.
    RoundTrips,
    /// A connection, a byte to and fro on it, its end; then the next one.
    Connections,
    /// As much as goes on one connection.
    Stream,
}

impl Load {
    pub const ALL: [Load; 3] = [Load::RoundTrips, Load::Connections, Load::Stream];

    /// Where [`serve`] answers it.
    pub fn port(self) -> u16 {
        match self {
            Load::RoundTrips => 7001,
            Load::Connections => 7002,
            Load::Stream => 7003,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Load::RoundTrips => "round trips",
            Load::Connections => "connections",
            Load::Stream => "stream",
        }
    }

    /// Client and server of small requests share a CPU: a figure is then what a request costs, not where the scheduler has put
    /// the two. A stream gets all CPUs there are.
    fn place(self) -> Result<()> {
        if self != Load::Stream {
            processes::stay()?;
        }
        Ok(())
    }

    pub fn unit(self) -> &'static str {
        match self {
            Load::RoundTrips | Load::Connections => "1/s",
            Load::Stream => "Gbit/s",
        }
    }

    /// The figure, in [`Load::unit`].
    pub fn measure(self, to: SocketAddr, time: Duration) -> Result<f64> {
        self.place()?;
        match self {
            Load::RoundTrips => traffic::round_trips(to, time),
            Load::Connections => connections(to, time),
            Load::Stream => stream(to, time),
        }
    }
}

/// Answers every load at an address; prints a line when it does, and goes on until it is killed.
pub fn serve(ip: IpAddr) -> Result<()> {
    let listen = |load: Load| {
        let address = SocketAddr::new(ip, load.port());
        TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))
    };
    let (echo, once, sink) = (listen(Load::RoundTrips)?, listen(Load::Connections)?, listen(Load::Stream)?);
    each(echo, |mut socket| {
        if let Err(error) = Load::RoundTrips.place() {
            return eprintln!("{error:#}");
        }
        let _ = socket.set_nodelay(true);
        let mut byte = [0; 1];
        // A client that goes away ends it.
        while socket.read_exact(&mut byte).is_ok() && socket.write_all(&byte).is_ok() {}
    });
    each(sink, |mut socket| {
        let mut block = vec![0; BLOCK];
        while socket.read(&mut block).is_ok_and(|len| len > 0) {}
    });
    println!("ready");
    Load::Connections.place()?;
    // No thread for each: it would cost more than the connection.
    for socket in once.incoming() {
        let mut socket = socket.context("accept")?;
        let mut byte = [0; 1];
        // This side closes first, so that the client's port is free at once.
        let _ = socket.read_exact(&mut byte).and_then(|()| socket.write_all(&byte));
    }
    Ok(())
}

fn each(listener: TcpListener, with: fn(TcpStream)) {
    thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            thread::spawn(move || with(socket));
        }
    });
}

fn connections(to: SocketAddr, time: Duration) -> Result<f64> {
    let (start, mut count) = (Instant::now(), 0_u64);
    while start.elapsed() < time {
        let mut socket = TcpStream::connect_timeout(&to, TIMEOUT).with_context(|| format!("cannot connect to {to}"))?;
        socket.set_read_timeout(Some(TIMEOUT))?;
        socket.write_all(&[1])?;
        let mut answer = Vec::with_capacity(1);
        socket.read_to_end(&mut answer).with_context(|| format!("connection {count} to {to}"))?;
        ensure!(answer == [1], "{to} answered {answer:?}");
        count += 1;
    }
    Ok(count as f64 / start.elapsed().as_secs_f64())
}

fn stream(to: SocketAddr, time: Duration) -> Result<f64> {
    let mut socket = TcpStream::connect_timeout(&to, TIMEOUT).with_context(|| format!("cannot connect to {to}"))?;
    socket.set_write_timeout(Some(TIMEOUT))?;
    let block = vec![0; BLOCK];
    let (start, mut bytes) = (Instant::now(), 0);
    while start.elapsed() < time {
        bytes += socket.write(&block).with_context(|| format!("stream to {to}"))?;
    }
    Ok(bytes as f64 * 8.0 / 1e9 / start.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_load_is_answered() {
        // An address of this process alone.
        let [.., a, b] = std::process::id().to_be_bytes();
        let ip = IpAddr::from([127, 9, a, b]);
        thread::spawn(move || serve(ip));
        for load in Load::ALL {
            let to = SocketAddr::new(ip, load.port());
            let deadline = Instant::now() + Duration::from_secs(10);
            while TcpStream::connect(to).is_err() {
                assert!(Instant::now() < deadline, "the server never listened");
                thread::sleep(Duration::from_millis(5));
            }
            assert!(load.measure(to, Duration::from_millis(30)).unwrap() > 0.0, "{load:?}");
        }
        assert!(Load::Connections.measure(SocketAddr::new(ip, 1), Duration::from_millis(1)).is_err());
    }
}
