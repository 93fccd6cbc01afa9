//! Retries of transient failures.

use std::time::{Duration, Instant, SystemTime};

use rbuild_linux::{Timestamp, random_bytes};

use crate::endpoint::without_port;
use crate::endpoint_modes::EndpointRole;
use crate::error::{ConnectionFailure, RegistryProblem};
use crate::proxy::is_loopback;
use crate::retry_policy::{RetryMode, RetryPolicy};
use crate::time_limit::TimeLimit;

/// Longest wait that a server may request.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// An event to report to the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// A request will be repeated.
    Waiting {
        /// The host.
        host: String,
        /// The reason, as a part of a sentence.
        reason: String,
        /// Time until the next attempt.
        wait: Duration,
    },
    /// A text of the server for the user (`Warning` header).
    Warning {
        /// The host.
        host: String,
        /// The text.
        text: String,
    },
}

/// Maximum number of attempts at mirrors, at servers of this machine that refuse connections, and
/// of [`RetryMode::Quick`].
const FEW: u32 = 2;
/// Wait before the second attempt of [`RetryMode::Quick`].
const QUICK_WAIT: Duration = Duration::from_millis(100);

/// Counts attempts.
pub(crate) struct Attempts {
    retry_policy: RetryPolicy,
    tries: u32,
    /// Maximum number of attempts if the server refuses connections.
    tries_if_refused: u32,
    made: u32,
    start: Instant,
    mode: RetryMode,
    /// The duration of this request and others together.
    limit: Option<TimeLimit>,
}

impl Attempts {
    /// Counts attempts of a request; mirrors get two.
    pub(crate) fn new(retry_policy: RetryPolicy, role: EndpointRole) -> Attempts {
        let tries = match role {
            EndpointRole::Registry => retry_policy.tries,
            EndpointRole::Mirror => FEW.min(retry_policy.tries),
        };
        let (mode, limit) = (RetryMode::Standard, None);
        Attempts { retry_policy, tries, tries_if_refused: tries, made: 0, start: Instant::now(), mode, limit }
    }

    /// Counts attempts in a mode.
    pub(crate) fn in_mode(self, mode: RetryMode) -> Attempts {
        let tries = match mode {
            RetryMode::Standard => self.tries,
            RetryMode::Quick => self.tries.min(FEW),
        };
        Attempts { mode, tries, ..self }
    }

    /// Counts attempts within a time. There is no attempt after a wait that would exceed it.
    pub(crate) fn within(self, limit: Option<TimeLimit>) -> Attempts {
        Attempts { limit, ..self }
    }

    /// Counts attempts of a login. A user waits for it, and may have mistyped the host: a refused
    /// connection is final.
    pub(crate) fn of_login(retry_policy: RetryPolicy) -> Attempts {
        Attempts { tries_if_refused: 1, ..Attempts::new(retry_policy, EndpointRole::Registry) }
    }

    /// Starts counting again, after progress.
    pub(crate) fn reset(&mut self) {
        (self.made, self.start) = (0, Instant::now());
    }

    /// Returns the time to wait before the next attempt, or `None` if this was the last one.
    /// `requested` is the time that the server requested.
    pub(crate) fn next(&mut self, requested: Option<Duration>) -> Option<Duration> {
        self.made += 1;
        if self.made >= self.tries || self.start.elapsed() > self.retry_policy.whole {
            return None;
        }
        let wait = self.retry_policy.first_wait * 2u32.pow((self.made - 1).min(3));
        let wait = match (self.mode, requested) {
            (RetryMode::Quick, Some(requested)) if requested > QUICK_WAIT => return None,
            (RetryMode::Quick, _) => QUICK_WAIT,
            (RetryMode::Standard, Some(requested)) => requested.min(MAX_WAIT),
            (RetryMode::Standard, None) => jittered(wait),
        };
        let fits = |limit: TimeLimit| limit.left().is_some_and(|left| left > wait);
        self.limit.is_none_or(fits).then_some(wait)
    }

    /// Returns the time to wait before the next attempt after a problem, or `None` if there is no
    /// other attempt. On this machine, a server that refuses connections gets only one more: the
    /// port is likely to be wrong.
    pub(crate) fn after(&mut self, problem: &RegistryProblem) -> Option<Duration> {
        if !may_be_temporary(problem) {
            return None;
        }
        if problem.is_refused() {
            let most = if is_of_this_machine(problem) { FEW } else { self.tries };
            self.tries = self.tries.min(self.tries_if_refused).min(most);
        }
        self.next(None)
    }
}

/// Returns true if the server of a problem is one of this machine.
fn is_of_this_machine(problem: &RegistryProblem) -> bool {
    problem.host().is_some_and(|host| is_loopback(without_port(host)))
}

/// Returns a time that differs from `wait` by up to a quarter. Clients that failed at the same time
/// therefore do not retry at the same time.
fn jittered(wait: Duration) -> Duration {
    let [random] = random_bytes().unwrap_or([128]);
    wait.mul_f64(0.75 + f64::from(random) / 512.0)
}

