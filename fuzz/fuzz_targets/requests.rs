//! A request to any of the clients' routes: the first byte chooses the route, the rest is the body.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use realign_server::api::fuzzing::Api;

fuzz_target!(|bytes: &[u8]| {
    static API: OnceLock<Api> = OnceLock::new();
    let Some((route, body)) = bytes.split_first() else { return };
    let (path, status, answer) = API.get_or_init(Api::new).post(usize::from(*route), body);
    assert!(status < 500, "{path}: {status} {}", String::from_utf8_lossy(&answer));
});
