//! A request's body on its way to a target: read up to `model`, then passed on as it arrives.
//!
//! What was passed on is remembered as long as it is small, so that another target can be asked if
//! the first one turns out to be gone.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::{Body, BodyDataStream, Bytes};
use axum::extract::Request;
use axum::http::header;
use futures::StreamExt;

use super::scan::Scan;
use crate::api::ApiError;

/// Most bytes that are remembered.
const REMEMBERED: usize = 4 << 20;

/// What a client sent, as far as it was remembered.
#[derive(Clone)]
pub(super) struct Sent(Arc<Mutex<Shared>>);

impl Sent {
    /// The client's body as it was read so far, with its own `model`; `None` if it was too long to be remembered.
    pub(super) fn whole(&self) -> Option<Vec<Bytes>> {
        let shared = lock(&self.0);
        shared.is_whole.then(|| shared.seen.clone())
    }
}

impl std::fmt::Debug for Sent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sent")
    }
}

/// A body of which `model` was read.
pub(super) struct Upload {
    shared: Arc<Mutex<Shared>>,
    /// What is asked for; empty for what serves.
    pub(super) model: String,
    /// Where the new value goes, in the first bytes, and what it replaces.
    at: std::ops::Range<usize>,
    /// What stands before and behind it.
    around: (&'static str, &'static str),
    /// The whole length, where the client says it.
    length: Option<usize>,
    /// What tells which requests belong together, if that was asked.
    pub(super) belongs: Option<String>,
}

struct Shared {
    rest: Option<BodyDataStream>,
    scan: Scan,
    seen: Vec<Bytes>,
    seen_bytes: usize,
    limit: usize,
    /// Whether `seen` is everything that was read.
    is_whole: bool,
    /// Whether the client's body has ended.
    has_ended: bool,
    fault: Option<ApiError>,
}

