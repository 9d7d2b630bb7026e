//! Assigns processors: the mesh has its own; attacker and healthy client share another.
//!
//! An attacker is usually on another machine, and uses the mesh's processor only through its requests. It gets what the
//! healthy client leaves of the shared processor: it runs at the highest nice value, so that it does not delay the
//! client.

use std::thread;

use rustix::process::setpriority_process;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The highest nice value.
const NICEST: i32 = 19;

/// The two processors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProcessorShares {
    mesh: usize,
    clients: usize,
}

impl ProcessorShares {
    /// The first two processors that this process may use.
    pub(crate) fn take() -> Self {
        let allowed = sched_getaffinity(None).unwrap();
        let mut allowed = (0..CpuSet::MAX_CPU).filter(|number| allowed.is_set(*number));
        let (Some(mesh), Some(clients)) = (allowed.next(), allowed.next()) else {
            panic!("two processors are needed: one for the mesh, one for attacker and healthy client");
        };
        Self { mesh, clients }
    }

    /// Runs something in a thread on the mesh's processor; threads and processes that it starts stay there.
    pub(crate) fn as_mesh<T: Send>(self, work: impl FnOnce() -> T + Send) -> T {
        on(self.mesh, work)
    }

    /// Runs something in a thread on the clients' processor; threads and processes that it starts stay there.
    pub(crate) fn as_client<T: Send>(self, work: impl FnOnce() -> T + Send) -> T {
        on(self.clients, work)
    }

    /// [`ProcessorShares::as_client`], limited to what the healthy client and the apps leave.
    pub(crate) fn as_attacker<T: Send>(self, work: impl FnOnce() -> T + Send) -> T {
        on(self.clients, || {
            // Applies to this thread, and to those that it starts.
            setpriority_process(None, NICEST).unwrap();
            work()
        })
    }
}

/// Runs `work` in a thread of its own on one processor; threads that it starts inherit that.
fn on<T: Send>(processor: usize, work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let thread = scope.spawn(move || {
            let mut processors = CpuSet::new();
            processors.set(processor);
            sched_setaffinity(None, &processors).unwrap();
            work()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
