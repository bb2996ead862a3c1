//! `xebec flows`: what happens to packets, as it happens. The programs tell of drops always, at a rate that costs
//! nothing worth mentioning, and of new flows while somebody follows; here numbers become names.

mod filter;
mod name;
mod record;
mod stream;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, broadcast};
use tokio_util::sync::CancellationToken;
use xebec_ebpf_abi::{Event, Listen};

pub use filter::Filter;
pub use record::{End, FlowsQuestion, Seen, ServiceAt, Told, Verdict};
pub(crate) use stream::answer;

use crate::Dataplane;
use crate::bpf::events::Events;

/// Drops that a node tells in a second while nobody follows, so that the last ones can be asked for.
const QUIET: usize = 100;
/// Drops, and as many new flows, that it tells while somebody does. Each is named: some microseconds of the agent's.
const LOUD: usize = 4000;
/// Events that are remembered, and that a follower may be behind.
const KEPT: usize = 1024;
/// Events that are named in one go.
const BATCH: usize = 128;
/// How often followers are told what they have missed.
const TALLY: Duration = Duration::from_secs(1);

/// What has been told, and to whom it is told on.
#[derive(Debug)]
pub(crate) struct News {
    told: broadcast::Sender<Arc<Told>>,
    last: Mutex<VecDeque<Arc<Told>>>,
    followers: AtomicUsize,
    changed: Notify,
}

impl Default for News {
    fn default() -> News {
        News {
            told: broadcast::Sender::new(KEPT),
            last: Mutex::new(VecDeque::with_capacity(KEPT)),
            followers: AtomicUsize::new(0),
            changed: Notify::new(),
        }
    }
}

/// Somebody follows as long as this lives.
pub(crate) struct Following<'a>(&'a News);

impl Drop for Following<'_> {
    fn drop(&mut self) {
        self.0.followers.fetch_sub(1, Ordering::Relaxed);
        self.0.changed.notify_one();
    }
}

impl News {
    fn follow(&self) -> (Following<'_>, broadcast::Receiver<Arc<Told>>) {
        self.followers.fetch_add(1, Ordering::Relaxed);
        self.changed.notify_one();
        (Following(self), self.told.subscribe())
    }

    fn tell(&self, told: Told) {
        let told = Arc::new(told);
        if matches!(*told, Told::Flow(_)) {
            let mut last = self.last.lock();
            if last.len() >= KEPT {
                last.pop_front();
            }
            last.push_back(told.clone());
        }
        // Without followers nobody receives it.
        let _ = self.told.send(told);
    }
}

/// What is next.
enum Step {
    Stop,
    /// Who follows has changed.
    Look,
    /// Followers are told what they have missed.
    Tally,
    Name(Vec<Event>),
}

/// Reads the ring until `cancel`. What it says is for people: an error here ends the telling, not the agent.
pub(crate) async fn read(dataplane: Arc<Dataplane>, events: Events, cancel: CancellationToken) {
    // SAFETY: the descriptor is the map's, which lives and keeps it as long as `events` does, and nobody gets at it.
    let mut events = match unsafe { AsyncFd::register_with_interest(events, Interest::READABLE) } {
        Ok(events) => events,
        Err(error) => {
            tracing::error!(%error, "the ring of events cannot be waited for; `xebec flows` will show nothing");
            return;
        }
    };
    let news = &dataplane.news;
    // The rate is each CPU's.
    let rate = |of_node: usize| (of_node / std::thread::available_parallelism().map_or(1, usize::from)).max(2) as u32;
    let quiet = Listen { wanted: Listen::DROPS, rate: rate(QUIET) };
    let loud = Listen { wanted: Listen::DROPS | Listen::FLOWS, rate: rate(LOUD) };
    let mut told = listen(events.get_mut(), quiet);
    let mut missed = events.get_ref().untold();
    let mut tally = tokio::time::interval(TALLY);
    loop {
        let wanted = if news.followers.load(Ordering::Relaxed) > 0 { loud } else { quiet };
        if told != Some(wanted) {
            told = listen(events.get_mut(), wanted);
            missed = events.get_ref().untold();
        }
        let step = tokio::select! {
            () = cancel.cancelled() => Step::Stop,
            () = news.changed.notified() => Step::Look,
            _ = tally.tick(), if wanted == loud => Step::Tally,
            ready = events.readable_mut() => match ready {
                Ok(mut ready) => {
                    let batch = ready.get_inner_mut().read(BATCH);
                    if batch.is_empty() {
                        ready.clear_ready();
                    }
                    Step::Name(batch)
                }
                Err(error) => {
                    tracing::error!(%error, "the ring of events cannot be waited for; `xebec flows` shows nothing more");
                    Step::Stop
                }
            },
        };
        let batch = match step {
            Step::Stop => break,
            Step::Look => continue,
            Step::Tally => {
                let now = events.get_ref().untold();
                if now > missed {
                    news.tell(Told::Missed(now - missed));
                    missed = now;
                }
                continue;
            }
            Step::Name(batch) if batch.is_empty() => continue,
            Step::Name(batch) => batch,
        };
        let named: Vec<Seen> = {
            let engine = dataplane.engine.lock();
            let mut names = name::Names::new(&engine, &dataplane.config);
            batch.iter().map(|event| names.of(event)).collect()
        };
        named.into_iter().for_each(|seen| news.tell(Told::Flow(Box::new(seen))));
    }
    // Nobody reads from here on.
    listen(events.get_mut(), Listen::default());
}

fn listen(events: &mut Events, wanted: Listen) -> Option<Listen> {
    match events.want(wanted) {
        Ok(()) => Some(wanted),
        Err(error) => {
            tracing::warn!(%error, "the programs cannot be told what to tell");
            None
        }
    }
}
