//! The worker threads as the main thread sees them: it tells them what to do, and hears when they listen and when they end.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::{io, thread};

use anyhow::{Context as _, anyhow};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::telemetry::Intake;
use crate::worker::{Command, Cut, EndpointView, Open};

/// A worker's end of the line.
pub struct Seat {
    /// Which worker this is, from 0.
    pub index: usize,
    /// What the worker is told.
    pub commands: UnboundedReceiver<Command>,
    /// Where the worker says how much it has open.
    pub open: Arc<Open>,
    /// Where its spans go, if they go anywhere.
    pub intake: Option<Intake>,
    deaf: Arc<Deaf>,
    reports: UnboundedSender<Report>,
}

/// Who is told that a worker lost a listener: which one, and a sentence.
type Deaf = dyn Fn(usize, String) + Send + Sync;

impl Seat {
    /// [`Seat::listening`], to be called by somebody who has not the seat.
    pub fn listening_hook(&self) -> Box<dyn FnOnce()> {
        let reports = self.reports.clone();
        Box::new(move || drop(reports.send(Report::Listening)))
    }

    /// Says that a listener of this worker failed, in a sentence; to be called by somebody who has not the seat.
    pub fn deaf_hook(&self) -> Box<dyn Fn(String)> {
        let (deaf, index) = (self.deaf.clone(), self.index);
        Box::new(move |why| deaf(index, why))
    }

    /// Says that this worker's listeners are open. To be called once.
    pub fn listening(&self) {
        // Nobody hears it only when the main thread is gone, and then nobody needs to.
        let _ = self.reports.send(Report::Listening);
    }
}

#[derive(Debug)]
enum Report {
    Listening,
    Ended(usize, anyhow::Result<Cut>),
}

/// What every worker has open, for those who look on.
#[derive(Clone, Debug, Default)]
pub struct Opens(Vec<Arc<Open>>);

impl Opens {
    /// How often each worker has turned, in their order.
    pub fn turns(&self) -> impl Iterator<Item = u64> {
        self.0.iter().map(|open| open.turns.load(Relaxed))
    }

    /// The endpoints that the workers know, each worker's view for itself.
    pub fn endpoints(&self) -> Vec<EndpointView> {
        self.0.iter().flat_map(|open| open.endpoints()).collect()
    }
}

/// All workers.
#[derive(Debug)]
pub struct Crew {
    seats: Vec<(UnboundedSender<Command>, Arc<Open>)>,
    reports: UnboundedReceiver<Report>,
    running: usize,
    cut: Cut,
}

impl Crew {
    /// Starts the workers, each a thread that does `work`. `deaf` hears of listeners that fail, on the worker's thread.
    pub fn start(
        workers: usize,
        deaf: impl Fn(usize, String) + Send + Sync + 'static,
        work: impl Fn(Seat) -> anyhow::Result<Cut> + Send + Sync + 'static,
    ) -> io::Result<Crew> {
        let (work, deaf) = (Arc::new(work), Arc::new(deaf));
        let (report, reports) = unbounded_channel();
        let mut crew = Crew {
            seats: Vec::new(),
            reports,
            running: workers,
            cut: Cut::default(),
        };
        for index in 0..workers {
            let (command, commands) = unbounded_channel();
            let open = Arc::new(Open::default());
            crew.seats.push((command, open.clone()));
            let seat = Seat {
                index,
                commands,
                open,
                intake: None,
                deaf: deaf.clone(),
                reports: report.clone(),
            };
            let (work, report) = (work.clone(), report.clone());
            thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
                // A panic ends the process (`main.rs`).
                let _ = report.send(Report::Ended(index, work(seat)));
            })?;
        }
        Ok(crew)
    }

    /// Waits until all workers listen. A worker that ends before is an error.
    pub async fn listening(&mut self) -> anyhow::Result<()> {
        let mut waiting = self.running;
        while waiting > 0 {
            match self.reports.recv().await {
                Some(Report::Listening) => waiting -= 1,
                Some(Report::Ended(index, Ok(_))) => return Err(anyhow!("worker {index} ended before it listened")),
                Some(Report::Ended(index, Err(why))) => {
                    return Err(why).context(format!("worker {index} cannot start"));
                }
                None => return Err(anyhow!("the workers are gone")),
            }
        }
        Ok(())
    }

    /// Waits until all workers have ended, and says what that cut. The first that fails is an error.
    ///
    /// May be dropped and called again: what was heard is kept.
    pub async fn ended(&mut self) -> anyhow::Result<Cut> {
        while self.running > 0 {
            match self.reports.recv().await {
                Some(Report::Listening) => {}
                Some(Report::Ended(_, Ok(cut))) => {
                    self.running -= 1;
                    self.cut.rpcs += cut.rpcs;
                    self.cut.connections += cut.connections;
                }
                Some(Report::Ended(index, Err(why))) => return Err(why).context(format!("worker {index} failed")),
                None => return Err(anyhow!("the workers are gone")),
            }
        }
        Ok(self.cut)
    }

    /// What ended workers say that they cut.
    pub fn cut(&self) -> Cut {
        self.cut
    }

    /// How many have not ended.
    pub fn running(&self) -> usize {
        self.running
    }

    /// What they have open, to be looked at from elsewhere.
    pub fn opens(&self) -> Opens {
        Opens(self.seats.iter().map(|(_, open)| open.clone()).collect())
    }

    /// Tells every worker.
    pub fn tell(&self, command: Command) {
        for (seat, _) in &self.seats {
            // A worker that ended hears nothing more, and its end is reported.
            let _ = seat.send(command);
        }
    }

    /// How many connections all workers have open: inbound and outbound.
    pub fn open(&self) -> (u64, u64) {
        let sum = |of: fn(&Open) -> &AtomicU64| self.seats.iter().map(|(_, open)| of(open).load(Relaxed)).sum();
        (sum(|open| &open.inbound), sum(|open| &open.outbound))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unheard(worker: usize, why: String) {
        panic!("worker {worker}: {why}");
    }

    #[tokio::test]
    async fn what_the_workers_cut_is_added_up_when_all_have_ended() {
        let mut crew = Crew::start(3, unheard, |mut seat| {
            seat.open.inbound.store(seat.index as u64, Relaxed);
            seat.listening();
            while seat.commands.blocking_recv() != Some(Command::End) {}
            Ok(Cut {
                rpcs: 10,
                connections: seat.index as u64,
            })
        })
        .expect("threads can be made");
        crew.listening().await.expect("all listen");
        assert_eq!(crew.open(), (3, 0));
        crew.tell(Command::DrainInbound);
        crew.tell(Command::End);
        assert_eq!(
            crew.ended().await.expect("all end"),
            Cut {
                rpcs: 30,
                connections: 3
            }
        );
    }

    #[tokio::test]
    async fn a_worker_that_cannot_start_says_why() {
        let mut crew = Crew::start(2, unheard, |mut seat| {
            if seat.index == 1 {
                return Err(anyhow!("port 4140 is taken"));
            }
            seat.listening();
            seat.commands.blocking_recv();
            Ok(Cut::default())
        })
        .expect("threads can be made");
        let why = crew.listening().await.expect_err("one does not listen");
        assert_eq!(format!("{why:#}"), "worker 1 cannot start: port 4140 is taken");
    }
}
