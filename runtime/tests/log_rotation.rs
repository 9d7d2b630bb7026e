//! In a process of its own: it sends itself signals.

use rustix::process::{Signal as Sent, getpid, kill_process};
use tidegate_runtime::signals::{Signal, log_rotation, shutdown};

#[tokio::test]
async fn sighup_and_sigusr1_end_nothing_and_sigusr1_asks_for_new_log_files() {
    let mut shutdown = std::pin::pin!(shutdown().unwrap());
    let mut rotation = log_rotation().unwrap();
    for sent in [Sent::HUP, Sent::USR1] {
        kill_process(getpid(), sent).unwrap();
    }
    tokio::select! {
        signal = shutdown.as_mut() => panic!("{signal}"),
        () = rotation.requested() => {}
    }
    kill_process(getpid(), Sent::TERM).unwrap();
    assert_eq!(shutdown.await, Signal::Terminate);
}
