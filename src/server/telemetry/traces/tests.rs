use std::io::{Read, Write};
use std::net::TcpListener;

use super::*;
use crate::telemetry::{Stage, Telemetry};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

/// Answers one message and returns its body.
fn collector() -> (String, JoinHandle<Value>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let thread = std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        let mut bytes = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            let n = socket.read(&mut buffer).unwrap();
            bytes.extend_from_slice(&buffer[..n]);
            let text = String::from_utf8_lossy(&bytes);
            let Some((head, body)) = text.split_once("\r\n\r\n") else {
                continue;
            };
            assert!(head.starts_with("POST /v1/traces "), "{head}");
            if let Ok(value) = serde_json::from_str(body) {
                let answer = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
                socket.write_all(answer.as_bytes()).unwrap();
                return value;
            }
        }
    });
    (url, thread)
}

#[test]
fn requests_and_realignments_reach_the_collector() {
    let (url, received) = collector();
    let exporter = Exporter::start(&url, "test", 1.0).unwrap();
    let telemetry = Telemetry::new().unwrap().with_exporter(exporter);
    let exporter = telemetry.exporter().unwrap();
    let parent = format!("00-{TRACE}-{PARENT}-01");
    telemetry.emit(Event::RequestFinished(RequestFinished {
        route: "/v1/completions",
        status: 500,
        duration: Duration::from_millis(1500),
        trace: exporter.context(Some(&parent)),
        ..RequestFinished::default()
    }));
    let (id, took) = (String::from("ra-1"), Duration::from_secs(2));
    let stage = Stage::Train;
    telemetry.emit(Event::StageFinished {
        id: id.clone(),
        stage,
        took,
    });
    telemetry.emit(Event::RealignmentFinished {
        id,
        outcome: Outcome::Succeeded,
        trigger: None,
        generation: None,
        detail: None,
        took,
    });
    exporter.shutdown();
    let message = received.join().unwrap();
    let resource = &message["resourceSpans"][0];
    let service = &resource["resource"]["attributes"][0]["value"]["stringValue"];
    assert_eq!(service, "test");
    let spans = &resource["scopeSpans"][0]["spans"];
    let request = &spans[0];
    assert_eq!(request["traceId"], TRACE);
    assert_eq!(request["parentSpanId"], PARENT);
    assert_eq!(request["status"]["code"], 2);
    let nanos = |key: &str| request[key].as_str().unwrap().parse::<u128>().unwrap();
    let took = nanos("endTimeUnixNano") - nanos("startTimeUnixNano");
    assert_eq!(took, 1_500_000_000);
    assert_eq!(spans[1]["parentSpanId"], spans[2]["spanId"]);
    assert_eq!(spans[1]["traceId"], spans[2]["traceId"]);
    assert_eq!(exporter.dropped(), 0);
}

#[test]
fn a_missing_collector_costs_spans_and_nothing_else() {
    let unreachable = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", unreachable.local_addr().unwrap());
    drop(unreachable);
    let exporter = Exporter::start(&url, "test", 0.0).unwrap();
    assert_eq!(exporter.context(None), None, "a share of 0");
    let (id, stage, took) = ("r".into(), Stage::Gate, Duration::ZERO);
    exporter.record(&Event::StageFinished { id, stage, took });
    exporter.shutdown();
    assert_eq!(exporter.dropped(), 1);
}

#[test]
fn callers_say_whether_they_trace() {
    let recorded = format!("00-{TRACE}-{PARENT}-01");
    assert_eq!(parse(&recorded), Some((TRACE.into(), PARENT.into(), true)));
    let not = format!("00-{TRACE}-{PARENT}-00");
    assert_eq!(parse(&not).map(|p| p.2), Some(false));
    let zero = format!("00-{}-{PARENT}-01", "0".repeat(32));
    let upper = recorded.to_uppercase();
    for wrong in [
        "",
        "00-1-2-01",
        "zz",
        zero.as_str(),
        upper.as_str(),
        "00-é-1-1",
    ] {
        assert_eq!(parse(wrong), None, "{wrong:?}");
    }
}
