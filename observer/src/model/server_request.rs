//! Requests as the target's sockets saw them.

use super::{Tgid, Tid};
use crate::clock::MonoNanos;

/// One request as the target's socket saw it. The time of a send is that at which the write returned:
/// on the same host, the client may have had the answer some microseconds before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerRequest {
    /// Its first byte was in the socket; `None` if that was not seen (it is older than the probe, or
    /// came together with another request).
    pub arrival: Option<MonoNanos>,
    /// A thread of the target had taken the first bytes.
    pub read: MonoNanos,
    /// The first write of the reply returned; `None` if it was never answered.
    pub first_send: Option<MonoNanos>,
    /// The last write of the reply returned; `None` if it was never answered.
    pub last_send: Option<MonoNanos>,
    /// The process that took it.
    pub tgid: Tgid,
    /// The thread that took it.
    pub reader: Tid,
    /// The thread of the first write; the reader if there was none.
    pub sender: Tid,
    /// Port at the target's end.
    pub local_port: u16,
    /// Port at the client's end.
    pub remote_port: u16,
    /// Bytes of the request.
    pub bytes_in: u64,
    /// Bytes of the reply.
    pub bytes_out: u64,
}

impl ServerRequest {
    /// When the target could have begun to work on it, as far as that is known.
    #[must_use]
    pub fn begin(&self) -> MonoNanos {
        self.arrival.unwrap_or(self.read)
    }

    /// When the last of the reply had been written; `None` if it was never answered.
    #[must_use]
    pub fn end(&self) -> Option<MonoNanos> {
        self.last_send.max(self.first_send)
    }
}
