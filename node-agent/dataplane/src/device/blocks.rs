//! Programs at pods' devices. All devices of pods share two tc blocks, one for what leaves a pod and one for what reaches it, and
//! each block has one filter, which runs the program. So a device gets both programs by one request that waits for nothing (a
//! link of its own waits, for each program, until no CPU can still be at work without it, and everybody who changes a device
//! waits along), and a new version of a program is put in force for all pods by replacing one filter.
//!
//! Blocks are of a network namespace and live while a device is bound. Devices whose pods come from an agent that attached
//! links keep those: to bind a device that is up costs it packets.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcHeader, TcMessage, TcOption};
use parking_lot::Mutex;
use rtnetlink::packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_ECHO, NLM_F_EXCL, NLM_F_REPLACE, Nla};

use super::netlink::is;
use super::rtnl::{Request, Rtnl};

/// Number of the block of what leaves pods. The bytes are "xeb" and 1: nobody counts that far.
pub const LEAVING: u32 = 0x7865_6201;
/// Of what reaches pods.
pub const REACHING: u32 = 0x7865_6202;

const CLSACT: &str = "clsact";
const CLSACT_HANDLE: TcHandle = TcHandle { major: u16::MAX, minor: 0 };
const TCA_INGRESS_BLOCK: u16 = 13;
const TCA_EGRESS_BLOCK: u16 = 14;
/// `tcm_info` of our filters: the first preference, every protocol (`ETH_P_ALL` as it is on the wire).
const INFO: u32 = 1 << 16 | (3u16.to_be() as u32);
/// Of our one filter in a block.
const HANDLE: u32 = 1;

/// A program as a filter runs it.
#[derive(Clone, Copy)]
pub struct Classifier<'a> {
    /// By which filters are known as ours.
    pub name: &'a str,
    /// Of the program, in this process.
    pub fd: BorrowedFd<'a>,
    /// Of the program, in the kernel.
    pub id: u32,
}

/// The filter of a block.
#[derive(Debug, PartialEq, Eq)]
struct Filter {
    name: String,
    program: Option<u32>,
}

/// The blocks of a network namespace.
pub struct Blocks(Mutex<Rtnl>);

impl Blocks {
    /// Of the namespace of the calling thread.
    pub fn here() -> io::Result<Blocks> {
        Rtnl::here().map(|rtnl| Blocks(Mutex::new(rtnl)))
    }

