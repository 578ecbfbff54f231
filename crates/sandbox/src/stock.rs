//! A stock of things that take long to make: so many wait, and what is taken is made anew in the background.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::thread::available_parallelism;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep_until};

/// Before what was taken is made anew: whoever took it has the processors first.
const GRACE: Duration = Duration::from_millis(150);
/// After a failure, or after the end of one that waited, before the next try; twice as long after each further one.
const PAUSE: Duration = Duration::from_secs(1);
/// At most.
const LONGEST: Duration = Duration::from_mins(1);
/// After so long without either, it begins anew.
const FORGOTTEN: Duration = LONGEST.saturating_mul(2);

type Making<T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + Send>>;
type Ending = Pin<Box<dyn Future<Output = ()> + Send>>;
type Taker<T, E> = oneshot::Sender<Result<T, E>>;

/// What came of making things, since one was made last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Failures {
    /// How many tries in a row came to nothing.
    pub count: u32,
    /// Why the last one did.
    pub last: Option<String>,
}

/// Things that wait to be taken. Dropping it drops them.
#[derive(Debug)]
pub struct Stock<T, E> {
    takers: mpsc::UnboundedSender<Taker<T, E>>,
    waiting: watch::Receiver<usize>,
    failures: watch::Receiver<Failures>,
    keeping: AbortHandle,
}

impl<T, E> Drop for Stock<T, E> {
    fn drop(&mut self) {
        self.keeping.abort();
    }
}

impl<T: Send + 'static, E: std::fmt::Display + Send + 'static> Stock<T, E> {
    /// Keeps `size` things, of which the `first` are there. `make` makes one; one that has `ended` of itself is thrown
    /// away, and made anew. To be called within a runtime of tokio.
    pub fn new<F, G>(
        size: usize,
        first: Vec<T>,
        make: impl Fn() -> F + Send + 'static,
        ended: impl Fn(&T) -> G + Send + 'static,
    ) -> Self
    where
        F: Future<Output = Result<T, E>> + Send + 'static,
        G: Future<Output = ()> + Send + 'static,
    {
        let (takers, requests) = mpsc::unbounded_channel();
        let (count, waiting) = watch::channel(0);
        let (failed, failures) = watch::channel(Failures::default());
        let watched = move |thing: T| {
            let ended: Ending = Box::pin(ended(&thing));
            (thing, ended)
        };
        let keeper = Keeper {
            size,
            make: Box::new(move || Box::pin(make())),
            things: first.into_iter().map(&watched).collect(),
            watched: Box::new(watched),
            takers: VecDeque::new(),
            making: JoinSet::new(),
            rest: None,
            pause: PAUSE,
            failure: None,
            round: false,
            count,
            failed,
        };
        Self { takers, waiting, failures, keeping: tokio::spawn(keeper.keep(requests)).abort_handle() }
    }

    /// Takes one, waiting for it if there is none. Cancel-safe: what nobody gets stays.
    ///
    /// # Errors
    /// The one that was to be made for this failed.
    pub async fn take(&self) -> Result<T, E> {
        let (taker, answer) = oneshot::channel();
        let _ = self.takers.send(taker);
        match answer.await {
            Ok(answer) => answer,
            // Nobody keeps it any more: the runtime ends.
            Err(_) => std::future::pending().await,
        }
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        *self.waiting.borrow()
    }

    /// Whether things can be made at present, and why not.
    pub fn failures(&self) -> Failures {
        self.failures.borrow().clone()
    }

    /// Waits until so many wait.
    pub async fn filled(&self, count: usize) {
        let _ = self.waiting.clone().wait_for(|waiting| *waiting >= count).await;
    }
}

/// What the background task has.
struct Keeper<T, E> {
    size: usize,
    make: Box<dyn Fn() -> Making<T, E> + Send>,
    /// Adds how to learn of one's end.
    watched: Box<dyn Fn(T) -> (T, Ending) + Send>,
    things: VecDeque<(T, Ending)>,
    takers: VecDeque<Taker<T, E>>,
    making: JoinSet<Result<T, E>>,
    /// Until when nothing new is begun, unless somebody waits for it.
    rest: Option<Instant>,
    /// The rest after the next failure.
    pause: Duration,
    /// The last one.
    failure: Option<Instant>,
    /// Whether a try of those that were begun together has failed.
    round: bool,
    count: watch::Sender<usize>,
    failed: watch::Sender<Failures>,
}

