//! A running mesh, on this machine's loopback or on a cluster.

use crate::loads::Loads;

/// A running mesh with everything that can be changed in it.
pub(crate) trait SoakSite {
    /// Starts every client.
    fn start_loads(&self) -> Loads;

    /// Changes a policy that affects no load; returns when the controller has processed it.
    fn edit(&mut self);

    /// Takes the next step of a root's rotation, or starts it.
    fn rotate(&mut self);

    /// Restarts the next program in turn, or starts to.
    fn restart(&mut self);

    /// Waits for started changes; returns the total of what was done.
    fn finish(&mut self) -> ChangesMade;

    /// What is restarted, as named in the report.
    fn restarted(&self) -> &'static str;

    /// The processes to sample, by their names in the report. Several of one name are counted together.
    fn processes(&self) -> Vec<(String, u32)>;
}

/// How much was changed.
#[derive(Clone, Debug, Default)]
pub(crate) struct ChangesMade {
    /// Steps of a rotation.
    pub(crate) rotation_steps: u32,
    pub(crate) restarts: u32,
    /// Changes that failed, and why.
    pub(crate) problems: Vec<String>,
}
