//! New connections to a Service for as long as a test does something to the node.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use crate::node::{Pod, ask_on, eventually};

/// One connection after another, from a pod to the Service.
pub struct Connects {
    stop: Arc<AtomicBool>,
    asked: Arc<AtomicU32>,
    failed: Arc<AtomicU32>,
}

impl Connects {
    pub fn start(from: &Pod, to: SocketAddr) -> Connects {
        let connects = Connects { stop: Arc::default(), asked: Arc::default(), failed: Arc::default() };
        let (stop, asked, failed) = (connects.stop.clone(), connects.asked.clone(), connects.failed.clone());
        from.netns.spawn(move || {
            while !stop.load(Ordering::SeqCst) {
                let answer = TcpStream::connect(to).and_then(|mut s| {
                    s.set_read_timeout(Some(Duration::from_secs(5)))?;
                    ask_on(&mut s)
                });
                failed.fetch_add(u32::from(answer.is_err()), Ordering::SeqCst);
                asked.fetch_add(1, Ordering::SeqCst);
            }
        });
        connects
    }

    /// Waits until so many more have been tried.
    pub fn go_on(&self, more: u32) {
        let seen = self.asked.load(Ordering::SeqCst);
        eventually("more connections", || self.asked.load(Ordering::SeqCst) >= seen + more);
    }

    /// Stops; not one may have failed.
    pub fn end_without_failure(self) {
        self.stop.store(true, Ordering::SeqCst);
        assert_eq!(self.failed.load(Ordering::SeqCst), 0, "of {} connections", self.asked.load(Ordering::SeqCst));
    }
}

impl Drop for Connects {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}
