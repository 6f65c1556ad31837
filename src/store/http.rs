//! The HTTP client that `object_store` sends requests with: `ureq`, which realign has already.
//!
//! Calls block their thread, which is one that waits for the store anyway.

use std::io::ErrorKind;
use std::time::Duration;

use http_body_util::BodyExt;
use object_store::client::{
    ClientConfigKey, HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest,
    HttpResponse, HttpService,
};
use object_store::{ClientOptions, Result};

/// Time limits of a request. A store that was stopped keeps connections open and never answers.
const CONNECT: Duration = Duration::from_secs(3);
const ANSWER: Duration = Duration::from_secs(10);
const BODY: Duration = Duration::from_secs(300);
/// The largest object that is read.
const LARGEST: u64 = 4 << 30;

/// Makes clients.
#[derive(Debug)]
pub(crate) struct Connector;

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> Result<HttpClient> {
        let plain = options.get_config_value(&ClientConfigKey::AllowHttp);
        let config = ureq::Agent::config_builder()
            .https_only(plain.as_deref() != Some("true"))
            .http_status_as_error(false)
            // A redirect would leave the signed address.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(CONNECT))
            .timeout_send_request(Some(ANSWER))
            .timeout_send_body(Some(BODY))
            .timeout_recv_response(Some(ANSWER))
            .timeout_per_read(Some(ANSWER))
            .timeout_recv_body(Some(BODY))
            .build();
        Ok(HttpClient::new(Client(ureq::Agent::new_with_config(
            config,
        ))))
    }
}

#[derive(Debug)]
struct Client(ureq::Agent);

#[async_trait::async_trait]
impl HttpService for Client {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let (head, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        let answer = if body.is_empty() && head.method != "PUT" && head.method != "POST" {
            let request = ureq::http::Request::from_parts(head, ());
            self.0.run(request)
        } else {
            let request = ureq::http::Request::from_parts(head, &body[..]);
            self.0.run(request)
        };
        let answer = answer.map_err(error)?;
        let (head, mut body) = answer.into_parts();
        let bytes = body.with_config().limit(LARGEST).read_to_vec();
        let bytes = bytes.map_err(error)?;
        Ok(HttpResponse::from_parts(head, bytes.into()))
    }
}

/// What of an error decides whether the request is sent again.
fn error(error: ureq::Error) -> HttpError {
    let kind = match &error {
        ureq::Error::Timeout(_) => HttpErrorKind::Timeout,
        ureq::Error::HostNotFound | ureq::Error::ConnectionFailed => HttpErrorKind::Connect,
        ureq::Error::Io(io) if io.kind() == ErrorKind::ConnectionRefused => HttpErrorKind::Connect,
        ureq::Error::Io(_) => HttpErrorKind::Interrupted,
        _ => HttpErrorKind::Unknown,
    };
    HttpError::new(kind, error)
}
