use std::future::pending;

use super::*;

const LONG: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_drain_ends_when_the_last_holder_is_done() {
    let (trigger, watch) = channel();
    let holders: Vec<_> = (0..3)
        .map(|_| {
            let mut watch = watch.clone();
            tokio::spawn(async move { watch.started().await })
        })
        .collect();
    drop(watch);
    assert_eq!(trigger.drain(LONG).await, DrainOutcome::Complete);
    for holder in holders {
        holder.await.unwrap();
    }
}

#[tokio::test]
async fn a_holder_that_never_ends_is_given_up_at_the_deadline() {
    let (trigger, watch) = channel();
    let other = watch.clone();
    assert_eq!(trigger.drain(Duration::from_millis(1)).await, DrainOutcome::DeadlinePassed { remaining: 2 });
    assert!(watch.is_started() && other.is_started());
}

#[tokio::test]
async fn who_comes_after_the_start_learns_of_it_at_once() {
    let (trigger, watch) = channel();
    assert!(!watch.is_started());
    trigger.start();
    let mut late = trigger.watch();
    late.started().await;
    assert!(late.is_started() && watch.is_started());
}

#[tokio::test]
async fn a_trigger_that_is_gone_counts_as_started() {
    let (trigger, mut watch) = channel();
    drop(trigger);
    watch.started().await;
    assert!(watch.is_started());
}

#[test]
fn holders_may_live_on_other_threads_and_runtimes() {
    fn block_on<F: Future>(future: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }
    let (trigger, watch) = channel();
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let mut watch = watch.clone();
            std::thread::spawn(move || {
                block_on(async {
                    tokio::select! {
                        () = watch.started() => {}
                        () = pending() => {}
                    }
                });
            })
        })
        .collect();
    drop(watch);
    assert_eq!(block_on(trigger.drain(LONG)), DrainOutcome::Complete);
    for thread in threads {
        thread.join().unwrap();
    }
}
