//! A name server of the outside, as small as it can be: every name but `missing...` has the address 192.0.2.80.

use std::net::{IpAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// It answers until it is dropped.
pub struct Upstream {
    pub address: IpAddr,
    asked: Arc<AtomicUsize>,
    running: Arc<()>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Upstream {
    pub fn start(address: IpAddr) -> Upstream {
        let socket = UdpSocket::bind((address, 53)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let (asked, running) = (Arc::new(AtomicUsize::new(0)), Arc::new(()));
        let (count, alive) = (asked.clone(), Arc::downgrade(&running));
        let serve = move || {
            let mut buffer = [0; 1500];
            while alive.strong_count() > 0 {
                let Ok((length, client)) = socket.recv_from(&mut buffer) else { continue };
                count.fetch_add(1, Ordering::SeqCst);
                if let Some(answer) = answer(&buffer[..length]) {
                    socket.send_to(&answer, client).unwrap();
                }
            }
        };
        Upstream { address, asked, running, thread: Some(std::thread::spawn(serve)) }
    }

    /// Questions so far.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.running = Arc::new(());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Header, the question as it came, and an address if one was asked for.
fn answer(question: &[u8]) -> Option<Vec<u8>> {
    let mut end = 12;
    while *question.get(end)? != 0 {
        end += 1 + usize::from(question[end]);
    }
    let (kind, end) = (question.get(end + 2)?, end + 5);
    let missing = question[13..].starts_with(b"missing");
    let count = u8::from(*kind == 1 && !missing);
    let code = if missing { 3 } else { 0 };
    let mut answer = question[..2].to_vec();
    answer.extend([0x81, 0x80 | code, 0, 1, 0, count, 0, 0, 0, 0]);
    answer.extend(&question[12..end]);
    if count == 1 {
        // The question's name, A, IN, for 60 seconds.
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 80]);
    }
    Some(answer)
}
