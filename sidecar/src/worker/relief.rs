//! Who has to go when more memory is held than may be, and who may go on meanwhile.

use std::cmp::Reverse;
use std::time::Duration;

use super::Worker;
use super::upkeep::lasting;
use crate::call::CallKey;
use crate::connect::WireKey;
use crate::exchange::Exchange;
use crate::failure::Failure;
use crate::http2::Reason;
use crate::slots::Key;

/// What keeps memory without moving.
enum Still {
    Call(CallKey),
    Wire(WireKey),
}

/// What a connection may hold when others have spent the budget.
const LITTLE: usize = 64 << 10;
/// What a connection is told that has to go since others need its memory.
const KEEPS_MEMORY: &str = "it keeps memory that others need";

impl Worker {
    /// More is held than may be: copies of requests go first, then the connections that keep what no honest peer makes them
    /// keep, the largest first, then the calls whose bytes have not moved, and the connections whose readers have taken
    /// nothing, for longest, and for `patience` at least. Until `enough` is held.
    pub(super) fn relieve(&mut self, enough: u64, patience: Duration) {
        self.forget_replays();
        let is_relieved = |worker: &Worker| worker.wires.shared.budget.used() <= enough;
        let wires = self.wires.slots.iter();
        let mut unreasonable: Vec<_> = wires
            .map(|(key, wire)| (wire.engine.kept_beyond_reason(), key))
            .filter(|(kept, _)| *kept > 0)
            .collect();
        unreasonable.sort_by_key(|(kept, _)| Reverse(*kept));
        for (_, key) in unreasonable {
            if is_relieved(self) {
                return;
            }
            self.end_wire(key, Reason::ENHANCE_YOUR_CALM, KEEPS_MEMORY);
        }
        if is_relieved(self) {
            return;
        }
        let holds = |exchange: &Exchange| {
            let (down, up, replay) = exchange.held(&self.wires);
            down + up + replay > 0
        };
        let calls = self.calls.iter().filter(|(_, call)| holds(&call.exchange));
        let calls = calls.map(|(key, call)| {
            let since = call.stalled.unwrap_or(call.began);
            (self.tick.since(since), Still::Call(key))
        });
        // A call that was cut may have left its bytes in the output.
        let wires = self.wires.slots.iter().filter(|(_, wire)| wire.engine.is_backed_up());
        let wires = wires.map(|(key, wire)| (lasting(wire.looks.stuck), Still::Wire(key)));
        let mut still: Vec<_> = calls.chain(wires).filter(|(time, _)| *time >= patience).collect();
        still.sort_by_key(|(time, _)| Reverse(*time));
        for (_, what) in still {
            if is_relieved(self) {
                return;
            }
            match what {
                Still::Call(key) => self.end_stalled(key),
                Still::Wire(key) => self.end_wire(key, Reason::ENHANCE_YOUR_CALM, KEEPS_MEMORY),
            }
        }
    }

    /// Whether there is memory for one more call of this connection. What is merely kept to be sent again goes first, once a
    /// turn; and while somebody else has spent the budget, those who hold little may hold what is left above it.
    #[cold]
    pub(super) fn makes_room(&mut self, caller: WireKey) -> bool {
        if self.made_room != self.turns {
            self.made_room = self.turns;
            self.forget_replays();
        }
        let budget = &self.wires.shared.budget;
        !budget.is_spent() || !budget.is_overdrawn() && self.holds_little(caller)
    }

    fn forget_replays(&mut self) {
        for (_, call) in self.calls.iter_mut() {
            call.exchange.forget_replay(&mut self.wires);
        }
    }

    fn holds_little(&self, caller: WireKey) -> bool {
        let Some(wire) = self.wires.slots.get(caller) else {
            return false;
        };
        let mut left = LITTLE.checked_sub(wire.engine.kept() as usize);
        for user in wire.engine.users() {
            let Some(room) = left else { return false };
            if let Some(call) = self.calls.get(Key::from_bits(user)) {
                let (down, up, kept) = call.exchange.held(&self.wires);
                left = room.checked_sub(down + up + kept);
            }
        }
        left.is_some()
    }

    fn end_stalled(&mut self, key: CallKey) {
        let Some(call) = self.calls.get(key) else { return };
        let (for_caller, for_server, kept) = call.exchange.held(&self.wires);
        let failure = Failure::Stalled {
            held: for_caller + for_server + kept,
        };
        self.end_unread(key, failure, Reason::ENHANCE_YOUR_CALM);
    }
}
