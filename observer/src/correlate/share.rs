//! From exposures to shares of the excess latency.
//!
//! With D the share of the window that the causes cover, coincidence brings D/(1−D) ns of exposure
//! for each ns a sample is not stalled. So the part of the excess that cause c accounts for is
//! `Δx(c) − d(c)/(1−D) · Δu`: Δx its exposure and u the time no cause covers, each slow minus
//! typical. For rare stalls this is observed minus expected of the circular shifts; where stalls
//! cover much of the run it does not shrink, and a cause to which slow and typical samples are
//! equally exposed gets nothing.

use super::exposure::Served;

/// Sums over a group of samples.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Sums {
    pub(super) count: f64,
    pub(super) service_ns: f64,
    pub(super) lateness_ns: f64,
    /// Exposure per cause.
    pub(super) exposure_ns: Vec<f64>,
}

impl Sums {
    pub(super) fn new(causes: usize) -> Self {
        Self { exposure_ns: vec![0.0; causes], ..Self::default() }
    }

    pub(super) fn add(&mut self, sample: &Served, exposures: impl Iterator<Item = f64>) {
        self.count += 1.0;
        self.service_ns += (sample.end - sample.start) as f64;
        self.lateness_ns += sample.lateness_ns as f64;
        for (sum, exposure) in self.exposure_ns.iter_mut().zip(exposures) {
            *sum += exposure;
        }
    }

    pub(super) fn merge(&mut self, other: &Self) {
        self.count += other.count;
        self.service_ns += other.service_ns;
        self.lateness_ns += other.lateness_ns;
        for (sum, exposure) in self.exposure_ns.iter_mut().zip(&other.exposure_ns) {
            *sum += exposure;
        }
    }
}

/// Shares of the excess latency.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Shares {
    /// Per cause, negative where coincidence alone would bring more.
    pub(super) stalls: Vec<f64>,
    /// Sent late.
    pub(super) lateness: f64,
}

/// A timeline that covers all of the run allows no comparison; this keeps the division finite.
pub(super) const LEAST_UNCOVERED: f64 = 0.02;

/// Shares of causes that never cover the same instant together; they sum to one at most. `None`
/// when a group is empty or there is no excess.
pub(super) fn shares(slow: &Sums, typical: &Sums, duties: &[f64]) -> Option<Shares> {
    if slow.count == 0.0 || typical.count == 0.0 {
        return None;
    }
    let delta = |of: &dyn Fn(&Sums) -> f64| of(slow) / slow.count - of(typical) / typical.count;
    let service = delta(&|sums| sums.service_ns);
    let lateness = delta(&|sums| sums.lateness_ns);
    let excess = service + lateness;
    if excess <= 0.0 {
        return None;
    }
    let unstalled = delta(&|sums| sums.service_ns - sums.exposure_ns.iter().sum::<f64>());
    let uncovered = (1.0 - duties.iter().sum::<f64>()).max(LEAST_UNCOVERED);
    let mut stalls: Vec<f64> = duties
        .iter()
        .enumerate()
        .map(|(cause, duty)| {
            let exposure = delta(&|sums| sums.exposure_ns[cause]);
            (exposure - duty / uncovered * unstalled.max(0.0)) / excess
        })
        .collect();
    let lateness = (lateness / excess).min(1.0);
    // More stall than excess: typical samples do work in the time that stalls of other threads
    // cover in the slow ones. What was to be explained is the limit.
    let room = (service / excess).clamp(0.0, 1.0 - lateness.max(0.0));
    let sum: f64 = stalls.iter().filter(|share| **share > 0.0).sum();
    if sum > room {
        for share in stalls.iter_mut().filter(|share| **share > 0.0) {
            *share *= room / sum;
        }
    }
    Some(Shares { stalls, lateness })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sums(service_ns: f64, lateness_ns: f64, exposure_ns: &[f64]) -> Sums {
        Sums { count: 1.0, service_ns, lateness_ns, exposure_ns: exposure_ns.to_vec() }
    }

    #[test]
    fn a_rare_cause_gets_its_exposure() {
        let shares = shares(&sums(11.0, 0.0, &[7.0]), &sums(1.0, 0.0, &[0.0]), &[0.0]);
        assert_eq!(shares.expect("excess").stalls, [0.7]);
    }

    #[test]
    fn a_cause_that_covers_half_of_the_run_does_not_shrink() {
        let typical = sums(1.0, 0.0, &[0.0]);
        let shares = shares(&sums(11.0, 0.0, &[10.0]), &typical, &[0.5]).expect("excess");
        assert!((shares.stalls[0] - 1.0).abs() < 1e-9);
    }

    #[test]
    fn coincidence_and_equal_exposure_get_nothing() {
        let by_chance = shares(&sums(11.0, 0.0, &[3.3]), &sums(1.0, 0.0, &[0.3]), &[0.3]);
        assert!(by_chance.expect("excess").stalls[0].abs() < 1e-9);
        let equal = shares(&sums(11.0, 0.0, &[0.5]), &sums(1.0, 0.0, &[0.5]), &[0.1]);
        assert!(equal.expect("excess").stalls[0] <= 0.0);
    }

    #[test]
    fn the_sum_stays_within_the_excess() {
        let crowded = shares(&sums(10.0, 4.0, &[8.0, 8.0]), &sums(5.0, 0.0, &[0.0; 2]), &[0.0; 2])
            .expect("excess");
        assert!((crowded.lateness - 4.0 / 9.0).abs() < 1e-9);
        let sum: f64 = crowded.stalls.iter().sum::<f64>() + crowded.lateness;
        assert!((sum - 1.0).abs() < 1e-9);
        assert_eq!(shares(&sums(1.0, 0.0, &[]), &sums(2.0, 0.0, &[]), &[]), None);
        assert_eq!(shares(&Sums::new(0), &sums(2.0, 0.0, &[]), &[]), None);
    }
}
