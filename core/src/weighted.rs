//! Deterministic choice by weight.

/// A sequence of choices in which each place has its share.
///
/// The choice at a position depends on the position alone, so a counter is all the state, and workers
/// that share the counter share the sequence. In any `sum / gcd` consecutive positions every place has exactly its share,
/// evenly spread: 90 to 10 is nine to one within ten requests. A random choice would be off by several percent even over
/// hundreds of requests.
///
/// Of the first `n` positions, the heaviest place has `n * weight / sum`, rounded up; the rest is divided among the other
/// places in the same way. Time per choice is linear in the number of weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightedSequence {
    /// Those with a weight above 0, the heaviest first.
    places: Box<[WeightedPlace]>,
    sum: u64,
}

/// One of the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct WeightedPlace {
    index: usize,
    weight: u64,
}

impl WeightedSequence {
    /// The sequence of these weights.
    pub fn new(weights: &[u32]) -> Self {
        let place = |(index, weight): (usize, &u32)| WeightedPlace { index, weight: u64::from(*weight) };
        let mut places: Box<[_]> =
            weights.iter().enumerate().map(place).filter(|place| place.weight > 0).collect();
        places.sort_by_key(|place| std::cmp::Reverse(place.weight));
        let sum = places.iter().map(|place| place.weight).sum();
        Self { places, sum }
    }

    /// Index of the place at a position; `None` if all weights are 0. A place of weight 0 is never chosen.
    ///
    /// Counters should start at different positions: otherwise a thousand clients that send one request each would all
    /// choose the heaviest place.
    pub fn at(&self, position: u64) -> Option<usize> {
        let mut position = position.checked_rem(self.sum)?;
        let mut sum = self.sum;
        for place in &self.places {
            let before = share(position, place.weight, sum);
            if share(position + 1, place.weight, sum) > before {
                return Some(place.index);
            }
            position -= before;
            sum -= place.weight;
        }
        None
    }
}

/// How many of the first `count` choices are those of a place with this weight.
fn share(count: u64, weight: u64, sum: u64) -> u64 {
    let share = (u128::from(count) * u128::from(weight)).div_ceil(u128::from(sum));
    u64::try_from(share).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn choices(weights: &[u32], from: u64, count: usize) -> Vec<usize> {
        let sequence = WeightedSequence::new(weights);
        (from..).take(count).map_while(|position| sequence.at(position)).collect()
    }

    #[test]
    fn ninety_to_ten_is_nine_to_one_of_any_ten() {
        for from in 0..20 {
            let chosen = choices(&[90, 10], from, 10);
            assert_eq!(chosen.iter().filter(|index| **index == 1).count(), 1, "{from}");
        }
        assert_eq!(choices(&[1, 5, 1], 0, 7), [1, 1, 1, 0, 1, 1, 2]);
    }

    #[test]
    fn a_place_without_weight_is_never_chosen() {
        assert_eq!(choices(&[0, 1, 0], 5, 3), [1, 1, 1]);
        assert_eq!(choices(&[0, 0], 5, 3), [] as [usize; 0]);
        assert_eq!(choices(&[], 5, 3), [] as [usize; 0]);
    }

    #[test]
    fn clients_of_one_request_each_split_as_well() {
        let sequence = WeightedSequence::new(&[90, 10]);
        let second_place = (0..1000).filter(|position| sequence.at(*position) == Some(1)).count();
        assert_eq!(second_place, 100);
    }

    #[test]
    fn the_heaviest_weights_and_the_last_position_do_not_overflow() {
        let sequence = WeightedSequence::new(&[u32::MAX; 64]);
        assert!((u64::MAX - 1000..=u64::MAX).all(|position| sequence.at(position).is_some()));
    }

    proptest! {
        #[test]
        fn each_place_gets_its_share_of_every_period_from_any_position(
            weights in prop::collection::vec(0_u32..20, 1..6),
            factor in 1_u32..50_000,
            from in 0_u64..u64::MAX / 2,
        ) {
            let sum: u32 = weights.iter().sum();
            let period = usize::try_from(sum).unwrap();
            let scaled: Vec<u32> = weights.iter().map(|weight| weight * factor).collect();
            let chosen = choices(&scaled, from, 3 * period);
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