impl<T: Send + 'static, E: std::fmt::Display + Send + 'static> Keeper<T, E> {
    async fn keep(mut self, mut requests: mpsc::UnboundedReceiver<Taker<T, E>>) {
        loop {
            // None that has ended is handed over.
            if poll_fn(|cx| Poll::Ready(retire(&mut self.things, cx))).await {
                self.rest();
            }
            self.hand_over();
            self.fill();
            let rest = self.rest.unwrap_or_else(Instant::now);
            tokio::select! {
                () = poll_fn(|cx| if retire(&mut self.things, cx) { Poll::Ready(()) } else { Poll::Pending }) => {
                    self.rest();
                }
                taker = requests.recv() => match taker {
                    Some(taker) => self.takers.push_back(taker),
                    None => return,
                },
                Some(made) = self.making.join_next() => self.made(made),
                () = sleep_until(rest), if self.rest.is_some() => self.rest = None,
            }
        }
    }

    fn hand_over(&mut self) {
        while let Some(taker) = self.takers.pop_front() {
            if taker.is_closed() {
                continue;
            }
            let Some((thing, ended)) = self.things.pop_front() else {
                self.takers.push_front(taker);
                break;
            };
            match taker.send(Ok(thing)) {
                Ok(()) => self.rest = self.rest.max(Some(Instant::now() + GRACE)),
                Err(Ok(thing)) => self.things.push_front((thing, ended)),
                Err(Err(_)) => {}
            }
        }
        self.count.send_replace(self.things.len());
    }

    fn fill(&mut self) {
        // More at once would only wait for each other.
        let most = available_parallelism().map_or(2, std::num::NonZero::get);
        if self.rest.is_some() && self.takers.is_empty() {
            return;
        }
        while self.making.len() < most && self.things.len() + self.making.len() < self.size {
            self.round = false;
            self.making.spawn((self.make)());
        }
    }

    fn made(&mut self, made: Result<Result<T, E>, tokio::task::JoinError>) {
        match made {
            Ok(Ok(thing)) => {
                self.failed.send_replace(Failures::default());
                self.things.push_back((self.watched)(thing));
            }
            Ok(Err(error)) => {
                self.failed(&error);
                // Whoever waits is told at once.
                if let Some(taker) = self.takers.pop_front() {
                    let _ = taker.send(Err(error));
                }
            }
            Err(error) => self.failed(&error),
        }
    }

    fn failed(&mut self, error: &dyn std::fmt::Display) {
        tracing::warn!(%error, pause = ?self.pause, "one in waiting was not made");
        self.failed.send_modify(|failures| {
            failures.count = failures.count.saturating_add(1);
            failures.last = Some(error.to_string());
        });
        self.rest();
    }

    /// Rests after a failure, or an end: what was in the way may have gone by then.
    fn rest(&mut self) {
        let last = self.failure.replace(Instant::now());
        // What is made, and ends soon after, has not come to anything either.
        if last.is_some_and(|last| last.elapsed() >= FORGOTTEN) {
            self.pause = PAUSE;
        }
        // One that is under way is not made longer: while one after the other ends, nothing would ever be made.
        let now = Instant::now();
        if self.rest.is_none_or(|rest| rest <= now + GRACE) {
            self.rest = Some(now + self.pause);
        }
        // What fails together counts as one.
        if !std::mem::replace(&mut self.round, true) {
            self.pause = (2 * self.pause).min(LONGEST);
        }
    }
}

