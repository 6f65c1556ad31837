//! The open connections of a listener, limited in number.
//!
//! A connection that waits for a request costs its client nothing, so it must not keep others out:
//! when the limit is reached, a new connection takes the place of a waiting one. Only connections
//! with a request in progress stay. Beyond the limit there are a few more places, for probes and
//! operators while clients' requests take all the others.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::time::Instant;

/// Places beyond the limit.
const SPARE: usize = 16;

/// The open connections of a listener.
#[derive(Debug)]
pub(in crate::serve) struct Connections {
    limit: usize,
    state: Mutex<State>,
    /// Signalled when a connection ends or begins to wait for a request.
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    next_id: u64,
    open: HashMap<u64, Open>,
    /// Connections with a request in progress.
    busy: usize,
}

#[derive(Debug)]
struct Open {
    peer: IpAddr,
    /// Since when it waits for a request; `None` while one is in progress.
    waiting: Option<Instant>,
    evict: Arc<Notify>,
}

impl Connections {
    /// Allows `limit` connections.
    pub(in crate::serve) fn new(limit: usize) -> Self {
        Self {
            limit,
            state: Mutex::default(),
            changed: Notify::new(),
        }
    }

    /// A place for a new connection, if necessary that of one that waits for a request. Waits only
    /// while all places are taken by requests in progress.
    pub(super) async fn enter(self: &Arc<Self>, peer: IpAddr) -> Slot {
        loop {
            if let Some(slot) = self.try_enter(peer) {
                return slot;
            }
            // A signal since then is stored.
            self.changed.notified().await;
        }
    }

    fn try_enter(self: &Arc<Self>, peer: IpAddr) -> Option<Slot> {
        let mut state = self.lock();
        if state.open.len() >= self.limit {
            state.evict();
        }
        if state.open.len() >= self.limit.saturating_add(SPARE) {
            return None;
        }
        let id = state.next_id;
        state.next_id += 1;
        let evict = Arc::new(Notify::new());
        let open = Open {
            peer: network(peer),
            waiting: Some(Instant::now()),
            evict: Arc::clone(&evict),
        };
        state.open.insert(id, open);
        Some(Slot {
            connections: Arc::clone(self),
            id,
            evict,
        })
    }

    /// Ends a few of the connections that wait for a request, for a process that is out of file
    /// descriptors.
    pub(super) fn make_room(&self) {
        let mut state = self.lock();
        (0..SPARE).for_each(|_| state.evict());
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while the lock is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Ends the connection that has waited longest of those of the peer with the most of them.
    fn evict(&mut self) {
        let mut waiting: HashMap<IpAddr, usize> = HashMap::new();
        for open in self.open.values().filter(|open| open.waiting.is_some()) {
            *waiting.entry(open.peer).or_default() += 1;
        }
        let candidates = self.open.iter().filter_map(|(id, open)| {
            let since = open.waiting?;
            Some((waiting[&open.peer], std::cmp::Reverse((since, *id))))
        });
        let Some((_, std::cmp::Reverse((_, id)))) = candidates.max() else {
            return;
        };
        if let Some(open) = self.open.remove(&id) {
            tracing::debug!(peer = %open.peer, "connection ended: it waited for a request, and others need its place");
            open.evict.notify_one();
        }
    }
}

/// The network that a peer is in: clients with IPv6 have 2^64 addresses.
fn network(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(address) => {
            let prefix = u128::from(address) & !u128::from(u64::MAX);
            IpAddr::V6(Ipv6Addr::from(prefix))
        }
        address => address,
    }
}

/// The place of a connection, given back when dropped.
#[derive(Debug)]
pub(super) struct Slot {
    connections: Arc<Connections>,
    id: u64,
    evict: Arc<Notify>,
}

impl Slot {
    /// Waits until another connection needs this place.
    pub(super) async fn evicted(&self) {
        self.evict.notified().await;
    }

