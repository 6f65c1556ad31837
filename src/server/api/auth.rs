//! Authentication: bearer keys, compared in constant time, and the limits of each.

use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tokio::sync::OwnedSemaphorePermit;

use super::AppState;
use super::error::ApiError;
use super::limits::{Caller, Limiter, Rates, Remaining};
use super::observe::Observation;
use crate::config::keys::{ApiKey, KeyDigest};

/// The name under which clients are counted while no keys are configured.
const ANONYMOUS: &str = "anyone";

/// API keys and limits. Keys can be replaced while requests are running.
#[derive(Debug)]
pub struct Access {
    keys: ArcSwap<Vec<ApiKey>>,
    admin: KeyDigest,
    rates: Rates,
    limiter: Limiter,
    anonymous: Arc<str>,
}

impl Access {
    /// With no `keys`, clients need none; operators always need the `admin` key. `max_concurrent`
    /// limits the running client requests.
    pub(crate) fn new(
        keys: Vec<ApiKey>,
        admin: KeyDigest,
        rates: Rates,
        max_concurrent: usize,
    ) -> Self {
        Self {
            keys: ArcSwap::from_pointee(keys),
            admin,
            rates,
            limiter: Limiter::new(max_concurrent),
            anonymous: ANONYMOUS.into(),
        }
    }

    /// Replaces all keys.
    pub(crate) fn replace_keys(&self, keys: Vec<ApiKey>) {
        let known = |name: &str| name == ANONYMOUS || keys.iter().any(|key| &*key.name == name);
        self.limiter.keep(known);
        self.keys.store(Arc::new(keys));
    }

    /// Number of client requests whose response is not complete.
    pub(crate) fn running(&self) -> usize {
        self.limiter.running()
    }

    /// Acquires a permit for a running request, released when dropped.
    pub(crate) fn acquire(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        self.limiter.acquire()
    }

    /// Takes `tokens` from the caller's limit for a request that begins.
    ///
    /// # Errors
    /// As [`Limiter::reserve`].
    pub(crate) fn reserve(&self, caller: &Caller, tokens: usize) -> Result<(), ApiError> {
        self.limiter.reserve(caller, tokens, Instant::now())
    }

    /// Gives back what a request reserved and did not use, or takes what it used beyond that.
    pub(crate) fn settle(&self, caller: &Caller, reserved: usize, used: usize) {
        self.limiter.settle(&caller.name, reserved, used);
    }

    /// Lets a request of a gateway's client in, which holds the permit for as long as it runs. Its
    /// tokens are not counted here.
    ///
    /// # Errors
    /// A wrong key, or a limit that is reached.
    pub(crate) fn enter(&self, headers: &HeaderMap) -> Result<OwnedSemaphorePermit, ApiError> {
        let caller = self.caller(headers)?;
        let permit = self.limiter.acquire()?;
        self.limiter.admit(&caller, Instant::now())?;
        Ok(permit)
    }

    /// Whether a request carries the operators' key.
    ///
    /// # Errors
    /// [`ApiError::Unauthorized`].
    pub(crate) fn check_operator(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        check_admin(headers, &self.admin)
    }

    /// The name and the limits of the key that a request carries.
    fn caller(&self, headers: &HeaderMap) -> Result<Caller, ApiError> {
        let keys = self.keys.load();
        if keys.is_empty() {
            return Ok(Caller {
                name: Arc::clone(&self.anonymous),
                rates: self.rates,
            });
        }
        // Anthropic's clients send the key in a header of its own.
        let own = headers
            .get("x-api-key")
            .and_then(|value| value.to_str().ok());
        let key = match own {
            Some(key) if !headers.contains_key(header::AUTHORIZATION) => key.trim(),
            _ => bearer(headers)?,
        };
        let sent = KeyDigest::of(key);
        // Every key is compared, so that timing does not reveal which one matched.
        let found = keys.iter().fold(None, |found, key| {
            let matches = key.digest.matches(&sent);
            if matches { Some(key) } else { found }
        });
        let key = found.ok_or(ApiError::Unauthorized("the API key is wrong"))?;
        let limit = |own: Option<u32>, common| own.map_or(common, |n| (n > 0).then_some(n));
        let rates = Rates {
            requests: limit(key.requests_per_minute, self.rates.requests),
            tokens: limit(key.tokens_per_minute, self.rates.tokens),
        };
        Ok(Caller {
            name: Arc::clone(&key.name),
            rates,
        })
    }
}

