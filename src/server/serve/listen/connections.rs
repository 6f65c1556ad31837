//! The open connections of a listener, limited in number.
//!
//! A connection that waits for a request costs its client nothing, so it must not keep others out:
//! when the limit is reached, a new connection takes the place of a waiting one. Only connections
//! with a request in progress stay. Beyond the limit there are a few more places, for probes and
//! operators while clients' requests take all the others. With HTTP/2 a connection has many requests
//! at once; each takes a place.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use realign_core::{Eviction, ListenerRole};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::telemetry::{Event, Refusal, Telemetry};

/// Places beyond the limit.
const SPARE: usize = 16;

/// The open connections of a listener.
#[derive(Debug)]
pub(in crate::serve) struct Connections {
    whose: ListenerRole,
    limit: usize,
    telemetry: Arc<Telemetry>,
    state: Mutex<State>,
    /// Open connections of all listeners, to be shown.
    all: Arc<AtomicUsize>,
    /// Signalled when a connection ends or begins to wait for a request.
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    next_id: u64,
    open: HashMap<u64, Open>,
    /// Requests in progress on all of them.
    busy: usize,
}

#[derive(Debug)]
struct Open {
    peer: IpAddr,
    /// Requests in progress.
    requests: usize,
    /// When the last one ended, or the connection began.
    since: Instant,
    evict: Arc<Notify>,
}

impl Open {
    /// Since when it waits for a request; `None` while one is in progress.
    fn waiting(&self) -> Option<Instant> {
        (self.requests == 0).then_some(self.since)
    }
}

