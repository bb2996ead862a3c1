//! Many connections that live, and more that come and go: what they meet while something is done to their node.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinSet,
    time::{Instant, interval, sleep_until, timeout},
};

/// Each connection that lives asks as often.
const PERIOD: Duration = Duration::from_secs(4);
/// Who waits longer has been cut off; a busy machine alone takes less.
const PATIENCE: Duration = Duration::from_secs(30);
/// Asked for in the last exchange of a connection: the server closes it, so that the client's port is free at once.
const LAST: u8 = 0;

/// Echoes bytes; prints a line when it does, and goes on until it is killed.
pub async fn serve(address: SocketAddr) -> Result<()> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.bind(address).with_context(|| format!("cannot listen on {address}"))?;
    let listener = socket.listen(4096)?;
    println!("ready");
    loop {
        let (mut stream, _) = listener.accept().await.context("accept")?;
        tokio::spawn(async move {
            let mut byte = [0; 1];
            // A client that goes away ends it.
            while stream.read_exact(&mut byte).await.is_ok() && stream.write_all(&byte).await.is_ok() && byte[0] != LAST {}
        });
    }
}

/// What to make.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    pub to: SocketAddr,
    /// Connections that live.
    pub live: usize,
    /// New ones a second.
    pub rate: u32,
}

/// What was met.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Met {
    /// Of the connections that live, those that answered to the end.
    pub alive: u64,
    /// Those that did not.
    pub broken: u64,
    /// New connections that were made and answered.
    pub made: u64,
    /// Those that were not.
    pub failed: u64,
}

impl Met {
    /// As [`run`] prints it.
    pub fn parse(line: &str) -> Result<Met> {
        let numbers: Vec<u64> = line.split(' ').map(str::parse).collect::<Result<_, _>>().with_context(|| format!("said {line:?}"))?;
        let [alive, broken, made, failed] = numbers[..] else { bail!("said {line:?}") };
        Ok(Met { alive, broken, made, failed })
    }

    /// Of two clients.
    pub fn and(self, other: Met) -> Met {
        Met {
            alive: self.alive + other.alive,
            broken: self.broken + other.broken,
            made: self.made + other.made,
            failed: self.failed + other.failed,
        }
    }
}

/// Prints a line when every connection lives; at SIGTERM asks on each of them once more, and prints what was met.
pub async fn run(args: &Args) -> Result<()> {
    let mut end = signal(SignalKind::terminate())?;
    let (ending, ends) = watch::channel(false);
    let mut connecting = JoinSet::new();
    let mut living = JoinSet::new();
    for number in 0..args.live {
        let (to, ends) = (args.to, ends.clone());
        connecting.spawn(async move { Ok::<_, anyhow::Error>((number, connect(to).await?, ends)) });
        // Not more at once than a listener has room for.
        if connecting.len() >= 64 || number + 1 == args.live {
            while let Some(connected) = connecting.join_next().await {
                let (number, stream, ends) = connected??;
                living.spawn(live(stream, PERIOD.mul_f64(number as f64 / args.live as f64), ends));
            }
        }
    }
    println!("live");
    let (made, failed) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let mut comes = interval(Duration::from_secs(1) / args.rate);
    let mut passing = JoinSet::new();
    loop {
        tokio::select! {
            _ = end.recv() => break,
            _ = comes.tick() => {
                let (to, made, failed) = (args.to, made.clone(), failed.clone());
                passing.spawn(async move {
                    match pass(to).await {
                        Ok(()) => made.fetch_add(1, Relaxed),
                        Err(error) => {
                            eprintln!("a new connection: {error:#}");
                            failed.fetch_add(1, Relaxed)
                        }
                    }
                });
                while passing.try_join_next().is_some() {}
            }
        }
    }
    ending.send(true)?;
    passing.join_all().await;
    let (mut alive, mut broken) = (0, 0);
    for outcome in living.join_all().await {
        match outcome {
            Ok(()) => alive += 1,
            Err(error) => {
                eprintln!("a connection that lived: {error:#}");
                broken += 1;
            }
        }
    }
    println!("{alive} {broken} {} {}", made.load(Relaxed), failed.load(Relaxed));
    Ok(())
}

async fn connect(to: SocketAddr) -> Result<TcpStream> {
    let stream = timeout(PATIENCE, TcpStream::connect(to)).await.context("connect")??;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn exchange(stream: &mut TcpStream, byte: u8) -> Result<()> {
    let both = async {
        stream.write_all(&[byte]).await?;
        stream.read_u8().await
    };
    ensure!(timeout(PATIENCE, both).await.context("no answer")?? == byte, "another answer");
    Ok(())
}

/// Asks now and then until the end.
async fn live(mut stream: TcpStream, first: Duration, mut ends: watch::Receiver<bool>) -> Result<()> {
    let mut next = Instant::now() + first;
    loop {
        let ended = tokio::select! {
            () = sleep_until(next) => false,
            _ = ends.wait_for(|ends| *ends) => true,
        };
        exchange(&mut stream, if ended { LAST } else { 1 }).await?;
        if ended {
            return Ok(());
        }
        next += PERIOD;
    }
}

/// One that comes and goes.
async fn pass(to: SocketAddr) -> Result<()> {
    let mut stream = connect(to).await?;
    exchange(&mut stream, LAST).await?;
    ensure!(timeout(PATIENCE, stream.read(&mut [0; 1])).await.context("no end")?? == 0, "more than was asked for");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_connection_lives_until_its_end_and_one_that_is_cut_off_is_told() {
        let [.., a, b] = std::process::id().to_be_bytes();
        let address = SocketAddr::from(([127, 8, a, b], 7004));
        let server = tokio::spawn(serve(address));
        let begin = Instant::now();
        while pass(address).await.is_err() {
            assert!(begin.elapsed() < Duration::from_secs(10), "the server never listened");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let (ending, ends) = watch::channel(false);
        let good = tokio::spawn(live(connect(address).await.unwrap(), Duration::ZERO, ends.clone()));
        // Nobody answers there.
        let deaf = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let cut = tokio::spawn(live(connect(deaf.local_addr().unwrap()).await.unwrap(), Duration::ZERO, ends));
        drop(deaf.accept().await.unwrap());
        ending.send(true).unwrap();
        good.await.unwrap().unwrap();
        assert!(cut.await.unwrap().is_err());
        server.abort();
    }

    #[test]
    fn what_was_met_is_read_as_it_is_printed() {
        let met = Met::parse("1 2 3 4").unwrap();
        assert_eq!(met, Met { alive: 1, broken: 2, made: 3, failed: 4 });
        assert_eq!(met.and(met).made, 6);
        assert!(Met::parse("1 2").is_err() && Met::parse("").is_err());
    }
}