    /// Marks the beginning of requests and their ends.
    pub(super) fn requests(&self) -> Requests {
        Requests {
            connections: Arc::clone(&self.connections),
            id: self.id,
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut state = self.connections.lock();
        // It is gone already if it was evicted.
        if let Some(open) = state.open.remove(&self.id) {
            state.busy -= usize::from(open.waiting.is_none());
        }
        drop(state);
        self.connections.changed.notify_one();
    }
}

/// Marks the beginning of a connection's requests and their ends.
#[derive(Debug)]
pub(super) struct Requests {
    connections: Arc<Connections>,
    id: u64,
}

impl Requests {
    /// A request begins; it ends when the value is dropped.
    pub(super) fn begin(&self) -> InProgress {
        let mut state = self.connections.lock();
        let state = &mut *state;
        if let Some(open) = state.open.get_mut(&self.id)
            && open.waiting.take().is_some()
        {
            state.busy += 1;
        }
        InProgress {
            beyond_limit: state.busy > self.connections.limit,
            connections: Arc::clone(&self.connections),
            id: self.id,
        }
    }
}

/// A request in progress.
#[derive(Debug)]
pub(super) struct InProgress {
    connections: Arc<Connections>,
    id: u64,
    /// Whether more requests than the limit are in progress, this one included.
    pub(super) beyond_limit: bool,
}

impl Drop for InProgress {
    fn drop(&mut self) {
        let mut state = self.connections.lock();
        let inner = &mut *state;
        if let Some(open) = inner.open.get_mut(&self.id)
            && open.waiting.is_none()
        {
            open.waiting = Some(Instant::now());
            inner.busy -= 1;
        }
        drop(state);
        self.connections.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::FutureExt;

    use super::*;

    const LIMIT: usize = 2;

    fn peer(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    fn connections() -> Arc<Connections> {
        Arc::new(Connections::new(LIMIT))
    }

    fn is_evicted(slot: &Slot) -> bool {
        slot.evicted().now_or_never().is_some()
    }

    #[test]
    fn a_new_connection_takes_the_place_of_the_one_that_waited_longest() {
        let connections = connections();
        let first = connections.try_enter(peer(1)).unwrap();
        std::thread::sleep(Duration::from_millis(2));
        let second = connections.try_enter(peer(1)).unwrap();
        let in_progress = first.requests().begin();
        let third = connections.try_enter(peer(1)).unwrap();
        assert!(!is_evicted(&first), "it has a request in progress");
        assert!(is_evicted(&second));
        drop(in_progress);
        std::thread::sleep(Duration::from_millis(2));
        let _fourth = connections.try_enter(peer(1)).unwrap();
        assert!(
            is_evicted(&third),
            "it waited longer than the first, which was busy"
        );
        drop((first, second, third));
        assert_eq!(connections.lock().open.len(), 1);
    }

    #[test]
    fn a_peer_with_many_waiting_connections_loses_one_first() {
        let connections = Arc::new(Connections::new(4));
        let quiet = connections.try_enter(peer(1)).unwrap();
        std::thread::sleep(Duration::from_millis(2));
        let flood: Vec<_> = (0..20)
            .map(|_| connections.try_enter(peer(2)).unwrap())
            .collect();
        assert!(!is_evicted(&quiet));
        assert!(is_evicted(&flood[0]));
        let subnet = |last: u16| IpAddr::from([0xfd00, 0, 0, 1, 0, 0, 0, last]);
        assert_eq!(network(subnet(1)), network(subnet(2)));
        assert_eq!(network("::ffff:10.0.0.1".parse().unwrap()), peer(1));
    }

    #[test]
    fn requests_in_progress_leave_a_few_places_for_probes() {
        let connections = connections();
        let enter = || {
            let slot = connections.try_enter(peer(1))?;
            let request = slot.requests().begin();
            Some((slot, request))
        };
        let mut open: Vec<_> = (0..LIMIT + SPARE).map(|_| enter().unwrap()).collect();
        let beyond = open.iter().filter(|(_, request)| request.beyond_limit);
        assert_eq!(beyond.count(), SPARE);
        assert!(enter().is_none());
        let waiting = connections.enter(peer(2));
        let mut waiting = std::pin::pin!(waiting);
        assert!(waiting.as_mut().now_or_never().is_none());
        open.pop();
        assert!(waiting.now_or_never().is_some(), "a place is free");
        drop(open);
        let state = connections.lock();
        assert_eq!((state.busy, state.open.len()), (0, 0));
    }
}
