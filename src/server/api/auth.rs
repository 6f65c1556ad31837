//! Authentication: bearer keys, compared in constant time, and the limits of each.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tokio::sync::OwnedSemaphorePermit;

use super::AppState;
use super::error::ApiError;
use super::limits::{Limiter, Rates, Remaining};
use super::observe::Observation;
use crate::config::keys::{ApiKey, KeyDigest};

/// The name under which clients are counted while no keys are configured.
const ANONYMOUS: &str = "anyone";

/// API keys and limits. Keys can be replaced while requests are running.
#[derive(Debug)]
pub struct Access {
    keys: ArcSwap<Vec<ApiKey>>,
    admin: Option<KeyDigest>,
    rates: Rates,
    limiter: Limiter,
    anonymous: Arc<str>,
}

impl Access {
    /// With no `keys`, no key is required; without an `admin` key, the operator routes answer only
    /// requests from this machine. `max_concurrent` limits the running client requests.
    pub(crate) fn new(
        keys: Vec<ApiKey>,
        admin: Option<KeyDigest>,
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

    /// Charges the tokens of a completed answer to its caller's limit.
    pub(crate) fn charge(&self, caller: &str, tokens: usize) {
        self.limiter.charge(caller, tokens);
    }

    /// The name and the limits of the key that a request carries.
    fn caller(&self, headers: &HeaderMap) -> Result<(Arc<str>, Rates), ApiError> {
        let keys = self.keys.load();
        if keys.is_empty() {
            return Ok((Arc::clone(&self.anonymous), self.rates));
        }
        let sent = KeyDigest::of(bearer(headers)?);
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
        Ok((Arc::clone(&key.name), rates))
    }
}

/// Middleware of client routes: admits a request if it carries a valid key (or none is configured)
/// and its caller is within its limits.
pub(crate) async fn client(
    State(state): State<AppState>,
    request: Request,
    next: Next,
) -> Response {
    let access = &state.access;
    let observation = request.extensions().get::<Arc<Observation>>().cloned();
    let admitted = access.caller(request.headers()).and_then(|(name, rates)| {
        // The permit is acquired first, so that a request refused for lack of one costs the caller
        // nothing.
        let permit = access.limiter.acquire()?;
        let left = access.limiter.admit(&name, rates, Instant::now())?;
        Ok((name, permit, left))
    });
    match admitted {
        Ok((name, permit, left)) => {
            // Held until the last byte is sent, or to the end of this function if there is no
            // observation.
            let unobserved = match &observation {
                Some(observation) => {
                    observation.admitted(Arc::clone(access), name, permit);
                    None
                }
                None => Some(permit),
            };
            let mut response = next.run(request).await;
            drop(unobserved);
            show_remaining(response.headers_mut(), left);
            response
        }
        Err(error) => error.into_response(),
    }
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

/// Middleware of operator routes: admits a request if it carries the operator key or, if none is
/// configured, comes from this machine.
pub(crate) async fn admin(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let allowed = match &state.access.admin {
        Some(key) => check_admin(request.headers(), key),
        None => check_local(&request),
    };
    match allowed {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

fn check_admin(headers: &HeaderMap, key: &KeyDigest) -> Result<(), ApiError> {
    if KeyDigest::of(bearer(headers)?).matches(key) {
        return Ok(());
    }
    Err(ApiError::Unauthorized("the API key is wrong"))
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

/// A web page in a local browser, or a proxy, also connects from the loopback address, but on
/// behalf of someone else. Requests with forwarding headers are therefore refused, as are those
/// whose `Origin` is not this server. Requiring a loopback `Host` prevents DNS rebinding.
fn check_local(request: &Request) -> Result<(), ApiError> {
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>();
    let local = peer.is_some_and(|ConnectInfo(peer)| peer.ip().to_canonical().is_loopback());
    let headers = request.headers();
    let forwarded = ["forwarded", "x-forwarded-for"]
        .iter()
        .any(|name| headers.contains_key(*name));
    let host = text(headers, header::HOST);
    let own_host = host.is_none_or(is_loopback);
    let own_page = text(headers, header::ORIGIN).is_none_or(|origin| {
        let origin = origin.split_once("://");
        origin.is_some_and(|(_, origin)| Some(origin) == host)
    });
    if local && own_host && own_page && !forwarded {
        return Ok(());
    }
    Err(ApiError::Forbidden(
        "operator routes answer only direct requests from this machine, to its loopback address; \
         set an admin key to use them from elsewhere",
    ))
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name).map(|v| v.to_str().unwrap_or_default())
}

/// Whether `host` or `host:port` is `localhost` or a loopback address.
fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    let address = name.parse::<IpAddr>();
    name.eq_ignore_ascii_case("localhost") || address.is_ok_and(|ip| ip.is_loopback())
}
