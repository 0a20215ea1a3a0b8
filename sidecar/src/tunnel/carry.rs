//! Joins two connections until both have ended, one has broken, or the tunnel is cut.

use std::{
    future::poll_fn,
    io,
    pin::pin,
    task::{Context, Poll},
};

use tokio::{net::TcpStream, task::yield_now};
use tokio_util::sync::CancellationToken;

use super::{
    Carried, End, Settings, Side, Stream, Summary,
    direction::{Direction, Fault, Turn},
};
use crate::tls;

/// Carries bytes both ways, those first that were read already, until the tunnel ends.
///
/// The end of one side's words is passed on as such, and the other side may go on speaking. A broken connection is passed
/// on as a reset, once what its peer had still said before has been delivered. `cut` ends it at once, for the deadline of
/// a shutdown: the tunnel knows no other reason to stop. Dropping the future closes both connections.
pub fn carry<C: Stream, U: Stream>(
    client: C,
    client_bytes: Vec<u8>,
    upstream: U,
    server_bytes: Vec<u8>,
    settings: &Settings,
    carried: &Carried,
    cut: &CancellationToken,
) -> impl Future<Output = Summary> {
    client.set_options(&settings.options);
    upstream.set_options(&settings.options);
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
                tunnel.client.reset();
                tunnel.upstream.reset();
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
    Stream::reset(socket);
}

struct Tunnel<'a, C, U> {
    client: C,
    upstream: U,
    up: Direction,
    down: Direction,
    /// One connection takes no more bytes; what it had said before is still delivered.
    broken: Option<End>,
    carried: &'a Carried,
}

impl<C: Stream, U: Stream> Tunnel<'_, C, U> {
    async fn until_the_end(&mut self, cut: &CancellationToken) -> End {
        let mut told_to_stop = pin!(cut.cancelled());
        loop {
            let turns = poll_fn(|cx| Poll::Ready((self.turn(Side::Client, cx), self.turn(Side::Upstream, cx)))).await;
            let turns = match turns {
                (Ok(up), Ok(down)) => [up, down],
                (Err(end), _) | (_, Err(end)) => return self.ended(end),
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
            // What a side is told that is read, reading tells, after what was said before.
            let broken = tokio::select! {
                () = &mut told_to_stop => return End::Cut,
                kind = self.client.broken(), if !self.up.reads() => Some(Side::Client.broke(&kind.into())),
                kind = self.upstream.broken(), if !self.down.reads() => Some(Side::Upstream.broke(&kind.into())),
                () = woken() => None,
            };
            if let Some(end) = broken {
                return self.broken.unwrap_or(end);
            }
        }
    }

    /// What broke first is how it ended; but why a peer ended its TLS says more than that it had.
    fn ended(&self, end: End) -> End {
        match end {
            End::Broken { tls: Some(_), .. } => end,
            End::Broken { tls: None, .. } | End::Finished | End::Cut => self.broken.unwrap_or(end),
        }
    }

    /// Lets one side speak for a turn. An error is the end of the tunnel.
    fn turn(&mut self, speaker: Side, cx: &mut Context<'_>) -> Result<Turn, End> {
        // An end after a break is not told: the reset that is to come says more, and an answer must not look whole.
        let tells_end = self.broken.is_none();
        let (direction, turn, listener) = match speaker {
            Side::Client => {
                let turn = self
                    .up
                    .turn(&mut self.client, &mut self.upstream, tells_end, &self.carried.up, cx);
                (&mut self.up, turn, Side::Upstream)
            }
            Side::Upstream => {
                let carried = &self.carried.down;
                let turn = self
                    .down
                    .turn(&mut self.upstream, &mut self.client, tells_end, carried, cx);
                (&mut self.down, turn, Side::Client)
            }
        };
        match turn {
            Ok(turn) => Ok(turn),
            Err(Fault::From(error)) => Err(speaker.broke(&error)),
            Err(Fault::To(error)) => {
                direction.give_up();
                self.broken.get_or_insert(listener.broke(&error));
                Ok(Turn::Ended)
            }
        }
    }
}

impl Side {
    fn broke(self, error: &io::Error) -> End {
        End::Broken {
            side: self,
            kind: error.kind(),
            tls: tls::Error::within(error).map(tls::Error::reason),
        }
    }
}

/// Returns when the task is polled again: the turn before has left its waker with all that it waits for.
async fn woken() {
    let mut waited = false;
    poll_fn(|_| match std::mem::replace(&mut waited, true) {
        true => Poll::Ready(()),
        false => Poll::Pending,
    })
    .await;
}

#[cfg(test)]
mod tests;
