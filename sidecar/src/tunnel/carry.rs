//! Joins two connections until both have ended, one has broken, or the tunnel is cut.

use std::{
    io::{self, ErrorKind},
    net::Shutdown,
    pin::pin,
};

use socket2::SockRef;
use tokio::{io::Interest, net::TcpStream, task::yield_now};
use tokio_util::sync::CancellationToken;

use super::{
    Carried, End, Settings, Side, Summary,
    direction::{Direction, Fault, Turn},
};

/// Carries bytes both ways, those first that were read already, until the tunnel ends.
///
/// The end of one side's words is passed on as such, and the other side may go on speaking. A broken connection is passed
/// on as a reset, once what its peer had still said before has been delivered. `cut` ends it at once, for the deadline of
/// a shutdown: the tunnel knows no other reason to stop. Dropping the future closes both connections.
pub fn carry(
    client: TcpStream,
    client_bytes: Vec<u8>,
    upstream: TcpStream,
    server_bytes: Vec<u8>,
    settings: &Settings,
    carried: &Carried,
    cut: &CancellationToken,
) -> impl Future<Output = Summary> {
    for socket in [&client, &upstream] {
        // Fails only on a connection that is dead already, which its first use will tell.
        let _ = settings.options.set(socket);
    }
    let mut tunnel = Tunnel {
        client,
        upstream,
        up: Direction::new(client_bytes),
        down: Direction::new(server_bytes),
        broken: None,
        carried,
    };
    // Not an `async fn`: it would keep the arguments beside the tunnel made of them for as long as it runs.
    async move {
        let end = tunnel.until_the_end(cut).await;
        match end {
            End::Finished => {}
            End::Broken { .. } | End::Cut => {
                reset(tunnel.client);
                reset(tunnel.upstream);
            }
        }
        Summary {
            bytes_up: carried.up(),
            bytes_down: carried.down(),
            end,
        }
    }
}

/// Ends a connection with a reset, the way in which a refusal or a broken peer is passed on.
pub fn reset(socket: TcpStream) {
    // Fails only where the peer is gone already.
    let _ = socket.set_zero_linger();
}

struct Tunnel<'a> {
    client: TcpStream,
    upstream: TcpStream,
    up: Direction,
    down: Direction,
    /// One connection takes no more bytes; what it had said before is still delivered.
    broken: Option<End>,
    carried: &'a Carried,
}

impl Tunnel<'_> {
    async fn until_the_end(&mut self, cut: &CancellationToken) -> End {
        let mut told_to_stop = pin!(cut.cancelled());
        loop {
            let turns = match (self.turn(Side::Client), self.turn(Side::Upstream)) {
                (Ok(up), Ok(down)) => [up, down],
                (Err(end), _) | (_, Err(end)) => return self.broken.unwrap_or(end),
            };
            if turns == [Turn::Ended, Turn::Ended] {
                return self.broken.unwrap_or(End::Finished);
            }
            if cut.is_cancelled() {
                return End::Cut;
            }
            if turns.contains(&Turn::More) {
                yield_now().await;
                continue;
            }
            let broken = tokio::select! {
                () = &mut told_to_stop => return End::Cut,
                broken = ready(&self.client, &self.up, &self.down) => broken.map(|kind| Side::Client.broke(kind)),
                broken = ready(&self.upstream, &self.down, &self.up) => broken.map(|kind| Side::Upstream.broke(kind)),
            };
            if let Some(end) = broken {
                return self.broken.unwrap_or(end);
            }
        }
    }

    /// Lets one side speak for a turn. An error is the end of the tunnel.
    fn turn(&mut self, speaker: Side) -> Result<Turn, End> {
        let (direction, from, to, listener, carried) = match speaker {
            Side::Client => (
                &mut self.up,
                &self.client,
                &self.upstream,
                Side::Upstream,
                &self.carried.up,
            ),
            Side::Upstream => (
                &mut self.down,
                &self.upstream,
                &self.client,
                Side::Client,
                &self.carried.down,
            ),
        };
        if direction.has_ended() {
            return Ok(Turn::Ended);
        }
        let mut turn = direction.turn(from, to, carried);
        // An end after a break is not told: the reset that is to come says more, and an answer must not look whole.
        if matches!(turn, Ok(Turn::Ended)) && self.broken.is_none() {
            turn = SockRef::from(to)
                .shutdown(Shutdown::Write)
                .map(|()| Turn::Ended)
                .map_err(Fault::To);
        }
        match turn {
            Ok(turn) => Ok(turn),
            Err(Fault::From(error)) => Err(speaker.broke(error.kind())),
            Err(Fault::To(error)) => {
                direction.give_up();
                self.broken.get_or_insert(listener.broke(error.kind()));
                Ok(Turn::Ended)
            }
        }
    }
}

impl Side {
    fn broke(self, kind: ErrorKind) -> End {
        End::Broken { side: self, kind }
    }
}

/// Waits until `socket` has something for `spoken`, which reads it, or takes something of `heard`, which writes to it.
/// A socket that is not read meanwhile tells at least that it broke.
async fn ready(socket: &TcpStream, spoken: &Direction, heard: &Direction) -> Option<ErrorKind> {
    let mut interest = if spoken.reads() {
        Interest::READABLE
    } else {
        Interest::ERROR
    };
    if heard.writes() {
        interest |= Interest::WRITABLE;
    }
    match socket.ready(interest).await {
        // What a reader is told, reading tells, after what was said before.
        Ok(ready) if ready.is_error() && !spoken.reads() => pending_error(socket),
        Ok(_) => None,
        Err(error) => Some(error.kind()),
    }
}

fn pending_error(socket: &TcpStream) -> Option<ErrorKind> {
    let found: io::Result<()> = socket.try_io(Interest::ERROR, || {
        Err(socket.take_error()?.unwrap_or_else(|| ErrorKind::WouldBlock.into()))
    });
    found
        .err()
        .map(|error| error.kind())
        .filter(|kind| *kind != ErrorKind::WouldBlock)
}

#[cfg(test)]
mod tests;
