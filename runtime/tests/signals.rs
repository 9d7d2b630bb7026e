//! In a process of its own: its handlers keep SIGTERM from ending whatever else would run here.

use rustix::process::{Resource, Signal as Sent, getpid, getrlimit, kill_process};
use tidegate_runtime::signals::{Signal, raise_file_limit, shutdown};

#[tokio::test]
async fn sigterm_and_sigint_each_end_the_wait_also_when_sent_before_it() {
    for (sent, expected) in [(Sent::TERM, Signal::Terminate), (Sent::INT, Signal::Interrupt)] {
        let shutdown = shutdown().unwrap();
        kill_process(getpid(), sent).unwrap();
        assert_eq!(shutdown.await, expected);
    }
}

#[test]
fn the_soft_limit_of_open_files_becomes_the_hard_one() {
    let limit = raise_file_limit();
    assert_eq!(getrlimit(Resource::Nofile).current, limit);
    assert_eq!(getrlimit(Resource::Nofile).maximum, limit);
}
