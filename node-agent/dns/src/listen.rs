//! Sockets of one address.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol as SocketProtocol, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::metrics::Protocol;
use crate::server::{Begun, Server};

/// Questions are small; larger ones are no questions.
const LARGEST_QUESTION: usize = 4096;
/// Connections of one address at a time, and how long one may say nothing.
const CONNECTIONS: usize = 512;
const IDLE: Duration = Duration::from_secs(10);
/// How soon a socket that could not be had is tried again: at once the address may just be appearing.
const RETRY_FIRST: Duration = Duration::from_millis(20);
const RETRY_MOST: Duration = Duration::from_secs(1);

/// Answers at `address` until cancelled. What keeps the sockets away (another name server on every address) may go.
pub async fn listen(server: Arc<Server>, address: SocketAddr, cancel: CancellationToken) {
    let mut pause = RETRY_FIRST;
    let mut said = false;
    let (udp, tcp) = loop {
        let error = match bind(address) {
            Ok(sockets) => break sockets,
            Err(error) => error,
        };
        if pause >= RETRY_MOST && !said {
            tracing::error!(
                %address, %error,
                "cluster DNS cannot listen; it keeps trying. Check that no other name server (dnsmasq, named, systemd-resolved) of \
                 this node listens on all addresses"
            );
            said = true;
        }
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(RETRY_MOST),
        }
    };
    tracing::info!(%address, "cluster DNS answers");
    tokio::select! {
        () = cancel.cancelled() => {}
        () = by_udp(&server, Arc::new(udp)) => {}
        () = by_tcp(&server, tcp) => {}
    }
}

fn bind(address: SocketAddr) -> io::Result<(UdpSocket, TcpListener)> {
    let domain = Domain::for_address(address);
    let udp = Socket::new(domain, Type::DGRAM, Some(SocketProtocol::UDP))?;
    let tcp = Socket::new(domain, Type::STREAM, Some(SocketProtocol::TCP))?;
    // Connections of the agent before us may linger.
    tcp.set_reuse_address(true)?;
    // The kernel gives what it may; a burst from every pod at once must not be lost.
    udp.set_recv_buffer_size(4 << 20)?;
    for socket in [&udp, &tcp] {
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
    }
    tcp.listen(1024)?;
    Ok((UdpSocket::from_std(udp.into())?, TcpListener::from_std(tcp.into())?))
}

async fn by_udp(server: &Arc<Server>, socket: Arc<UdpSocket>) {
    let mut buffer = [0; LARGEST_QUESTION];
    // Ends with the socket what waits for others.
    let mut waiting_tasks = JoinSet::new();
    loop {
        while waiting_tasks.try_join_next().is_some() {}
        let (length, client) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                // Of an earlier reply that could not be delivered: no reason to stop.
                tracing::debug!(%error, "while receiving questions");
                tokio::task::yield_now().await;
                continue;
            }
        };
        match server.begin(&buffer[..length], Protocol::Udp) {
            Begun::Silence => {}
            Begun::Done(reply) => send(&socket, &reply, client).await,
            Begun::Waiting(waiting) => {
                let (server, socket) = (server.clone(), socket.clone());
                waiting_tasks.spawn(async move {
                    let reply = server.finish(*waiting).await;
                    send(&socket, &reply, client).await;
                });
            }
        }
    }
}

async fn send(socket: &UdpSocket, reply: &[u8], client: SocketAddr) {
    if let Err(error) = socket.send_to(reply, client).await {
        tracing::debug!(%client, %error, "an answer could not be sent");
    }
}

async fn by_tcp(server: &Arc<Server>, listener: TcpListener) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(permit) = permits.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, client)) => {
                let server = server.clone();
                connections.spawn(async move {
                    let _permit = permit;
                    if let Err(error) = converse(&server, stream).await {
                        tracing::debug!(%client, %error, "a connection ended");
                    }
                });
            }
            Err(error) => {
                // No file descriptors, mostly.
                tracing::warn!(%error, "a connection could not be taken");
                tokio::time::sleep(RETRY_FIRST).await;
            }
        }
    }
}

/// Question after question, until the client has no more.
async fn converse(server: &Arc<Server>, mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    loop {
        let question = match tokio::time::timeout(IDLE, next(&mut stream)).await {
            Ok(Ok(question)) => question,
            Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Ok(Err(error)) => return Err(error),
            Err(_) => return Ok(()),
        };
        let Some(reply) = server.serve(&question, Protocol::Tcp).await else { return Ok(()) };
        let length = u16::try_from(reply.len()).map_err(io::Error::other)?;
        let reply = [&length.to_be_bytes(), reply.as_slice()].concat();
        tokio::time::timeout(IDLE, stream.write_all(&reply)).await??;
    }
}

async fn next(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = usize::from(stream.read_u16().await?);
    if length > LARGEST_QUESTION {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a question too large"));
    }
    let mut question = vec![0; length];
    stream.read_exact(&mut question).await?;
    Ok(question)
}
