//! When the consumer of the ring is woken before its timer.

/// Whether a record that finds this many bytes in the ring, its own included, has to wake the
/// consumer. It then sets [`Config::woken`](super::Config::woken) in one step, and whoever finds it
/// set already leaves the wake-up to the one who set it.
///
/// The consumer clears `woken` before it takes the first record, so that a ring that is past the
/// threshold afterwards has a wake-up on its way. (Records that are reserved at one instant never
/// reach the threshold by themselves: one a CPU, and the threshold is thousands.)
#[inline(always)]
#[must_use]
pub const fn needs_wakeup(held_bytes: u64, wake_bytes: u64, woken: u64) -> bool {
    held_bytes >= wake_bytes && woken == 0
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::collections::HashSet;
    use std::vec::Vec;

    use super::*;

    const RECORD_BYTES: u64 = 80;
    const WAKE_BYTES: u64 = 1_000;
    const PRODUCERS: usize = 5;

    /// What a producer does between two instants at which another CPU can come in between.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
    enum Step {
        Reserve,
        Look,
        Decide { held_bytes: u64 },
        Set,
        Submit { wakes: bool },
        Done,
    }

    #[derive(Clone, Copy, PartialEq, Eq, Hash)]
    enum Consumer {
        Asleep,
        Clears,
        Drains,
    }

    #[derive(Clone, PartialEq, Eq, Hash)]
    struct State {
        held_bytes: u64,
        woken: u64,
        /// An edge that the consumer has not seen yet.
        edge: bool,
        producers: [Step; PRODUCERS],
        consumer: Consumer,
    }

    /// How a producer decides: whether to go on to set `woken`, or the end of its decision.
    type Rule = fn(u64, u64) -> Step;

    fn present_rule(held_bytes: u64, woken: u64) -> Step {
        if needs_wakeup(held_bytes, WAKE_BYTES, woken) {
            Step::Set
        } else {
            Step::Submit { wakes: false }
        }
    }

    /// The rule before there was `woken`: a wake-up where the fill is just past the threshold.
    fn window_rule(held_bytes: u64, _woken: u64) -> Step {
        Step::Submit { wakes: held_bytes.wrapping_sub(WAKE_BYTES) < 256 }
    }

    impl State {
        fn begin() -> Self {
            Self {
                held_bytes: WAKE_BYTES - RECORD_BYTES,
                woken: 0,
                edge: false,
                producers: [Step::Reserve; PRODUCERS],
                consumer: Consumer::Asleep,
            }
        }

        fn produce(&self, producer: usize, rule: Rule) -> Option<Self> {
            let mut next = self.clone();
            next.producers[producer] = match self.producers[producer] {
                Step::Reserve => {
                    next.held_bytes += RECORD_BYTES;
                    Step::Look
                }
                Step::Look => Step::Decide { held_bytes: self.held_bytes },
                Step::Decide { held_bytes } => rule(held_bytes, self.woken),
                Step::Set => {
                    next.woken = 1;
                    Step::Submit { wakes: self.woken == 0 }
                }
                Step::Submit { wakes } => {
                    next.edge |= wakes;
                    Step::Done
                }
                Step::Done => return None,
            };
            // Which producer is which makes no difference.
            next.producers.sort_unstable();
            Some(next)
        }

        /// The consumer goes on; its timer may end its sleep at any instant.
        fn consume(&self) -> Self {
            let mut next = self.clone();
            next.consumer = match self.consumer {
                Consumer::Asleep => {
                    next.edge = false;
                    Consumer::Clears
                }
                Consumer::Clears => {
                    next.woken = 0;
                    Consumer::Drains
                }
                Consumer::Drains => {
                    // It stops at a record that was reserved and not submitted.
                    let open = |step: &&Step| !matches!(step, Step::Reserve | Step::Done);
                    let open = self.producers.iter().filter(open).count() as u64;
                    next.held_bytes = next.held_bytes.min(open * RECORD_BYTES);
                    Consumer::Asleep
                }
            };
            next
        }

        /// All have ended, the ring is past the threshold, and nothing will wake the consumer.
        fn is_slept_through(&self) -> bool {
            self.producers.iter().all(|step| *step == Step::Done)
                && self.consumer == Consumer::Asleep
                && self.held_bytes >= WAKE_BYTES
                && !self.edge
        }
    }

    /// Whether some order of the steps of all CPUs leaves the consumer asleep beside a full ring.
    fn can_be_slept_through(rule: Rule) -> bool {
        let mut seen = HashSet::new();
        let mut open = Vec::from([State::begin()]);
        while let Some(state) = open.pop() {
            if state.is_slept_through() {
                return true;
            }
            if seen.insert(state.clone()) {
                open.extend((0..PRODUCERS).filter_map(|producer| state.produce(producer, rule)));
                open.push(state.consume());
            }
        }
        assert!(seen.len() > 1_000, "all orders were tried: {}", seen.len());
        false
    }

    #[test]
    fn no_order_of_reservations_leaves_the_consumer_asleep() {
        assert!(!can_be_slept_through(present_rule));
        assert!(can_be_slept_through(window_rule), "the model finds what a window misses");
    }
}