/// Throws those away that have ended; whether there were any.
fn retire<T>(things: &mut VecDeque<(T, Ending)>, cx: &mut Context<'_>) -> bool {
    let before = things.len();
    things.retain_mut(|(_, ended)| ended.as_mut().poll(cx).is_pending());
    let ended = before - things.len();
    if ended > 0 {
        tracing::warn!(ended, "what waited has ended of itself");
    }
    ended > 0
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::{Mutex, Notify};

    use super::*;

    #[tokio::test]
    async fn a_stock_is_refilled_and_who_waits_for_what_fails_is_told() {
        let (count, release) = (AtomicUsize::new(0), Arc::new(Notify::new()));
        let hold = release.clone();
        let produce = move || {
            let (number, hold) = (count.fetch_add(1, Ordering::Relaxed), hold.clone());
            async move {
                if number == 3 {
                    hold.notified().await;
                    return Err("the fourth");
                }
                Ok(number)
            }
        };
        let ended = |number: &usize| {
            let number = *number;
            async move {
                if number != 1 {
                    pending::<()>().await;
                }
            }
        };
        let stock = Stock::new(1, Vec::new(), produce, ended);
        assert_eq!(stock.take().await, Ok(0));
        assert_eq!(stock.take().await, Ok(2), "one that has ended is not handed over");
        let (fourth, ()) = tokio::join!(biased; stock.take(), async { release.notify_one() });
        assert_eq!(fourth, Err("the fourth"));
        stock.filled(1).await;
        assert_eq!((stock.waiting(), stock.take().await), (1, Ok(4)));
        // Who gives up takes nothing away.
        tokio::select! {
            biased;
            taken = stock.take() => panic!("{taken:?} without waiting"),
            () = ready(()) => {}
        }
        assert_eq!(stock.take().await, Ok(5));
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_made_is_tried_less_and_less_often_until_it_can() {
        let (began, tries) = (Instant::now(), Arc::new(std::sync::Mutex::new(Vec::new())));
        let noted = tries.clone();
        let make = move || {
            let mut tries = noted.lock().unwrap();
            tries.push(began.elapsed().as_secs());
            ready(if [10, 12].contains(&tries.len()) { Ok(()) } else { Err("there is no room") })
        };
        let (ended, end) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (tell, kept) = (ended.clone(), end.clone());
        let stock = Stock::new(1, Vec::new(), make, move |()| {
            tell.notify_one();
            let end = kept.clone();
            async move { end.notified().await }
        });
        let mut failures = stock.failures.clone();
        let known = failures.wait_for(|failures| failures.count == 9).await.unwrap().clone();
        assert_eq!(known.last.as_deref(), Some("there is no room"));
        ended.notified().await;
        assert_eq!(*tries.lock().unwrap(), [0, 1, 3, 7, 15, 31, 63, 123, 183, 243]);
        assert_eq!(failures.wait_for(|failures| failures.count == 0).await.unwrap().last, None);
        // One that is made, and ends at once, is no more than one that is not made.
        end.notify_one();
        failures.wait_for(|failures| failures.count == 1).await.unwrap();
        ended.notified().await;
        assert_eq!(tries.lock().unwrap()[10..], [303, 363]);
        // After a while it begins anew.
        tokio::time::sleep(FORGOTTEN).await;
        end.notify_one();
        failures.wait_for(|failures| failures.count == 2).await.unwrap();
        assert_eq!(tries.lock().unwrap()[12..], [484, 486]);
    }

    #[tokio::test(start_paused = true)]
    async fn those_that_end_one_after_another_do_not_keep_others_from_being_made() {
        let (began, tries) = (Instant::now(), Arc::new(std::sync::Mutex::new(Vec::new())));
        let noted = tries.clone();
        let make = move || {
            noted.lock().unwrap().push(began.elapsed().as_secs());
            ready(Err("there is no room"))
        };
        let lives = (0..8).map(|number| Duration::from_secs(65 + 10 * number)).collect();
        let stock = Stock::new(9, lives, make, |life: &Duration| tokio::time::sleep(*life));
        tokio::time::sleep(Duration::from_secs(130)).await;
        assert_eq!(stock.waiting(), 1);
        assert_eq!(tries.lock().unwrap()[..8], [0, 1, 3, 7, 15, 31, 63, 123]);
    }

    #[tokio::test]
    async fn what_waits_ends_with_the_stock() {
        let thing = Arc::new(());
        let kept = thing.clone();
        let stock =
            Stock::new(3, vec![Arc::new(())], move || ready(Ok::<_, String>(kept.clone())), |_| pending::<()>());
        stock.filled(3).await;
        drop(stock);
        while Arc::strong_count(&thing) > 1 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn what_waits_and_ends_of_itself_is_replaced_before_anybody_asks_for_it() {
        let count = AtomicUsize::new(0);
        let number = move || ready(Ok::<_, String>(count.fetch_add(1, Ordering::Relaxed)));
        let life = Arc::new(Mutex::new(()));
        let (first, lives) = (life.clone(), life.clone().lock_owned().await);
        let ended = move |number: &usize| {
            let (number, life) = (*number, first.clone());
            async move { if number == 0 { drop(life.lock().await) } else { pending().await } }
        };
        let stock = Stock::new(2, Vec::new(), number, ended);
        stock.filled(2).await;
        drop(lives);
        stock.waiting.clone().wait_for(|waiting| *waiting == 1).await.unwrap();
        stock.filled(2).await;
        assert_eq!((stock.take().await, stock.take().await), (Ok(1), Ok(2)));
    }
}
