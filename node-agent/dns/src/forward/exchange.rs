//! One question to one server: by UDP, by TCP when the answer does not fit.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, Query, ResponseCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use crate::wire;

/// What is asked.
#[derive(Clone, Debug)]
pub struct Ask {
    pub query: Query,
    pub dnssec_ok: bool,
    pub checking_disabled: bool,
}

/// Asks, and gives up after `patience` for each of the ways it is tried.
///
/// # Errors
/// When the server cannot be reached, says nothing, or says something that is no answer.
pub async fn exchange(server: SocketAddr, ask: &Ask, patience: Duration) -> io::Result<Message> {
    let answer = once(server, ask, patience, true).await?;
    // Servers from before EDNS say so in one of these ways.
    match answer.metadata.response_code {
        ResponseCode::FormErr | ResponseCode::NotImp => once(server, ask, patience, false).await,
        _ => Ok(answer),
    }
}

async fn once(server: SocketAddr, ask: &Ask, patience: Duration, with_edns: bool) -> io::Result<Message> {
    let question = wire::question(&ask.query, ask.dnssec_ok, ask.checking_disabled, with_edns);
    let bytes = question.to_vec().map_err(io::Error::other)?;
    let answer = within(patience, by_udp(server, &question, &bytes)).await?;
    if !answer.metadata.truncation {
        return Ok(answer);
    }
    within(patience, by_tcp(server, &question, &bytes)).await
}

async fn within<T>(patience: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(patience, work).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// A socket of its own for each question: its port is as hard to guess as the number of the question.
async fn by_udp(server: SocketAddr, question: &Message, bytes: &[u8]) -> io::Result<Message> {
    let local = match server {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let socket = UdpSocket::bind(local).await?;
    socket.connect(server).await?;
    socket.send(bytes).await?;
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // Anything else may be somebody's guess; the answer may still come.
        if let Some(answer) = answer_to(question, &buffer[..length]) {
            return Ok(answer);
        }
    }
}

async fn by_tcp(server: SocketAddr, question: &Message, bytes: &[u8]) -> io::Result<Message> {
    let mut stream = TcpStream::connect(server).await?;
    stream.set_nodelay(true)?;
    let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), bytes].concat()).await?;
    let length = stream.read_u16().await?;
    let mut buffer = vec![0; length.into()];
    stream.read_exact(&mut buffer).await?;
    answer_to(question, &buffer).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the server answered another question"))
}

fn answer_to(question: &Message, bytes: &[u8]) -> Option<Message> {
    let answer = Message::from_vec(bytes).ok()?;
    let is_answer = answer.metadata.message_type == MessageType::Response && answer.metadata.id == question.metadata.id;
    // Refusals of the whole message may come without the question.
    let refuses = matches!(answer.metadata.response_code, ResponseCode::FormErr | ResponseCode::NotImp);
    let same = answer.queries == question.queries || (refuses && answer.queries.is_empty());
    (is_answer && same).then_some(answer)
}
