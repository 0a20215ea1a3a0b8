//! The choice among endpoints that can be picked: two draws and a comparison, or turns.

use std::time::Instant;

use rand::{Rng, RngExt};

use super::{
    Algorithm, EndpointKey, Settings, Tried,
    endpoint::{Endpoint, Fit},
    latency::Norm,
};
use crate::slots::Slots;

/// The endpoints to choose from, with running totals of their weights.
#[derive(Debug, Default)]
pub(super) struct Draw {
    keys: Vec<EndpointKey>,
    ends: Vec<u64>,
}

impl Draw {
    pub(super) fn reserve(&mut self, endpoints: usize) {
        self.keys.reserve(endpoints.saturating_sub(self.keys.len()));
        self.ends.reserve(endpoints.saturating_sub(self.ends.len()));
    }

    /// Puts those of `named` into the draw that can be picked now, of the lowest priority that has any. Where fewer than
    /// half of a priority are well and can be picked, those that failed their health checks without an answer are in it,
    /// too. Returns when time alone will change that.
    pub(super) fn fill(
        &mut self,
        slots: &Slots<Endpoint>,
        named: &[EndpointKey],
        tried: &Tried,
        now: Instant,
    ) -> Option<Instant> {
        self.keys.clear();
        self.ends.clear();
        let mut until: Option<Instant> = None;
        let (mut well, mut spare) = (None::<u16>, None::<u16>);
        let may = |key: &EndpointKey, endpoint: &Endpoint| {
            endpoint.standing.eligible_from().is_none_or(|from| from <= now) && !tried.contains(*key)
        };
        let known = || named.iter().filter_map(|key| Some((*key, slots.get(*key)?)));
        for (key, endpoint) in known() {
            if let Some(from) = endpoint.standing.eligible_from().filter(|from| *from > now) {
                until = Some(until.map_or(from, |until| until.min(from)));
            }
            if !may(&key, endpoint) {
                continue;
            }
            let lowest = match endpoint.fit() {
                Fit::Well => &mut well,
                Fit::Spare => &mut spare,
                Fit::Refuses => continue,
            };
            *lowest = Some(lowest.map_or(endpoint.priority, |lowest| lowest.min(endpoint.priority)));
        }
        let Some(priority) = well.or(spare) else { return until };
        let fellows = || known().filter(|(_, endpoint)| endpoint.priority == priority);
        // Those that are ejected, or cannot be reached, are no help to those that are well.
        let is_up = |endpoint: &Endpoint| {
            endpoint.fit() == Fit::Well && endpoint.standing.eligible_from().is_none_or(|from| from <= now)
        };
        let are_up = fellows().filter(|(_, endpoint)| is_up(endpoint)).count();
        let few = well.is_none() || are_up * 2 < fellows().count();
        let is_due = |key: &EndpointKey, endpoint: &Endpoint| {
            endpoint.is_due_for_probe() && endpoint.fit() == Fit::Well && may(key, endpoint)
        };
        if let Some((key, endpoint)) = fellows().find(|(key, endpoint)| is_due(key, endpoint)) {
            // Its time is over: the next RPC tries it. Left to chance, what made it an outlier would keep it away for ever.
            self.ends.push(u64::from(endpoint.weight));
            self.keys.push(key);
            return Some(now);
        }
        for (key, endpoint) in fellows() {
            let fits = match endpoint.fit() {
                Fit::Well => true,
                Fit::Spare => few,
                Fit::Refuses => false,
            };
            if fits && may(&key, endpoint) {
                self.ends.push(self.total() + u64::from(endpoint.weight));
                self.keys.push(key);
            }
        }
        until
    }

    /// Takes one, by the algorithm of the settings.
    pub(super) fn take(
        &self,
        slots: &mut Slots<Endpoint>,
        settings: &Settings,
        norm: &Norm,
        now: Instant,
        rng: &mut impl Rng,
    ) -> Option<EndpointKey> {
        match self.keys.as_slice() {
            [] => None,
            [only] => Some(*only),
            _ => match settings.algorithm {
                Algorithm::P2cEwma => self.two_choices(slots, settings, norm, now, rng),
                Algorithm::RoundRobin => self.turns(slots, settings, now, rng),
            },
        }
    }

    fn two_choices(
        &self,
        slots: &mut Slots<Endpoint>,
        settings: &Settings,
        norm: &Norm,
        now: Instant,
        rng: &mut impl Rng,
    ) -> Option<EndpointKey> {
        let total = self.total();
        let first = self.find(rng.random_range(0..total));
        // Drawn from what is left without the first: what lies behind it moves up by its weight.
        let start = if first == 0 { 0 } else { self.ends[first - 1] };
        let weight = self.ends[first] - start;
        let ticket = rng.random_range(0..total - weight);
        let second = self.find(if ticket < start { ticket } else { ticket + weight });

        let mean = total as f64 / self.keys.len() as f64;
        let mut weigh = |at: usize| {
            let endpoint = slots.get_mut(self.keys[at])?;
            let shared = 1.0 + endpoint.load() * mean / f64::from(endpoint.weight);
            let cost = endpoint.latency.nanos(norm, now, settings.decay) * shared;
            Some((cost, endpoint.ramp(now, settings.slow_start)))
        };
        let ((first_cost, first_ramp), (second_cost, second_ramp)) = (weigh(first)?, weigh(second)?);
        let mut happens = |probability: f64| probability >= 1.0 || rng.random::<f64>() < probability;
        let stays = happens((second_cost / first_cost).powi(2));
        // Slow start bounds the share, however cheap a newcomer looks beside those who bear the load.
        let stays = match stays {
            true => happens(first_ramp / second_ramp),
            false => !happens(second_ramp / first_ramp),
        };
        Some(self.keys[if stays { first } else { second }])
    }

    /// Smooth weighted round robin, as nginx does it: everybody gains its weight, the richest goes and pays the total.
    /// The first turns are drawn, or every client of a service would begin at the same endpoint.
    fn turns(
        &self,
        slots: &mut Slots<Endpoint>,
        settings: &Settings,
        now: Instant,
        rng: &mut impl Rng,
    ) -> Option<EndpointKey> {
        let mut total = 0;
        let mut richest: Option<(EndpointKey, i64)> = None;
        for key in &self.keys {
            let endpoint = slots.get_mut(*key)?;
            let gain = gain(endpoint, settings, now);
            let turn = endpoint.turn.get_or_insert_with(|| rng.random_range(0..gain));
            *turn += gain;
            total += gain;
            if richest.is_none_or(|(_, most)| *turn > most) {
                richest = Some((*key, *turn));
            }
        }
        let (key, _) = richest?;
        if let Some(turn) = &mut slots.get_mut(key)?.turn {
            *turn -= total;
        }
        Some(key)
    }

    fn total(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// Whose weight covers the `ticket`.
    fn find(&self, ticket: u64) -> usize {
        self.ends.partition_point(|end| *end <= ticket)
    }
}

/// Weights in thousandths, so that a share can grow slowly.
fn gain(endpoint: &mut Endpoint, settings: &Settings, now: Instant) -> i64 {
    let ramp = endpoint.ramp(now, settings.slow_start);
    ((f64::from(endpoint.weight) * ramp * 1000.0) as i64).max(1)
}
