//! Connections from the machine to a NodePort, one after another.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use xebec_tests::cluster::until;

pub struct Load {
    stop: Arc<AtomicBool>,
    good: Arc<AtomicUsize>,
    thread: JoinHandle<Vec<String>>,
}

impl Load {
    pub fn start(address: SocketAddr) -> Load {
        let (stop, good) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let thread = std::thread::spawn({
            let (stop, good) = (stop.clone(), good.clone());
            move || {
                let mut failures = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    match request(address) {
                        Ok(()) => drop(good.fetch_add(1, Ordering::Relaxed)),
                        Err(error) => failures.push(error.to_string()),
                    }
                    std::thread::sleep(Duration::from_millis(10));
                }
                failures
            }
        });
        Load { stop, good, thread }
    }

    /// Waits until so many more requests were answered.
    pub fn go_on(&self, more: usize) {
        let goal = self.good.load(Ordering::Relaxed) + more;
        until("more requests are answered", || self.good.load(Ordering::Relaxed) >= goal);
    }

    /// What failed.
    pub fn end(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

pub fn request(address: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(10))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    match answer.contains("200 OK") {
        true => Ok(()),
        false => Err(std::io::Error::other(format!("answered {answer:?}"))),
    }
}
