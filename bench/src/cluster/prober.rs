//! Probes one after another, and the time until they show the effect of a change.

use std::fmt::Debug;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::sync::mpsc;

/// How long a change may take until it counts as lost.
pub(super) const LIMIT: Duration = Duration::from_secs(30);
/// A slower change is reported at once, with the probe that showed it.
const SLOW: Duration = Duration::from_millis(500);

/// One probe.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen<T> {
    /// When it was begun.
    pub(super) began: Instant,
    /// When its outcome was known.
    pub(super) ended: Instant,
    pub(super) outcome: T,
}

/// The probes of a thread that makes one after another until this is dropped.
#[derive(Debug)]
pub(super) struct Prober<T>(pub(super) mpsc::UnboundedReceiver<Seen<T>>);

/// What a change does to the probes.
#[derive(Debug, Clone, Copy)]
pub(super) struct ExpectedAnswers<T> {
    /// What they show before it.
    pub(super) old: T,
    /// What they show once it has taken effect.
    pub(super) new: T,
}

/// One change and its effect.
#[derive(Debug, Clone, Copy)]
pub(super) struct ChangeEffect {
    /// Time from the API call's return to the end of the first probe that showed the effect.
    pub(super) from_return: Duration,
    /// The same, from the call's start.
    pub(super) from_start: Duration,
    /// Number of probes that were checked afterwards.
    pub(super) probes: usize,
    /// How many of them showed the old behaviour again.
    pub(super) stale: usize,
    /// How many showed neither behaviour.
    pub(super) odd: usize,
    /// Probes that showed neither behaviour before the effect.
    pub(super) odd_before: usize,
}

impl<T: Copy + PartialEq + Debug> Prober<T> {
    /// The next probe that began after `time`.
    async fn next_after(&mut self, time: Instant) -> Result<Seen<T>> {
        loop {
            let seen = self.0.recv().await.context("the prober has ended")?;
            if seen.began > time {
                return Ok(seen);
            }
        }
    }

    /// The first probe with this outcome that began after `time`.
    pub(super) async fn first(&mut self, wanted: T, time: Instant) -> Result<Seen<T>> {
        let expected = ExpectedAnswers { old: wanted, new: wanted };
        self.effect(expected, time).await.map(|(seen, _)| seen)
    }

    /// Makes a change, and watches probes until one shows its effect, and for `afterwards`.
    pub(super) async fn observe(
        &mut self,
        name: &str,
        expected: ExpectedAnswers<T>,
        change: impl Future<Output = Result<()>>,
        afterwards: Duration,
    ) -> Result<ChangeEffect> {
        let start = Instant::now();
        change.await?;
        let returned = Instant::now();
        let ExpectedAnswers { old, new } = expected;
        let (first, odd_before) = self.effect(expected, start).await?;
        if first.ended > returned + SLOW {
            let (began, took) = (first.began.saturating_duration_since(returned), first.ended - first.began);
            eprintln!("{name}: {new:?} by a probe that began after {began:?} and took {took:?}");
        }
        let (mut probes, mut stale, mut odd) = (0, 0, 0);
        loop {
            let seen = self.next_after(first.began).await?;
            probes += 1;
            if seen.outcome != new {
                if seen.outcome == old {
                    stale += 1;
                } else {
                    odd += 1;
                }
                let (since, took) = (seen.began - first.ended, seen.ended - seen.began);
                eprintln!("{name}: {new:?} was seen, and {since:?} later {:?} within {took:?}", seen.outcome);
            }
            if seen.began > first.ended + afterwards {
                break;
            }
        }
        Ok(ChangeEffect {
            // The effect may appear before the call has returned.
            from_return: first.ended.saturating_duration_since(returned),
            from_start: first.ended - start,
            probes,
            stale,
            odd,
            odd_before,
        })
    }

    /// The first probe after `time` with the new outcome, and the number of those before it with neither.
    async fn effect(&mut self, expected: ExpectedAnswers<T>, time: Instant) -> Result<(Seen<T>, usize)> {
        let (mut last, mut odd) = (None, 0);
        let search = async {
            loop {
                let seen = self.next_after(time).await?;
                if seen.outcome == expected.new {
                    return anyhow::Ok(seen);
                }
                odd += usize::from(seen.outcome != expected.old);
                last = Some(seen.outcome);
            }
        };
        match tokio::time::timeout(LIMIT, search).await {
            Ok(found) => Ok((found?, odd)),
            Err(_) => bail!("no {:?} within {LIMIT:?}; the last outcome was {last:?}", expected.new),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Probes with these outcomes, 10 ms apart; the first begins `ago` before now.
    fn prober(outcomes: &[u16]) -> (Prober<u16>, mpsc::UnboundedSender<Seen<u16>>) {
        let (sender, seen) = mpsc::unbounded_channel();
        let now = Instant::now();
        for (index, outcome) in (1..).zip(outcomes) {
            let began = now + Duration::from_millis(10) * index;
            sender.send(Seen { began, ended: began + Duration::from_millis(1), outcome: *outcome }).unwrap();
        }
        (Prober(seen), sender)
    }

    #[tokio::test]
    async fn an_effect_is_the_first_new_outcome_and_others_count_before_and_after_it() {
        let (mut prober, _sender) = prober(&[1, 1, 9, 2, 2, 1, 9, 2]);
        let expected = ExpectedAnswers { old: 1, new: 2 };
        let afterwards = Duration::from_millis(35);
        let effect = prober.observe("test", expected, async { Ok(()) }, afterwards).await.unwrap();
        assert_eq!((effect.probes, effect.stale, effect.odd, effect.odd_before), (4, 1, 1, 1));
        let millis = effect.from_start.as_millis();
        assert!((35..=41).contains(&millis), "the fourth probe ends after 41 ms: {millis}");
        assert!(effect.from_return <= effect.from_start);
    }

    #[tokio::test]
    async fn probes_from_before_the_change_do_not_count() {
        let (mut prober, sender) = prober(&[]);
        let now = Instant::now();
        let early = now.checked_sub(Duration::from_secs(1)).unwrap();
        for began in [early, now + Duration::from_millis(5)] {
            sender.send(Seen { began, ended: began, outcome: 2 }).unwrap();
        }
        assert_eq!(prober.first(2, now).await.unwrap().began, now + Duration::from_millis(5));
        drop(sender);
        assert!(prober.first(2, now).await.is_err(), "the prober has ended");
    }
}
