//! Time limits of rules. A request without one has no timer.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Instant;

use crate::upstream::TimedOut;

/// Drives a future for as long as a deadline allows, if there is one. Exact to a millisecond, unlike the deadlines of a
/// [`Lifeline`](crate::lifeline::Lifeline), which are coarse and end a connection. The returned future holds `future` twice,
/// so pass a large one pinned.
pub(super) async fn timed<F: Future>(
    deadline: Option<(Instant, TimedOut)>,
    future: F,
) -> Result<F::Output, TimedOut> {
    let mut timer = deadline.map(|(at, which)| (Box::pin(tokio::time::sleep_until(at.into())), which));
    let mut future = pin!(future);
    poll_fn(|context| {
        if let Poll::Ready(output) = future.as_mut().poll(context) {
            return Poll::Ready(Ok(output));
        }
        match &mut timer {
            Some((timer, which)) => timer.as_mut().poll(context).map(|()| Err(*which)),
            None => Poll::Pending,
        }
    })
    .await
}