impl Shared {
    /// The next bytes, looked at and remembered.
    fn take(&mut self, bytes: &Bytes) -> Result<(), ApiError> {
        self.seen_bytes += bytes.len();
        if self.seen_bytes > self.limit {
            return Err(ApiError::TooLarge { limit: self.limit });
        }
        let scanned = self.scan.read(bytes);
        scanned.map_err(|error| ApiError::Body(error.to_string()))?;
        self.is_whole &= self.seen_bytes <= REMEMBERED;
        if self.is_whole {
            self.seen.push(bytes.clone());
        } else {
            self.seen.clear();
        }
        Ok(())
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Upload {
    /// Reads a body up to `model`, within `time`; with `keyed` further on, for what tells which requests
    /// belong together.
    ///
    /// # Errors
    /// What is wrong with the body.
    pub(super) async fn read(
        request: Request,
        limit: usize,
        time: Duration,
        keyed: bool,
    ) -> Result<Self, ApiError> {
        let length = request.headers().get(header::CONTENT_LENGTH);
        let length = length.and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
        if length.is_some_and(|length| length > limit) {
            return Err(ApiError::TooLarge { limit });
        }
        let mut stream = request.into_body().into_data_stream();
        let mut shared = Shared {
            rest: None,
            scan: Scan::default(),
            seen: Vec::new(),
            seen_bytes: 0,
            limit,
            is_whole: true,
            has_ended: false,
            fault: None,
        };
        let mut head: Vec<u8> = Vec::new();
        let find = async {
            loop {
                let is_found = shared.scan.found().is_some();
                // What is read is kept, and so is bounded.
                let wants_key = keyed && !shared.scan.knows_user() && head.len() < REMEMBERED / 2;
                if is_found && !wants_key {
                    return Ok(());
                }
                let Some(bytes) = stream.next().await else {
                    shared.has_ended = true;
                    return shared.scan.end().map_err(|e| ApiError::Body(e.to_string()));
                };
                let bytes = bytes.map_err(|e| broken(&e))?;
                shared.take(&bytes)?;
                head.extend_from_slice(&bytes);
            }
        };
        let found = tokio::time::timeout(time, find).await;
        found.map_err(|_| ApiError::Timeout {
            seconds: time.as_secs(),
        })??;
        // What was read so far is kept in any case.
        shared.seen = vec![head.into()];
        shared.rest = Some(stream);
        let scan = &shared.scan;
        let belongs = scan.belongs().filter(|_| keyed).map(str::to_owned);
        let (model, at, around) = match scan.found() {
            Some(found) => (found.model.clone(), found.at.clone(), ("", "")),
            None => {
                let behind = if scan.is_empty { "" } else { "," };
                (String::new(), scan.open..scan.open, ("\"model\":", behind))
            }
        };
        Ok(Self {
            shared: Arc::new(Mutex::new(shared)),
            model,
            at,
            around,
            length,
            belongs,
        })
    }

    /// What the client sends.
    pub(super) fn sent(&self) -> Sent {
        Sent(self.shared.clone())
    }

    /// Whether it can be sent, again or for the first time.
    pub(super) fn can_be_sent(&self, attempt: usize) -> bool {
        let shared = lock(&self.shared);
        shared.fault.is_none() && (attempt == 0 || shared.is_whole) && shared.rest.is_some()
    }

    /// What is wrong with the part that was read since, if anything.
    pub(super) fn fault(&self) -> Option<ApiError> {
        lock(&self.shared).fault.clone()
    }

    /// The body with another `model`, and its length where that is known. One is sent at a time.
    pub(super) fn body(&self, model: &str) -> (Body, Option<usize>) {
        let value = serde_json::Value::from(model).to_string();
        let value = format!("{}{value}{}", self.around.0, self.around.1);
        let length = self.length.map(|l| l + value.len() - self.at.len());
        let mut chunks: Vec<Bytes> = Vec::new();
        let shared = lock(&self.shared);
        if let Some((head, others)) = shared.seen.split_first() {
            chunks.push(head.slice(..self.at.start));
            chunks.push(value.into());
            chunks.push(head.slice(self.at.end..));
            chunks.extend(others.iter().cloned());
        }
        drop(shared);
        let state = (chunks.into_iter(), Sending::new(self.shared.clone()));
        let stream = futures::stream::unfold(state, |(mut chunks, mut sending)| async move {
            if let Some(chunk) = chunks.next() {
                return Some((Ok(chunk), (chunks, sending)));
            }
            let next = sending.next().await?;
            Some((next, (chunks, sending)))
        });
        (Body::from_stream(stream), length)
    }
}

fn broken(error: &axum::Error) -> ApiError {
    ApiError::Body(format!("the request body did not arrive: {error}"))
}

/// The rest of the client's body, given back when it is dropped.
struct Sending {
    shared: Arc<Mutex<Shared>>,
    rest: Option<BodyDataStream>,
}

impl Sending {
    fn new(shared: Arc<Mutex<Shared>>) -> Self {
        let rest = lock(&shared).rest.take();
        Self { shared, rest }
    }

    async fn next(&mut self) -> Option<Result<Bytes, ApiError>> {
        if lock(&self.shared).has_ended {
            return None;
        }
        let next = self.rest.as_mut()?.next().await;
        let mut shared = lock(&self.shared);
        let taken = match next {
            None => {
                shared.has_ended = true;
                let ended = shared.scan.end();
                match ended {
                    Ok(()) => return None,
                    Err(error) => Err(ApiError::Body(error.to_string())),
                }
            }
            Some(Err(error)) => Err(broken(&error)),
            Some(Ok(bytes)) => shared.take(&bytes).map(|()| bytes),
        };
        if let Err(error) = &taken {
            // The target gets a body that ends too early, which it does not act upon.
            shared.fault = Some(error.clone());
            shared.has_ended = true;
        }
        Some(taken)
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        lock(&self.shared).rest = self.rest.take();
    }
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;

    use super::*;

    fn request(pieces: &[&'static str]) -> Request {
        let pieces: Vec<Result<Bytes, std::io::Error>> =
            pieces.iter().map(|p| Ok(Bytes::from(*p))).collect();
        Request::new(Body::from_stream(futures::stream::iter(pieces)))
    }

    async fn read(pieces: &[&'static str]) -> Result<Upload, ApiError> {
        Upload::read(request(pieces), 1000, Duration::from_secs(5), false).await
    }

    async fn sent(upload: &Upload, model: &str) -> Result<String, axum::Error> {
        let bytes = to_bytes(upload.body(model).0, 10_000).await?;
        Ok(String::from_utf8(bytes.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn the_model_is_replaced_and_the_body_can_be_sent_again() {
        let upload = read(&["{\"n\":1,\"mod", "el\":\"a\",\"x", "\":[1,2]}"])
            .await
            .unwrap();
        assert_eq!(upload.model, "a");
        for model in ["b@1", "longer \"name\""] {
            let name = serde_json::Value::from(model);
            assert!(upload.can_be_sent(1));
            let text = sent(&upload, model).await.unwrap();
            assert_eq!(text, format!("{{\"n\":1,\"model\":{name},\"x\":[1,2]}}"));
        }
        let none = read(&["{\"n\"", ":1}"]).await.unwrap();
        assert_eq!(sent(&none, "b").await.unwrap(), "{\"model\":\"b\",\"n\":1}");
        let empty = read(&["{ }"]).await.unwrap();
        assert_eq!(sent(&empty, "b").await.unwrap(), "{\"model\":\"b\" }");
    }

    #[tokio::test]
    async fn no_more_is_read_than_the_model() {
        let first: Result<Bytes, std::io::Error> = Ok(Bytes::from("{\"model\":\"a\","));
        let endless = futures::stream::once(async { first }).chain(futures::stream::pending());
        let request = Request::new(Body::from_stream(endless));
        let upload = Upload::read(request, 1000, Duration::from_secs(5), false)
            .await
            .unwrap();
        assert_eq!(upload.model, "a");
    }

    #[tokio::test]
    async fn what_belongs_together_is_read_if_it_is_asked() {
        let pieces = [
            "{\"model\":\"a\",",
            "\"n\":1,",
            "\"user\":\"u\",",
            "\"x\":2}",
        ];
        let upload = Upload::read(request(&pieces), 1000, Duration::from_secs(5), true)
            .await
            .unwrap();
        assert_eq!(
            (&*upload.model, upload.belongs.as_deref()),
            ("a", Some("u"))
        );
        for _ in 0..2 {
            let text = sent(&upload, "b").await.unwrap();
            assert_eq!(text, "{\"model\":\"b\",\"n\":1,\"user\":\"u\",\"x\":2}");
        }
        assert_eq!(read(&pieces).await.unwrap().belongs, None);
    }

    #[tokio::test]
    async fn a_second_model_further_on_ends_the_body() {
        let upload = read(&["{\"model\":\"a\",", "\"model\":\"b\"}"])
            .await
            .unwrap();
        assert!(sent(&upload, "c").await.is_err());
        let fault = upload.fault().unwrap().to_string();
        assert!(fault.contains("twice"), "{fault}");
        assert!(!upload.can_be_sent(1));
    }

    #[tokio::test]
    async fn bodies_are_bounded() {
        let long: &'static str = Box::leak("x".repeat(600).into_boxed_str());
        let upload = read(&["{\"model\":\"a\",\"p\":\"", long, long, "\"}"])
            .await
            .unwrap();
        assert!(sent(&upload, "c").await.is_err());
        assert_eq!(upload.fault(), Some(ApiError::TooLarge { limit: 1000 }));
        let late = read(&["{\"p\":\"", long, long, "\"}"]).await;
        assert_eq!(late.err(), Some(ApiError::TooLarge { limit: 1000 }));
        assert!(read(&["[1]"]).await.is_err() && read(&["{\"a\":1"]).await.is_err());
    }
}