/// Marks a request on a connection beyond the listener's limit: it is there for probes and
/// operators.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BeyondLimit;

/// Middleware of client routes: admits a request if it carries a valid key (or none is configured)
/// and its caller is within its limits.
pub(crate) async fn client(
    State(state): State<AppState>,
    request: Request,
    next: Next,
) -> Response {
    let access = &state.access;
    let observation = request.extensions().get::<Arc<Observation>>().cloned();
    let caller = match access.caller(request.headers()) {
        Ok(caller) => caller,
        Err(error) => return error.into_response(),
    };
    let mut response = match admit(access, &caller, &request) {
        Ok(permit) => {
            // Held until the last byte is sent, or to the end of this block if there is no
            // observation.
            let _unobserved = match &observation {
                Some(observation) => {
                    observation.admitted(Arc::clone(access), caller.clone(), permit);
                    None
                }
                None => Some(permit),
            };
            next.run(request).await
        }
        Err(error) => error.into_response(),
    };
    let left = access.limiter.remaining(&caller, Instant::now());
    show_remaining(response.headers_mut(), left);
    response
}

fn admit(
    access: &Access,
    caller: &Caller,
    request: &Request,
) -> Result<OwnedSemaphorePermit, ApiError> {
    if request.extensions().get::<BeyondLimit>().is_some() {
        return Err(ApiError::Unavailable(
            "all connections for clients are in use; retry in a moment".into(),
        ));
    }
    // The permit is acquired first, so that a request refused for lack of one costs the caller
    // nothing.
    let permit = access.limiter.acquire()?;
    access.limiter.admit(caller, Instant::now())?;
    Ok(permit)
}

fn show_remaining(headers: &mut HeaderMap, left: Remaining) {
    let names = [
        (
            left.requests,
            "x-ratelimit-limit-requests",
            "x-ratelimit-remaining-requests",
        ),
        (
            left.tokens,
            "x-ratelimit-limit-tokens",
            "x-ratelimit-remaining-tokens",
        ),
    ];
    for (left, limit_name, left_name) in names {
        if let Some((limit, left)) = left {
            headers.insert(
                HeaderName::from_static(limit_name),
                HeaderValue::from(limit),
            );
            headers.insert(HeaderName::from_static(left_name), HeaderValue::from(left));
        }
    }
}

/// Middleware of operator routes: admits a request if it carries the operator key. Where it comes
/// from says nothing: a proxy on this machine connects from here for anyone.
pub(crate) async fn admin(State(state): State<AppState>, request: Request, next: Next) -> Response {
    match check_admin(request.headers(), &state.access.admin) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

fn check_admin(headers: &HeaderMap, key: &KeyDigest) -> Result<(), ApiError> {
    let sent = bearer(headers).map_err(|_none| {
        ApiError::Unauthorized(
            "the operators' key is required: send `Authorization: Bearer <key>`. It is \
             server.admin_key of the configuration or, without that, in the file admin-key of the \
             server's state directory",
        )
    })?;
    if KeyDigest::of(sent).matches(key) {
        return Ok(());
    }
    Err(ApiError::Unauthorized(
        "the operators' key is wrong: it is server.admin_key of the configuration or, without \
         that, in the file admin-key of the server's state directory",
    ))
}

fn bearer(headers: &HeaderMap) -> Result<&str, ApiError> {
    let sent = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    sent.map(|(_, key)| key.trim())
        .ok_or(ApiError::Unauthorized(
            "an API key is required: send `Authorization: Bearer <key>`",
        ))
}
