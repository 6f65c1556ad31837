//! An OpenAI-compatible endpoint that answers as a test says.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

use serde_json::{Value, json};

/// Starts one and returns its URL. `answer` gives the status and the answer's text for a request's body.
pub(super) fn endpoint(
    answer: impl Fn(&Value) -> (u16, &'static str) + Send + Sync + 'static,
) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    let answer = Arc::new(answer);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let answer = answer.clone();
            std::thread::spawn(move || serve(stream, &*answer));
        }
    });
    url
}

fn serve(stream: TcpStream, answer: &dyn Fn(&Value) -> (u16, &'static str)) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut stream = stream;
    loop {
        let mut length = 0;
        loop {
            let mut header = String::new();
            reader.read_line(&mut header).ok().filter(|n| *n > 0)?;
            if header.trim().is_empty() {
                break;
            }
            let value = header.to_ascii_lowercase();
            if let Some(value) = value.strip_prefix("content-length:") {
                length = value.trim().parse().ok()?;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        let (status, text) = answer(&serde_json::from_slice(&body).ok()?);
        let body = json!({"choices": [{"message": {"role": "assistant", "content": text}}]});
        let body = body.to_string();
        write!(
            stream,
            "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\nretry-after: 0\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        )
        .ok()?;
    }
}
