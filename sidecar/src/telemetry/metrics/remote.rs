//! A worker's counts by remote workload. A request finds its cells by number and by comparing a few bytes: without a lock,
//! without hashing, without touching a name.

use std::cell::RefCell;
use std::sync::{Arc, Mutex, PoisonError};

use super::series::{
    BODY_BYTES, MILLISECONDS, RemoteKey, RequestKind, RequestLabels, RequestProtocol, ResponseCode,
    SeriesLabels, ShownSeries,
};
use super::{Count, Record};
use crate::remotes::RemoteId;
use crate::telemetry::ConnectionSecurity;

/// The most series that a worker looks through for one workload. What else comes is folded.
const MOST_LISTED: usize = 64;

/// Cells of one worker, with their labels; read by the scrape.
#[derive(Default)]
pub(super) struct RemoteShard {
    pub(super) requests: RemoteCells<RequestLabels, Count>,
    pub(super) histograms: RemoteCells<RequestKind, HistogramCells>,
    pub(super) tcp: RemoteCells<ConnectionSecurity, TcpCells>,
    /// Requests and connections that are counted in series of [`RemoteId::OTHER`].
    pub(super) folded: Count,
}

/// Cells by workload and further labels.
pub(super) type RemoteCells<L, C> = Mutex<Vec<(RemoteKey, L, Arc<C>)>>;

/// Durations and bytes of requests.
#[derive(Default)]
pub(super) struct HistogramCells {
    pub(super) micros: Count,
    pub(super) durations: [Count; MILLISECONDS.len() + 1],
    pub(super) received: Count,
    pub(super) received_by_size: [Count; BODY_BYTES.len() + 1],
    pub(super) sent: Count,
    pub(super) sent_by_size: [Count; BODY_BYTES.len() + 1],
}

/// Connections of opaque bytes.
#[derive(Default)]
pub(super) struct TcpCells {
    pub(super) opened: Count,
    pub(super) closed: Count,
    pub(super) received: Count,
    pub(super) sent: Count,
}

/// A connection of opaque bytes that is counted as open.
pub(crate) struct CountedTcp(Arc<TcpCells>);

/// A worker's way to its cells.
pub(super) struct RemoteMetrics {
    shown: Arc<ShownSeries>,
    shard: Arc<RemoteShard>,
    /// By direction and [`RemoteId::index`].
    cells: RefCell<[Vec<CellsOfRemote>; 2]>,
}

/// The cells of one workload. Few, so they are searched one by one.
#[derive(Default)]
struct CellsOfRemote {
    requests: Vec<(RequestLabels, Found<Count>)>,
    histograms: Vec<(RequestKind, Found<HistogramCells>)>,
    tcp: Vec<(ConnectionSecurity, Found<TcpCells>)>,
}

/// A cell, and whether it is that of [`RemoteId::OTHER`].
struct Found<C> {
    cell: Arc<C>,
    is_folded: bool,
}

impl RemoteMetrics {
    pub(super) fn new(shown: Arc<ShownSeries>, shard: Arc<RemoteShard>) -> Self {
        Self { shown, shard, cells: RefCell::default() }
    }

    /// Counts a request.
    pub(super) fn count(&self, record: &Record<'_>) {
        let key = RemoteKey { is_outbound: record.outbound.is_some(), remote: record.remote() };
        let protocol = if record.grpc.is_some() { RequestProtocol::Grpc } else { RequestProtocol::Http };
        let kind = RequestKind { protocol, security: record.security() };
        let code = if (100..=599).contains(&record.status) { record.status } else { 0 };
        let code = ResponseCode::Exact(code);
        let mut all = self.cells.borrow_mut();
        let Some(cells) = of_remote(&mut all, key) else { return };
        let labels = RequestLabels { kind, code, flag: record.flag, grpc: record.grpc };
        let requests = self.find(&mut cells.requests, key, labels, &self.shard.requests);
        requests.cell.add(1);
        if requests.is_folded {
            self.shard.folded.add(1);
        }
        let histograms = self.find(&mut cells.histograms, key, kind, &self.shard.histograms);
        histograms.cell.count(record);
    }

    /// Counts a connection of opaque bytes, which is open until what is returned is dropped.
    pub(super) fn tcp(&self, key: RemoteKey, security: ConnectionSecurity) -> CountedTcp {
        let mut all = self.cells.borrow_mut();
        let Some(cells) = of_remote(&mut all, key) else { return CountedTcp(Arc::default()) };
        let found = self.find(&mut cells.tcp, key, security, &self.shard.tcp);
        if found.is_folded {
            self.shard.folded.add(1);
        }
        found.cell.opened.add(1);
        CountedTcp(found.cell.clone())
    }

    /// The cell with these labels of this workload; the first time that of the series that is shown, or of the one that
    /// it is folded into.
    fn find<'c, L: SeriesLabels, C: Default>(
        &self,
        cells: &'c mut Vec<(L, Found<C>)>,
        key: RemoteKey,
        labels: L,
        all: &RemoteCells<L, C>,
    ) -> &'c Found<C> {
        let place = cells.iter().position(|(known, _)| *known == labels).unwrap_or_else(|| {
            let is_shown = key.remote != RemoteId::OTHER
                && cells.len() < MOST_LISTED
                && self.shown.admit(key, labels.series());
            let cell =
                if is_shown { cell_of(all, key, labels) } else { cell_of(all, key.other(), labels.folded()) };
            // Beyond the bound the last one changes its labels.
            cells.truncate(MOST_LISTED);
            cells.push((labels, Found { cell, is_folded: !is_shown }));
            cells.len() - 1
        });
        &cells[place].1
    }
}

/// The cell of a series of this worker.
fn cell_of<L: PartialEq + Copy, C: Default>(all: &RemoteCells<L, C>, key: RemoteKey, labels: L) -> Arc<C> {
    let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((.., cell)) = all.iter().find(|(known, with, _)| *known == key && *with == labels) {
        return cell.clone();
    }
    let cell = Arc::<C>::default();
    all.push((key, labels, cell.clone()));
    cell
}

/// The cells of a workload; `None` never.
fn of_remote(all: &mut [Vec<CellsOfRemote>; 2], key: RemoteKey) -> Option<&mut CellsOfRemote> {
    let of_direction = all.get_mut(usize::from(key.is_outbound))?;
    let place = key.remote.index();
    if of_direction.len() <= place {
        of_direction.resize_with(place + 1, CellsOfRemote::default);
    }
    of_direction.get_mut(place)
}

impl HistogramCells {
    fn count(&self, record: &Record<'_>) {
        let micros = u64::try_from(record.duration.as_micros()).unwrap_or(u64::MAX);
        self.micros.add(micros);
        let milliseconds = record.duration.as_secs_f64() * 1e3;
        add_to_bucket(&self.durations, &MILLISECONDS, milliseconds);
        self.received.add(record.received);
        add_to_bucket(&self.received_by_size, &BODY_BYTES, record.received as f64);
        self.sent.add(record.sent);
        add_to_bucket(&self.sent_by_size, &BODY_BYTES, record.sent as f64);
    }
}

fn add_to_bucket(buckets: &[Count], bounds: &[f64], value: f64) {
    if let Some(bucket) = buckets.get(bounds.partition_point(|bound| *bound < value)) {
        bucket.add(1);
    }
}

impl CountedTcp {
    /// Counts the bytes of the connection, of which there are no more.
    pub(crate) fn moved(&self, received: u64, sent: u64) {
        self.0.received.add(received);
        self.0.sent.add(sent);
    }
}

impl Drop for CountedTcp {
    fn drop(&mut self) {
        self.0.closed.add(1);
    }
}
