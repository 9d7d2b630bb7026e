//! Who runs where: the mesh has a processor of its own, attacker and healthy client share another.
//!
//! An attacker comes from elsewhere, and takes none of the mesh's processor but by what it asks for. Beside the healthy
//! client it has what that leaves: it is as nice as can be, so the client is never late for the attacker's sake.

use std::thread;

use rustix::process::setpriority_process;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The nicest that there is.
const NICEST: i32 = 19;

/// The two processors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shares {
    mesh: usize,
    clients: usize,
}

impl Shares {
    /// The first two that this process may use.
    pub(crate) fn take() -> Self {
        let allowed = sched_getaffinity(None).unwrap();
        let mut allowed = (0..CpuSet::MAX_CPU).filter(|number| allowed.is_set(*number));
        let (Some(mesh), Some(clients)) = (allowed.next(), allowed.next()) else {
            panic!("two processors are needed: one for the mesh, one for attacker and healthy client");
        };
        Self { mesh, clients }
    }

    /// Runs something in a thread with the mesh's processor. What it starts is there, too.
    pub(crate) fn as_mesh<T: Send>(self, work: impl FnOnce() -> T + Send) -> T {
        on(self.mesh, work)
    }

    /// Runs something in a thread of the clients' processor. What it starts is there, too.
    pub(crate) fn as_client<T: Send>(self, work: impl FnOnce() -> T + Send) -> T {
        on(self.clients, work)
    }

    /// [`Shares::as_client`] with what the healthy client and the apps leave of it.
    pub(crate) fn as_attacker<T: Send>(self, work: impl FnOnce() -> T + Send) -> T {
        on(self.clients, || {
            // Of this thread alone, and of those that it starts.
            setpriority_process(None, NICEST).unwrap();
            work()
        })
    }
}

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
