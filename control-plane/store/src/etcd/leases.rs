//! Leases for keys that expire. Long-lived ones are shared by the keys written within a minute, as a lease
//! per Event object would be more work for etcd than the Event.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use etcd_client::LeaseClient;
use parking_lot::Mutex;

use super::within;
use crate::Result;

/// How long a lease is handed out again, and by how much it outlives the time asked for.
const REUSE: Duration = Duration::from_secs(60);
/// Times shorter than this are kept exactly, with a lease of their own.
const SHORT: Duration = Duration::from_secs(600);
/// Keys on one lease at most: all of them go in one revision.
const KEYS: u32 = 1000;

pub(super) struct Leases {
    client: LeaseClient,
    shared: Mutex<HashMap<u64, Shared>>,
}

struct Shared {
    lease: i64,
    granted: Instant,
    keys: u32,
}

impl Leases {
    pub fn new(client: LeaseClient) -> Self {
        Self { client, shared: Mutex::new(HashMap::new()) }
    }

    /// A lease that lasts at least `ttl` from now.
    pub async fn for_ttl(&self, ttl: Duration) -> Result<i64> {
        let seconds = ttl.as_millis().div_ceil(1000).max(1) as u64;
        if ttl < SHORT {
            return self.grant(seconds).await;
        }
        if let Some(shared) = self.shared.lock().get_mut(&seconds)
            && shared.granted.elapsed() < REUSE
            && shared.keys < KEYS
        {
            shared.keys += 1;
            return Ok(shared.lease);
        }
        let granted = Instant::now();
        let lease = self.grant(seconds + REUSE.as_secs()).await?;
        self.shared.lock().insert(seconds, Shared { lease, granted, keys: 1 });
        Ok(lease)
    }

    /// Hands none of the present leases out again.
    pub fn forget(&self) {
        self.shared.lock().clear();
    }

    async fn grant(&self, seconds: u64) -> Result<i64> {
        let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
        Ok(within(self.client.clone().grant(seconds, None)).await?.id())
    }
}