impl Connections {
    /// Allows `limit` connections, which are also counted in `all`.
    pub(in crate::serve) fn new(
        whose: ListenerRole,
        limit: usize,
        telemetry: Arc<Telemetry>,
        all: Arc<AtomicUsize>,
    ) -> Self {
        Self {
            whose,
            limit,
            telemetry,
            state: Mutex::default(),
            all,
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
        if state.open.len() >= self.limit && state.evict() {
            self.evicted(Eviction::Limit);
        }
        if state.open.len() >= self.most_requests() {
            return None;
        }
        let id = state.next_id;
        state.next_id += 1;
        let evict = Arc::new(Notify::new());
        let open = Open {
            peer: network(peer),
            requests: 0,
            since: Instant::now(),
            evict: Arc::clone(&evict),
        };
        state.open.insert(id, open);
        self.all.fetch_add(1, Ordering::Relaxed);
        Some(Slot {
            connections: Arc::clone(self),
            id,
            evict,
        })
    }

    /// Most requests in progress, those of probes and operators included.
    pub(super) fn most_requests(&self) -> usize {
        self.limit.saturating_add(SPARE)
    }

    /// Ends a few of the connections that wait for a request, for a process that is out of file
    /// descriptors.
    pub(super) fn make_room(&self) {
        let mut state = self.lock();
        for _ in (0..SPARE).take_while(|_| state.evict()) {
            self.evicted(Eviction::OpenFiles);
        }
    }

    fn evicted(&self, reason: Eviction) {
        let listener = self.whose;
        let event = Event::ConnectionEvicted { listener, reason };
        self.telemetry.emit(event);
    }

    /// Counts a request for which there is no place.
    fn refused(&self) {
        let reason = Refusal::Unavailable;
        self.telemetry.emit(Event::RequestRefused { reason });
    }

    /// Requests in progress.
    #[cfg(test)]
    pub(super) fn busy(&self) -> usize {
        self.lock().busy
    }

    fn room(&self, busy: usize) -> Room {
        if busy <= self.limit {
            Room::Common
        } else if busy <= self.most_requests() {
            Room::Spare
        } else {
            Room::None
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while the lock is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Ends the connection that has waited longest of those of the peer with the most of them. False if
    /// none waits.
    fn evict(&mut self) -> bool {
        let mut waiting: HashMap<IpAddr, usize> = HashMap::new();
        for open in self.open.values().filter(|open| open.waiting().is_some()) {
            *waiting.entry(open.peer).or_default() += 1;
        }
        let candidates = self.open.iter().filter_map(|(id, open)| {
            let since = open.waiting()?;
            Some((waiting[&open.peer], std::cmp::Reverse((since, *id))))
        });
        let Some((_, std::cmp::Reverse((_, id)))) = candidates.max() else {
            return false;
        };
        let Some(open) = self.open.remove(&id) else {
            return false;
        };
        tracing::debug!(peer = %open.peer, "connection ended to make room");
        open.evict.notify_one();
        true
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

    /// Waits until the connection has waited for a request for `limit`.
    pub(super) async fn idle(&self, limit: Duration) {
        loop {
            let since = self.waiting().unwrap_or_else(Instant::now);
            sleep_until(since + limit).await;
            if self.waiting().is_some_and(|since| since.elapsed() >= limit) {
                return;
            }
        }
    }

    fn waiting(&self) -> Option<Instant> {
        let state = self.connections.lock();
        state.open.get(&self.id).and_then(Open::waiting)
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
            state.busy -= open.requests;
        }
        drop(state);
        // An evicted one is open until its task drops it.
        self.connections.all.fetch_sub(1, Ordering::Relaxed);
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
        if let Some(open) = state.open.get_mut(&self.id) {
            open.requests += 1;
            state.busy += 1;
        }
        InProgress {
            room: self.connections.room(state.busy),
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
    /// What is left for it.
    pub(super) room: Room,
}

/// What the requests in progress leave for another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// A place for any request.
    Common,
    /// A place for probes and operators.
    Spare,
    /// None.
    None,
}

impl InProgress {
    /// Counts it as refused.
    pub(super) fn refused(&self) {
        self.connections.refused();
    }
}

impl Drop for InProgress {
    fn drop(&mut self) {
        let mut state = self.connections.lock();
        let inner = &mut *state;
        if let Some(open) = inner.open.get_mut(&self.id) {
            open.requests -= 1;
            open.since = Instant::now();
            inner.busy -= 1;
        }
        drop(state);
        self.connections.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    const LIMIT: usize = 2;

    fn peer(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    fn of(limit: usize) -> Arc<Connections> {
        let telemetry = Arc::new(Telemetry::new().unwrap());
        Arc::new(Connections::new(
            ListenerRole::Operators,
            limit,
            telemetry,
            Arc::default(),
        ))
    }

    fn connections() -> Arc<Connections> {
        of(LIMIT)
    }

    fn count(connections: &Connections, series: &str) -> String {
        let metrics = connections.telemetry.metrics().render();
        let line = metrics.lines().find_map(|line| line.strip_prefix(series));
        line.unwrap_or_default().trim().to_owned()
    }

    #[test]
    fn who_was_evicted_and_why_is_counted() {
        let evicted = |connections: &Connections, reason: &str| {
            let series = format!(
                "realign_connections_evicted_total{{listener=\"operators\",reason=\"{reason}\"}}"
            );
            count(connections, &series)
        };
        let connections = connections();
        let waiting: Vec<_> = (0..LIMIT + 1)
            .map(|_| connections.try_enter(peer(1)).unwrap())
            .collect();
        assert_eq!(evicted(&connections, "limit"), "1");
        assert_eq!(evicted(&connections, "open_files"), "0");
        connections.make_room();
        assert_eq!(evicted(&connections, "open_files"), LIMIT.to_string());
        drop(waiting);
        let busy = connections.try_enter(peer(1)).unwrap();
        let request = busy.requests().begin();
        connections.make_room();
        assert_eq!(evicted(&connections, "open_files"), LIMIT.to_string());
        drop(request);
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
        let connections = of(4);
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
        let beyond = open
            .iter()
            .filter(|(_, request)| request.room == Room::Spare);
        assert_eq!(beyond.count(), SPARE);
        assert!(enter().is_none());
        let waiting = connections.enter(peer(2));
        let mut waiting = std::pin::pin!(waiting);
        assert!(waiting.as_mut().now_or_never().is_none());
        open.pop();
        assert!(waiting.now_or_never().is_some(), "a place is free");
        let requests = open[0].0.requests();
        let last = requests.begin();
        assert_eq!(last.room, Room::Spare, "one more on the same connection");
        assert_eq!(requests.begin().room, Room::None);
        drop(last);
        drop(open);
        let state = connections.lock();
        assert_eq!((state.busy, state.open.len()), (0, 0));
    }
}
