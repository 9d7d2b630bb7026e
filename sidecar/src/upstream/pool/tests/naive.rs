//! The pool against its rules, sentence by sentence, over random sequences of what happens to it.

use std::cell::Cell;
use std::rc::Rc;

use proptest::prelude::*;
use tidegate_core::{Identity, TrustDomain};

use super::*;

const ENDPOINTS: usize = 4;
const MOST: usize = 6;
/// Longer than a case takes, so that only [`Event::Wait`] makes connections old.
const LONGEST: Duration = Duration::from_secs(3600);

/// A connection, whose end is seen.
struct Watched {
    number: usize,
    fitness: Rc<Cell<Fitness>>,
    closed: Rc<RefCell<Vec<usize>>>,
}

impl Reusable for Watched {
    fn fitness(&mut self, _: Duration) -> Fitness {
        self.fitness.get()
    }

    fn place(&mut self) -> Option<&mut Http1Place> {
        None
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.closed.borrow_mut().push(self.number);
    }
}

#[derive(Clone, Debug)]
enum Event {
    /// A request to an endpoint is over, and its connection comes back.
    Put(usize),
    /// A request to an endpoint needs a connection.
    Checkout(usize),
    /// One of the connections that wait changes.
    Become(usize, Fitness),
    /// The worker's tick, after a while.
    Wait(Duration),
}

fn event() -> impl Strategy<Value = Event> {
    let fitness = prop::sample::select(vec![Fitness::Ready, Fitness::Busy, Fitness::Dead]);
    let wait = prop::sample::select(vec![Duration::ZERO, 2 * IDLE_PEER, 2 * LONGEST]);
    prop_oneof![
        6 => (0..ENDPOINTS).prop_map(Event::Put),
        3 => (0..ENDPOINTS).prop_map(Event::Checkout),
        2 => (0..MOST, fitness).prop_map(|(place, fitness)| Event::Become(place, fitness)),
        1 => wait.prop_map(Event::Wait),
    ]
}

/// The last endpoint is in the mesh.
fn endpoints() -> Vec<Arc<Endpoint>> {
    let identity = Identity::new(TrustDomain::default(), "shop", "cart").unwrap();
    let transport =
        |number| if number + 1 == ENDPOINTS { Transport::Mesh(identity.clone()) } else { Transport::Plain };
    let port = |number: usize| 1 + u16::try_from(number).unwrap();
    let endpoint = |number| Arc::new(Endpoint::new(([127, 0, 0, 1], port(number)).into(), transport(number)));
    (0..ENDPOINTS).map(endpoint).collect()
}

/// What waits, as the rules have it: the oldest first.
#[derive(Default)]
struct NaivePool {
    waiting: Vec<(usize, usize, Rc<Cell<Fitness>>)>,
}

impl NaivePool {
    fn of(&self, endpoint: usize) -> usize {
        self.waiting.iter().filter(|(of, ..)| *of == endpoint).count()
    }

    fn largest(&self) -> usize {
        (0..ENDPOINTS).map(|endpoint| self.of(endpoint)).max().unwrap()
    }

    /// Removes what was closed; fails unless all of it had waited.
    fn forget(&mut self, closed: &[usize]) {
        for number in closed {
            let place = self.waiting.iter().position(|(_, known, _)| known == number).unwrap();
            self.waiting.remove(place);
        }
    }

    /// "An endpoint has half of all at most; in a full pool, the one with the most makes room for one with fewer", with its oldest.
    fn put(&mut self, endpoint: usize, number: usize, fitness: &Rc<Cell<Fitness>>, closed: &[usize]) {
        let has = self.of(endpoint);
        let is_full = self.waiting.len() == MOST;
        if has >= MOST / 2 || (is_full && self.largest() <= has + 1) {
            assert_eq!(closed, [number], "the pool is full");
            return;
        }
        assert_eq!(closed.len(), usize::from(is_full), "one makes room in a full pool");
        if let [closed] = closed {
            let (of, ..) = self.waiting.iter().find(|(_, known, _)| known == closed).unwrap();
            assert_eq!(self.of(*of), self.largest(), "of the endpoint with the most");
            let oldest = self.waiting.iter().find(|(other, ..)| other == of).unwrap();
            assert_eq!(oldest.1, *closed, "its oldest");
        }
        self.forget(closed);
        self.waiting.push((endpoint, number, fitness.clone()));
    }

    /// "The connection that was used last and is good": those behind it that are dead are closed.
    fn checkout(&mut self, endpoint: usize) -> (Option<usize>, Vec<usize>) {
        let mut dead = Vec::new();
        let mut found = None;
        for (of, number, fitness) in self.waiting.iter().rev() {
            match fitness.get() {
                _ if *of != endpoint || found.is_some() => {}
                Fitness::Ready => found = Some(*number),
                Fitness::Dead => dead.push(*number),
                Fitness::Busy => {}
            }
        }
        self.forget(&[dead.as_slice(), found.as_slice()].concat());
        (found, dead)
    }

    /// "Closes what has waited too long, and what the upstream has closed."
    fn wait(&mut self, time: Duration) -> Vec<usize> {
        let is_old = |endpoint: usize| time > if endpoint + 1 == ENDPOINTS { IDLE_PEER } else { LONGEST };
        let gone =
            self.waiting.iter().filter(|(of, _, fitness)| is_old(*of) || fitness.get() == Fitness::Dead);
        let mut gone: Vec<_> = gone.map(|(_, number, _)| *number).collect();
        self.forget(&gone);
        gone.sort_unstable();
        gone
    }
}

proptest! {
    #[test]
    fn a_pool_keeps_and_closes_what_its_rules_say(events in prop::collection::vec(event(), 0..80)) {
        let limits = Limits { upstream_idle_connections: MOST, upstream_idle: LONGEST, ..Limits::default() };
        let (pool, endpoints, closed) = (Pool::new(&limits), endpoints(), Rc::new(RefCell::new(Vec::new())));
        let mut naive = NaivePool::default();
        for (number, event) in events.into_iter().enumerate() {
            match event {
                Event::Put(endpoint) => {
                    let fitness = Rc::new(Cell::new(Fitness::Ready));
                    pool.put(&endpoints[endpoint], Watched { number, fitness: fitness.clone(), closed: closed.clone() });
                    naive.put(endpoint, number, &fitness, &closed.take());
                }
                Event::Checkout(endpoint) => {
                    let taken = pool.checkout(&endpoints[endpoint]).unwrap();
                    let (expected, dead) = naive.checkout(endpoint);
                    prop_assert_eq!(closed.take(), dead);
                    prop_assert_eq!(taken.as_ref().map(|taken| taken.number), expected);
                    drop(taken);
                    closed.take();
                }
                Event::Become(place, fitness) => {
                    if let Some((.., known)) = naive.waiting.get(place) {
                        known.set(fitness);
                    }
                }
                Event::Wait(time) => {
                    pool.sweep(Instant::now() + time);
                    let mut gone = closed.take();
                    gone.sort_unstable();
                    prop_assert_eq!(gone, naive.wait(time));
                }
            }
            prop_assert_eq!(pool.len(), naive.waiting.len());
            prop_assert!(pool.len() <= MOST && naive.largest() <= MOST / 2);
        }
    }
}
