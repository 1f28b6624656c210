//! The clients of the HTTP server: how many there may be, and which one goes when there are more.
//!
//! A new client is always let in. If there are too many, the server closes the connection that has
//! kept it waiting longest, for a request or for taking the answer. So clients that are slow or
//! silent give way to those that ask and read at once, also when both have the same address.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::oneshot;

/// Connections at a time.
pub(super) const MAX: usize = 64;
/// Connections of one address at a time.
pub(super) const MAX_PER_PEER: usize = 32;
/// Scrapes at a time. Fewer than the connections, so that there is always one to close.
const MAX_SCRAPES: usize = 32;
/// Scrapes of one address at a time.
pub(super) const MAX_SCRAPES_PER_PEER: usize = 16;

/// All connections.
#[derive(Default)]
pub(super) struct Clients(Mutex<Table>);

#[derive(Default)]
struct Table {
    next: u64,
    clients: BTreeMap<u64, Client>,
}

struct Client {
    peer: IpAddr,
    /// Since when the server waits for the client; `None` while the client waits for its scrape.
    waits_since: Option<Instant>,
    /// Closes the connection when it is dropped.
    _close: oneshot::Sender<()>,
}

/// The place of a connection, given up when it is dropped.
pub(super) struct Place {
    clients: Arc<Clients>,
    client: u64,
    revoked: oneshot::Receiver<()>,
}

/// What counts as one address. A host has a whole /64 of IPv6 and all of 127/8 for itself.
fn peer(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)))
        }
        loopback if loopback.is_loopback() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        address @ IpAddr::V4(_) => address,
    }
}

impl Table {
    fn of(&self, peer: IpAddr) -> impl Iterator<Item = &Client> {
        self.clients.values().filter(move |client| client.peer == peer)
    }

    /// The address with the most connections.
    fn greatest(&self) -> Option<IpAddr> {
        self.clients.values().map(|client| client.peer).max_by_key(|peer| self.of(*peer).count())
    }

    /// Closes the connection of this address that has kept the server waiting longest.
    fn close_one_of(&mut self, peer: IpAddr) {
        let waiting = self.clients.iter().filter(|(_, client)| client.peer == peer);
        let longest =
            waiting.filter_map(|(id, client)| client.waits_since.map(|since| (since, *id))).min();
        if let Some((_, id)) = longest {
            self.clients.remove(&id);
        }
    }
}

impl Clients {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a new connection.
    pub(super) fn admit(self: &Arc<Self>, address: IpAddr) -> Place {
        let peer = peer(address);
        let mut table = self.table();
        if table.of(peer).count() >= MAX_PER_PEER {
            table.close_one_of(peer);
        } else if table.clients.len() >= MAX
            && let Some(greatest) = table.greatest()
        {
            table.close_one_of(greatest);
        }
        let client = table.next;
        table.next += 1;
        let (close, revoked) = oneshot::channel();
        let waits_since = Some(Instant::now());
        table.clients.insert(client, Client { peer, waits_since, _close: close });
        Place { clients: Arc::clone(self), client, revoked }
    }

    /// Notes that the client waits for its scrape from now on. `false` when there are too many
    /// scrapes.
    pub(super) fn begins_scrape(&self, client: u64) -> bool {
        let mut table = self.table();
        let Some(peer) = table.clients.get(&client).map(|client| client.peer) else { return false };
        let scrapes = |client: &&Client| client.waits_since.is_none();
        let room = table.of(peer).filter(scrapes).count() < MAX_SCRAPES_PER_PEER
            && table.clients.values().filter(scrapes).count() < MAX_SCRAPES;
        if room && let Some(client) = table.clients.get_mut(&client) {
            client.waits_since = None;
        }
        room
    }

    /// Notes that the client has to take its answer from now on.
    pub(super) fn waits_for(&self, client: u64) {
        if let Some(client) = self.table().clients.get_mut(&client) {
            client.waits_since = Some(Instant::now());
        }
    }
}

impl Place {
    /// The number of its client.
    pub(super) const fn client(&self) -> u64 {
        self.client
    }

    /// Ready when the connection has to be closed for another one.
    pub(super) async fn revoked(&mut self) {
        let _ = (&mut self.revoked).await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.clients.table().clients.remove(&self.client);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_revoked(place: &mut Place) -> bool {
        !matches!(place.revoked.try_recv(), Err(oneshot::error::TryRecvError::Empty))
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_longest_wait_of_the_greatest_address_gives_way() {
        let clients = Arc::new(Clients::default());
        let mut many: Vec<Place> =
            (0..MAX_PER_PEER).map(|_| clients.admit(address("10.0.0.1"))).collect();
        let mut other = clients.admit(address("10.0.0.2"));
        assert!(clients.begins_scrape(many[0].client()), "the first one is not waited for");
        many.push(clients.admit(address("10.0.0.1")));
        let revoked: Vec<bool> = many.iter_mut().map(is_revoked).collect();
        assert!(revoked[1] && revoked.iter().filter(|revoked| **revoked).count() == 1);
        // The total is reached by many addresses: the one with the most gives way.
        let few: Vec<Place> = (0..MAX - MAX_PER_PEER)
            .map(|n| clients.admit(address(&format!("10.0.1.{n}"))))
            .collect();
        assert!(is_revoked(&mut many[2]) && !is_revoked(&mut other));
        assert_eq!(clients.table().clients.len(), MAX);
        drop((many, few, other));
        assert!(clients.table().clients.is_empty());
    }

    #[test]
    fn scrapes_of_one_address_leave_room_for_others() {
        let clients = Arc::new(Clients::default());
        let many: Vec<Place> =
            (0..=MAX_SCRAPES_PER_PEER).map(|_| clients.admit(address("::1"))).collect();
        let begun = many.iter().filter(|place| clients.begins_scrape(place.client())).count();
        assert_eq!(begun, MAX_SCRAPES_PER_PEER);
        assert!(clients.begins_scrape(clients.admit(address("10.0.0.1")).client()));
        clients.waits_for(many[0].client());
        assert!(clients.begins_scrape(many[MAX_SCRAPES_PER_PEER].client()));
    }

    #[test]
    fn a_host_counts_once() {
        assert_eq!(peer(address("127.9.8.7")), peer(address("::ffff:127.0.0.1")));
        assert_eq!(peer(address("2001:db8::1")), peer(address("2001:db8::ffff:1")));
        assert_ne!(peer(address("2001:db8::1")), peer(address("2001:db8:0:1::1")));
        assert_ne!(peer(address("10.0.0.1")), peer(address("10.0.0.2")));
    }
}
