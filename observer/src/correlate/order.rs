//! In which order a thread takes requests when a cause is taken away.

use super::contention::NONE;
use super::without::{Freed, Replay, Replayed};

/// Steps to put requests in order, for all of a run: a bound for a service that takes the newest first, and has
/// many to take. The rest stays in the order that was measured.
const ORDER_STEPS: usize = 20_000_000;

impl Replay<'_> {
    /// A turn in the replay: it is ready so much earlier, and begins when the one before it is through.
    pub(super) fn replay(
        &self,
        place: usize,
        freed: &Freed,
        before: Option<Replayed>,
        own_ns: u64,
    ) -> Replayed {
        let turn = &self.turns[place];
        let (measured, handed) = self.begin_and_handed(turn);
        let ready = turn.ready - freed.ready_ns;
        let begin = ready.max(before.map_or(0, |before| before.through));
        let rest_ns = turn.through.saturating_sub(measured);
        let rest_ns = rest_ns.saturating_sub(freed.delay_ns + freed.cpu_ns + own_ns);
        let handed = begin + (handed - measured).saturating_sub(freed.before_ns);
        Replayed { ready, handed, through: begin + rest_ns }
    }

    /// What piled up behind a stall is done in any order, and requests that were sent late come in any order.
    /// Without that, a thread that is free takes what is there: it does not wait for one that comes later and
    /// was done before.
    pub(super) fn put_in_order(&self, freed: &mut [Freed]) {
        let mut replayed: Vec<Replayed> = Vec::with_capacity(freed.len());
        // Of each turn the last one of those that are done when it was done in the order that was measured.
        let mut last: Vec<u32> = (0..freed.len() as u32).collect();
        let mut steps = 0;
        // The turns that keep the thread busy when this one is ready, the last one first.
        let mut busy: Vec<u32> = Vec::new();
        for place in 0..freed.len() {
            let before = last.get(freed[place].after as usize).copied().unwrap_or(NONE);
            freed[place].after = before;
            let of = |replayed: &[Replayed], place: u32| replayed.get(place as usize).copied();
            let own = self.replay(place, &freed[place], of(&replayed, before), 0);
            replayed.push(own);
            busy.clear();
            // How many of these come later than this one.
            let mut later = 0;
            let mut at = before;
            while let Some(other) = of(&replayed, at)
                && other.through > own.ready
                && steps < ORDER_STEPS
            {
                busy.push(at);
                at = freed[at as usize].after;
                let free = of(&replayed, at).map_or(0, |before| before.through);
                if other.ready > free.max(own.ready) {
                    later = busy.len();
                }
                steps += 1;
            }
            busy.truncate(later);
            let Some(first) = busy.last().copied() else { continue };
            freed[place].after = freed[first as usize].after;
            freed[first as usize].after = place as u32;
            last[place] = before;
            for place in
                std::iter::once(place).chain(busy.iter().rev().map(|place| *place as usize))
            {
                let before = of(&replayed, freed[place].after);
                replayed[place] = self.replay(place, &freed[place], before, 0);
            }
        }
    }
}