/// Returns true for HTTP statuses of temporary failures.
pub(crate) fn is_temporary_status(status: u16) -> bool {
    matches!(status, 408 | 425 | 429 | 500..=599) && !matches!(status, 501 | 505)
}

/// Returns true for problems that may be temporary.
pub(crate) fn may_be_temporary(problem: &RegistryProblem) -> bool {
    match problem {
        RegistryProblem::Connection { kind, .. } => *kind == ConnectionFailure::Transport,
        RegistryProblem::Status { status, .. } => is_temporary_status(*status),
        _ => false,
    }
}

/// Marks a problem as already retried.
pub(crate) fn repeated(problem: RegistryProblem) -> RegistryProblem {
    if may_be_temporary(&problem) { RegistryProblem::Repeated(Box::new(problem)) } else { problem }
}

/// Returns the time of a `Retry-After` header: seconds or a date.
pub(crate) fn retry_after(value: &str) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(value).ok()?.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    Some(date.saturating_sub(Duration::from_secs(Timestamp::now().sec.unsigned_abs())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_and_end() {
        let mut attempts = Attempts::new(RetryPolicy::default(), EndpointRole::Registry);
        let waits: Vec<u64> =
            std::iter::from_fn(|| attempts.next(None)).map(|w| (w.as_secs_f64() + 0.26) as u64).collect();
        assert!(matches!(waits[..], [1, 1..=2, 3..=5, 6..=10]), "{waits:?}");
        let mut attempts = Attempts::new(RetryPolicy::default(), EndpointRole::Mirror);
        assert_eq!(attempts.next(Some(Duration::from_secs(900))), Some(MAX_WAIT));
        assert_eq!(attempts.next(None), None);
    }

    #[test]
    fn a_quick_request_is_repeated_once_and_waits_for_no_server() {
        let attempts = || Attempts::new(RetryPolicy::default(), EndpointRole::Registry).in_mode(RetryMode::Quick);
        let mut quick = attempts();
        assert_eq!([quick.next(None), quick.next(None)], [Some(QUICK_WAIT), None]);
        let mut quick = attempts();
        assert_eq!([quick.next(Some(Duration::ZERO)), quick.next(None)], [Some(QUICK_WAIT), None]);
        assert_eq!(attempts().next(Some(Duration::from_secs(1))), None);
    }

    #[test]
    fn no_wait_exceeds_the_time_of_all_requests() {
        let limited = |time| {
            let limit = TimeLimit::from_now(Duration::from_secs(time));
            Attempts::new(RetryPolicy::default(), EndpointRole::Registry).within(Some(limit))
        };
        let ten = Duration::from_secs(10);
        assert_eq!((limited(11).next(Some(ten)), limited(9).next(Some(ten))), (Some(ten), None));
        assert_eq!(limited(0).next(None), None);
    }

    #[test]
    fn refused_connections_are_retried_less_on_this_machine_and_never_by_a_login() {
        let policy = RetryPolicy::default();
        let problem = |host: &str, errno| RegistryProblem::Connection {
            host: host.into(),
            request: "GET /v2/".into(),
            kind: ConnectionFailure::Transport,
            source: std::io::Error::from_raw_os_error(errno).into(),
        };
        const REFUSED: i32 = 111;
        const RESET: i32 = 104;
        for (host, errno, waits, waits_of_login) in [
            ("a.io", REFUSED, 4, 0),
            ("a.io", RESET, 4, 4),
            ("localhost:5000", REFUSED, 1, 0),
            ("127.0.0.1:1", REFUSED, 1, 0),
            ("[::1]:1", REFUSED, 1, 0),
            ("localhost:5000", RESET, 4, 4),
        ] {
            let count = |mut attempts: Attempts| {
                let problem = problem(host, errno);
                std::iter::from_fn(|| attempts.after(&problem)).count()
            };
            assert_eq!(count(Attempts::new(policy, EndpointRole::Registry)), waits, "{host} {errno}");
            assert_eq!(count(Attempts::of_login(policy)), waits_of_login, "{host} {errno}");
        }
        let blocked = RegistryProblem::Blocked("a file".into());
        assert_eq!(Attempts::new(policy, EndpointRole::Registry).after(&blocked), None);
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        assert_eq!(retry_after(" 7 "), Some(Duration::from_secs(7)));
        assert_eq!(retry_after("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
        let later = Timestamp::now().sec as u64 + 90;
        let later = httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + Duration::from_secs(later));
        assert!((85..=90).contains(&retry_after(&later).unwrap().as_secs()));
        assert_eq!(retry_after("soon"), None);
        assert!(
            is_temporary_status(429)
                && is_temporary_status(503)
                && !is_temporary_status(404)
                && !is_temporary_status(501)
        );
    }
}
