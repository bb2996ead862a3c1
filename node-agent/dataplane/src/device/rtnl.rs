//! Requests to rtnetlink that are answered while the caller waits. Several go in one message, which costs one system call and
//! one lock of the kernel's after another instead of a round of the runtime for each.

use std::io;

use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// What is asked, and the flags that say how.
pub type Request = (RouteNetlinkMessage, u16);

/// Whether it was done, and what was answered besides.
pub type Answer = io::Result<Option<RouteNetlinkMessage>>;

/// A socket of one network namespace, whichever thread uses it.
pub struct Rtnl {
    socket: Socket,
    sequence: u32,
}

impl Rtnl {
    /// In the namespace of the calling thread.
    pub fn here() -> io::Result<Rtnl> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // An error need not carry the whole request back.
        socket.set_cap_ack(true)?;
        Ok(Rtnl { socket, sequence: 0 })
    }

    /// Asks one thing: what is answered besides success, if anything.
    pub fn ask(&mut self, request: Request) -> Answer {
        let answer = self.ask_all(vec![request])?.pop();
        answer.unwrap_or_else(|| Err(io::Error::other("the kernel did not answer")))
    }

    /// Asks these, one after the other; one that fails does not keep those behind it from being done. Answers are in the same
    /// order.
    pub fn ask_all(&mut self, requests: Vec<Request>) -> io::Result<Vec<Answer>> {
        let first = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        let count = requests.len();
        for (message, flags) in requests {
            self.sequence = self.sequence.wrapping_add(1);
            let mut message = NetlinkMessage::from(message);
            message.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
            message.header.sequence_number = self.sequence;
            message.finalize();
            let begin = bytes.len();
            bytes.resize(begin + message.buffer_len().next_multiple_of(ALIGN), 0);
            message.serialize(&mut bytes[begin..]);
        }
        self.socket.send(&bytes, 0)?;
        let mut answers: Vec<Option<RouteNetlinkMessage>> = (0..count).map(|_| None).collect();
        let mut done: Vec<Option<io::Result<()>>> = (0..count).map(|_| None).collect();
        while done.iter().any(Option::is_none) {
            let (bytes, _) = self.socket.recv_from_full()?;
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
                let length = (message.header.length as usize).next_multiple_of(ALIGN).max(ALIGN);
                rest = rest.get(length..).unwrap_or_default();
                // Of a batch that was given up on there may still be answers.
                let index = message.header.sequence_number.wrapping_sub(first) as usize;
                if index >= count {
                    continue;
                }
                match message.payload {
                    NetlinkPayload::Error(error) => done[index] = Some(error.code.map_or(Ok(()), |_| Err(error.to_io()))),
                    NetlinkPayload::InnerMessage(inner) => answers[index] = Some(inner),
                    _ => {}
                }
            }
        }
        let answer = |(done, answer): (Option<io::Result<()>>, _)| done.unwrap_or(Ok(())).map(|()| answer);
        Ok(done.into_iter().zip(answers).map(answer).collect())
    }
}

/// Messages in a buffer begin at multiples of it.
const ALIGN: usize = 4;
