//! Copies of requests, and shares of them.

use serde::Serialize;

use crate::backend::BackendRef;
use crate::route::error::{Problem, RouteError};
use crate::weighted::WeightedSequence;

/// Copies a share of the requests to a backend (Gateway API: `HTTPRequestMirrorFilter`, GEP-3171). The copy goes to one
/// endpoint; host and path are those of the request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Mirror {
    /// Where the copies go.
    pub backend: BackendRef,
    /// Which share of the requests is copied.
    pub fraction: Fraction,
}

/// A share of requests, from none to all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Fraction {
    numerator: u32,
    denominator: u32,
}

impl Fraction {
    /// Every request.
    pub const ALL: Self = Self { numerator: 1, denominator: 1 };

    /// `numerator` of `denominator` requests; 10 of 100 are ten percent.
    pub fn new(numerator: u32, denominator: u32) -> Result<Self, RouteError> {
        if denominator == 0 || numerator > denominator {
            let value = format!("{numerator}/{denominator}");
            return Err(RouteError::new("fraction", value, Problem::Fraction));
        }
        Ok(Self { numerator, denominator })
    }

    /// How many of [`Fraction::denominator`] requests.
    pub fn numerator(self) -> u32 {
        self.numerator
    }

    /// Of how many requests; not 0.
    pub fn denominator(self) -> u32 {
        self.denominator
    }

    /// Samples requests: [`WeightedSequence::at`] returns 0 for the share, and 1 for the others. Ten percent are exactly one
    /// of every ten.
    pub fn sampler(self) -> WeightedSequence {
        WeightedSequence::new(&[self.numerator, self.denominator - self.numerator])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fraction_is_between_nothing_and_all() {
        for (numerator, denominator) in [(0, 0), (2, 1), (101, 100)] {
            let error = Fraction::new(numerator, denominator).unwrap_err();
            assert_eq!(error.problem, Problem::Fraction);
        }
        assert_eq!(
            Fraction::new(101, 100).unwrap_err().to_string(),
            "fraction: \"101/100\" is not a fraction between 0 and 1"
        );
    }

    #[test]
    fn a_share_is_exact() {
        let count = |fraction: Fraction| {
            let sampler = fraction.sampler();
            (7..1007).filter(|position| sampler.at(*position) == Some(0)).count()
        };
        assert_eq!(count(Fraction::ALL), 1000);
        assert_eq!(count(Fraction::new(0, 100).unwrap()), 0);
        assert_eq!(count(Fraction::new(1, 8).unwrap()), 125);
    }
}
