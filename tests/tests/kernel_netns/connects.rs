//! New connections to a Service for as long as a test does something to the node.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::node::{Pod, ask_on, at, eventually};

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

/// Connections that are opened one after the other, and stay without a word. Where nobody may reach the client, what the server
/// says on one arrives only if it is known.
pub struct Opened {
    stop: Arc<AtomicBool>,
    streams: Arc<Mutex<Vec<TcpStream>>>,
    accepted: Arc<Mutex<Vec<TcpStream>>>,
}

impl Opened {
    pub fn start(client: &Pod, server: &Pod, port: u16) -> Opened {
        let opened = Opened { stop: Arc::default(), streams: Arc::default(), accepted: Arc::default() };
        let listener = server.netns.run(|| TcpListener::bind(("::", port))).expect("a port");
        let accepted = opened.accepted.clone();
        server.netns.spawn(move || listener.incoming().flatten().for_each(|stream| accepted.lock().expect("streams").push(stream)));
        let (stop, streams, to) = (opened.stop.clone(), opened.streams.clone(), at(server.ip, port));
        client.netns.spawn(move || {
            while !stop.load(Ordering::SeqCst) {
                let stream = TcpStream::connect(to).expect("a connection");
                streams.lock().expect("streams").push(stream);
                std::thread::sleep(Duration::from_millis(15));
            }
        });
        opened
    }

    pub fn count(&self) -> usize {
        self.streams.lock().expect("streams").len()
    }

    /// Waits until so many more are open.
    pub fn go_on(&self, more: usize) {
        let seen = self.count();
        eventually("more connections", || self.count() >= seen + more);
    }

    /// No more.
    pub fn stop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // One may be on its way.
        std::thread::sleep(Duration::from_millis(50));
        eventually("all are accepted", || self.accepted.lock().expect("streams").len() == self.count());
    }

    pub fn assert_that_the_server_reaches_all(&self) {
        let mut accepted = self.accepted.lock().expect("streams");
        let mut streams = self.streams.lock().expect("streams");
        // Those that are open at both ends by now.
        let known = |stream: &TcpStream| stream.peer_addr().map(|a| SocketAddr::new(a.ip().to_canonical(), a.port())).ok();
        let peers: std::collections::BTreeSet<_> = accepted.iter().filter_map(known).collect();
        accepted.iter_mut().for_each(|stream| stream.write_all(b"x").expect("it is sent"));
        for (number, stream) in streams.iter_mut().enumerate().filter(|(_, s)| s.local_addr().is_ok_and(|a| peers.contains(&a))) {
            stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
            assert_eq!(stream.read(&mut [0]).unwrap_or(0), 1, "what the server sends on connection {number} arrives");
        }
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}