    /// Binds a device, if it is not, and sees that the blocks run these programs: of what leaves pods, and of what reaches them.
    pub fn bind(&self, index: u32, programs: [Classifier<'_>; 2]) -> io::Result<()> {
        let mut rtnl = self.0.lock();
        let requests = vec![bind(index), filter(LEAVING), filter(REACHING)];
        let mut answers = rtnl.ask_all(requests)?.into_iter();
        let mut next = || answers.next().unwrap_or(Ok(None));
        let (bound, filters) = (next(), [next(), next()]);
        match bound {
            Err(e) if is(&e, libc::EEXIST) => bind_again(&mut rtnl, index)?,
            bound => bound.map(drop)?,
        }
        for ((block, program), filter) in [LEAVING, REACHING].into_iter().zip(programs).zip(filters) {
            // A block that was just made has nothing to look in, which the kernel calls by different names.
            let put = match filter.ok().flatten().as_ref().and_then(found) {
                None => rtnl.ask(put(block, program, NLM_F_EXCL)),
                Some(filter) if filter.name != program.name => Err(io::Error::other(format!("its filter is {:?}", filter.name))),
                Some(filter) if filter.program == Some(program.id) => continue,
                Some(_) => rtnl.ask(put(block, program, NLM_F_REPLACE)),
            };
            put.map_err(|e| refused(block, &e))?;
        }
        Ok(())
    }

    /// Has the blocks run these programs where they run others of ours, each in one step.
    pub fn replace(&self, programs: [Classifier<'_>; 2]) -> io::Result<()> {
        let mut rtnl = self.0.lock();
        for (block, program) in [LEAVING, REACHING].into_iter().zip(programs) {
            // Without a device there is no block.
            let filter = rtnl.ask(filter(block)).ok().flatten().as_ref().and_then(found);
            if filter.is_some_and(|f| f.name == program.name && f.program != Some(program.id)) {
                rtnl.ask(put(block, program, NLM_F_REPLACE)).map_err(|e| refused(block, &e))?;
            }
        }
        Ok(())
    }

    /// Takes a device off the blocks; one that is not bound is no error.
    pub fn unbind(&self, index: u32) -> io::Result<()> {
        let mut rtnl = self.0.lock();
        match rtnl.ask(qdisc(index)) {
            Ok(Some(found)) if is_ours(&found) => rtnl.ask(unbind(index)).map(drop),
            Err(e) if !is_missing(&e) => Err(e),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Whether the device is bound to both blocks.
    pub fn is_bound(&self, index: u32) -> bool {
        self.0.lock().ask(qdisc(index)).ok().flatten().as_ref().is_some_and(is_ours)
    }

    /// Whether the device is bound and both blocks run programs of ours, by these names.
    pub fn runs(&self, index: u32, names: [&str; 2]) -> bool {
        let Ok(answers) = self.0.lock().ask_all(vec![qdisc(index), filter(LEAVING), filter(REACHING)]) else { return false };
        let answers: Vec<_> = answers.into_iter().map(|answer| answer.ok().flatten()).collect();
        match answers.as_slice() {
            [Some(qdisc), Some(leaving), Some(reaching)] => {
                let runs = |filter, name| found(filter).is_some_and(|f| f.name == name && f.program.is_some());
                is_ours(qdisc) && runs(leaving, names[0]) && runs(reaching, names[1])
            }
            _ => false,
        }
    }
}

/// A device of ours that has a qdisc already: bound to our blocks, or somebody's, which gives way.
fn bind_again(rtnl: &mut Rtnl, index: u32) -> io::Result<()> {
    if rtnl.ask(qdisc(index))?.as_ref().is_some_and(is_ours) {
        return Ok(());
    }
    let answers = rtnl.ask_all(vec![unbind(index), bind(index)])?;
    answers.into_iter().try_for_each(|answer| answer.map(drop))
}

fn is_missing(error: &io::Error) -> bool {
    [libc::ENOENT, libc::ENODEV, libc::EINVAL].into_iter().any(|code| is(error, code))
}

fn refused(block: u32, error: &io::Error) -> io::Error {
    let text = format!("tc block {block}: {error}; what `tc filter show block {block}` shows that is not xebec's must go");
    io::Error::new(error.kind(), text)
}

fn at_device(index: u32) -> TcHeader {
    TcHeader { index: index as i32, handle: CLSACT_HANDLE, parent: TcHandle::CLSACT, ..TcHeader::default() }
}

fn bind(index: u32) -> Request {
    let block = |kind, number: u32| TcAttribute::Other(DefaultNla::new(kind, number.to_ne_bytes().to_vec()));
    let attributes = vec![TcAttribute::Kind(CLSACT.into()), block(TCA_INGRESS_BLOCK, LEAVING), block(TCA_EGRESS_BLOCK, REACHING)];
    (RouteNetlinkMessage::NewQueueDiscipline(TcMessage::from_parts(at_device(index), attributes)), NLM_F_CREATE | NLM_F_EXCL)
}

fn unbind(index: u32) -> Request {
    (RouteNetlinkMessage::DelQueueDiscipline(TcMessage::from_parts(at_device(index), Vec::new())), 0)
}

/// The kernel tells only those who listen for news, unless an echo is asked for.
fn qdisc(index: u32) -> Request {
    (RouteNetlinkMessage::GetQueueDiscipline(TcMessage::from_parts(at_device(index), Vec::new())), NLM_F_ECHO)
}

fn in_block(block: u32) -> TcHeader {
    TcHeader {
        index: TcHeader::TCM_IFINDEX_MAGIC_BLOCK as i32,
        handle: HANDLE.into(),
        parent: block.into(),
        info: INFO,
        ..TcHeader::default()
    }
}

fn filter(block: u32) -> Request {
    let attributes = vec![TcAttribute::Kind(TcFilterBpf::KIND.into())];
    (RouteNetlinkMessage::GetTrafficFilter(TcMessage::from_parts(in_block(block), attributes)), 0)
}

fn put(block: u32, program: Classifier<'_>, how: u16) -> Request {
    let options = [
        TcFilterBpfOption::ProgFd(program.fd.as_raw_fd() as u32),
        TcFilterBpfOption::ProgName(program.name.into()),
        TcFilterBpfOption::Flags(TcBpfFlags::DirectAction),
    ];
    let options = options.into_iter().map(TcOption::Bpf).collect();
    let attributes = vec![TcAttribute::Kind(TcFilterBpf::KIND.into()), TcAttribute::Options(options)];
    (RouteNetlinkMessage::NewTrafficFilter(TcMessage::from_parts(in_block(block), attributes)), NLM_F_CREATE | how)
}

fn is_ours(message: &RouteNetlinkMessage) -> bool {
    let RouteNetlinkMessage::NewQueueDiscipline(qdisc) = message else { return false };
    let block = |wanted: u16, number: u32| {
        qdisc.attributes.iter().any(|attribute| match attribute {
            TcAttribute::Other(nla) if nla.kind() == wanted => {
                let mut value = vec![0; nla.value_len()];
                nla.emit_value(&mut value);
                value == number.to_ne_bytes()
            }
            _ => false,
        })
    };
    block(TCA_INGRESS_BLOCK, LEAVING) && block(TCA_EGRESS_BLOCK, REACHING)
}

fn found(message: &RouteNetlinkMessage) -> Option<Filter> {
    let RouteNetlinkMessage::NewTrafficFilter(message) = message else { return None };
    let mut filter = Filter { name: String::new(), program: None };
    for attribute in &message.attributes {
        let TcAttribute::Options(options) = attribute else { continue };
        for option in options {
            match option {
                TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => filter.name = name.clone(),
                TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => filter.program = Some(*id),
                _ => {}
            }
        }
    }
    Some(filter)
}
