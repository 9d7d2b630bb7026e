//! Deterministic choice by weight.

/// Smooth weighted round robin (nginx's `ngx_http_upstream_get_round_robin_peer`).
///
/// Each step adds every weight to its place's credit, chooses the place with the largest credit, and subtracts the sum of
/// weights from it. In any `sum / gcd` consecutive choices every place gets exactly its share, evenly spread: 90 to 10 is
/// nine to one within ten requests. A random choice would be off by several percent even over hundreds of requests.
///
/// Each data worker keeps one per rule. Memory and time per choice are linear in the number of weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightedRoundRobin {
    places: Box<[WeightedPlace]>,
    sum: i64,
}

/// One of the weights, and its current credit.
#[derive(Clone, Debug, PartialEq, Eq)]
struct WeightedPlace {
    weight: i64,
    credit: i64,
}

/// Maximum number of initial steps.
const MAX_PHASE: u64 = 1024;

impl WeightedRoundRobin {
    /// Starts `phase` steps into the period. Workers and sidecars should use different phases: otherwise a thousand clients
    /// that send one request each would all choose the heaviest place.
    pub fn new(weights: &[u32], phase: u64) -> Self {
        let places =
            weights.iter().map(|weight| WeightedPlace { weight: i64::from(*weight), credit: 0 }).collect();
        let sum = weights.iter().map(|weight| i64::from(*weight)).sum();
        let mut choice = Self { places, sum };
        let divisor = weights.iter().fold(0, |divisor, weight| gcd(divisor, u64::from(*weight)));
        let period = sum.unsigned_abs().checked_div(divisor).unwrap_or_default();
        if let Some(steps) = phase.checked_rem(period.min(MAX_PHASE)) {
            for _ in 0..steps {
                choice.choose();
            }
        }
        choice
    }

    /// Index of the next place; `None` if all weights are 0. A place of weight 0 is never chosen.
    pub fn choose(&mut self) -> Option<usize> {
        let mut best: Option<(usize, i64)> = None;
        for (at, place) in self.places.iter_mut().enumerate().filter(|(_, place)| place.weight > 0) {
            place.credit += place.weight;
            if best.is_none_or(|(_, credit)| place.credit > credit) {
                best = Some((at, place.credit));
            }
        }
        let (at, _) = best?;
        self.places.get_mut(at)?.credit -= self.sum;
        Some(at)
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn choices(weights: &[u32], phase: u64, count: usize) -> Vec<usize> {
        let mut choice = WeightedRoundRobin::new(weights, phase);
        (0..count).map_while(|_| choice.choose()).collect()
    }

    #[test]
    fn ninety_to_ten_is_nine_to_one_of_the_first_ten() {
        let chosen = choices(&[90, 10], 0, 10);
        assert_eq!(chosen.iter().filter(|at| **at == 1).count(), 1);
        assert_eq!(choices(&[5, 1, 1], 0, 7), [0, 0, 1, 0, 2, 0, 0], "nginx's own example");
    }

    #[test]
    fn a_place_without_weight_is_never_chosen() {
        assert_eq!(choices(&[0, 1, 0], 5, 3), [1, 1, 1]);
        assert_eq!(choices(&[0, 0], 5, 3), [] as [usize; 0]);
        assert_eq!(choices(&[], 5, 3), [] as [usize; 0]);
    }

    #[test]
    fn clients_of_one_request_each_split_as_well() {
        let first = |phase| WeightedRoundRobin::new(&[90, 10], phase).choose();
        let second_place = (0..1000).filter(|phase| first(*phase) == Some(1)).count();
        assert_eq!(second_place, 100);
    }

    #[test]
    fn the_heaviest_weights_do_not_overflow() {
        let mut choice = WeightedRoundRobin::new(&[u32::MAX; 64], u64::MAX);
        assert!((0..10_000).all(|_| choice.choose().is_some()));
    }

    proptest! {
        #[test]
        fn each_place_gets_its_share_of_every_period_from_any_phase(
            weights in prop::collection::vec(0_u32..20, 1..6),
            factor in 1_u32..50_000,
            phase: u64,
        ) {
            let sum: u32 = weights.iter().sum();
            let period = usize::try_from(sum).unwrap();
            let scaled: Vec<u32> = weights.iter().map(|weight| weight * factor).collect();
            let chosen = choices(&scaled, phase, 3 * period);
            for window in chosen.windows(period.max(1)) {
                for (at, weight) in weights.iter().enumerate() {
                    let count = window.iter().filter(|chosen| **chosen == at).count();
                    prop_assert_eq!(count, usize::try_from(*weight).unwrap());
                }
            }
        }

        #[test]
        fn every_place_stays_close_to_its_share(weights in prop::collection::vec(0_u32..1000, 1..5)) {
            let sum: u32 = weights.iter().sum();
            prop_assume!(sum > 0);
            let mut counts = vec![0_f64; weights.len()];
            let places = f64::from(u32::try_from(weights.len()).unwrap());
            for (turn, at) in choices(&weights, 0, 500).into_iter().enumerate() {
                counts[at] += 1.0;
                for (count, weight) in counts.iter().zip(&weights) {
                    let due = f64::from(u32::try_from(turn + 1).unwrap()) * f64::from(*weight) / f64::from(sum);
                    prop_assert!((count - due).abs() < places, "{} is far from {}", count, due);
                }
            }
        }
    }
}
